//! The driver: checkpoint -> graph -> passes -> plan -> engine file.

use crate::calibrate::{Budget, Calibrate, Calibrated, Codes};
use crate::error::CompileError;
use crate::import::text::text_section;
use crate::import::{Checkpoint, arch};
use crate::options::{CompileOptions, RunOptions};
use crate::{device, tuning, weights};
use bessemer_format::file::{EngineFile, map_opened};
use bessemer_format::gpu::GpuCode;
use bessemer_format::header;
use bessemer_format::manifest::{Hash, Manifest, PassReport, Quality, Report, Source, TensorEntry};
use bessemer_format::plan::{ModelFacts, Plan};
use bessemer_format::variant::{DeviceCode, Variant, VariantPlan};
use bessemer_format::write::{Sections, engine_len, write_engine};
use bessemer_ir::{Graph, Phase, TargetInfo};
use bessemer_passes::pipeline::{self, Assigned, Refine};
use bessemer_targets::schedule::{ScheduleOptions, Scheduled, schedule_beside};
use bessemer_targets::{Target, tactics};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Hears how far a compilation has come, and may stop it.
pub trait Progress: Sync {
    /// A stretch of work begins: what it is, and what it will go through.
    fn start(&self, what: &str, total: Amount);
    /// So much more is done.
    fn advance(&self, by: u64);
    /// Whether to stop. Asked every few milliseconds.
    fn cancelled(&self) -> bool;
}

/// How much work there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// Pieces of work that take about as long as each other.
    Pieces(usize),
    /// Multiplications, or whatever else time is in proportion to.
    Work(u64),
}

/// Progress that nobody watches.
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: &str, _: Amount) {}
    fn advance(&self, _: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
}

/// What a compilation made.
#[derive(Clone, Debug, Serialize)]
pub struct Compiled {
    /// Length of the engine file.
    pub bytes: u64,
    /// Its sha256.
    pub sha256: String,
    /// The engine's own hash: what the header states.
    pub hash: String,
    /// Hash of the source.
    pub source_hash: String,
    /// Bits a weight, scales and offsets included, over all packed matrices.
    pub bits_per_weight: f64,
    /// Layers of the model.
    pub layers: u32,
    /// What rounding costs, where it was measured.
    pub quality: Option<Quality>,
}

/// A graph that has gone through the passes.
pub struct Prepared {
    /// The graph, as the first target has it.
    pub graph: Graph,
    /// The same as the other targets have it, in their order; none if it was stopped on its way.
    pub others: Vec<Graph>,
    /// Facts beside it.
    pub facts: ModelFacts,
    /// Name of the family.
    pub architecture: &'static str,
    /// What each pass did.
    pub passes: Vec<PassReport>,
    /// What calibration made of the weights.
    pub codes: Codes,
    /// What rounding costs, where it was measured.
    pub quality: Option<Quality>,
}

/// Imports a checkpoint and runs the passes.
pub fn prepare(
    checkpoint: &Checkpoint,
    options: &CompileOptions,
    run: &RunOptions,
) -> Result<Prepared, CompileError> {
    prepare_with(checkpoint, options, run, &Silent)
}

