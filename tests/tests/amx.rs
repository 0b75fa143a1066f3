//! Engines for CPUs with AMX: passes of few rows compute as ever, those of many in bfloat16 on dequantised weights.
//!
//! What such an engine declares any CPU can compute. So here its demand for AMX is taken out of the file, and the rest runs on the kernels
//! of this host, which must be the oracle's numbers; those of AMX itself are held to the same bounds by the tests of the kernel table.

use bessemer_compiler::compile::prepare;
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_format::Compute;
use bessemer_format::manifest::Manifest;
use bessemer_format::plan::{Plan, StepKind};
use bessemer_format::variant::DeviceCode;
use bessemer_ir::exec::{SequenceRows, Wanted};
use bessemer_ir::{Graph, Op};
use bessemer_oracle::{Oracle, Reading, TracedStep};
use bessemer_runtime::text::Special;
use bessemer_runtime::{Engine, Isa, KvElem, Worker, WorkerOptions};
use bessemer_targets::Targets;
use bessemer_tests::models::{
    cached_model, compile, fixture, forward, golden, relative_error, root, traced, with_manifest,
};
use std::collections::BTreeSet;

const TARGET: &str = "cpu:x86-64-v4+amx";

fn options(target: &str, precision: &str) -> CompileOptions {
    let precision = precision.parse().unwrap_or_else(|e| panic!("{precision}: {e}"));
    CompileOptions { precision, targets: Targets::parse([target]).unwrap(), ..CompileOptions::default() }
}

/// Lets any CPU open the engine.
fn no_features(manifest: &mut Manifest) {
    manifest.variants[0].device = DeviceCode::Cpu { features: Vec::new() };
}

fn engine(model: &str, options: &CompileOptions) -> Engine {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = compile(&fixture(model), folder.path(), options).unwrap();
    Engine::from_bytes(&with_manifest(&path, no_features)).unwrap()
}

/// What attention of each program computes in, by the most rows that it takes.
fn attention(plan: &Plan) -> Vec<(u32, BTreeSet<Compute>)> {
    let of = |kind: &StepKind| match kind {
        StepKind::Attention(attention) => Some(attention.compute),
        _ => None,
    };
    let programs = plan.programs.iter();
    programs.map(|p| (p.regime.max_rows, p.steps.iter().filter_map(|s| of(&s.kind)).collect())).collect()
}

/// What the linears of each program compute in, by the most rows that it takes.
fn computes(plan: &Plan) -> Vec<(u32, BTreeSet<Compute>)> {
    let of = |kind: &StepKind| match kind {
        StepKind::Linear(linear) => Some(linear.compute),
        StepKind::GroupedLinear(grouped) => Some(grouped.linear.compute),
        _ => None,
    };
    let program = |p: &bessemer_format::plan::Program| {
        (p.regime.max_rows, p.steps.iter().filter_map(|s| of(&s.kind)).collect())
    };
    plan.programs.iter().map(program).collect()
}

#[test]
fn an_engine_says_what_it_needs_and_hosts_without_it_refuse() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = compile(&fixture("gqa_tied"), folder.path(), &options(TARGET, "int4")).unwrap();
    match (Isa::Amx.available(), Engine::open(&path)) {
        (true, opened) => drop(opened.unwrap()),
        (false, opened) => {
            let error = opened.unwrap_err().to_string();
            for part in [TARGET, "amx-tile", "amx-bf16", "this host lacks", "--target cpu"] {
                assert!(error.contains(part), "`{part}` is not in: {error}");
            }
        }
    }
}

#[test]
fn few_rows_compute_in_bytes_and_many_in_bf16() {
    let few = BTreeSet::from([Compute::Int8 { group: 32 }]);
    let many = BTreeSet::from([Compute::Bf16]);
    for precision in ["int2", "int3", "int4", "int5", "int6", "int8", "u4:f16x128-u8", "e2m1:e8m0x32"] {
        let engine = engine("gqa_tied", &options(TARGET, precision));
        let found = computes(engine.plan());
        let border = found.iter().find(|(_, computes)| *computes == many);
        let border = border.unwrap_or_else(|| panic!("{precision}: {found:?}")).0;
        assert!((8..=512).contains(&border), "{precision}: {found:?}");
        for (rows, computes) in &found {
            assert_eq!(*computes, if *rows < border { few.clone() } else { many.clone() }, "{precision}");
        }
        // Every other target computes in the same, however many rows there are.
        let plain = bessemer_tests::models::engine("gqa_tied", &options("cpu", precision));
        assert!(computes(plain.plan()).iter().all(|(_, computes)| *computes == few), "{precision}");
    }
    // Weights that are bfloat16 have computed in it before.
    let engine = engine("gqa_tied", &options(TARGET, "bf16"));
    assert!(computes(engine.plan()).iter().all(|(_, computes)| *computes == many));
}

