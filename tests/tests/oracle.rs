//! The oracle against transformers, and engines against the oracle.
//!
//! The `Exact` reading must give what transformers computes in f32, at every phase of the graph: then it is the meaning. An engine is held to the
//! `Declared` reading, which rounds where the graph declares it: what is left is the order of additions.

use bessemer_compiler::compile::prepare;
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_eager::{Eager, EagerOptions};
use bessemer_ir::exec::{Logits, SequenceRows, Wanted};
use bessemer_ir::{Graph, Phase};
use bessemer_oracle::{Oracle, Reading};
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::{KvElem, WorkerOptions};
use bessemer_tests::models::{FAMILIES, engine, fixture, golden, logits, relative_error};

/// Fixture and its golden.
const MODELS: &[(&str, &str)] = &[
    ("gqa_tied", "gqa_tied"),
    ("gqa_untied", "gqa_untied"),
    ("mha_untied", "mha_untied"),
    ("gqa_9_3", "gqa_9_3"),
    ("rope_linear", "rope_linear"),
    ("rope_llama3", "rope_llama3"),
    ("biases", "biases"),
    ("head_dim", "head_dim"),
    ("bf16", "bf16"),
    ("f16_sharded", "f16_sharded"),
    ("gqa_tied.f32.gguf", "gqa_tied"),
    ("gqa_tied.mixed.gguf", "gqa_tied.mixed.gguf"),
    ("f16_sharded.f16.gguf", "f16_sharded"),
    ("rope_llama3.f32.gguf", "rope_llama3"),
];

fn graph(checkpoint: &Checkpoint, options: &CompileOptions, phase: Phase) -> Graph {
    let run = RunOptions { stop_after: Some(phase), ..RunOptions::default() };
    prepare(checkpoint, options, &run).unwrap().graph
}

fn all(tokens: &[u32]) -> [SequenceRows<'_>; 1] {
    [SequenceRows { sequence: 0, tokens, logits: Wanted::All }]
}

fn rows(logits: Logits) -> Vec<Vec<f32>> {
    logits.rows().map(<[f32]>::to_vec).collect()
}

#[test]
fn exact_reading_and_eager_executor_give_what_transformers_gives() {
    for (model, name) in MODELS.iter().chain(FAMILIES) {
        let g = golden(name, "");
        let checkpoint = Checkpoint::open(fixture(model)).unwrap();
        let options = CompileOptions::default();
        for phase in [Phase::Imported, Phase::Canonical, Phase::Packed] {
            let graph = graph(&checkpoint, &options, phase);
            let mut oracle = Oracle::new(&graph, &checkpoint, Reading::Exact).unwrap();
            // As the golden was made: a prefill, then single steps.
            let mut found = rows(oracle.forward(&all(&g.tokens[..33])).unwrap());
            for token in &g.tokens[33..] {
                found.extend(rows(oracle.forward(&all(&[*token])).unwrap()));
            }
            let error = relative_error(&found, &g.logits);
            assert!(error < 1e-5, "{model} {phase}: oracle {error:.2e}");
        }
        let graph = graph(&checkpoint, &options, Phase::Canonical);
        let options = EagerOptions { threads: 2, ..EagerOptions::default() };
        let mut eager = Eager::new(&graph, &checkpoint, options).unwrap();
        let error = relative_error(&rows(eager.forward(&all(&g.tokens)).unwrap()), &g.logits);
        assert!(error < 1e-4, "{model}: eager {error:.2e}");
    }
}

#[test]
fn a_mixed_batch_of_the_oracle_gives_what_transformers_gives() {
    let families = FAMILIES.iter().filter(|(model, _)| !model.ends_with(".gguf")).map(|(model, _)| *model);
    for name in ["gqa_tied", "rope_llama3"].into_iter().chain(families) {
        let goldens: Vec<_> = (0..3).map(|i| golden(name, &format!("batch.{i}."))).collect();
        let checkpoint = Checkpoint::open(fixture(name)).unwrap();
        let graph = graph(&checkpoint, &CompileOptions::default(), Phase::Packed);
        let mut oracle = Oracle::new(&graph, &checkpoint, Reading::Exact).unwrap();
        let parts: Vec<_> = goldens
            .iter()
            .enumerate()
            .map(|(sequence, g)| SequenceRows { sequence, tokens: &g.tokens, logits: Wanted::All })
            .collect();
        let found = rows(oracle.forward(&parts).unwrap());
        let expected: Vec<Vec<f32>> = goldens.iter().flat_map(|g| g.logits.clone()).collect();
        let error = relative_error(&found, &expected);
        assert!(error < 1e-5, "{name}: {error:.2e}");
    }
}

#[test]
fn engines_compute_what_their_graph_declares() {
    let policies = [
        PrecisionPolicy::Source,
        PrecisionPolicy::F32,
        PrecisionPolicy::Bf16,
        PrecisionPolicy::Int8 { group: 32 },
        PrecisionPolicy::Int4 { group: 32 },
    ];
    let (mut rounded, mut tight) = (0, 0);
    for (model, name) in MODELS.iter().chain(FAMILIES) {
        let g = golden(name, "");
        let checkpoint = Checkpoint::open(fixture(model)).unwrap();
        for precision in policies {
            let options = CompileOptions { precision, ..CompileOptions::default() };
            let engine = engine(model, &options);
            let graph = graph(&checkpoint, &options, Phase::Packed);
            let reading = Reading::Declared { kv: KvElem::F32 };
            let mut oracle = Oracle::new(&graph, &checkpoint, reading).unwrap();
            let declared = rows(oracle.forward(&all(&g.tokens)).unwrap());
            let worker = WorkerOptions::default().threads(2).kv(KvElem::F32);
            let error = relative_error(&logits(&engine, worker, &g.tokens), &declared);
            // Where activations are rounded, a difference in the last place can move a number across a rounding boundary, and the layers
            // behind it then round differently: at worst another realisation of the same noise, sqrt(2) of it away. Most engines
            // meet no such boundary and agree to the last places, which is counted below. (That each step by itself meets its
            // declared meaning is what `verify --numerics` shows.)
            let rounds = !matches!(precision, PrecisionPolicy::F32 | PrecisionPolicy::Bf16);
            let exact =
                Oracle::new(&graph, &checkpoint, Reading::Exact).unwrap().forward(&all(&g.tokens)).unwrap();
            let noise = relative_error(&declared, &rows(exact));
            let bound = if rounds { (1.5 * noise).max(1e-5) } else { 1e-5 };
            if rounds {
                rounded += 1;
                tight += usize::from(error < 1e-5);
            }
            println!("{model} {precision}: {error:.2e}, declared from exact {noise:.2e}");
            assert!(error < bound, "{model} {precision}: {error:.2e} above {bound:.1e}");
        }
    }
    assert!(2 * tight >= rounded, "only {tight} of {rounded} engines that round agree to the last places");
}
