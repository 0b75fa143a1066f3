//! Times tactics with the real engine on this machine, and for a budget first what it chooses from.
//!
//! One tactic after the other: the value that holds against each challenger, two engines that differ in this tactic alone and run
//! the same work in turns. So a machine that slows down slows both, and what counts is the median of the ratios of neighbours.

use super::{Key, Measured, ReadKey, Tuning, TuningCache, reads};
use crate::calibrate::{Budget, SCHEMES};
use crate::compile::{Prepared, Progress, Silent, compile_checkpoint, plan, prepare_with};
use crate::error::CompileError;
use crate::import::Checkpoint;
use crate::options::{CompileOptions, RunOptions};
use bessemer_format::QuantScheme;
use bessemer_format::file::{EngineFile, VariantRef};
use bessemer_format::header::SectionKind;
use bessemer_format::kv::TOKENS;
use bessemer_format::manifest::Report;
use bessemer_format::plan::Plan;
use bessemer_format::variant::VariantPlan;
use bessemer_format::write::{Sections, write_engine};
use bessemer_ir::{Phase, TargetInfo};
use bessemer_runtime::sample::Pcg32;
use bessemer_runtime::{Batch, Engine, EngineError, RunError, Sequence, Want, Worker, WorkerOptions};
use bessemer_targets::{CpuTarget, Tactic, tactics};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A challenger has to be faster by so much: what is smaller may be noise, and a tactic that changes for nothing changes bytes.
const MARGIN: f64 = 0.02;
/// Runs of each side that count. One of each before them does not.
const ROUNDS: usize = 5;
/// Tactics in the order in which they are tuned: later ones run with what earlier ones found.
const ORDER: [Tactic; 3] = [Tactic::ChunkRows, Tactic::AttentionChunk, Tactic::SplitRows];

/// How to tune.
pub struct TuneOptions<'a> {
    /// Threads of the engine; 0 for all cores.
    pub threads: usize,
    /// After so long no run begins. A tactic that is not through by then gets no entry.
    pub limit: Duration,
    /// Where engines lie while they are measured: room for two of the model's.
    pub folder: &'a Path,
    /// Opens an engine that was just written: trusted, where the caller runs engines so.
    pub open: &'a dyn Fn(&Path) -> Result<Engine, EngineError>,
    /// Is told what happens.
    pub tell: &'a dyn Fn(&Event),
}

/// What happens in the course of tuning.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Reading weights of a scheme was timed.
    Read {
        /// The scheme.
        scheme: QuantScheme,
        /// How many weights.
        weights: u64,
        /// How long a token waits for them.
        time: Duration,
    },
    /// A tactic is not measured.
    Skipped {
        /// The tactic.
        tactic: Tactic,
        /// Why.
        why: String,
    },
    /// A value was measured against the one that holds.
    Compared {
        /// The tactic.
        tactic: Tactic,
        /// The value that held.
        holder: u32,
        /// The value that was tried.
        challenger: u32,
        /// How many times faster the challenger was.
        speedup: f64,
        /// Whether it holds from now on.
        better: bool,
    },
    /// A tactic is through.
    Chosen {
        /// The tactic.
        tactic: Tactic,
        /// What was found.
        measured: Measured,
    },
}

/// Tuning failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuneError {
    /// The engine cannot be made.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The engine cannot be opened here: it is for another machine, or this one lacks memory.
    #[error("tuning runs the engine on this machine: {0}")]
    Engine(#[from] EngineError),
    /// There is nothing for the CPU.
    #[error(
        "tuning runs the engine on this machine's CPU, which is not among its targets ({targets}); add `--target cpu`"
    )]
    NoCpu {
        /// The targets.
        targets: String,
    },
    /// The engine does not run.
    #[error("tuning: {0}")]
    Run(#[from] RunError),
}

