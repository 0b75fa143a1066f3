//! `bessemer bench`

use super::run::Kv;
use crate::device::DeviceArgs;
use crate::exit::{Code, Failure};
use crate::json;
use crate::measure::baseline::{self, Tolerance};
use crate::measure::ceilings::{Ceilings, Sampler, cpu_name};
use crate::measure::clock::median;
use crate::measure::first_token;
use crate::measure::memory;
use crate::measure::profile::Phase;
use crate::measure::speed::{Load, Speed, Subject, Work};
use crate::model::ModelArgs;
use crate::progress::{Meter, Unit};
use bessemer_runtime::{DeviceKind, KvElem, Worker, WorkerOptions};
use clap::ValueEnum;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bessemer bench model.engine
  bessemer bench model.engine -d 2048 -b 8                      eight sequences that hold 2048 tokens each
  bessemer bench model.gguf --vs interpreted                    against the same graph, node by node
  bessemer bench model.engine --vs interpreted --source model.gguf -o json
  bessemer bench model.engine --profile                         where the time of a pass goes, step by step
  bessemer bench model.engine -o json > base.json               a baseline of this machine, and later:
  bessemer bench model.engine --baseline base.json --fail-on 'slower>10%'

Medians of -r runs on tokens drawn from a fixed seed. Prefill processes -p tokens a sequence; decode then takes -n steps,
each giving every sequence one token. Ceilings of the CPU are measured before each repetition, where it runs the engine.";

/// Measure speed, start-up and memory, against what this machine can do
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Tokens of the prompt
    #[arg(short, value_name = "N", default_value_t = 512)]
    p: usize,

    /// Tokens to generate
    #[arg(short, value_name = "N", default_value_t = 128)]
    n: usize,

    /// Tokens that each sequence holds before anything is measured
    #[arg(short, value_name = "DEPTH", default_value_t = 0)]
    d: usize,

    /// Sequences that are processed together
    #[arg(short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    b: u16,

    /// Repetitions
    #[arg(short, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    r: u16,

    #[command(flatten)]
    device: DeviceArgs,

    /// Threads; one for each core by default
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// Element type of the KV cache
    #[arg(long, value_enum, default_value_t = Kv::DEFAULT)]
    kv: Kv,

    /// Compare with another way to run the same weights, alternating in this process
    #[cfg(feature = "compile")]
    #[arg(long, value_enum)]
    vs: Option<Versus>,

    /// The checkpoint that the engine was compiled from, for --vs
    #[cfg(feature = "compile")]
    #[arg(long, value_name = "SRC", requires = "vs")]
    source: Option<PathBuf>,

    /// Time every step, too: its time, bytes, share of the ceilings, and what threads wait at barriers
    #[arg(long)]
    profile: bool,

    /// An earlier result (-o json) of this machine to compare with
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,

    /// End with exit code 5 where the baseline was better: `slower>10%`
    #[arg(long, value_name = "RULE", requires = "baseline")]
    fail_on: Option<Tolerance>,

    /// Form of the output
    #[arg(short, value_enum, default_value_t = Form::Md)]
    o: Form,
}

#[cfg(feature = "compile")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Versus {
    /// The graph as imported, node by node
    Interpreted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A table for people
    Md,
    /// One object; its keys are stable
    Json,
    /// A line of names and a line of values
    Csv,
}

#[derive(Serialize)]
struct Output {
    model: String,
    hash: String,
    target: String,
    cpu: String,
    /// What ran the engine.
    device: String,
    kernels: &'static str,
    /// What ran the loop nests: `generated` or `interpreted`.
    nests: String,
    threads: usize,
    load: Load,
    repetitions: u16,
    prefill: Measured,
    /// Absent where the model reads whole texts, and generates none.
    #[serde(skip_serializing_if = "Option::is_none")]
    decode: Option<Measured>,
    /// Of the CPU, where it runs the engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    ceilings: Option<Ceilings>,
    open_ms: f64,
    /// From process start to the first token, the file in the operating system's cache.
    first_token_ms: Option<f64>,
    /// The same after the file was dropped from that cache.
    first_token_cold_ms: Option<f64>,
    /// Why there is no cold figure.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_token_cold_absent: Option<String>,
    /// Most anonymous memory while the engine ran; absent where the operating system does not say.
    peak_anon_bytes: Option<u64>,
    /// Of which the KV cache may take so much.
    kv_bytes: u64,
    file_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    interpreted: Option<Interpreted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Phases>,
    /// Speed now over that of the baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<BTreeMap<&'static str, f64>>,
}

#[derive(Serialize)]
struct Phases {
    prefill: Option<Phase>,
    decode: Option<Phase>,
}

