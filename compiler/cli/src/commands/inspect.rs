//! `bessemer inspect`

use crate::exit::Failure;
use crate::json;
use crate::output::out;
use crate::size::Size;
use bessemer_format::header::SectionKind;
use bessemer_format::manifest::{Manifest, Quality, Report};
use bessemer_format::plan::{Linear, Plan, Program, StepKind};
use bessemer_format::variant::CudaBinary;
use bessemer_runtime::{DeviceCode, Engine, KvElem, VariantRef};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bessemer inspect model.engine                      what it is and where it came from
  bessemer inspect model.engine --kernels            what runs, for each number of rows
  bessemer inspect model.engine --quality            what rounding its weights costs
  bessemer inspect model.engine --why                why every step runs as it does
  bessemer inspect model.engine --why layers.0       the same for nodes of this name";

/// Show what is in an engine, and why
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The engine
    engine: PathBuf,

    /// Steps of each program
    #[arg(long)]
    kernels: bool,

    /// Memory that a run takes
    #[arg(long)]
    memory: bool,

    /// Reasons of the kernel selection, for all nodes or those whose name contains this
    #[arg(long, value_name = "NODE", num_args = 0..=1, default_missing_value = "")]
    why: Option<String>,

    /// What rounding costs, as the compiler measured it
    #[arg(long)]
    quality: bool,

    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Output<'a> {
    hash: String,
    file_bytes: u64,
    manifest: &'a Manifest,
    variants: Vec<VariantSummary<'a>>,
    model: &'a bessemer_format::plan::ModelFacts,
    sections: BTreeMap<&'static str, u64>,
    bits_per_weight: f64,
    memory: Vec<Memory>,
    programs: Vec<ProgramSummary>,
    report: Option<Report>,
}

#[derive(Serialize)]
struct Memory {
    kv: &'static str,
    tokens: u32,
    kv_bytes: u64,
    arena_bytes: u64,
    logits_bytes: u64,
}

#[derive(Serialize)]
struct ProgramSummary {
    min_rows: u32,
    max_rows: u32,
    steps: usize,
    barriers: usize,
    arena_bytes: u64,
    /// How many steps there are of each kind.
    kinds: BTreeMap<String, usize>,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        let engine = Engine::open(&self.engine)?;
        let report = engine.report()?;
        if let Some(node) = &self.why {
            return why(&engine, report.unwrap_or_default(), node, self.json);
        }
        if self.quality {
            return print_quality(report.and_then(|r| r.quality), self.json);
        }
        let file_bytes = std::fs::metadata(&self.engine)?.len();
        let plan = engine.plan();
        let output = Output {
            hash: engine.hash().to_string(),
            file_bytes,
            manifest: engine.manifest(),
            variants: engine.variants().map(VariantSummary::new).collect(),
            model: &plan.model,
            sections: SectionKind::ALL.iter().map(|k| (k.name(), engine.section(*k).len() as u64)).collect(),
            bits_per_weight: bits_per_weight(plan),
            memory: memory(&engine),
            programs: plan.programs.iter().map(summary).collect(),
            report,
        };
        if self.json {
            return json::print(&output);
        }
        if self.kernels {
            return print_kernels(plan);
        }
        if self.memory {
            return print_memory(&output);
        }
        print_overview(&output)
    }
}

fn print_quality(quality: Option<Quality>, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return json::print(&quality);
    }
    out!("{}", crate::quality::line(quality.as_ref(), false))?;
    let Some(quality) = quality else { return Ok(()) };
    out!("text    {} ({} tokens predicted)", quality.text, quality.tokens)?;
    out!("size    {:.3} bits a weight", quality.bits_per_weight)?;
    out!("cache   {} unless `--kv` says otherwise", quality.default_kv.name())?;
    for (kv, kl) in &quality.kv {
        out!(
            "cache   {:<4} costs a KL divergence of {kl:.2e} by itself, on the source's weights",
            kv.name()
        )?;
    }
    for (name, error) in &quality.weights {
        out!("weight  {name}: outputs off by {:.2} % on the calibration text", 100.0 * error)?;
    }
    Ok(())
}

fn why(engine: &Engine, report: Report, node: &str, as_json: bool) -> Result<(), Failure> {
    let found: Vec<_> = report.selection.into_iter().filter(|s| s.node.contains(node)).collect();
    if found.is_empty() {
        return Err(Failure::usage(format!("the engine's report has no node whose name contains `{node}`")));
    }
    if as_json {
        return json::print(&found);
    }
    for tactic in report.tactics.iter().filter(|_| node.is_empty()) {
        out!("{} = {}: {}", tactic.name, tactic.value, tactic.why)?;
    }
    for selection in found {
        let code = code_of(engine, &selection.node).map_or(String::new(), |code| format!(", {code}"));
        out!("{}: {}{code}", selection.node, selection.chosen)?;
        for (candidate, reason) in selection.rejected {
            out!("  not {candidate}: {reason}")?;
        }
    }
    Ok(())
}

