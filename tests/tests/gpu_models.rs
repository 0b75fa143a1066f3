//! Whole models as kernels for GPUs, on the shim, against the oracle. Real ones are fetched by `fixtures/fetch.py`; without them a test
//! says that it was skipped. No GPU is used.

use bessemer_compiler::compile::prepare;
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_format::header::SectionKind;
use bessemer_ir::Phase;
use bessemer_ir::exec::{SequenceRows, Wanted};
use bessemer_oracle::{Oracle, Reading};
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::{DeviceChoice, DeviceCode, DeviceKind, Engine, KvElem, VariantRef, WorkerOptions};
use bessemer_targets::Targets;
use bessemer_targets::clike::Dialect;
use bessemer_tests::checkpoints::{plausible_safetensors, small_llama, write_directory};
use bessemer_tests::gpu::{self, Case, Emitted, GpuModel, Shim, Weights, emit};
use bessemer_tests::models::{cached_model, compile, fixture, golden, logits, relative_error};
use std::path::Path;

/// Relative distance of a step from the oracle on the same operands: sums of at most 2^15 terms of f32 in another order.
const STEP: f64 = 1e-5;

/// The steps of one token of SmolLM2 in both dialects, each held to the oracle on what the steps before it made.
#[test]
fn a_token_of_a_real_model_on_both() {
    let Some(source) = cached_model("smollm2-135m-instruct.gguf") else { return };
    let case = Case { source: source.clone(), ..Case::new("", "smollm2", PrecisionPolicy::Source) };
    let models = [case.build()];
    let checkpoint = Checkpoint::open(&source).unwrap();
    let run = RunOptions { stop_after: Some(Phase::Packed), ..RunOptions::default() };
    let graph = prepare(&checkpoint, &case.options, &run).unwrap().graph;
    for dialect in [Dialect::Cuda, Dialect::Metal] {
        let Emitted { text, kernels, programs } = emit(dialect, KvElem::F32, &models);
        let folder = tempfile::tempdir().unwrap();
        let Some(device) = gpu::compile(&text, &kernels, dialect, folder.path()) else { return };
        let code = (&kernels[..], &programs[0][..]);
        let weights = Weights::Apart(&models[0].weights);
        let mut model =
            GpuModel::new(&models[0].plan, weights, code, KvElem::F32, 1, Shim::start(&device)).unwrap();
        let trace = model.traced(&[1]).unwrap_or_else(|e| panic!("{e}"));
        let mut oracle = Oracle::new(&graph, &checkpoint, Reading::Declared { kv: KvElem::F32 }).unwrap();
        let token = [SequenceRows { sequence: 0, tokens: &[1], types: &[], logits: Wanted::All }];
        let steps = oracle.follow(&token, trace).unwrap();
        assert!(steps.len() >= 245, "only {} steps", steps.len());
        let worst = steps.iter().max_by(|a, b| a.error.total_cmp(&b.error)).unwrap();
        let at = format!("{dialect:?}, {} steps, worst {} ({})", steps.len(), worst.node, worst.op);
        println!("{at}: {:.2e}", worst.error);
        assert!(worst.error < STEP, "{at}: {:.2e}", worst.error);
    }
}

/// An engine as a user makes it, out of its file, with what it should compute.
struct Made {
    name: String,
    engine: Engine,
    tokens: Vec<u32>,
    /// Logits, and how far from them is still right.
    expected: Vec<Vec<f32>>,
    bound: f64,
}

fn make(source: &Path, precision: &str) -> Engine {
    let folder = tempfile::tempdir().unwrap();
    let options = CompileOptions {
        targets: Targets::parse(["cpu", "metal"]).unwrap(),
        precision: precision.parse().unwrap(),
        f32_activations: true,
        ..CompileOptions::default()
    };
    let (path, _) = compile(source, folder.path(), &options).unwrap_or_else(|e| panic!("{e}"));
    Engine::open(&path).unwrap_or_else(|e| panic!("{e}"))
}

