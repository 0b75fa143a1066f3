//! Models of the fixtures as kernels: how each is compiled, what it should compute, and whether a device does.

use super::model::{GpuModel, Weights};
use super::shim::{self, Shim};
use crate::models::{ENCODERS, FAMILIES, encoder_golden, fixture, golden, relative_error, root};
use bessemer_compiler::Silent;
use bessemer_compiler::compile::{Prepared, plan, prepare};
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_compiler::weights;
use bessemer_format::gpu::{GpuKernel, Launch};
use bessemer_format::manifest::KvElem;
use bessemer_format::plan::Plan;
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::EmbedInput;
use bessemer_targets::Targets;
use bessemer_targets::clike::{Dialect, Emitter};
use bessemer_targets::schedule::{ScheduleOptions, Scheduled, schedule};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A model, its golden, and how it is compiled.
pub struct Case {
    /// The checkpoint.
    pub source: PathBuf,
    /// Name of the golden.
    pub golden: String,
    /// Options of the compiler.
    pub options: CompileOptions,
    /// Whether steps other than nests are planned.
    pub kernels: bool,
}

/// A case that was compiled: the plan, its weights, and the ops of its graph.
pub struct Built {
    /// The plan.
    pub plan: Plan,
    /// Its weights.
    pub weights: Vec<Vec<u8>>,
    /// Ops of its graph.
    pub ops: BTreeSet<&'static str>,
}

impl Case {
    /// A fixture as it is planned for a GPU.
    pub fn new(model: &str, golden: &str, precision: PrecisionPolicy) -> Self {
        // All GPUs have the same plans.
        let targets = Targets::parse(["cuda"]).unwrap();
        let options = CompileOptions { targets, precision, ..CompileOptions::default() };
        Self { source: fixture(model), golden: golden.into(), options, kernels: true }
    }

    fn schedule(&self, checkpoint: &Checkpoint) -> (Prepared, Scheduled) {
        let prepared = prepare(checkpoint, &self.options, &RunOptions::default()).unwrap();
        let scheduled = match self.kernels {
            true => plan(&prepared, &self.options).unwrap(),
            false => {
                let options =
                    ScheduleOptions { kernels: false, layers_apart: true, ..ScheduleOptions::default() };
                schedule(&prepared.graph, &prepared.facts, &options).unwrap()
            }
        };
        (prepared, scheduled)
    }

    /// Its plan alone.
    pub fn plan(&self) -> Plan {
        self.schedule(&Checkpoint::open(&self.source).unwrap()).1.plan
    }

    /// Compiles it.
    pub fn build(&self) -> Built {
        let checkpoint = Checkpoint::open(&self.source).unwrap();
        let (prepared, scheduled) = self.schedule(&checkpoint);
        let weight = |id| {
            let mut bytes = Vec::new();
            weights::write(&checkpoint, &scheduled, id, 1, &Silent, &mut bytes).unwrap();
            bytes
        };
        Built {
            weights: (0..scheduled.plan.weights.len() as u32).map(weight).collect(),
            ops: prepared.graph.order().into_iter().map(|n| prepared.graph.op(n).name()).collect(),
            plan: scheduled.plan,
        }
    }
}

/// A pass over tokens (with their types), and the rows whose results are wanted.
struct Part {
    tokens: Vec<u32>,
    types: Vec<u8>,
    wanted: Vec<usize>,
}

/// The golden of a decoder, in passes of many, some and single rows.
fn sequence(name: &str) -> (Vec<Vec<Part>>, Vec<Vec<f32>>) {
    let g = golden(name, "");
    let mut parts = Vec::new();
    let mut at = 0;
    for rows in [33, 5].into_iter().chain(std::iter::repeat(1)) {
        let tokens = g.tokens[at..(at + rows).min(g.tokens.len())].to_vec();
        if tokens.is_empty() {
            return (vec![parts], g.logits);
        }
        at += tokens.len();
        parts.push(Part { wanted: (0..tokens.len()).collect(), tokens, types: Vec::new() });
    }
    unreachable!("a golden ends")
}

/// The golden of an encoder: texts, each a sequence of its own.
fn texts(name: &str) -> (Vec<Vec<Part>>, Vec<Vec<f32>>) {
    let (texts, vectors) = encoder_golden(name);
    let part = |EmbedInput { tokens, types }: EmbedInput| {
        let types = types.into_iter().map(|t| t as u8).collect();
        vec![Part { wanted: vec![tokens.len() - 1], tokens, types }]
    };
    (texts.into_iter().map(part).collect(), vectors)
}