#[test]
fn attention_multiplies_many_rows_in_bf16_where_linears_round() {
    for (target, precision, many) in [
        (TARGET, "int4", Compute::Bf16),
        (TARGET, "bf16", Compute::Bf16),
        (TARGET, "f32", Compute::F32),
        ("cpu", "bf16", Compute::F32),
    ] {
        for model in ["gqa_tied", "deepseek_v2", "bert"] {
            let engine = engine(model, &options(target, precision));
            for (rows, found) in attention(engine.plan()) {
                let expected = if rows < 16 { Compute::F32 } else { many };
                assert_eq!(
                    found,
                    BTreeSet::from([expected]),
                    "{model} {precision} for {target}, {rows} rows"
                );
            }
        }
    }
    let plain = CompileOptions { f32_activations: true, ..options(TARGET, "int4") };
    let found = attention(engine("gqa_tied", &plain).plan());
    assert!(found.iter().all(|(_, computes)| *computes == BTreeSet::from([Compute::F32])));
}

/// What accumulation in f32 may cost a step.
const STEP: f64 = 1e-6;

/// What it may cost a step of attention that rounds weights, as a share of what its rounding costs. A weight is off by some 2^-24 * 16, and
/// rounds to another number where it lies so near to a border; of two that are 2^-8 of it apart, so does one weight in 2^11 at most, and
/// jumps a whole step. Errors of rounding are spread over one step, their mean square is a twelfth of its own: so jumps make
/// sqrt(12 * 2^-11), or 1 / 13, of them; a few large weights may come together.
const JUMPS: f64 = 1.0 / 6.0;

/// Holds every step of a pass to the declared reading.
fn check_steps(checkpoint: &Checkpoint, graph: &Graph, tokens: &[u32], trace: Vec<TracedStep>, at: &str) {
    let follow = |reading| {
        let mut oracle = Oracle::new(graph, checkpoint, reading).unwrap();
        oracle.follow(&all(tokens), trace.clone()).unwrap()
    };
    let (declared, exact) = (follow(Reading::Declared { kv: KvElem::F32 }), follow(Reading::Exact));
    assert!(declared.len() > 10, "{at}: only {} steps", declared.len());
    for (step, exact) in declared.iter().zip(&exact) {
        let jumps = if step.op.ends_with("attention") { JUMPS * exact.error } else { 0.0 };
        let bound = STEP + jumps;
        assert!(step.error < bound, "{at}: {} ({}) {:.2e} above {bound:.2e}", step.node, step.op, step.error);
    }
}

#[test]
fn passes_of_every_size_meet_the_oracle() {
    for (model, precisions) in [
        ("gqa_tied", &["int4", "int8", "int3", "u6:f16x16-32", "e4m3:f16x32", "bf16"][..]),
        ("qwen3", &["int4"]),
        ("gpt2", &["int4"]),
        ("mixtral", &["int4"]),
        ("lfm2", &["int4"]),
    ] {
        for precision in precisions {
            let options = options(TARGET, precision);
            let engine = engine(model, &options);
            let checkpoint = Checkpoint::open(fixture(model)).unwrap();
            let graph = prepare(&checkpoint, &options, &RunOptions::default()).unwrap().graph;
            let g = golden(model, "");
            for rows in [1, 7, g.tokens.len()] {
                let tokens = &g.tokens[..rows];
                let worker = WorkerOptions::default().threads(2).kv(KvElem::F32);
                let (_, trace) = traced(&engine, worker, tokens);
                check_steps(&checkpoint, &graph, tokens, trace, &format!("{model} {precision} {rows} rows"));
            }
        }
    }
}