#[derive(Serialize)]
struct Measured {
    tok_s: f64,
    /// Every repetition.
    samples: Vec<f64>,
    /// Of the CPU's memory bandwidth (decode) or of the arithmetic that the plan declares (prefill); a GPU has other ceilings.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_ceiling: Option<f64>,
    /// Of the rate of the tile loop that prompts run, fed from a core's own cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_tile: Option<f64>,
}

#[derive(Serialize)]
struct Interpreted {
    /// What its weights are held in.
    weights: &'static str,
    prefill: Rate,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode: Option<Rate>,
    /// How many times faster the engine is.
    ratio: Ratio,
}

#[derive(Serialize)]
struct Rate {
    tok_s: f64,
    samples: Vec<f64>,
}

#[derive(Serialize)]
struct Ratio {
    prefill: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode: Option<f64>,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        let load = Load { prompt: self.p, generate: self.n, depth: self.d, sequences: self.b.into() };
        let before = self.baseline.as_deref().map(baseline::read).transpose()?;
        // Opened and closed again: a mapped page cannot be dropped from the cache.
        let path = self.model.open()?.path;
        let args = self.model.engine_at(&path);
        let first_token = first_token::measure(&args, self.threads, self.device, self.r.into());

        let model = args.open()?;
        let open_ms = reopen_ms(&path, model.open_ms, self.r);
        let load = load.on(&model.engine.plan().model)?;
        let kv = KvElem::from(self.kv);
        // A sequence takes whole blocks, so that each may have one that is nearly empty.
        let tokens = load.sequences * (load.longest() + bessemer_format::kv::TOKENS);
        let options = WorkerOptions::default().threads(self.threads).kv(kv).max_tokens(tokens);
        let worker = Worker::new(&model.engine, self.device.options(options))?;
        self.device.say(&worker);
        let threads = worker.threads();
        let memory = model.engine.memory(tokens, kv, worker.max_rows());
        let mut engine = Subject::new(worker, load);
        // A warm-up, and the only one that tells memory: afterwards the other side may live in this process too.
        engine.measure()?;
        let peak_anon_bytes = memory::anonymous();
        let mut other = self.interpreted(&model.engine, threads, load)?;
        if let Some(other) = &mut other {
            other.measure()?;
        }