/// Measures every tactic that is neither set by hand nor in the cache already. Gives the cache with what was found.
pub fn tune(
    checkpoint: &Checkpoint,
    options: &CompileOptions,
    tuning: &Tuning,
    run: &RunOptions,
    how: &TuneOptions<'_>,
    progress: &dyn Progress,
) -> Result<TuningCache, TuneError> {
    let mut options = CompileOptions { tuning: Some(tuning.clone()), ..options.clone() };
    if options.budget.is_none() {
        // What rounding costs is no matter of speed.
        options.measure = None;
    }
    // Nor are the plans of devices that do not run it here.
    let cpu = options.targets.cpu().cloned();
    let cpu = cpu.ok_or_else(|| TuneError::NoCpu { targets: options.targets.to_string() })?;
    let target = cpu.name();
    options.targets = cpu.clone().into();
    let deadline = Instant::now() + how.limit;
    let mut cache = (*tuning.cache).clone();
    // What a budget makes as small as it can, it makes fast as well.
    if matches!(options.budget, Some(Budget::Kl(_) | Budget::Perplexity(_))) {
        time_reads(checkpoint, &options, &mut cache, tuning, &cpu, how, deadline)?;
        options.tuning = Some(Tuning { cache: Arc::new(cache.clone()), ..tuning.clone() });
    }
    let prepared = prepare_with(checkpoint, &options, run, progress)?;
    let key = |tactic| Key {
        machine: tuning.machine.clone(),
        producer: bessemer_format::PRODUCER.into(),
        target: target.clone(),
        tactic,
        shapes: tactics::shapes(&prepared.graph),
    };
    let mut wanted = Vec::new();
    for tactic in ORDER {
        let skip = |why: &str| (how.tell)(&Event::Skipped { tactic, why: why.into() });
        match Workload::of(tactic, prepared.facts.context as usize) {
            _ if prepared.facts.whole => {
                skip("the model takes whole texts: its rows bound their length, and nothing is decoded")
            }
            _ if options.tactics.contains_key(&tactic) => skip("it is set by hand"),
            _ if cache.get(&key(tactic)).is_some() => skip("it is in the cache"),
            None => skip("the model's context is too short to tell"),
            Some(workload) => wanted.push(workload),
        }
    }
    if wanted.is_empty() {
        return Ok(cache);
    }
    let held = plan(&prepared, &options)?.tactics;
    let values = Tactic::ALL.map(|t| (t, held.get(t))).into_iter().collect();
    let folder = tempfile::Builder::new().prefix(".tune.").tempdir_in(how.folder);
    let folder = folder.map_err(|e| output(how.folder, e))?;
    let base = folder.path().join("base.engine");
    compile_checkpoint(checkpoint, &base, &options, run, None, progress)?;
    let base = EngineFile::open(&base).map_err(CompileError::from)?;
    let mut field =
        Field { prepared: &prepared, options: &options, base, folder: folder.path(), values, how };
    for workload in wanted {
        let tactic = workload.tactic;
        match field.contest(&workload, deadline, progress)? {
            None => (how.tell)(&Event::Skipped {
                tactic,
                why: format!("the limit of {} s ended it; raise --tune-limit", how.limit.as_secs()),
            }),
            Some(measured) => {
                field.values.insert(tactic, measured.value);
                (how.tell)(&Event::Chosen { tactic, measured: measured.clone() });
                cache.insert(key(tactic), measured);
            }
        }
    }
    Ok(cache)
}

/// Times how long weights of every scheme take that a budget may choose for this model, where the cache does not say.
fn time_reads(
    checkpoint: &Checkpoint,
    options: &CompileOptions,
    cache: &mut TuningCache,
    tuning: &Tuning,
    target: &CpuTarget,
    how: &TuneOptions<'_>,
    deadline: Instant,
) -> Result<(), CompileError> {
    let only = RunOptions { stop_after: Some(Phase::Canonical), ..RunOptions::default() };
    let canonical = prepare_with(checkpoint, options, &only, &Silent)?.graph;
    let (weights, mut schemes) = reads::weights(&canonical);
    for scheme in SCHEMES {
        schemes.insert(scheme.parse().map_err(CompileError::Calibration)?);
    }
    for scheme in schemes {
        let key = ReadKey {
            machine: tuning.machine.clone(),
            producer: bessemer_format::PRODUCER.into(),
            target: target.name(),
            weights,
            scheme,
        };
        let known = cache.read_times().any(|(other, _)| *other == key);
        if !known && Instant::now() < deadline {
            let nanoseconds = reads::nanoseconds(target, &scheme, weights, how.threads)?;
            cache.insert_read(key, nanoseconds);
            (how.tell)(&Event::Read { scheme, weights, time: Duration::from_nanos(nanoseconds) });
        }
    }
    Ok(())
}

