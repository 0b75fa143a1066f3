//! `bessemer compile`

use crate::exit::{Code, Failure};
use crate::measure::ceilings::machine_name;
use crate::output::out;
use crate::progress::{Meter, Unit};
use crate::size::Size;
use crate::{interrupt, json, model, paths, quality, trust};
use bessemer_compiler::Method;
use bessemer_compiler::calibrate::{Budget, Corpus, Statistics};
use bessemer_compiler::compile::{key, plan, prepare};
use bessemer_compiler::import::{Checkpoint, text::text_section};
use bessemer_compiler::tuning::{Event, TuneOptions, Tuning, TuningCache, tune};
use bessemer_compiler::{CompileOptions, Compiled, RunOptions, code, compile, emit};
use bessemer_format::QuantScheme;
use bessemer_ir::Phase;
use bessemer_passes::{Override, PrecisionPolicy};
use bessemer_runtime::Hash;
use bessemer_targets::clike::Dialect;
use bessemer_targets::{Tactic, Targets};
use clap::ValueEnum;
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  bessemer compile model.gguf -o model.engine                     keep the weights exactly as they are stored
  bessemer compile model/ -o model.engine --precision int4:64     four bits a weight, a scale for every 64
  bessemer compile hf:ORG/MODEL@main -o model.engine              fetch it from the Hugging Face Hub
  bessemer compile model/ -o model.engine --quality balanced      the fewest bits that hold a quality, measured
  bessemer compile model/ -o model.engine --target cpu --target cuda      one file for machines with and without a GPU
  bessemer compile model/ -o model.engine --precision awq --calib-stats model.stats
  bessemer compile model.gguf --emit plan                         what would run, as text
  bessemer compile model.gguf --stop-after fused --emit dot | dot -Tsvg > graph.svg
  bessemer compile model.gguf --key                               the name under which the cache keeps it
  bessemer compile model.gguf -o model.engine --tune              measure on this machine how it runs fastest";