        let (mut ours, mut theirs, mut limits) = (Vec::new(), Vec::new(), Vec::new());
        // What a GPU runs has other ceilings.
        let on_cpu = engine.worker().kind() == DeviceKind::Cpu;
        let sampler = on_cpu.then(|| Sampler::new(threads, &model.engine));
        let meter = Meter::new(Unit::Items);
        meter.start("bench", self.r.into());
        for _ in 0..self.r {
            limits.extend(sampler.as_ref().map(Sampler::sample));
            ours.push(engine.measure()?);
            theirs.extend(other.as_mut().map(|o| o.measure()).transpose()?);
            meter.advance(1);
        }
        drop(meter);
        drop(sampler);
        let ceilings = on_cpu.then(|| Ceilings::median(&limits));
        let profile = match self.profile {
            true => Some(phases(&mut engine, kv, self.r.into(), ceilings.as_ref())?),
            false => None,
        };
        let work = Work::of(&model.engine, kv, load);
        // Each sample against the ceilings that were found just before it.
        type Share<'a> = &'a dyn Fn(f64, &Ceilings) -> Option<f64>;
        let share = |samples: &[f64], of: Share<'_>| {
            let shares = samples.iter().zip(&limits).map(|(tok_s, at)| of(*tok_s, at));
            shares
                .collect::<Option<Vec<_>>>()
                .filter(|shares| !shares.is_empty())
                .map(|shares| median(&shares))
        };
        let measured = |samples: Vec<f64>, ceiling: Share<'_>, tile: Share<'_>| Measured {
            tok_s: median(&samples),
            share_of_ceiling: share(&samples, ceiling),
            share_of_tile: share(&samples, tile),
            samples,
        };
        let step_bytes = work.decode_step_bytes as f64 / load.sequences as f64;
        let mut output = Output {
            model: self.model.path.display().to_string(),
            hash: model.engine.hash().to_string(),
            target: model.engine.variants().map(|v| v.target).collect::<Vec<_>>().join(", "),
            cpu: cpu_name(),
            device: engine.worker().device().to_string(),
            kernels: model.engine.isa().name(),
            nests: model.engine.nest_path().to_string(),
            threads,
            load,
            repetitions: self.r,
            prefill: measured(
                ours.iter().map(|s| s.prefill).collect(),
                &|tok_s, at| Some(tok_s * work.seconds_per_prefill_token(at)),
                &|tok_s, at| Some(tok_s * work.tile_seconds_per_prefill_token(at)?),
            ),
            decode: decoded(&ours).map(|samples| {
                measured(samples, &|tok_s, at| Some(tok_s * step_bytes / at.read_bytes_s), &|_, _| None)
            }),
            ceilings,
            open_ms,
            first_token_ms: first_token.warm_ms,
            first_token_cold_ms: first_token.cold_ms.as_ref().ok().copied(),
            first_token_cold_absent: first_token.cold_ms.as_ref().err().cloned(),
            peak_anon_bytes,
            kv_bytes: memory.cache,
            file_bytes: std::fs::metadata(&path)?.len(),
            interpreted: interpreted(&ours, &theirs),
            profile,
            baseline: None,
        };
        let ratios = match &before {
            Some(before) => {
                let now = serde_json::to_value(&output).map_err(|e| Failure::new(Code::Internal, e))?;
                baseline::ratios(before, &now)?
            }
            None => Vec::new(),
        };
        output.baseline = before.map(|_| ratios.iter().copied().collect());
        match self.o {
            Form::Json => json::print(&output)?,
            Form::Md => output.print_table()?,
            Form::Csv => output.print_csv()?,
        }
        match self.fail_on {
            Some(tolerance) => baseline::check(&ratios, tolerance),
            None => Ok(()),
        }
    }

    #[cfg(feature = "compile")]
    fn interpreted(
        &self,
        engine: &bessemer_runtime::Engine,
        threads: usize,
        load: Load,
    ) -> Result<Option<crate::measure::interpreted::Interpreter>, Failure> {
        use crate::measure::interpreted::Interpreter;
        if self.vs.is_none() {
            return Ok(None);
        }
        let source = match &self.source {
            Some(source) => source,
            None if crate::model::is_engine(&self.model.path) => {
                return Err(Failure::usage(
                    "--vs interpreted needs the graph: give the engine's checkpoint with --source",
                ));
            }
            None => &self.model.path,
        };
        Interpreter::new(engine, source, threads, load).map(Some)
    }

    #[cfg(not(feature = "compile"))]
    fn interpreted(
        &self,
        _: &bessemer_runtime::Engine,
        _: usize,
        _: Load,
    ) -> Result<Option<Subject>, Failure> {
        Ok(None)
    }
}

fn phases(
    subject: &mut Subject,
    kv: KvElem,
    repetitions: usize,
    ceilings: Option<&Ceilings>,
) -> Result<Phases, Failure> {
    let [prefill, decode] = subject
        .profile(repetitions)?
        .map(|(profile, passes)| Phase::new(subject.worker().plan(), &profile, kv, passes, ceilings));
    Ok(Phases { prefill, decode })
}

/// What every repetition decoded a second, if they did.
fn decoded(speeds: &[Speed]) -> Option<Vec<f64>> {
    speeds.iter().map(|s| s.decode).collect()
}

/// The median of opening the engine again and again, its pages in memory.
fn reopen_ms(path: &std::path::Path, first: f64, repetitions: u16) -> f64 {
    let again = (1..repetitions).filter_map(|_| {
        let started = std::time::Instant::now();
        bessemer_runtime::Engine::open(path).ok()?;
        Some(started.elapsed().as_secs_f64() * 1e3)
    });
    median(&std::iter::once(first).chain(again).collect::<Vec<_>>())
}

fn interpreted(ours: &[Speed], theirs: &[Speed]) -> Option<Interpreted> {
    if theirs.is_empty() {
        return None;
    }
    let prefill = |speeds: &[Speed]| speeds.iter().map(|s| s.prefill).collect::<Vec<_>>();
    let rate = |samples: Vec<f64>| Rate { tok_s: median(&samples), samples };
    let ratio = |ours: &[f64], theirs: &[f64]| {
        median(&ours.iter().zip(theirs).map(|(a, b)| a / b).collect::<Vec<_>>())
    };
    let decode = decoded(ours).zip(decoded(theirs));
    Some(Interpreted {
        weights: "f32",
        ratio: Ratio {
            prefill: ratio(&prefill(ours), &prefill(theirs)),
            decode: decode.as_ref().map(|(ours, theirs)| ratio(ours, theirs)),
        },
        prefill: rate(prefill(theirs)),
        decode: decode.map(|(_, theirs)| rate(theirs)),
    })
}