/// What runs a node's nest, if it is one.
fn code_of(engine: &Engine, node: &str) -> Option<String> {
    let steps = engine.plan().programs.first().map_or(&[][..], |p| &p.steps);
    let nest = steps.iter().find_map(|step| match step.kind {
        StepKind::Nest { nest, .. } if step.source == node => Some(nest),
        _ => None,
    })?;
    let isas: BTreeSet<String> =
        engine.manifest().code.iter().filter(|c| c.nest == nest).map(|c| format!("{:?}", c.isa)).collect();
    if isas.is_empty() {
        return Some("interpreted: the engine holds no machine code for it".into());
    }
    let isas: Vec<String> = isas.into_iter().collect();
    Some(format!("machine code for {} where trusted, else interpreted", isas.join(" and ")))
}

fn print_overview(o: &Output) -> Result<(), Failure> {
    let (m, model) = (o.manifest, o.model);
    out!("engine     {}", o.hash)?;
    out!("written by {}", m.producer)?;
    out!("source     {} ({}), hash {}", m.source.architecture, m.source.format, m.source.hash)?;
    out!(
        "model      {} layers, width {}, vocabulary {}, context {}",
        model.layers,
        model.hidden,
        model.vocab,
        model.context
    )?;
    for variant in &o.variants {
        variant.print()?;
    }
    for tactic in o.report.iter().flat_map(|r| &r.tactics) {
        out!("tactic     {} = {} ({})", tactic.name, tactic.value, tactic.why)?;
    }
    for (key, value) in m.options.iter().filter(|(k, v)| k != "target" && !v.is_empty()) {
        out!("option     {key} = {value}")?;
    }
    out!("file       {}, {:.2} bits a weight", Size(o.file_bytes), o.bits_per_weight)?;
    for (name, bytes) in o.sections.iter().filter(|(_, b)| **b > 0) {
        out!("  {name:<10} {}", Size(*bytes))?;
    }
    let mut schemes = BTreeMap::new();
    for tensor in &m.tensors {
        *schemes.entry(format!("{} -> {}", tensor.stored, tensor.scheme)).or_insert(0) += 1;
    }
    for (scheme, count) in schemes {
        out!("tensors    {count} {scheme}")?;
    }
    for program in &o.programs {
        out!(
            "program    {} to {} rows: {} steps, {} barriers",
            program.min_rows,
            program.max_rows,
            program.steps,
            program.barriers
        )?;
    }
    for memory in &o.memory {
        out!("KV         {} for {} tokens in {}", Size(memory.kv_bytes), memory.tokens, memory.kv)?;
    }
    Ok(())
}

/// What there is for one kind of device.
#[derive(Serialize)]
struct VariantSummary<'a> {
    target: &'a str,
    needs: String,
    /// Kernels of a GPU, and how often a token's program launches one.
    kernels: usize,
    launches: usize,
    /// What the kernels keep the cache in.
    kv: Option<&'static str>,
    code: Vec<CodeSummary>,
}

/// Kernels for one architecture, or their text.
#[derive(Serialize)]
struct CodeSummary {
    name: String,
    bytes: u64,
    /// Of the kernel that takes most.
    registers: Option<u32>,
    /// Bytes of all kernels.
    spilled: Option<u32>,
}

impl<'a> VariantSummary<'a> {
    fn new(variant: VariantRef<'a>) -> Self {
        let binary = |b: &CudaBinary| CodeSummary {
            name: b.arch.to_string(),
            bytes: b.code.len,
            registers: b.usage.iter().map(|u| u.registers).max(),
            spilled: (!b.usage.is_empty()).then(|| b.usage.iter().map(|u| u.spilled).sum()),
        };
        let code = match variant.device {
            DeviceCode::Cpu { .. } => Vec::new(),
            DeviceCode::Cuda { binaries, .. } => binaries.iter().map(binary).collect(),
            DeviceCode::Metal { text, .. } => {
                vec![CodeSummary { name: "text".into(), bytes: text.len, registers: None, spilled: None }]
            }
        };
        Self {
            target: variant.target,
            needs: needs(variant.device),
            kernels: variant.gpu.map_or(0, |gpu| gpu.kernels.len()),
            launches: variant.gpu.and_then(|gpu| gpu.programs.first()).map_or(0, Vec::len),
            kv: variant.gpu.map(|gpu| gpu.kv.name()),
            code,
        }
    }

    fn print(&self) -> Result<(), Failure> {
        out!("target     {}: {}", self.target, self.needs)?;
        if let Some(kv) = self.kv {
            out!("  {} kernels, {} launches a token, {kv} KV", self.kernels, self.launches)?;
        }
        for CodeSummary { name, bytes, registers, spilled } in &self.code {
            let usage = match (registers, spilled) {
                (Some(registers), Some(0)) => format!(", up to {registers} registers, none spilled"),
                (Some(registers), Some(spilled)) => {
                    format!(", up to {registers} registers, {spilled} bytes spilled")
                }
                _ => String::new(),
            };
            out!("  {name:<10} {}{usage}", Size(*bytes))?;
        }
        Ok(())
    }
}