/// As [`prepare`], for someone who watches.
pub fn prepare_with(
    checkpoint: &Checkpoint,
    options: &CompileOptions,
    run: &RunOptions,
    progress: &dyn Progress,
) -> Result<Prepared, CompileError> {
    let model = arch::detect(checkpoint)?.model(checkpoint, options.context)?;
    let mut graph = model.graph;
    let mut context = pipeline::Context {
        target: options.targets.first(),
        precision: options.precision,
        f32_activations: options.f32_activations,
        row_activations: options.row_activations,
        refine: Refine { overrides: &options.overrides, ..Refine::NONE },
    };
    let mut until = pipeline::Options { disable: options.disable.clone(), stop_after: run.stop_after };
    let (mut passes, mut codes, mut quality) = (Vec::new(), Codes::default(), None);
    let mut assigned = Assigned::new();
    let measures = options.method.calibrates() || options.measure.is_some() || options.budget.is_some();
    let (facts, architecture) = (model.facts, model.architecture);
    if measures && run.stop_after.is_none_or(|phase| phase > Phase::Canonical) {
        until.stop_after = Some(Phase::Canonical);
        passes = pipeline::run(&mut graph, &context, &until)?;
        until.stop_after = run.stop_after;
        let calibrate = Calibrate { checkpoint, options, run, context, progress };
        let ground = calibrate.ground(&graph)?;
        let held_out = calibrate.held_out(&graph)?;
        let kv = held_out.as_ref().map(|base| calibrate.caches(&graph, base)).transpose()?;
        if let Some(budget) = options.budget {
            let (Some(ground), Some(held_out)) = (&ground, &held_out) else {
                return Err(CompileError::Calibration(format!(
                    "{budget} needs held-out text to be measured on"
                )));
            };
            let size = |graph: &Graph, assigned: &Assigned, quality: &Quality| {
                let refine = Refine { assigned: Some(assigned), ..context.refine };
                let context = pipeline::Context { refine, ..context };
                let (graph, others, passes) =
                    lower(graph.clone(), &context, options, &until, passes.clone())?;
                let quality = Some(Quality { kv: kv.clone().unwrap_or_default(), ..quality.clone() });
                let codes = Codes::default();
                let facts = facts.clone();
                let prepared = Prepared { graph, others, facts, architecture, passes, codes, quality };
                // A hash has the same length, whatever it is of.
                let assembled =
                    assemble(checkpoint, Hash([0; 32]), &prepared, options, &mut device::estimate)?;
                Ok(engine_len(assembled.sections())?)
            };
            let fitted = calibrate.fit(budget, &graph, ground, held_out, &size)?;
            (graph, codes, assigned, quality) =
                (fitted.graph, fitted.codes, fitted.assigned, Some(fitted.quality));
        } else {
            if let Some(ground) = &ground {
                codes = calibrate.lower(&mut graph, ground)?;
            }
            if let Some(base) = &held_out {
                quality = Some(calibrate.quality(base, &graph, &codes)?);
            }
        }
        quality = quality.map(|quality| Quality { kv: kv.unwrap_or_default(), ..quality });
    }
    context.refine.assigned = Some(&assigned);
    let (graph, others, passes) = lower(graph, &context, options, &until, passes)?;
    Ok(Prepared { graph, others, facts, architecture, passes, codes, quality })
}

/// Takes a graph as far as `until` says, for every target: as the first has it, as the others do, and what all passes did.
fn lower(
    mut graph: Graph,
    context: &pipeline::Context<'_>,
    options: &CompileOptions,
    until: &pipeline::Options,
    mut passes: Vec<PassReport>,
) -> Result<(Graph, Vec<Graph>, Vec<PassReport>), CompileError> {
    let mut others = Vec::new();
    if until.stop_after.is_none_or(|phase| phase == Phase::Packed) {
        // Targets differ in what they compute in and in layouts, which come after fusion.
        let fused = pipeline::Options { stop_after: Some(Phase::Fused), ..until.clone() };
        passes.extend(pipeline::run(&mut graph, context, &fused)?);
        for target in options.targets.iter().skip(1) {
            let mut other = graph.clone();
            pipeline::run(&mut other, &pipeline::Context { target, ..*context }, until)?;
            others.push(other);
        }
    }
    passes.extend(pipeline::run(&mut graph, context, until)?);
    Ok((graph, others, passes))
}

/// Plans a prepared graph for the first target.
pub fn plan(prepared: &Prepared, options: &CompileOptions) -> Result<Scheduled, CompileError> {
    schedule_for(&[], options.targets.first(), &prepared.graph, &prepared.facts, options)
}

