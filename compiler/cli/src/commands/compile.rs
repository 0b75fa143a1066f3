//! `bessemer compile`

use crate::exit::{Code, Failure};
use crate::output::out;
use crate::progress::{Meter, Unit};
use crate::{interrupt, json, model, size, trust};
use bessemer_compiler::compile::{key, plan, prepare};
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::{CompileOptions, RunOptions, compile, emit};
use bessemer_ir::Phase;
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::Hash;
use bessemer_targets::CpuTarget;
use clap::ValueEnum;
use std::io::Write;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bessemer compile model.gguf -o model.engine                     keep the weights exactly as they are stored
  bessemer compile model/ -o model.engine --precision int4:64     four bits a weight, a scale for every 64
  bessemer compile hf:ORG/MODEL@main -o model.engine              fetch it from the Hugging Face Hub
  bessemer compile model.gguf --emit plan                         what would run, as text
  bessemer compile model.gguf --stop-after fused --emit dot | dot -Tsvg > graph.svg
  bessemer compile model.gguf --key                               the name under which the cache keeps it";

/// Compile a checkpoint into one engine file
///
/// The file appears under its name only when it is complete. The same source, options and version give the same bytes,
/// whatever the machine, the folder and the number of threads. The engine's hash goes on your trust list.
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

    /// What the engine is for; `cpu` runs on every CPU with the best kernels that it has
    #[arg(long, value_name = "T", default_value = "cpu")]
    target: Vec<String>,

    /// What becomes of the weights: source, f32, bf16, int8:GROUP or int4:GROUP (GROUP may be left out)
    #[arg(long, value_name = "P", default_value = "source")]
    precision: PrecisionPolicy,

    /// Elements that share a scale, for int8 and int4; 0 is a whole row
    #[arg(long, value_name = "N")]
    group: Option<u32>,

    /// Compute in f32 where integer kernels exist: slower, without rounding of activations
    #[arg(long)]
    f32_activations: bool,

    /// Threads that pack weights; 0 for all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// Switch a pass off (may be repeated)
    #[arg(long, value_name = "PASS")]
    disable: Vec<String>,

    /// Leave out machine code of loop nests; the runtime executes them itself
    #[arg(long)]
    no_code: bool,

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
}

impl Args {
    /// Does it.
    pub fn run(mut self) -> Result<(), Failure> {
        let options = self.options()?;
        self.source = self.hub.local(&self.source)?;
        let run = RunOptions { threads: self.threads, stop_after: self.stop_after, ..RunOptions::default() };
        if self.key {
            return self.print_key(&options);
        }
        if self.emit.is_some() || self.stop_after.is_some() {
            return self.print(self.emit.unwrap_or(Emit::Ir), &options, &run);
        }
        let Some(out) = &self.out else { return Err(Failure::usage("--out is missing")) };
        interrupt::handle();
        let meter = Meter::new(Unit::Bytes);
        let compiled = compile(&self.source, out, &options, &run, self.expect_sha256.as_deref(), &meter)?;
        drop(meter);
        trust::add(&model::claimed_hash(out)?, out)?;
        if self.json {
            return json::print(&compiled);
        }
        eprintln!(
            "{}: {}, {:.2} bits a weight, sha256 {}",
            out.display(),
            size::Size(compiled.bytes),
            compiled.bits_per_weight,
            compiled.sha256
        );
        Ok(())
    }

    fn options(&self) -> Result<CompileOptions, Failure> {
        let [target] = self.target.as_slice() else {
            return Err(Failure::usage(
                "one --target at a time: engines with several targets come with the first device beside the CPU",
            ));
        };
        let precision = match (self.precision, self.group) {
            (precision, None) => precision,
            (PrecisionPolicy::Int8 { .. }, Some(group)) => PrecisionPolicy::Int8 { group },
            (PrecisionPolicy::Int4 { .. }, Some(group)) => PrecisionPolicy::Int4 { group },
            (other, Some(_)) => {
                return Err(Failure::usage(format!("--group is for int8 and int4; --precision is {other}")));
            }
        };
        Ok(CompileOptions {
            target: CpuTarget::parse(target).map_err(Failure::usage)?,
            precision,
            f32_activations: self.f32_activations,
            disable: self.disable.clone(),
            code: !self.no_code,
            ..CompileOptions::default()
        })
    }

    fn print_key(&self, options: &CompileOptions) -> Result<(), Failure> {
        let source = Hash(*Checkpoint::open(&self.source)?.content_hash(|_, _| ()).as_bytes());
        Ok(out!("{}", key(source, options))?)
    }

    fn print(&self, what: Emit, options: &CompileOptions, run: &RunOptions) -> Result<(), Failure> {
        if self.stop_after.is_some_and(|p| p != Phase::Packed) && matches!(what, Emit::Plan | Emit::Asm) {
            return Err(Failure::usage(
                "a plan is made of a packed graph: leave --stop-after out, or emit ir or dot",
            ));
        }
        let checkpoint = Checkpoint::open(&self.source)?;
        let prepared = prepare(&checkpoint, options, run)?;
        let text = match what {
            Emit::Ir => bessemer_ir::text::print(&prepared.graph),
            Emit::Dot => emit::dot(&prepared.graph),
            Emit::Plan => emit::plan(&plan(&prepared, options)?.plan),
            Emit::Asm => bessemer_compiler::code::assembly(&plan(&prepared, options)?.plan, options)?,
        };
        match &self.out {
            Some(path) => std::fs::write(path, text)
                .map_err(|e| Failure::new(Code::Internal, format!("{}: {e}", path.display()))),
            None => Ok(std::io::stdout().lock().write_all(text.as_bytes())?),
        }
    }
}