/// What a device must have.
fn needs(device: &DeviceCode) -> String {
    match device {
        DeviceCode::Cpu { features } if features.is_empty() => "any CPU".into(),
        DeviceCode::Cpu { features } => features.join(", "),
        DeviceCode::Cuda { driver, binaries } => {
            let archs: Vec<String> = binaries.iter().map(|b| b.arch.to_string()).collect();
            format!(
                "one of {}, a driver of CUDA {}.{} or later",
                archs.join(", "),
                driver / 1000,
                driver % 1000 / 10
            )
        }
        DeviceCode::Metal { family, .. } => format!("Apple {family} or later"),
    }
}

fn print_memory(o: &Output) -> Result<(), Failure> {
    for memory in &o.memory {
        out!(
            "{} tokens, {} KV: {} of KV, {} of activations, {} of logits",
            memory.tokens,
            memory.kv,
            Size(memory.kv_bytes),
            Size(memory.arena_bytes),
            Size(memory.logits_bytes)
        )?;
    }
    for program in &o.programs {
        out!(
            "program of {} to {} rows: arena of {}",
            program.min_rows,
            program.max_rows,
            Size(program.arena_bytes)
        )?;
    }
    Ok(out!("The file is mapped: its {} are shared with the operating system's cache.", Size(o.file_bytes))?)
}

fn print_kernels(plan: &Plan) -> Result<(), Failure> {
    for program in &plan.programs {
        out!("program of {} to {} rows", program.regime.min_rows, program.regime.max_rows)?;
        for step in &program.steps {
            let barrier = if step.barrier { "" } else { "  (no barrier after it)" };
            out!("  {:<40} {}{barrier}", describe(plan, &step.kind), step.source)?;
        }
    }
    Ok(())
}

fn describe(plan: &Plan, kind: &StepKind) -> String {
    let scheme = |weight: u32| plan.weights.get(weight as usize).map_or("?".into(), |w| w.scheme.to_string());
    let of_linear = |linear: &Linear| {
        let segments: Vec<_> = linear.segments.iter().map(|s| scheme(s.weight)).collect();
        format!("linear {:?} [{}] {:?}", linear.compute, segments.join(", "), linear.epilogue)
    };
    match kind {
        StepKind::Embed { table, .. } => format!("embed {}", scheme(*table)),
        StepKind::Linear(linear) => of_linear(linear),
        StepKind::GroupedLinear(g) => format!("{} of {} by {}", g.slots, g.groups, of_linear(&g.linear)),
        StepKind::Route(r) => format!("route to {} of {:?}", r.choice.top_k, r.choice.score),
        StepKind::Attention(a) => format!("attention {:?} {} heads on {}", a.compute, a.heads, a.kv_heads),
        StepKind::Nest { nest, .. } => format!("nest {nest}"),
        StepKind::Copy { .. } => "copy".into(),
    }
}

fn summary(program: &Program) -> ProgramSummary {
    let mut kinds = BTreeMap::new();
    for step in &program.steps {
        let name = match step.kind {
            StepKind::Embed { .. } => "embed",
            StepKind::Linear(_) => "linear",
            StepKind::GroupedLinear(_) => "grouped linear",
            StepKind::Route(_) => "route",
            StepKind::Attention(_) => "attention",
            StepKind::Nest { .. } => "nest",
            StepKind::Copy { .. } => "copy",
        };
        *kinds.entry(name.to_owned()).or_insert(0) += 1;
    }
    ProgramSummary {
        min_rows: program.regime.min_rows,
        max_rows: program.regime.max_rows,
        steps: program.steps.len(),
        barriers: program.steps.iter().filter(|s| s.barrier).count(),
        arena_bytes: program.arena_bytes,
        kinds,
    }
}

fn memory(engine: &Engine) -> Vec<Memory> {
    let plan = engine.plan();
    let (tokens, rows) = (plan.model.context, plan.programs.last().map_or(1, |p| p.regime.max_rows));
    KvElem::ALL
        .map(|kv| {
            let m = engine.memory(tokens as usize, kv, rows as usize);
            Memory { kv: kv.name(), tokens, kv_bytes: m.cache, arena_bytes: m.arena, logits_bytes: m.logits }
        })
        .into()
}

fn bits_per_weight(plan: &Plan) -> f64 {
    let matrices = || plan.weights.iter().filter(|w| w.n > 1);
    let elements = |w: &bessemer_format::plan::WeightSlice| f64::from(w.n) * f64::from(w.k);
    let bits: f64 = matrices().map(|w| elements(w) * w.scheme.bits_per_weight(w.k as usize)).sum();
    bits / matrices().map(elements).sum::<f64>().max(1.0)
}