/// Plans a prepared graph for every target. All plans have one list of weights: what targets read alike stands once.
pub fn plans(prepared: &Prepared, options: &CompileOptions) -> Result<Vec<Scheduled>, CompileError> {
    let mut all: Vec<Scheduled> = Vec::new();
    let graphs = std::iter::once(&prepared.graph).chain(&prepared.others);
    for (target, graph) in options.targets.iter().zip(graphs) {
        let scheduled = schedule_for(&all, target, graph, &prepared.facts, options)?;
        all.push(scheduled);
    }
    if let Some((last, rest)) = all.split_last_mut() {
        for scheduled in rest {
            scheduled.plan.weights.clone_from(&last.plan.weights);
            scheduled.weights.clone_from(&last.weights);
        }
    }
    Ok(all)
}

fn schedule_for(
    before: &[Scheduled],
    target: &Target,
    graph: &Graph,
    facts: &ModelFacts,
    options: &CompileOptions,
) -> Result<Scheduled, CompileError> {
    if options.disable.iter().any(|name| name == pipeline::PACK) {
        return Err(bessemer_passes::PassError::Required { name: pipeline::PACK }.into());
    }
    let shapes = tactics::shapes(graph);
    let chosen = tuning::chosen(&options.tactics, options.tuning.as_ref(), &target.name(), &shapes);
    // A CPU's cache is reserved, not allocated, and a block of all layers takes few of its pages.
    let layers_apart = !matches!(target, Target::Cpu(_));
    let all_barriers = options.disable.iter().any(|name| name == pipeline::BARRIERS);
    let schedule_options =
        ScheduleOptions { tactics: chosen, layers_apart, all_barriers, ..ScheduleOptions::default() };
    Ok(schedule_beside(before, graph, facts, &schedule_options)?)
}

/// Compiles `source` into the engine file `out`. The file appears under its name only when it is whole and synced;
/// `expect_sha256` is compared before that.
pub fn compile(
    source: &Path,
    out: &Path,
    options: &CompileOptions,
    run: &RunOptions,
    expect_sha256: Option<&str>,
    progress: &dyn Progress,
) -> Result<Compiled, CompileError> {
    let checkpoint = Checkpoint::open(source)?;
    compile_checkpoint(&checkpoint, out, options, run, expect_sha256, progress)
}

/// As [`compile`], for a checkpoint that is open already.
pub fn compile_checkpoint(
    checkpoint: &Checkpoint,
    out: &Path,
    options: &CompileOptions,
    run: &RunOptions,
    expect_sha256: Option<&str>,
    progress: &dyn Progress,
) -> Result<Compiled, CompileError> {
    device::check(options.targets.iter(), run)?;
    let prepared = prepare_with(checkpoint, options, run, progress)?;
    let source_hash = match run.source_hash {
        Some(known) => known,
        None => source_hash(checkpoint, progress)?,
    };
    let mut generate = |target: &Target, plan: &Plan, section: &mut _| {
        device::generate(target, plan, run, progress, section)
    };
    let assembled = assemble(checkpoint, source_hash, &prepared, options, &mut generate)?;
    let scheduled = &assembled.scheduled;
    if let Some(budget @ Budget::Size(most)) = options.budget {
        // The size was chosen before kernels of GPUs were compiled.
        let bytes = engine_len(assembled.sections())?;
        if bytes > most {
            let best = format!("{bytes} bytes, as kernels are larger than expected; ask for a little less");
            return Err(CompileError::Budget { asked: budget.to_string(), best });
        }
    }

    let output = |why: String| CompileError::Output { path: out.to_path_buf(), why };
    let folder = match out.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let name =
        out.file_name().ok_or_else(|| output("is no file name".into()))?.to_string_lossy().into_owned();
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(".partial");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o644));
    }
    let temp = builder
        .prefix(&format!(".{name}."))
        .tempfile_in(folder)
        .map_err(|e| output(format!("cannot write into {}: {e}", folder.display())))?;

    progress.start("pack weights", Amount::Bytes(scheduled.plan.weights.iter().map(|w| w.len).sum()));
    let mut failure = None;
    let weights_source = Calibrated { checkpoint, codes: &prepared.codes };
    {
        // Linux caches a file in pages as large as the writes, and maps those of 2 MB whole: the engine starts faster.
        let mut file = BufWriter::with_capacity(16 << 20, temp.as_file());
        let result = write_engine(&mut file, out, assembled.sections(), &mut |id, sink| {
            weights::write(&weights_source, scheduled, id, run.threads, progress, sink).map_err(|e| {
                let message = e.to_string();
                match e {
                    weights::WriteError::Io(e) => e,
                    weights::WriteError::Compile(e) => {
                        failure = Some(e);
                        std::io::Error::other(message)
                    }
                }
            })
        });
        if let Some(e) = failure {
            return Err(e);
        }
        result.map_err(|e| match e {
            bessemer_format::FormatError::Io { source, .. } => output(source.to_string()),
            other => other.into(),
        })?;
        file.flush().map_err(|e| output(e.to_string()))?;
    }
    let engine = EngineFile::from_bytes(map_opened(temp.as_file()).map_err(|e| output(e.to_string()))?)?;
    let (hash, bytes) = (engine.hash(), engine.bytes().len() as u64);
    drop(engine);
    let sha256 = sha256(temp.as_file(), progress).map_err(|e| output(e.to_string()))?;
    let sha256 = sha256.ok_or(CompileError::Interrupted)?;
    if let Some(expected) = expect_sha256
        && !expected.eq_ignore_ascii_case(&sha256)
    {
        return Err(CompileError::Hash { found: sha256, expected: expected.into() });
    }
    temp.as_file().sync_all().map_err(|e| output(e.to_string()))?;
    temp.persist(out).map_err(|e| output(e.error.to_string()))?;
    sync_folder(folder);

    Ok(Compiled {
        bytes,
        sha256,
        hash: hash.to_string(),
        source_hash: source_hash.to_string(),
        bits_per_weight: bits_per_weight(scheduled),
        layers: prepared.facts.layers,
        quality: prepared.quality,
    })
}