/// Compile a checkpoint into one engine file
///
/// The file appears under its name only when it is complete. The same source, options (the tuning cache is one) and version give
/// the same bytes, whatever the machine, the folder and the number of threads. The engine's hash goes on your trust list.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A GGUF file, a Hugging Face directory or `hf:ORG/MODEL[@REVISION][/FILE.gguf]`
    #[arg(value_name = "SRC")]
    source: PathBuf,

    #[command(flatten)]
    hub: model::HubArgs,

    /// The engine to write
    #[arg(short, long, value_name = "ENGINE", required_unless_present_any = ["emit", "key", "stop_after"])]
    out: Option<PathBuf>,

    /// What the engine is for (may be repeated): cpu, which runs on every CPU with the best kernels that it has; cuda, or cuda:sm_80 and
    /// the like for some architectures; metal. The engine holds the weights once, and runs on the best of these that a machine has
    #[arg(long, value_name = "T", default_value = "cpu")]
    target: Vec<String>,

    /// What becomes of the weights: source, f32, bf16, int8, int6, int5, int4, int3 or int2 (each with :GROUP, if wanted), awq (int4:128
    /// with --method awq), or a scheme such as u4:f16x32-8
    #[arg(long, value_name = "P", default_value = "source", group = "wanted")]
    precision: Precision,

    /// The quality to hold instead of a precision, which is then chosen weight by weight: lossless (the source's weights), high (a mean KL
    /// divergence of 0.01 on held-out text), balanced (0.03) or small (0.1)
    #[arg(long, value_name = "Q", group = "wanted")]
    quality: Option<Preset>,

    /// The smallest engine whose mean KL divergence on held-out text is at most this
    #[arg(long, value_name = "X", value_parser = positive, group = "wanted")]
    max_kl: Option<f64>,

    /// The smallest engine whose perplexity of held-out text is at most so many percent above the source's
    #[arg(long, value_name = "X%", value_parser = percent, group = "wanted")]
    max_ppl_increase: Option<f64>,

    /// The best engine of at most so many bits a weight
    #[arg(long, value_name = "B", value_parser = positive, group = "wanted")]
    target_bpw: Option<f64>,

    /// The best engine of at most this size (such as 90MiB)
    #[arg(long, value_name = "SIZE", group = "wanted")]
    max_size: Option<Size>,

    /// Another precision for weights whose name matches; the last that matches counts (may be repeated)
    #[arg(long = "override", value_name = "REGEX=P")]
    overrides: Vec<Override>,

    /// How weights are rounded: rtn (to nearest), weighted (to nearest, in ranges that suit the inputs), awq, gptq, awq+gptq, or smoothquant
    /// (for activations that are rounded too); awq+gptq where a quality or a size is asked for
    #[arg(long, value_name = "M")]
    method: Option<Method>,

    /// Codes around zero instead of between a minimum and a maximum
    #[arg(long)]
    symmetric: bool,

    #[command(flatten)]
    calibration: model::CalibrationArgs,

    /// Statistics that `bessemer calibrate` gathered, in place of a calibration text
    #[arg(long, value_name = "FILE", conflicts_with_all = ["calib", "calib_windows", "calib_window"])]
    calib_stats: Option<PathBuf>,

    /// Folder of results that are dear to compute: an interrupted calibration goes on from there
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,

    /// Text on which the loss by rounding is measured, none of it calibrated on; a sample of stories if nobody names one
    #[arg(long, value_name = "FILE|DIR", conflicts_with = "no_measure")]
    held_out: Option<PathBuf>,

    /// Windows of the held-out text
    #[arg(long, value_name = "N", default_value_t = 8)]
    held_out_windows: usize,

    /// Tokens of a window of the held-out text
    #[arg(long, value_name = "N", default_value_t = 128)]
    held_out_window: usize,

    /// Measure no loss by rounding
    #[arg(long, conflicts_with_all = ["quality", "max_kl", "max_ppl_increase", "target_bpw", "max_size"])]
    no_measure: bool,

    /// Elements that share a scale, for int8 and int4; 0 is a whole row
    #[arg(long, value_name = "N")]
    group: Option<u32>,

    /// Tokens of the longest sequence, where it is not to be the model's own. Ropes that scale by the context are fixed by it, since keys
    /// stay in the cache as they were turned: LongRoPE has its short factors up to the original context and its long ones beyond (for
    /// all lengths); dynamic NTK, which can go beyond the trained context, has the base for this one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ctx: Option<u32>,

    /// Compute in f32 where kernels of integers or bf16 exist: slower, without rounding of activations
    #[arg(long)]
    f32_activations: bool,

    /// Round activations to bytes by one scale a row where weights have scales of whole rows (`--group 0`), and by one a group where theirs
    /// have 256 elements or more; else as ever. Faster on CPUs with AMX, and rounds more
    #[arg(long, conflicts_with = "f32_activations")]
    row_activations: bool,

    /// Threads that pack weights; 0 for all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// Switch a pass off (may be repeated)
    #[arg(long, value_name = "PASS")]
    disable: Vec<String>,

    /// Leave out machine code of loop nests; the runtime executes them itself
    #[arg(long)]
    no_code: bool,

    #[command(flatten)]
    tuning: TuningArgs,

    /// Stop when the graph has reached a phase, and print it: imported, canonical, fused, quantised or packed
    #[arg(long, value_name = "PHASE")]
    stop_after: Option<Phase>,

    /// Print something instead of writing an engine
    #[arg(long, value_enum)]
    emit: Option<Emit>,

    /// Print the cache key and stop
    #[arg(long, conflicts_with = "emit")]
    key: bool,

    /// Fail (exit code 5) unless the engine has this sha256
    #[arg(long, value_name = "HASH")]
    expect_sha256: Option<String>,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Constants of the schedule: none changes what an engine computes to which precision.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Tactics")]
struct TuningArgs {
    /// Measure tactics on this machine, keep them in the tuning cache, and compile with them
    #[arg(long, conflicts_with_all = ["emit", "key", "stop_after"])]
    tune: bool,