impl Output {
    fn print_table(&self) -> Result<(), Failure> {
        use crate::output::out;
        use crate::size::Size;
        let l = &self.load;
        out!(
            "{}: on {}, {} threads, {} kernels, {} nests, {} sequence(s), depth {}\n",
            self.model,
            self.device,
            self.threads,
            self.kernels,
            self.nests,
            l.sequences,
            l.depth
        )?;
        out!(
            "| | compiled tok/s | share of ceiling |{}",
            if self.interpreted.is_some() { " interpreted tok/s | ratio |" } else { "" }
        )?;
        out!("|---|---|---|{}", if self.interpreted.is_some() { "---|---|" } else { "" })?;
        let versus = self.interpreted.as_ref();
        let prefill = versus.map(|i| (&i.prefill, i.ratio.prefill));
        let decode = versus.and_then(|i| i.decode.as_ref().zip(i.ratio.decode));
        let rows = [
            (format!("prefill {}", l.prompt), Some(&self.prefill), "arithmetic", prefill),
            (format!("decode {}", l.generate), self.decode.as_ref(), "bandwidth", decode),
        ];
        for (name, measured, ceiling, versus) in &rows {
            let Some(measured) = measured else { continue };
            let versus =
                versus.map_or(String::new(), |(rate, ratio)| format!(" {:.1} | {ratio:.2}x |", rate.tok_s));
            let share = measured.share_of_ceiling;
            let share = share.map_or("–".into(), |share| format!("{:.0} % of {ceiling}", 100.0 * share));
            out!("| {name} | {:.1} | {share} |{versus}", measured.tok_s)?;
        }
        out!()?;
        if let Some(c) = &self.ceilings {
            out!(
                "ceilings: {:.1} GB/s read, {:.0} G f32, {:.0} G bf16 and {:.0} G int8 multiply-adds a second",
                c.read_bytes_s / 1e9,
                c.f32_multiply_adds_s / 1e9,
                c.bf16_multiply_adds_s / 1e9,
                c.int8_multiply_adds_s / 1e9
            )?;
            if let (Some(tile), Some(share)) = (c.tile_multiply_adds_s, self.prefill.share_of_tile) {
                out!(
                    "the tile loop of prompts, fed from a core's own cache: {:.0} G multiply-adds a second; \
                     prefill reaches {:.0} % of it",
                    tile / 1e9,
                    100.0 * share
                )?;
            }
        }
        let ms = |v: Option<f64>| v.map_or("unknown".into(), |v| format!("{v:.0} ms"));
        let cold = match &self.first_token_cold_absent {
            Some(why) => format!("not measured ({why})"),
            None => ms(self.first_token_cold_ms),
        };
        out!(
            "open {:.1} ms; process start to first token {} warm, cold {cold}",
            self.open_ms,
            ms(self.first_token_ms)
        )?;
        let peak = self.peak_anon_bytes.map_or("unknown".into(), |b| Size(b).to_string());
        out!("anonymous memory {peak} (KV at most {}); file {}", Size(self.kv_bytes), Size(self.file_bytes))?;
        for (name, ratio) in self.baseline.iter().flatten() {
            out!("{name}: {ratio:.2}x of the baseline")?;
        }
        let phases = self.profile.iter().flat_map(|p| [("prefill", &p.prefill), ("decode", &p.decode)]);
        for (name, phase) in phases {
            phase.iter().try_for_each(|phase| phase.print(name, self.ceilings.as_ref()))?;
        }
        Ok(())
    }

    fn print_csv(&self) -> Result<(), Failure> {
        use crate::output::out;
        let number = |v: Option<f64>| v.map_or(String::new(), |v| v.to_string());
        let i = self.interpreted.as_ref();
        let fields = [
            ("model", format!("\"{}\"", self.model.replace('"', "\"\""))),
            ("threads", self.threads.to_string()),
            ("nests", self.nests.clone()),
            ("prompt", self.load.prompt.to_string()),
            ("generate", self.load.generate.to_string()),
            ("depth", self.load.depth.to_string()),
            ("sequences", self.load.sequences.to_string()),
            ("prefill.tok_s", self.prefill.tok_s.to_string()),
            ("decode.tok_s", number(self.decode.as_ref().map(|d| d.tok_s))),
            ("interpreted.prefill.tok_s", number(i.map(|i| i.prefill.tok_s))),
            ("interpreted.decode.tok_s", number(i.and_then(|i| Some(i.decode.as_ref()?.tok_s)))),
            ("open_ms", self.open_ms.to_string()),
            ("first_token_ms", number(self.first_token_ms)),
            ("peak_anon_bytes", self.peak_anon_bytes.map_or(String::new(), |b| b.to_string())),
            ("file_bytes", self.file_bytes.to_string()),
        ];
        out!("{}", fields.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(","))?;
        out!("{}", fields.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(","))?;
        Ok(())
    }
}