/// The kernels of several models.
pub struct Emitted {
    /// One text.
    pub text: String,
    /// What it defines.
    pub kernels: Vec<GpuKernel>,
    /// The launches of each model's programs.
    pub programs: Vec<Vec<Vec<Launch>>>,
}

/// The kernels of `models` in one text.
pub fn emit(dialect: Dialect, kv: KvElem, models: &[Built]) -> Emitted {
    let mut emitter = Emitter::new(dialect, kv);
    let programs = models.iter().map(|m| emitter.plan(&m.plan).unwrap_or_else(|e| panic!("{e}"))).collect();
    let (text, kernels) = emitter.finish();
    Emitted { text, kernels, programs }
}

/// Runs all cases from one text.
pub fn agree(dialect: Dialect, kv: KvElem, cases: &[Case], bound: f64) {
    check(dialect, kv, cases, bound, |text| text).unwrap_or_else(|why| panic!("{why}"));
}

/// Runs all cases from one text, which `change` may spoil: what is found to be wrong.
pub fn check(
    dialect: Dialect,
    kv: KvElem,
    cases: &[Case],
    bound: f64,
    change: impl Fn(String) -> String,
) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let built: Vec<Built> = cases.iter().map(Case::build).collect();
    let Emitted { text, kernels, programs } = emit(dialect, kv, &built);
    println!("{} kernels, {} lines", kernels.len(), text.lines().count());
    let Some(device) = shim::compile(&change(text), &kernels, dialect, folder.path()) else { return Ok(()) };
    for ((case, built), programs) in cases.iter().zip(&built).zip(&programs) {
        let name = format!("{} {} {dialect:?} kv {kv:?}", case.golden, case.options.precision);
        let error = case.holds(built, (&kernels, programs), kv, bound, Shim::start(&device));
        println!("{name}: {:.2e}", error.map_err(|why| format!("{name}: {why}"))?);
    }
    Ok(())
}

impl Case {
    /// The distance to the golden, which must be below `bound`: in both orders of threads, which must agree to the bit, and
    /// once more with the program for the most rows.
    fn holds(
        &self,
        built: &Built,
        code: (&[GpuKernel], &[Vec<Launch>]),
        kv: KvElem,
        bound: f64,
        shim: Shim,
    ) -> Result<f64, String> {
        let encoder = ENCODERS.iter().any(|(_, name)| *name == self.golden);
        let (sequences, expected) = if encoder { texts(&self.golden) } else { sequence(&self.golden) };
        let longest = sequences.iter().map(|s| s.iter().map(|p| p.tokens.len()).sum()).max().unwrap();
        let weights = Weights::Apart(&built.weights);
        let mut model =
            GpuModel::new(&built.plan, weights, code, kv, longest, shim).map_err(|e| e.to_string())?;
        let mut run = |reverse, widest| -> Result<(Vec<Vec<f32>>, f64), String> {
            model.reverse(reverse);
            model.widest = widest;
            let mut found = Vec::new();
            for sequence in &sequences {
                model.reset();
                for Part { tokens, types, wanted } in sequence {
                    found.extend(model.forward(tokens, types, wanted).map_err(|e| e.to_string())?);
                }
            }
            let error = relative_error(&found, &expected);
            match error < bound {
                true => Ok((found, error)),
                false => {
                    Err(format!("{error:.2e} is above {bound:.0e} (reverse {reverse}, widest {widest})"))
                }
            }
        };
        let (found, error) = run(false, false)?;
        if run(true, false)?.0 != found {
            return Err("the order of threads changes the result".into());
        }
        run(false, true)?;
        Ok(error)
    }
}

/// Every family of the fixtures, each once.
pub fn families() -> Vec<Case> {
    let models = FAMILIES.iter().chain(ENCODERS).filter(|(model, _)| !model.ends_with(".gguf"));
    models.map(|(model, golden)| Case::new(model, golden, PrecisionPolicy::F32)).collect()
}

/// Weights as others quantised them: every kind of packed number.
pub fn schemes() -> Vec<Case> {
    let quantised = [
        "awq",
        "gptq",
        "gptq_v2_3bit",
        "fp8_blocks",
        "mxfp4",
        "ct_w4a16_asym",
        "ct_w8a8",
        "ct_fp8",
        "ct_nvfp4",
    ];
    let stored = quantised.iter().map(|name| Case {
        source: root().join("fixtures/quantised").join(name),
        ..Case::new("", &format!("quantised_{name}"), PrecisionPolicy::Source)
    });
    let gguf = ["gqa_tied.mixed.gguf", "blocks.gguf", "f16_sharded", "bf16"]
        .map(|model| Case::new(model, model, PrecisionPolicy::Source));
    stored.chain(gguf).collect()
}