    /// The tuning cache. With --tune it is written, by default in the cache folder; without it is only read
    #[arg(long, value_name = "FILE")]
    tuning_cache: Option<PathBuf>,

    /// The machine whose measurements to use, as `bessemer tuning show` prints it; this one by default
    #[arg(long, value_name = "NAME", requires = "tuning_cache", conflicts_with = "tune")]
    tuning_machine: Option<String>,

    /// Seconds after which tuning measures no more
    #[arg(long, value_name = "S", default_value_t = 120, requires = "tune")]
    tune_limit: u64,

    /// Set a tactic by hand: attention_chunk, chunk_rows or split_rows (may be repeated)
    #[arg(long, value_name = "NAME=VALUE", value_parser = tactic)]
    tactic: Vec<(Tactic, u32)>,
}

fn tactic(text: &str) -> Result<(Tactic, u32), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    let tactic: Tactic = name.parse()?;
    let value = value.parse().map_err(|_| format!("`{value}` is no number"))?;
    tactic.check(value)?;
    Ok((tactic, value))
}

/// What can be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Emit {
    /// The graph as text
    Ir,
    /// Steps, buffers and nests as text
    Plan,
    /// The graph for Graphviz
    Dot,
    /// Generated machine code, disassembled
    Asm,
    /// Kernels for GPUs as CUDA C++
    Cuda,
    /// The same in the Metal Shading Language
    Metal,
}

/// What `--precision` takes: a policy, or a recipe's name.
#[derive(Clone, Copy, Debug)]
enum Precision {
    Policy(PrecisionPolicy),
    Awq,
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "awq" { Ok(Self::Awq) } else { s.parse().map(Self::Policy) }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Policy(policy) => policy.fmt(f),
            Self::Awq => f.write_str("awq"),
        }
    }
}

/// Qualities that have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Preset {
    Lossless,
    High,
    Balanced,
    Small,
}

impl Preset {
    /// What it asks for; nothing where the source's weights are kept.
    fn budget(self) -> Option<Budget> {
        match self {
            Self::Lossless => None,
            Self::High => Some(Budget::Kl(0.01)),
            Self::Balanced => Some(Budget::Kl(0.03)),
            Self::Small => Some(Budget::Kl(0.1)),
        }
    }
}

fn positive(s: &str) -> Result<f64, String> {
    let number = s.parse::<f64>().ok().filter(|x| x.is_finite() && *x > 0.0);
    number.ok_or_else(|| format!("`{s}` is no number above 0"))
}

fn percent(s: &str) -> Result<f64, String> {
    positive(s.trim_end_matches('%').trim_end())
}

/// Whether a checkpoint comes with a tokenizer.
fn has_text(source: &std::path::Path) -> Result<bool, Failure> {
    let section = text_section(&Checkpoint::open(source)?);
    Ok(section.map_err(|e| bessemer_compiler::CompileError::Text(e.to_string()))?.is_some())
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    /// The commit that a name on the Hub stood for.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(flatten)]
    compiled: &'a Compiled,
}

impl Args {
    /// Does it.
    pub fn run(mut self) -> Result<(), Failure> {
        let (source, commit) = self.hub.resolve(&self.source)?;
        self.source = source;
        let options = self.options()?;
        let (threads, stop_after, scratch) = (self.threads, self.stop_after, self.scratch.clone());
        let (toolchain, kernels) = (paths::toolchain().ok(), paths::kernels().ok());
        let run = RunOptions { threads, stop_after, scratch, toolchain, kernels, ..RunOptions::default() };
        if self.key {
            return self.print_key(&options);
        }
        if self.emit.is_some() || self.stop_after.is_some() {
            return self.print(self.emit.unwrap_or(Emit::Ir), &options, &run);
        }
        let Some(out) = &self.out else { return Err(Failure::usage("--out is missing")) };
        interrupt::handle();
        let options = if self.tuning.tune { self.tune(out, options)? } else { options };
        let meter = Meter::new(Unit::Bytes);
        let compiled = compile(&self.source, out, &options, &run, self.expect_sha256.as_deref(), &meter)?;
        drop(meter);
        trust::add(&model::claimed_hash(out)?, out)?;
        if self.json {
            return json::print(&Report { source: commit, compiled: &compiled });
        }
        eprintln!(
            "{}: {}, {:.2} bits a weight, sha256 {}",
            out.display(),
            Size(compiled.bytes),
            compiled.bits_per_weight,
            compiled.sha256
        );
        eprintln!("{}", quality::line(compiled.quality.as_ref(), options.measure.is_some()));
        let kept = options.precision == PrecisionPolicy::Source && options.budget.is_none();
        if kept && self.quality.is_none() {
            quality::hint(compiled.bytes, compiled.bits_per_weight);
        }
        Ok(())
    }

