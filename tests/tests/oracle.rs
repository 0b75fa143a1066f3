//! The oracle against transformers, and engines against the oracle.
//!
//! The `Exact` reading must give what transformers computes in f32, at every phase of the graph: then it is the meaning. An engine is held to the
//! `Declared` reading, which rounds where the graph declares it: what is left is the order of additions, step by step.

use bessemer_compiler::compile::prepare;
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_eager::{Eager, EagerOptions};
use bessemer_format::Compute;
use bessemer_ir::exec::{ExecNode, Logits, SequenceRows, Wanted};
use bessemer_ir::{Graph, Op, Phase};
use bessemer_oracle::{Oracle, Reading, Val};
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::{KvElem, WorkerOptions};
use bessemer_tests::models::{FAMILIES, engine, fixture, golden, relative_error, traced};
use std::collections::{BTreeMap, BTreeSet};

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
    [SequenceRows { sequence: 0, tokens, types: &[], logits: Wanted::All }]
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
            .map(|(sequence, g)| SequenceRows {
                sequence,
                tokens: &g.tokens,
                types: &[],
                logits: Wanted::All,
            })
            .collect();
        let found = rows(oracle.forward(&parts).unwrap());
        let expected: Vec<Vec<f32>> = goldens.iter().flat_map(|g| g.logits.clone()).collect();
        let error = relative_error(&found, &expected);
        assert!(error < 1e-5, "{name}: {error:.2e}");
    }
}

/// In every golden of a mixture of experts tokens tie between two of them, one of which is chosen, and some expert is chosen by none.
#[test]
fn goldens_of_mixtures_hold_ties_and_experts_that_nobody_chose() {
    let mut mixtures = 0;
    for (model, name) in FAMILIES {
        let checkpoint = Checkpoint::open(fixture(model)).unwrap();
        let graph = graph(&checkpoint, &CompileOptions::default(), Phase::Imported);
        let routes = graph.all().into_iter().filter(|n| matches!(graph.op(*n), Op::Route { .. }));
        let logits_of = |n| (graph.name(n).to_string(), graph.name(graph.operands(n)[0].node).to_string());
        let routes: BTreeMap<String, String> = routes.map(logits_of).collect();
        if routes.is_empty() {
            continue;
        }
        mixtures += 1;
        let g = golden(name, "");
        let mut seen = BTreeMap::new();
        let mut oracle = Oracle::new(&graph, &checkpoint, Reading::Exact).unwrap();
        let see =
            |node: &ExecNode, results: &mut [Val]| drop(seen.insert(node.name.clone(), results.to_vec()));
        oracle.forward_with(&all(&g.tokens), see).unwrap();
        for (route, logits) in &routes {
            let [Val::Index(chosen)] = &seen[route][..] else { panic!("{model}: {route} chooses nothing") };
            let [Val::Tensor(logits)] = &seen[logits][..] else { panic!("{model}: {route} has no logits") };
            let used: BTreeSet<usize> = chosen.iter().map(|expert| *expert as usize).collect();
            assert!(used.len() < logits.width, "{model} {route}: all experts are chosen");
            let slots = chosen.len() / logits.rows;
            let ties = logits.each_row().zip(chosen.chunks_exact(slots)).filter(|(row, chosen)| {
                chosen.iter().any(|c| row.iter().filter(|score| **score == row[*c as usize]).count() > 1)
            });
            let ties = ties.count();
            println!("{model} {route}: {ties} of {} tokens tie, {used:?} of {}", logits.rows, logits.width);
            assert!(ties > 0, "{model} {route}: no token ties");
        }
    }
    assert!(mixtures >= 14, "{mixtures} mixtures");
}

/// What f32 accumulation may cost a step: sums of up to a few hundred products, in an order that is the kernel's.
const STEP: f64 = 1e-6;
/// The same for a whole graph that rounds nothing.
const GRAPH: f64 = 1e-5;

/// Two bounds, for two questions.
///
/// *Does every step compute what it declares?* Each answers from the engine's own operands, as does the oracle: both round the same bits, and what is
/// left is accumulation, [`STEP`], however coarse the rounding.
///
/// *Do the steps make up the graph?* From end to end, accumulation moves a number that lies within a relative 2^-24 * c of a rounding boundary across
/// it: one in 2^16 / c for bf16, whose steps are 2^-8 of a number, so one or a few of the tens of thousands that a fixture rounds. From there on the
/// row differs by about 2^-8 / sqrt(k), far more than accumulation did, and so many of its later numbers round to the other
/// side: the row's rounding noise is drawn anew. Two draws of the noise are sqrt(2) of it apart, and the noise is what the declared reading
/// differs by from the exact one. An engine that rounds nothing has nothing to draw.
#[test]
fn engines_compute_what_their_graph_declares() {
    let policies = [
        PrecisionPolicy::Source,
        PrecisionPolicy::F32,
        PrecisionPolicy::Bf16,
        PrecisionPolicy::Int8 { group: 32 },
        PrecisionPolicy::Int4 { group: 32 },
    ];
    let mut computes = BTreeSet::new();
    for (model, name) in MODELS.iter().chain(FAMILIES) {
        let g = golden(name, "");
        let checkpoint = Checkpoint::open(fixture(model)).unwrap();
        for precision in policies {
            let options = CompileOptions { precision, ..CompileOptions::default() };
            let engine = engine(model, &options);
            let graph = graph(&checkpoint, &options, Phase::Packed);
            let oracle = |reading| Oracle::new(&graph, &checkpoint, reading).unwrap();
            let declared_reading = Reading::Declared { kv: KvElem::F32 };
            let worker = WorkerOptions::default().threads(2).kv(KvElem::F32);
            let (found, trace) = traced(&engine, worker, &g.tokens);
            let steps = oracle(declared_reading).follow(&all(&g.tokens), trace).unwrap();
            assert!(steps.len() > 10, "{model} {precision}: only {} steps", steps.len());
            let worst = steps.iter().max_by(|a, b| a.error.total_cmp(&b.error)).unwrap();
            let at = format!("{model} {precision}: {} ({})", worst.node, worst.op);
            assert!(worst.error < STEP, "{at}: {:.2e}", worst.error);

            let declared = rows(oracle(declared_reading).forward(&all(&g.tokens)).unwrap());
            let exact = rows(oracle(Reading::Exact).forward(&all(&g.tokens)).unwrap());
            let noise = relative_error(&declared, &exact);
            let error = relative_error(&found, &declared);
            println!(
                "{model} {precision}: {error:.2e}, declared from exact {noise:.2e}, worst step {:.2e}",
                worst.error
            );
            let of_graph: BTreeSet<Compute> = graph
                .all()
                .into_iter()
                .filter_map(|n| graph.op(n).computes())
                .flat_map(|c| c.all().collect::<Vec<_>>())
                .collect();
            let rounds = of_graph.iter().any(|c| *c != Compute::F32);
            let bound = if rounds { 2f64.sqrt() * noise + GRAPH } else { GRAPH };
            assert!(error < bound, "{model} {precision}: {error:.2e} above {bound:.1e}");
            computes.extend(of_graph);
        }
    }
    assert!(computes.contains(&Compute::Bf16) && computes.len() > 2, "{computes:?}");
}