/// Activations by one scale a row: what tiles of bytes are for, and any CPU computes to the same bits.
#[test]
fn activations_share_a_scale_as_far_as_weights_do() {
    for (model, precision, long) in
        [("gqa_tied", "int8:0", true), ("qwen3", "u4:f16x0-8", true), ("gqa_tied", "int8:32", false)]
    {
        for target in ["cpu", TARGET] {
            let options = CompileOptions { row_activations: true, ..options(target, precision) };
            let engine = engine(model, &options);
            let checkpoint = Checkpoint::open(fixture(model)).unwrap();
            let graph = prepare(&checkpoint, &options, &RunOptions::default()).unwrap().graph;
            let linears = graph.all().into_iter().filter_map(|n| match graph.op(n) {
                Op::Linear { compute, .. } => {
                    Some((compute.few, graph.ty(graph.operands(n)[0]).const_dim(1)))
                }
                _ => None,
            });
            for (compute, k) in linears {
                let Compute::Int8 { group } = compute else { panic!("{model} {precision}: {compute:?}") };
                assert_eq!(u64::from(group) == k.unwrap().next_multiple_of(16), long, "{group} of {k:?}");
            }
            let g = golden(model, "");
            for rows in [1, g.tokens.len()] {
                let tokens = &g.tokens[..rows];
                let worker = WorkerOptions::default().threads(2).kv(KvElem::F32);
                let (_, trace) = traced(&engine, worker, tokens);
                check_steps(&checkpoint, &graph, tokens, trace, &format!("{model} {precision} {rows} rows"));
            }
        }
    }
}

/// Where many rows compute in bfloat16 their logits are nearer to the exact ones than where they compute in bytes by 32.
#[test]
fn many_rows_are_nearer_to_the_exact_numbers_than_in_bytes() {
    for model in ["gqa_tied", "qwen3", "gpt2", "lfm2"] {
        let checkpoint = Checkpoint::open(fixture(model)).unwrap();
        let g = golden(model, "");
        let noise = |target| {
            let graph = prepare(&checkpoint, &options(target, "int4"), &RunOptions::default()).unwrap().graph;
            let logits = |reading| -> Vec<Vec<f32>> {
                let logits =
                    Oracle::new(&graph, &checkpoint, reading).unwrap().forward(&all(&g.tokens)).unwrap();
                logits.rows().map(<[f32]>::to_vec).collect()
            };
            relative_error(&logits(Reading::Declared { kv: KvElem::F32 }), &logits(Reading::Exact))
        };
        let (bf16, bytes) = (noise(TARGET), noise("cpu"));
        println!("{model}: in bf16 {bf16:.2e} from the exact logits, in bytes {bytes:.2e}");
        assert!(bf16 < bytes, "{model}: {bf16:.2e} in bf16, {bytes:.2e} in bytes");
    }
}

/// The same of a real model, as divergence from its predictions with activations that nothing rounds.
#[test]
fn a_real_model_predicts_nearer_to_itself_than_in_bytes() {
    let Some(source) = cached_model("smollm2-135m-instruct.gguf") else { return };
    let text = std::fs::read_to_string(root().join("fixtures/text/corpus.txt")).unwrap();
    let predictions = |options: &CompileOptions| {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = compile(&source, folder.path(), options).unwrap_or_else(|e| panic!("{e}"));
        let engine = Engine::from_bytes(&with_manifest(&path, no_features)).unwrap();
        let tokens = engine.tokenizer().unwrap().encode(&text, Special::AsText).unwrap();
        let mut worker = Worker::new(&engine, WorkerOptions::default().threads(2).kv(KvElem::F32)).unwrap();
        let mut sequence = worker.sequence();
        let rows = forward(&mut worker, &mut sequence, &tokens[..256]);
        rows.iter().map(|row| log_softmax(row)).collect::<Vec<_>>()
    };
    let plain = predictions(&CompileOptions { f32_activations: true, ..options("cpu", "int4") });
    let divergence = |target| {
        let other = predictions(&options(target, "int4"));
        let of_row =
            |(p, q): (&Vec<f64>, &Vec<f64>)| -> f64 { p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum() };
        plain.iter().zip(&other).map(of_row).sum::<f64>() / plain.len() as f64
    };
    let (bf16, bytes) = (divergence(TARGET), divergence("cpu"));
    println!("int4, mean divergence from f32 activations: {bf16:.2e} nats in bf16, {bytes:.2e} in bytes");
    assert!(bf16 < bytes && bytes < 0.1, "{bf16:.2e} in bf16, {bytes:.2e} in bytes");
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|v| f64::from(v - max).exp()).sum();
    logits.iter().map(|v| f64::from(v - max) - total.ln()).collect()
}

fn all(tokens: &[u32]) -> [SequenceRows<'_>; 1] {
    [SequenceRows { sequence: 0, tokens, types: &[], logits: Wanted::All }]
}