    fn options(&self) -> Result<CompileOptions, Failure> {
        let (mut precision, method) = match self.precision {
            Precision::Policy(precision) => (precision, self.method.unwrap_or_default()),
            Precision::Awq => (PrecisionPolicy::Int4 { group: 128 }, self.method.unwrap_or(Method::Awq)),
        };
        let budget = self.budget();
        let method = if budget.is_some() { self.method.unwrap_or(Method::AwqGptq) } else { method };
        let integers =
            |what| Failure::usage(format!("{what} is for integers; --precision is {}", self.precision));
        if let Some(group) = self.group {
            precision = precision.with_group(group).ok_or_else(|| integers("--group"))?;
        }
        if self.symmetric {
            precision = precision.symmetric().ok_or_else(|| integers("--symmetric"))?;
        }
        let rounds = self.overrides.iter().map(|o| o.precision).chain([precision]);
        let rounds = rounds.filter_map(PrecisionPolicy::scheme).any(|s| !s.elem.is_float());
        if method.calibrates() && !rounds && budget.is_none() {
            return Err(integers(&format!("--method {method}")));
        }
        let calibration = self.calibration.corpus()?;
        let statistics = self.calib_stats.as_deref().map(Statistics::open).transpose();
        let statistics = statistics.map_err(bessemer_compiler::CompileError::from)?.map(Arc::new);
        let lossy = precision.scheme().is_some_and(|s| s != QuantScheme::F32) || !self.overrides.is_empty();
        let (windows, window) = (self.held_out_windows, self.held_out_window);
        let measure = match &self.held_out {
            Some(path) => Some(Corpus::read(path, windows, window)?),
            // Without a tokenizer there is no text to read.
            None if budget.is_some() || lossy && !self.no_measure && has_text(&self.source)? => {
                Some(Corpus { windows, window, ..Corpus::held_out() })
            }
            None => None,
        };
        Ok(CompileOptions {
            targets: Targets::parse(self.target.iter().map(String::as_str)).map_err(Failure::usage)?,
            precision,
            overrides: self.overrides.clone(),
            budget,
            method,
            calibration,
            statistics,
            measure,
            context: self.ctx,
            f32_activations: self.f32_activations,
            row_activations: self.row_activations,
            disable: self.disable.clone(),
            code: !self.no_code,
            tactics: self.tuning.tactic.iter().copied().collect(),
            tuning: match &self.tuning.tuning_cache {
                Some(file) if !self.tuning.tune => Some(Tuning {
                    cache: Arc::new(TuningCache::read(file)?),
                    machine: self.tuning.tuning_machine.clone().unwrap_or_else(|| machine_name(0)),
                }),
                _ => None,
            },
        })
    }