/// Everything of an engine but the weights' bytes.
struct Assembled {
    /// For the first target, with the weights of all.
    scheduled: Scheduled,
    manifest: Manifest,
    plans: Vec<VariantPlan>,
    tokenizer: Vec<u8>,
    code: Vec<u8>,
    device: device::Section,
    report: Report,
    debug: String,
}

impl Assembled {
    fn sections(&self) -> Sections<'_> {
        Sections {
            manifest: self.manifest.clone(),
            plans: &self.plans,
            tokenizer: &self.tokenizer,
            code: &self.code,
            device: &self.device.0,
            report: &self.report,
            debug: &self.debug,
        }
    }
}

/// What a target needs on its device.
type Generate<'a> = &'a mut dyn FnMut(
    &Target,
    &Plan,
    &mut device::Section,
) -> Result<(DeviceCode, Option<GpuCode>), CompileError>;

/// Plans a prepared graph and generates code for it.
fn assemble(
    checkpoint: &Checkpoint,
    source: Hash,
    prepared: &Prepared,
    options: &CompileOptions,
    generate: Generate<'_>,
) -> Result<Assembled, CompileError> {
    let all = plans(prepared, options)?;
    let tokenizer = text(checkpoint, &prepared.facts)?;
    let (mut variants, mut plans, mut device) = (Vec::new(), Vec::new(), device::Section::default());
    for (target, scheduled) in options.targets.iter().zip(&all) {
        let (needs, gpu) = generate(target, &scheduled.plan, &mut device)?;
        variants.push(Variant { target: target.name(), device: needs });
        plans.push(VariantPlan { plan: scheduled.plan.clone(), gpu });
    }
    let scheduled = all.into_iter().next().ok_or(CompileError::Interrupted)?;
    let (code, code_entries) = crate::code::generate(&scheduled.plan, options)?;
    let report = Report {
        selection: scheduled.selection.clone(),
        tactics: scheduled.tactics.report(),
        passes: prepared.passes.clone(),
        quality: prepared.quality.clone(),
    };
    let manifest = Manifest {
        producer: bessemer_format::PRODUCER.into(),
        source: Source {
            hash: source,
            format: checkpoint.config().format().into(),
            architecture: prepared.architecture.into(),
        },
        options: options.pairs(),
        variants,
        tensors: tensor_entries(checkpoint, &scheduled),
        weight_hashes: Vec::new(),
        code: code_entries,
    };
    let debug = bessemer_ir::text::print_brief(&prepared.graph);
    Ok(Assembled { scheduled, manifest, plans, tokenizer, code, device, report, debug })
}

