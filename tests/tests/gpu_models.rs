//! Whole models as kernels for GPUs, on the shim, against the oracle. Real ones are fetched by `fixtures/fetch.py`; without them a test
//! says that it was skipped. No GPU is used.

use bessemer_compiler::compile::prepare;
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::RunOptions;
use bessemer_ir::Phase;
use bessemer_ir::exec::{SequenceRows, Wanted};
use bessemer_oracle::{Oracle, Reading};
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::KvElem;
use bessemer_targets::clike::Dialect;
use bessemer_tests::gpu::{self, Case, Emitted, GpuModel, Shim, Weights, emit};
use bessemer_tests::models::cached_model;

/// Relative distance of a step from the oracle on the same operands: sums of at most 2^15 terms of f32 in another order.
const STEP: f64 = 1e-5;

/// The steps of one token of SmolLM2, up to where `stop` says, each held to the oracle on what the steps before it made.
fn one_token(dialect: Dialect, stop: impl Fn(&str) -> bool, least: usize) {
    let Some(source) = cached_model("smollm2-135m-instruct.gguf") else { return };
    let case = Case { source: source.clone(), ..Case::new("", "smollm2", PrecisionPolicy::Source) };
    let models = [case.build()];
    let Emitted { text, kernels, programs } = emit(dialect, KvElem::F32, &models);
    let folder = tempfile::tempdir().unwrap();
    let Some(device) = gpu::compile(&text, &kernels, dialect, folder.path()) else { return };
    let code = (&kernels[..], &programs[0][..]);
    let weights = Weights::Apart(&models[0].weights);
    let mut model =
        GpuModel::new(&models[0].plan, weights, code, KvElem::F32, 1, Shim::start(&device)).unwrap();
    let trace = model.traced(&[1], stop).unwrap_or_else(|e| panic!("{e}"));

    let checkpoint = Checkpoint::open(&source).unwrap();
    let run = RunOptions { stop_after: Some(Phase::Packed), ..RunOptions::default() };
    let graph = prepare(&checkpoint, &case.options, &run).unwrap().graph;
    let mut oracle = Oracle::new(&graph, &checkpoint, Reading::Declared { kv: KvElem::F32 }).unwrap();
    let token = [SequenceRows { sequence: 0, tokens: &[1], logits: Wanted::All }];
    let steps = oracle.follow(&token, trace).unwrap();
    assert!(steps.len() >= least, "only {} steps", steps.len());
    let worst = steps.iter().max_by(|a, b| a.error.total_cmp(&b.error)).unwrap();
    println!("{dialect:?}: {} steps, worst {} ({}) {:.2e}", steps.len(), worst.node, worst.op, worst.error);
    assert!(worst.error < STEP, "{dialect:?}: {} ({}): {:.2e}", worst.node, worst.op, worst.error);
}

#[test]
fn two_layers_of_a_real_model_on_both() {
    for dialect in [Dialect::Cuda, Dialect::Metal] {
        one_token(dialect, |step| step.starts_with("blk.2."), 12);
    }
}

#[test]
#[ignore = "a minute a dialect"]
fn a_token_of_a_real_model_on_both() {
    for dialect in [Dialect::Cuda, Dialect::Metal] {
        one_token(dialect, |_| false, 180);
    }
}