/// Distance of logits between a cache of bf16 and one of f32: numbers of 8 bits are off by up to 2⁻⁹ each, and layers add up.
const BF16: f64 = 2e-2;

/// The same where both round the cache to bf16: only numbers beside a tie go different ways, a few in a thousand. Ten times less, so that a
/// kernel which loses a bit of what it reads is found.
const BOTH_BF16: f64 = 2e-3;

/// Engines of three families against what transformers computes in f32, and one model in every precision against the same engine's CPU
/// variant, which others hold to the oracle.
fn engines(folder: &Path) -> Vec<Made> {
    let mut all = Vec::new();
    for name in ["gemma3", "qwen3_moe", "deepseek_v3"] {
        let g = golden(name, "");
        let engine = make(&fixture(name), "f32");
        all.push(Made { name: name.into(), engine, tokens: g.tokens, expected: g.logits, bound: BF16 });
    }
    let (config, tensors) = small_llama();
    write_directory(folder, &config, &plausible_safetensors(&tensors)).unwrap();
    let tokens: Vec<u32> = (0..9).map(|i| i * 37 % 128).collect();
    for precision in ["f32", "bf16", "int8", "int6", "int5", "int4", "int3", "int2"] {
        let engine = make(folder, precision);
        let options = WorkerOptions::default().threads(2).device(DeviceChoice::Cpu);
        let expected = logits(&engine, options, &tokens);
        let name = format!("llama {precision}");
        all.push(Made { name, engine, tokens: tokens.clone(), expected, bound: BOTH_BF16 });
    }
    all
}

/// The Metal variant of an engine file, by the launches that it holds and in the memory that it plans: arena and weights as they lie.
#[test]
fn engines_for_metal_compute_what_the_cpu_computes() {
    let folder = tempfile::tempdir().unwrap();
    let made = engines(&folder.path().join("llama"));
    let variants: Vec<_> = made.iter().map(|m| m.engine.variant(DeviceKind::Metal).unwrap()).collect();
    let text = |m: &Made, v: &VariantRef<'_>| match v.device {
        DeviceCode::Metal { text, .. } => {
            std::str::from_utf8(m.engine.file().device_code(*text)).unwrap().to_owned()
        }
        other => panic!("{other:?}"),
    };
    let texts: Vec<String> = made.iter().zip(&variants).map(|(m, v)| text(m, v)).collect();
    let codes: Vec<_> = variants.iter().map(|v| v.gpu.unwrap()).collect();
    let both: Vec<_> = texts.iter().zip(&codes).map(|(t, c)| (t.as_str(), &c.kernels[..])).collect();
    let Some((device, kernels)) = gpu::compile_together(&both, folder.path()) else { return };
    for (((m, v), code), kernels) in made.iter().zip(&variants).zip(&codes).zip(&kernels) {
        let section = m.engine.section(SectionKind::Weights);
        let run = |reverse| -> Vec<Vec<f32>> {
            let (weights, code, kv) =
                (Weights::Section(section), (&kernels[..], &code.programs[..]), code.kv);
            let mut model =
                GpuModel::new(v.plan, weights, code, kv, m.tokens.len(), Shim::start(&device)).unwrap();
            model.reverse(reverse);
            // A prefill, then single steps.
            let mut rest = &m.tokens[..];
            let mut found = Vec::new();
            while !rest.is_empty() {
                let many = if found.is_empty() { rest.len().saturating_sub(4).max(1) } else { 1 };
                let (now, later) = rest.split_at(many);
                let wanted: Vec<usize> = (0..now.len()).collect();
                found.extend(model.forward(now, &[], &wanted).unwrap_or_else(|e| panic!("{}: {e}", m.name)));
                rest = later;
            }
            found
        };
        let found = run(false);
        let error = relative_error(&found, &m.expected);
        println!("{}: {error:.2e}", m.name);
        assert!(error < m.bound, "{}: {error:.2e} is above {:.0e}", m.name, m.bound);
        assert_eq!(run(true), found, "{}: the order of threads changes the result", m.name);
    }
}