/// Where values meet.
struct Field<'a> {
    prepared: &'a Prepared,
    options: &'a CompileOptions,
    base: EngineFile,
    folder: &'a Path,
    /// What holds now.
    values: BTreeMap<Tactic, u32>,
    how: &'a TuneOptions<'a>,
}

impl Field<'_> {
    /// The value that holds against all candidates, or `None` if time ran out.
    fn contest(
        &mut self,
        workload: &Workload,
        deadline: Instant,
        progress: &dyn Progress,
    ) -> Result<Option<Measured>, TuneError> {
        let tactic = workload.tactic;
        let first = self.values[&tactic];
        let mut holder = self.side(workload, first)?;
        let mut times = BTreeMap::new();
        for &candidate in workload.candidates.iter().filter(|c| **c != first) {
            let mut challenger = self.side(workload, candidate)?;
            let mut pairs = Vec::new();
            for round in 0..=ROUNDS {
                if progress.cancelled() {
                    return Err(CompileError::Interrupted.into());
                }
                if Instant::now() >= deadline {
                    return Ok(None);
                }
                let pair = (holder.run(workload)?, challenger.run(workload)?);
                if round > 0 {
                    pairs.push(pair);
                }
            }
            let speedup = median(pairs.iter().map(|(a, b)| a.as_secs_f64() / b.as_secs_f64()).collect());
            let nanoseconds = |of: fn(&(Duration, Duration)) -> Duration| {
                median(pairs.iter().map(|p| of(p).as_nanos() as f64).collect())
            };
            times.insert(holder.value, nanoseconds(|p| p.0) as u64);
            times.insert(candidate, nanoseconds(|p| p.1) as u64);
            let better = speedup > 1.0 + MARGIN;
            (self.how.tell)(&Event::Compared {
                tactic,
                holder: holder.value,
                challenger: candidate,
                speedup,
                better,
            });
            if better {
                holder = challenger;
            }
        }
        Ok(Some(Measured { value: holder.value, workload: workload.to_string(), candidates: times }))
    }

    /// An engine in which the tactic of `workload` has `value`, ready to run.
    fn side(&self, workload: &Workload, value: u32) -> Result<Side, TuneError> {
        let mut values = self.values.clone();
        values.insert(workload.tactic, value);
        let options = CompileOptions { tactics: values, tuning: None, ..self.options.clone() };
        let plan = plan(self.prepared, &options)?.plan;
        let path = self.folder.join(format!("{}.{value}.engine", workload.tactic));
        let vocab = plan.model.vocab.max(1);
        derive(&self.base, plan, &path)?;
        let engine = (self.how.open)(&path)?;
        let options = WorkerOptions::default().threads(self.how.threads).max_tokens(workload.tokens());
        let worker = Worker::new(&engine, options)?;
        let mut random = Pcg32::new(1);
        let tokens = (0..workload.longest()).map(|_| random.next_u32() % vocab).collect();
        Ok(Side { value, worker, tokens, deep: None, path })
    }
}

/// Writes the engine `base` with another plan, which must be for the same weights, nests and code.
fn derive(base: &EngineFile, plan: Plan, path: &Path) -> Result<(), CompileError> {
    let same = |v: VariantRef<'_>| (&plan.weights, &plan.nests) == (&v.plan.weights, &v.plan.nests);
    if base.variants().len() != 1 || !base.variants().all(same) {
        return Err(output(path, "tactics change weights or nests, which they must not"));
    }
    let sections = Sections {
        manifest: (*base.manifest).clone(),
        plans: &[VariantPlan { plan, gpu: None }],
        tokenizer: base.section(SectionKind::Tokenizer),
        code: base.section(SectionKind::Code),
        device: &[],
        report: &Report::default(),
        debug: "",
    };
    let file = File::create_new(path).map_err(|e| output(path, e))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    write_engine(&mut file, path, sections, &mut |id, sink| sink.write_all(base.weight(id)))?;
    Ok(())
}

fn output(path: &Path, why: impl ToString) -> CompileError {
    CompileError::Output { path: path.into(), why: why.to_string() }
}

/// An engine with one of the values.
struct Side {
    value: u32,
    worker: Worker,
    tokens: Vec<u32>,
    /// A sequence as deep as the workload wants it.
    deep: Option<Sequence>,
    path: PathBuf,
}