/// The TOKENIZER section; empty for a checkpoint without a tokenizer.
fn text(checkpoint: &Checkpoint, facts: &ModelFacts) -> Result<Vec<u8>, CompileError> {
    let Some(section) = text_section(checkpoint).map_err(|e| CompileError::Text(e.to_string()))? else {
        return Ok(Vec::new());
    };
    // The other way round is common and harmless: rows that pad the embedding to a round number.
    let (tokens, rows) = (section.tokenizer.vocab.len(), facts.vocab);
    if tokens > rows as usize {
        return Err(CompileError::Vocabulary { tokens, rows });
    }
    section.encode().map_err(|e| CompileError::Text(e.to_string()))
}

/// The cache key of a compilation: source, options and versions (of the compiler and of the format), nothing else.
pub fn key(source: Hash, options: &CompileOptions) -> Hash {
    let (major, minor) = (header::MAJOR, header::MINOR);
    let mut text = format!("{} {major}.{minor}\n{source}\n", bessemer_format::PRODUCER);
    for (k, v) in options.pairs() {
        text.push_str(&format!("{k}={v}\n"));
    }
    Hash::of(text.as_bytes())
}

/// Makes the rename durable. A file system that cannot sync a folder has nothing to lose by it.
fn sync_folder(folder: &Path) {
    if let Ok(f) = File::open(folder) {
        let _ = f.sync_all();
    }
}

/// The hash of everything that an engine depends on.
pub(crate) fn source_hash(checkpoint: &Checkpoint, progress: &dyn Progress) -> Result<Hash, CompileError> {
    progress.start("hash source", Amount::Bytes(checkpoint.files().map(|(_, b)| b.len() as u64).sum()));
    let mut before = 0;
    let hash = checkpoint.content_hash_while(|done, _| {
        progress.advance(done - before);
        before = done;
        !progress.cancelled()
    });
    hash.map(|hash| Hash(*hash.as_bytes())).ok_or(CompileError::Interrupted)
}

/// `None` if somebody asked to stop.
fn sha256(mut file: &File, progress: &dyn Progress) -> std::io::Result<Option<String>> {
    progress.start("hash engine", Amount::Bytes(file.metadata()?.len()));
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        if progress.cancelled() {
            return Ok(None);
        }
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        progress.advance(n as u64);
    }
    Ok(Some(hasher.finalize().iter().map(|b| format!("{b:02x}")).collect()))
}

/// An entry for every tensor of the checkpoint, in the order of their names.
fn tensor_entries(checkpoint: &Checkpoint, scheduled: &Scheduled) -> Vec<TensorEntry> {
    checkpoint
        .tensors()
        .iter()
        .filter_map(|(name, info)| {
            let weights: Vec<u32> = (0..scheduled.weights.len() as u32)
                .filter(|id| scheduled.weights[*id as usize].source_names().any(|source| source == name))
                .collect();
            // A tensor that no step reads (stored rotary frequencies, the copy of a tied head) is not in the engine.
            let first = *weights.first()?;
            Some(TensorEntry {
                name: name.clone(),
                shape: info.shape.iter().map(|d| *d as u64).collect(),
                stored: info.stored.name().into(),
                scheme: scheduled.plan.weights[first as usize].scheme,
                weights,
                folded: None,
            })
        })
        .collect()
}

/// Bits a weight over all matrices.
fn bits_per_weight(scheduled: &Scheduled) -> f64 {
    let (mut bits, mut count) = (0.0, 0.0);
    for w in scheduled.plan.weights.iter().filter(|w| w.n > 1) {
        let elements = f64::from(w.n) * f64::from(w.k);
        bits += elements * w.scheme.bits_per_weight(w.k as usize);
        count += elements;
    }
    if count > 0.0 { bits / count } else { 0.0 }
}