    /// Measures, writes the cache, and gives options that use it.
    fn tune(&self, out: &Path, options: CompileOptions) -> Result<CompileOptions, Failure> {
        let file = match &self.tuning.tuning_cache {
            Some(file) => file.clone(),
            None => {
                let folder = paths::cache()?;
                std::fs::create_dir_all(&folder)?;
                folder.join("tuning.json")
            }
        };
        let cache = Arc::new(TuningCache::read_or_new(&file)?);
        let tuning = Tuning { cache, machine: machine_name(0) };
        let how = TuneOptions {
            threads: 0,
            limit: Duration::from_secs(self.tuning.tune_limit),
            folder: match out.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            },
            open: &model::open_own,
            tell: &|event| eprintln!("tune: {}", describe(event)),
        };
        eprintln!("tuning for {} into {}; a quiet machine matters", tuning.machine, file.display());
        let checkpoint = Checkpoint::open(&self.source)?;
        // What a budget finds out about the model serves the compilation, too.
        let (threads, scratch) = (self.threads, self.scratch.clone());
        let run = RunOptions { threads, scratch, ..RunOptions::default() };
        let found = tune(&checkpoint, &options, &tuning, &run, &how, &Meter::new(Unit::Bytes))?;
        // Somebody else may have written meanwhile.
        let mut cache = TuningCache::read_or_new(&file)?;
        cache.merge(&found);
        cache.write(&file)?;
        Ok(CompileOptions { tuning: Some(Tuning { cache: Arc::new(cache), ..tuning }), ..options })
    }

    fn budget(&self) -> Option<Budget> {
        let bytes = self.max_size.map(|size| Budget::Size(size.0));
        let preset = self.quality.and_then(Preset::budget);
        let kl = self.max_kl.map(Budget::Kl);
        let perplexity = self.max_ppl_increase.map(Budget::Perplexity);
        preset.or(kl).or(perplexity).or(self.target_bpw.map(Budget::Bits)).or(bytes)
    }

    fn print_key(&self, options: &CompileOptions) -> Result<(), Failure> {
        let source = Hash(*Checkpoint::open(&self.source)?.content_hash(|_, _| ()).as_bytes());
        Ok(out!("{}", key(source, options))?)
    }

    fn print(&self, what: Emit, options: &CompileOptions, run: &RunOptions) -> Result<(), Failure> {
        let of_graph = matches!(what, Emit::Ir | Emit::Dot);
        if self.stop_after.is_some_and(|p| p != Phase::Packed) && !of_graph {
            return Err(Failure::usage(
                "a plan is made of a packed graph: leave --stop-after out, or emit ir or dot",
            ));
        }
        let checkpoint = Checkpoint::open(&self.source)?;
        let mut options = options.clone();
        // Plans of GPUs compute in what their kernels do.
        let device = match what {
            Emit::Cuda => Some("cuda"),
            Emit::Metal => Some("metal"),
            _ => None,
        };
        if device.is_some() {
            options.targets = Targets::parse(device).map_err(Failure::usage)?;
        }
        let prepared = prepare(&checkpoint, &options, run)?;
        let planned = || plan(&prepared, &options).map(|scheduled| scheduled.plan);
        let text = match what {
            Emit::Ir => bessemer_ir::text::print(&prepared.graph),
            Emit::Dot => emit::dot(&prepared.graph),
            Emit::Plan => emit::plan(&planned()?),
            Emit::Asm => code::assembly(&planned()?, &options)?,
            Emit::Cuda => code::kernels(&planned()?, Dialect::Cuda)?,
            Emit::Metal => code::kernels(&planned()?, Dialect::Metal)?,
        };
        match &self.out {
            Some(path) => std::fs::write(path, text)
                .map_err(|e| Failure::new(Code::Internal, format!("{}: {e}", path.display()))),
            None => Ok(std::io::stdout().lock().write_all(text.as_bytes())?),
        }
    }
}

fn describe(event: &Event) -> String {
    match event {
        Event::Read { scheme, weights, time } => {
            format!("{weights} weights of {scheme} in {:.3} ms", time.as_secs_f64() * 1e3)
        }
        Event::Skipped { tactic, why } => format!("{tactic} is not measured: {why}"),
        Event::Compared { tactic, holder, challenger, speedup, better } => {
            let verdict = if *better { "taken" } else { "not taken" };
            format!("{tactic} {challenger} is {speedup:.3} times as fast as {holder}: {verdict}")
        }
        Event::Chosen { tactic, measured } => {
            format!("{tactic} = {} ({})", measured.value, measured.workload)
        }
        _ => format!("{event:?}"),
    }
}