impl Drop for Side {
    fn drop(&mut self) {
        // The whole folder goes at the end; this only saves room meanwhile.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Side {
    /// Runs the workload once.
    fn run(&mut self, workload: &Workload) -> Result<Duration, RunError> {
        let depth = workload.depth;
        let deep = match self.deep.take() {
            Some(deep) => deep,
            None => {
                let mut deep = self.worker.sequence();
                forward(&mut self.worker, std::slice::from_mut(&mut deep), &self.tokens[..depth])?;
                deep
            }
        };
        let mut time = Duration::ZERO;
        for &count in workload.sequences {
            let mut all: Vec<Sequence> = (0..count).map(|_| deep.fork()).collect();
            let started = Instant::now();
            for step in self.tokens[depth..].chunks(workload.rows) {
                forward(&mut self.worker, &mut all, step)?;
            }
            time += started.elapsed();
        }
        self.deep = Some(deep);
        Ok(time)
    }
}

/// Appends `tokens` to every sequence.
fn forward(worker: &mut Worker, sequences: &mut [Sequence], tokens: &[u32]) -> Result<(), RunError> {
    let mut batch = Batch::new();
    for sequence in sequences {
        batch.push(sequence, tokens, Want::Last);
    }
    worker.forward(&mut batch).map(drop)
}

/// What candidates for a tactic run: `steps` steps of `rows` tokens for every sequence, behind `depth` tokens.
#[derive(Clone, Debug)]
struct Workload {
    tactic: Tactic,
    candidates: Vec<u32>,
    depth: usize,
    rows: usize,
    steps: usize,
    /// How many sequences run together, in turn.
    sequences: &'static [usize],
}

impl Workload {
    /// What shows the tactic's effect within the model's context.
    fn of(tactic: Tactic, context: usize) -> Option<Self> {
        let blocks = |most: usize, beside: usize| most.min(context.saturating_sub(beside)) / TOKENS * TOKENS;
        let workload = match tactic {
            Tactic::ChunkRows => {
                let rows = blocks(1024, 0);
                let candidates = [8, 4, 2, 1].map(|part| (rows / part) as u32).into();
                Self { tactic, candidates, depth: 0, rows, steps: 1, sequences: &[1] }
            }
            Tactic::AttentionChunk => {
                let depth = blocks(1024, 16);
                let candidates =
                    [32, 64, 128, 256, 512].into_iter().filter(|c| *c as usize <= depth).collect();
                Self { tactic, candidates, depth, rows: 1, steps: 16, sequences: &[1] }
            }
            Tactic::SplitRows => {
                let depth = blocks(512, 8);
                Self { tactic, candidates: vec![3, 7, 15], depth, rows: 1, steps: 8, sequences: &[4, 8, 16] }
            }
        };
        (workload.depth.max(workload.rows) >= 2 * TOKENS).then_some(workload)
    }

    /// Tokens of a sequence at the end.
    fn longest(&self) -> usize {
        self.depth + self.rows * self.steps
    }

    /// Tokens that all sequences take: they share the blocks of the deep one but for the last, of which each has its own.
    fn tokens(&self) -> usize {
        let most = self.sequences.iter().max().copied().unwrap_or(1);
        self.depth + most * (self.rows * self.steps + 2 * TOKENS)
    }
}

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.steps == 1 {
            return write!(f, "a prefill of {} tokens", self.rows);
        }
        let counts: Vec<String> = self.sequences.iter().map(ToString::to_string).collect();
        write!(f, "{} decode steps of {} sequence(s) at {} tokens", self.steps, counts.join(", "), self.depth)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_fit_the_context_and_their_candidates_the_tactic() {
        for context in [1, 32, 64, 80, 100, 128, 512, 1030, 131_072] {
            for tactic in Tactic::ALL {
                let Some(workload) = Workload::of(tactic, context) else {
                    assert!(context < 80, "{tactic} at {context}");
                    continue;
                };
                assert!(workload.longest() <= context, "{workload} at {context}");
                assert!(workload.candidates.len() > 1, "{workload} at {context}");
                workload.candidates.iter().try_for_each(|c| tactic.check(*c)).unwrap();
            }
        }
    }
}
