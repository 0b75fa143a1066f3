//! Each op against numbers worked out by hand, and each fused op against its parts.

use bessemer_format::manifest::KvElem;
use bessemer_format::plan::{Choice, Gate, Input, Score};
use bessemer_format::scheme::{round_bf16, widen_bf16};
use bessemer_format::{Compute, QuantScheme};
use bessemer_ir::attr::{BinaryKind, Computes, Epilogue, PoolKind, RopeStyle, Scalar, Segment, UnaryKind};
use bessemer_ir::{Op, Recipe};
use bessemer_oracle::ops::{Context, run_node};
use bessemer_oracle::{Batch, Caches, Reading, Tensor, Val, Weight};
use std::sync::Arc;

const DECLARED: Reading = Reading::Declared { kv: KvElem::F32 };

fn tensor(width: usize, data: &[f32]) -> Val {
    Val::Tensor(Tensor::from_f32(width, data))
}

fn weight(rows: usize, data: &[f32]) -> Val {
    Val::Weight(Arc::new(Weight { rows, k: data.len() / rows, data: data.to_vec() }))
}

fn random(seed: u64, n: usize) -> Vec<f32> {
    (0..n).map(|i| bessemer_ir::recipe::uniform(seed, i as u64)).collect()
}

/// `rows` rows of sequence 0 from position 0 on, the last one's logits wanted.
fn batch(rows: u32) -> Batch {
    Batch {
        tokens: (0..rows).collect(),
        positions: (0..rows).collect(),
        sequences: vec![0; rows as usize],
        token_types: vec![0; rows as usize],
        logit_rows: vec![rows - 1],
    }
}

fn run_in(reading: Reading, caches: &mut Caches, rows: u32, op: Op, operands: &[&Val]) -> Vec<Val> {
    run_node(&op, operands, &mut Context { reading, batch: &batch(rows), caches }).unwrap()
}

fn run(rows: u32, op: Op, operands: &[&Val]) -> Vec<Val> {
    run_in(Reading::Exact, &mut Caches::default(), rows, op, operands)
}

#[track_caller]
fn assert_near(found: &Val, expected: &[f64]) {
    let found = &found.tensor().unwrap().data;
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= 1e-12 * e.abs().max(1.0), "{found:?} is not {expected:?}");
    }
}

#[track_caller]
fn assert_same(found: &Val, expected: &Val) {
    assert_near(found, &expected.tensor().unwrap().data);
}

fn segment(width: u64, bias: bool) -> Segment {
    Segment { name: "w".into(), width, bias }
}

fn linear(segments: Vec<Segment>, epilogue: Epilogue, compute: Compute) -> Op {
    Op::Linear { segments, epilogue, compute: compute.into() }
}

/// Runs the op called `name` on operands small enough to work out by hand. An op that is not listed has no meaning yet.
fn by_hand(name: &str) {
    let table = weight(3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let state = Val::State(0);
    // A quarter turn at position 1: cos 0, sin 1; none at position 0.
    let turns = tensor(2, &[1.0, 0.0, 0.0, 1.0]);
    match name {
        "input" => assert_eq!(run(3, Op::Input { input: Input::LogitRows }, &[]), [Val::Index(vec![2])]),
        "state" => {
            assert_eq!(run(1, Op::State { layer: 7, kv_heads: 1, head_dim: 2 }, &[]), [Val::State(7)]);
        }
        "const" => {
            let stored = QuantScheme::int8(0);
            let recipe = Recipe::values(vec![1.0, -0.5, 0.25]).converted(stored);
            let scale = half::f16::from_f32(1.0 / 127.0).to_f32();
            let values = recipe.values_f32(&bessemer_ir::recipe::NoSource).unwrap();
            assert_eq!(values, [127.0 * scale, -64.0 * scale, 32.0 * scale]);
        }
        "embed" => {
            let out = run(2, Op::Embed {}, &[&Val::Index(vec![2, 0]), &table]);
            assert_near(&out[0], &[5.0, 6.0, 1.0, 2.0]);
        }
        "rms_norm" => {
            // The mean square of 1 and 7 is 25; with eps 11 the root is 6.
            let out = run(1, Op::RmsNorm { eps: 11.0 }, &[&tensor(2, &[1.0, 7.0]), &weight(1, &[6.0, -3.0])]);
            assert_near(&out[0], &[1.0, -3.5]);
        }
        "layer_norm" => {
            // The mean of 1 and 7 is 4, the variance 9; with eps 7 the deviation is 4.
            let (x, w) = (tensor(2, &[1.0, 7.0]), weight(1, &[6.0, -4.0]));
            let op = Op::LayerNorm { eps: 7.0, parts: 1 };
            assert_near(&run(1, op.clone(), &[&x, &w])[0], &[-4.5, -3.0]);
            assert_near(&run(1, op, &[&x, &w, &weight(1, &[0.5, 1.0])])[0], &[-4.0, -2.0]);
            // Two parts, each with its own mean and its own weights.
            let (x, w) = (tensor(4, &[1.0, 7.0, 7.0, 1.0]), weight(1, &[6.0, -4.0, 1.0, 2.0]));
            let op = Op::LayerNorm { eps: 7.0, parts: 2 };
            assert_near(&run(1, op, &[&x, &w])[0], &[-4.5, -3.0, 0.75, -1.5]);
        }
        "linear" => {
            let op = linear(vec![segment(3, true)], Epilogue::None, Compute::F32);
            let out = run(1, op, &[&tensor(2, &[10.0, 1.0]), &table, &weight(1, &[0.5, 0.25, -1.0])]);
            assert_near(&out[0], &[12.5, 34.25, 55.0]);
        }
        "route" => {
            // Sigmoids order as logits do. Experts 1 and 3 tie; the bias lifts expert 2 above expert 4.
            let logits = tensor(5, &[-3.0, 2.0, 0.0, 2.0, 1.0]);
            let choice = Choice { top_k: 3, score: Score::Sigmoid, groups: 1, best_groups: 1, group_keys: 1 };
            let out = run(1, Op::Route { choice }, &[&logits]);
            assert_eq!(out, [Val::Index(vec![1, 3, 4])]);
            let bias = weight(1, &[0.0, 0.0, 0.3, 0.0, 0.0]);
            let out = run(1, Op::Route { choice }, &[&logits, &bias]);
            assert_eq!(out, [Val::Index(vec![1, 3, 2])]);
            // Two groups of two keys each: the second has the larger key, the first the larger sum.
            let logits = tensor(4, &[2.0, 1.0, 3.0, -3.0]);
            let by = |group_keys| Op::Route {
                choice: Choice { top_k: 2, groups: 2, best_groups: 1, group_keys, ..choice },
            };
            assert_eq!(run(1, by(1), &[&logits]), [Val::Index(vec![2, 3])]);
            assert_eq!(run(1, by(2), &[&logits]), [Val::Index(vec![0, 1])]);
        }
        "route_weights" => {
            // Softmax gives 1/8, 5/8, 2/8.
            let logits = tensor(3, &[1f32.ln(), 5f32.ln(), 2f32.ln()]);
            let chosen = Val::Index(vec![1, 2]);
            let weights = |renormalise, scale| {
                let op = Op::RouteWeights { score: Score::Softmax, renormalise, scale };
                run(1, op, &[&logits, &chosen])[0].tensor().unwrap().data.clone()
            };
            let near = |found: Vec<f64>, expected: [f64; 2]| {
                assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6), "{found:?}");
            };
            near(weights(false, 1.0), [5.0 / 8.0, 2.0 / 8.0]);
            near(weights(true, 2.0), [10.0 / 7.0, 4.0 / 7.0]);
            let op = Op::RouteWeights { score: Score::Sigmoid, renormalise: false, scale: 3.0 };
            assert_near(&run(1, op, &[&tensor(1, &[0.0]), &Val::Index(vec![0])])[0], &[1.5]);
        }
        "grouped_linear" => {
            // Three weights of one row each; both slots of a row read all of it.
            let grouped = |slots, routed| Op::GroupedLinear {
                groups: 3,
                slots,
                routed,
                segments: vec![segment(1, true)],
                epilogue: Epilogue::None,
                compute: Compute::F32.into(),
            };
            let bias = weight(1, &[0.5, 0.25, -1.0]);
            let (x, chosen) = (tensor(2, &[10.0, 1.0, 1.0, 0.0]), Val::Index(vec![2, 0, 1, 1]));
            let out = run(2, grouped(2, true), &[&x, &chosen, &table, &bias]);
            assert_near(&out[0], &[55.0, 12.5, 3.25, 3.25]);
            // Without a choice slot s reads its part of the row and takes weight s.
            let parts = tensor(6, &[10.0, 1.0, 1.0, 0.0, 0.0, 1.0]);
            assert_near(&run(1, grouped(3, false), &[&parts, &table, &bias])[0], &[12.5, 3.25, 5.0]);
        }
        "combine" => {
            let (y, w) = (tensor(4, &[1.0, 2.0, 10.0, 20.0]), tensor(2, &[2.0, 0.5]));
            assert_near(&run(1, Op::Combine {}, &[&y, &w])[0], &[7.0, 14.0]);
        }
        "concat_heads" => {
            let (a, b) = (tensor(4, &[1.0, 2.0, 3.0, 4.0]), tensor(2, &[5.0, 6.0]));
            let out = run(1, Op::ConcatHeads { heads: 2 }, &[&a, &b]);
            assert_near(&out[0], &[1.0, 2.0, 5.0, 3.0, 4.0, 6.0]);
        }
        "rope_table" => {
            let out =
                run(2, Op::RopeTable { inv_freq: vec![1.0, 0.5], factor: 2.0 }, &[&Val::Index(vec![0, 3])]);
            let (a, b) = (3f64, 1.5f64);
            let far = [2.0 * a.cos(), 2.0 * b.cos(), 2.0 * a.sin(), 2.0 * b.sin()];
            assert_near(&out[0], &[&[2.0, 2.0, 0.0, 0.0][..], &far].concat());
        }
        "rope" => {
            let (x, turn) = (tensor(4, &[1.0, 2.0, 3.0, 4.0]), tensor(4, &[0.0, 1.0, 1.0, 0.0]));
            let rope = |style| Op::Rope { style, heads: 1 };
            assert_near(&run(1, rope(RopeStyle::Half), &[&x, &turn])[0], &[-3.0, 2.0, 1.0, 4.0]);
            assert_near(&run(1, rope(RopeStyle::Interleaved), &[&x, &turn])[0], &[-2.0, 1.0, 3.0, 4.0]);
        }
        "append" => {
            let mut caches = Caches::default();
            let k = tensor(2, &[1.0, 2.0, 3.0, 4.0]);
            let v = tensor(2, &[1.0 + 1.0 / 512.0, 6.0, 7.0, 8.0]);
            let bf16 = Reading::Declared { kv: KvElem::Bf16 };
            run_in(bf16, &mut caches, 2, Op::Append { kv_heads: 1 }, &[&state, &k, &v]);
            let held = caches.get(0, 0).unwrap();
            assert_eq!(held.keys, [[1.0, 2.0], [3.0, 4.0]]);
            assert_eq!(held.values, [[1.0, 6.0], [7.0, 8.0]], "bfloat16 has eight bits");
        }
        "attention" => {
            let mut caches = Caches::default();
            let k = tensor(2, &[0.0, 0.0, 2.0, 0.0]);
            let v = tensor(2, &[1.0, 2.0, 5.0, 6.0]);
            run_in(Reading::Exact, &mut caches, 2, Op::Append { kv_heads: 1 }, &[&state, &k, &v]);
            // Two query heads on one key head. Row 0 sees position 0 alone. In row 1, head 0 scores (0, 0.5 * 2 * ln 3 = ln 3), hence
            // weights 1/4 and 3/4; head 1 is orthogonal to the keys: equal weights.
            let ln3 = 3f32.ln();
            let q = tensor(4, &[9.0, 9.0, 9.0, 9.0, ln3, 5.0, 0.0, 7.0]);
            let compute = Compute::F32.into();
            let op =
                Op::Attention { heads: 2, kv_heads: 1, scale: 0.5, window: None, softcap: None, compute };
            let out = run_in(Reading::Exact, &mut caches, 2, op, &[&q, &state]);
            let w = f64::from(ln3).exp() / (1.0 + f64::from(ln3).exp());
            assert!((w - 0.75).abs() < 1e-6);
            assert_near(&out[0], &[1.0, 2.0, 1.0, 2.0, 1.0 + 4.0 * w, 2.0 + 4.0 * w, 3.0, 4.0]);
            // Row 1 sees its own position alone.
            let op =
                Op::Attention { heads: 2, kv_heads: 1, scale: 0.5, window: Some(1), softcap: None, compute };
            let out = run_in(Reading::Exact, &mut caches, 2, op, &[&q, &state]);
            assert_near(&out[0], &[1.0, 2.0, 1.0, 2.0, 5.0, 6.0, 5.0, 6.0]);
            // A score of ln 3 becomes tanh of it: 8 / 10. A sink of 0 takes a third from two scores of 0.
            let op = Op::Attention {
                heads: 2,
                kv_heads: 1,
                scale: 0.5,
                window: None,
                softcap: Some(1.0),
                compute,
            };
            let sinks = weight(1, &[0.0, 0.0]);
            let out = run_in(Reading::Exact, &mut caches, 2, op, &[&q, &state, &sinks]);
            let (e, third) = (f64::from(ln3).tanh().exp(), 1.0 / 3.0);
            let (first, second) = (1.0 / (2.0 + e), e / (2.0 + e));
            assert_near(
                &out[0],
                &[
                    0.5,
                    1.0,
                    0.5,
                    1.0,
                    first + 5.0 * second,
                    2.0 * first + 6.0 * second,
                    6.0 * third,
                    8.0 * third,
                ],
            );
        }
        "latents" => {
            assert_eq!(run(1, Op::Latents { layer: 7, width: 2 }, &[]), [Val::State(7)]);
        }
        "append_latent" | "latent_attention" => {
            let mut caches = Caches::default();
            let x = tensor(2, &[1.0, 0.0, 5.0, 2.0]);
            run_in(Reading::Exact, &mut caches, 2, Op::AppendLatent {}, &[&state, &x]);
            let layer = caches.get(0, 0).unwrap();
            assert_eq!((&layer.keys[..], layer.values.len()), (&[vec![1.0, 0.0], vec![5.0, 2.0]][..], 2));
            // Two heads that look at the second element only; the value is the first one.
            let q = tensor(4, &[0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
            let op = Op::LatentAttention { heads: 2, value: 1, scale: 0.5, compute: Compute::F32.into() };
            let out = run_in(Reading::Exact, &mut caches, 2, op, &[&q, &state]);
            let p = 1.0 / (1.0 + f64::exp(1.0));
            assert_near(&out[0], &[1.0, 1.0, p + 5.0 * (1.0 - p), 3.0]);
        }
        "carried" => {
            assert_eq!(run(1, Op::Carried { layer: 7, width: 2 }, &[]), [Val::State(7)]);
        }
        "history" | "carry" => {
            let mut caches = Caches::default();
            let x = tensor(1, &[1.0, 2.0]);
            let first = run_in(Reading::Exact, &mut caches, 2, Op::History { taps: 3 }, &[&x, &state]);
            assert_near(&first[0], &[1.0, 0.0, 0.0, 2.0, 1.0, 0.0]);
            run_in(Reading::Exact, &mut caches, 2, Op::Carry { width: 2 }, &[&state, &first[0]]);
            assert_eq!(caches.get(0, 0).unwrap().keys, [[1.0, 0.0], [2.0, 1.0]]);
            // The third token follows in a pass of its own.
            let batch = Batch { positions: vec![2], ..batch(1) };
            let mut cx = Context { reading: Reading::Exact, batch: &batch, caches: &mut caches };
            let next = run_node(&Op::History { taps: 3 }, &[&tensor(1, &[3.0]), &state], &mut cx).unwrap();
            assert_near(&next[0], &[3.0, 2.0, 1.0]);
        }
        "depthwise" => {
            // Two columns, three taps: the last weight of a column is that of the row itself, which comes first.
            let x = tensor(6, &[5.0, 6.0, 3.0, 4.0, 1.0, 2.0]);
            let w = weight(2, &[1.0, 2.0, 3.0, 10.0, 20.0, 30.0]);
            assert_near(&run(1, Op::Depthwise {}, &[&x, &w])[0], &[22.0, 280.0]);
        }
        "full_attention" => {
            let mut caches = Caches::default();
            let k = tensor(2, &[0.0, 0.0, 2.0, 0.0, 0.0, 9.0]);
            let v = tensor(2, &[1.0, 2.0, 5.0, 6.0, 9.0, 10.0]);
            run_in(Reading::Exact, &mut caches, 3, Op::Append { kv_heads: 1 }, &[&state, &k, &v]);
            // Queries orthogonal to all keys: the mean of the values that are seen.
            let q = tensor(2, &[0.0; 6]);
            let op = |reach| Op::FullAttention {
                heads: 1,
                kv_heads: 1,
                scale: 0.5,
                reach,
                compute: Compute::F32.into(),
            };
            let out = run_in(Reading::Exact, &mut caches, 3, op(None), &[&q, &state]);
            assert_near(&out[0], &[5.0, 6.0, 5.0, 6.0, 5.0, 6.0]);
            let out = run_in(Reading::Exact, &mut caches, 3, op(Some(1)), &[&q, &state]);
            assert_near(&out[0], &[3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
            // Numbers for the distances -2 to 2: only a row's own position and the one behind it count.
            let bias = weight(5, &[-1e9, -1e9, 0.5, 0.5, -1e9]);
            let out = run_in(Reading::Exact, &mut caches, 3, op(None), &[&q, &state, &bias]);
            assert_near(&out[0], &[3.0, 4.0, 7.0, 8.0, 9.0, 10.0]);
        }
        "unary" => {
            let x = tensor(3, &[0.0, 1.0, -30.0]);
            let gelu = run(1, Op::Unary { kind: UnaryKind::Gelu }, &[&x]);
            assert_near(&gelu[0], &[0.0, 0.841_344_746_068_542_9, -1.471_201_429_459_9e-196]);
            let approximate = run(1, Op::Unary { kind: UnaryKind::GeluTanh }, &[&x]);
            assert_near(&approximate[0], &[0.0, 0.841_191_990_607_477_4, 0.0]);
            assert_near(
                &run(1, Op::Unary { kind: UnaryKind::Tanh }, &[&x])[0],
                &[0.0, 0.761_594_155_955_764_9, -1.0],
            );
            assert_near(&run(1, Op::Unary { kind: UnaryKind::Scale(0.5) }, &[&x])[0], &[0.0, 0.5, -15.0]);
            assert_near(&run(1, Op::Unary { kind: UnaryKind::Plus(-0.5) }, &[&x])[0], &[-0.5, 0.5, -30.5]);
            let clamp = |low, high| run(1, Op::Unary { kind: UnaryKind::Clamp(low, high) }, &[&x]);
            assert_near(&clamp(-7.0, 0.5)[0], &[0.0, 0.5, -7.0]);
            assert_near(&clamp(f32::NEG_INFINITY, 0.5)[0], &[0.0, 0.5, -30.0]);
            let silu = run(1, Op::Unary { kind: UnaryKind::Silu }, &[&x]);
            assert_near(&silu[0], &[0.0, 0.731_058_578_630_004_9, -2.807_286_890_677_24e-12]);
            assert_near(&run(1, Op::Unary { kind: UnaryKind::Neg }, &[&x])[0], &[0.0, -1.0, 30.0]);
        }
        "binary" => {
            let (a, b) = (tensor(2, &[1.5, 2.0]), tensor(2, &[4.0, -3.0]));
            assert_near(&run(1, Op::Binary { kind: BinaryKind::Add }, &[&a, &b])[0], &[5.5, -1.0]);
            assert_near(&run(1, Op::Binary { kind: BinaryKind::Mul }, &[&a, &b])[0], &[6.0, -6.0]);
        }
        "pool" => {
            // Rows 0 and 1 belong to one sequence, row 2 to another.
            let x = tensor(2, &[1.0, 2.0, 3.0, 6.0, 5.0, 7.0]);
            let batch = Batch { sequences: vec![4, 4, 2], logit_rows: vec![1, 2], ..batch(3) };
            let pool = |kind| {
                let mut caches = Caches::default();
                let mut cx = Context { reading: Reading::Exact, batch: &batch, caches: &mut caches };
                run_node(&Op::Pool { kind }, &[&x, &Val::Index(vec![1, 2])], &mut cx).unwrap()
            };
            assert_near(&pool(PoolKind::Mean)[0], &[2.0, 4.0, 5.0, 7.0]);
            assert_near(&pool(PoolKind::First)[0], &[1.0, 2.0, 5.0, 7.0]);
        }
        "select_rows" => {
            let x = tensor(2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            let out = run(3, Op::SelectRows {}, &[&x, &Val::Index(vec![0, 2])]);
            assert_near(&out[0], &[1.0, 2.0, 5.0, 6.0]);
        }
        "output" => assert_eq!(run(1, Op::Output {}, &[&tensor(1, &[1.0])]), []),
        "add_rms_norm" => {
            let (a, b) = (tensor(2, &[0.5, 3.0]), tensor(2, &[0.5, 4.0]));
            let out = run(1, Op::AddRmsNorm { eps: 11.0 }, &[&a, &b, &weight(1, &[6.0, -3.0])]);
            assert_near(&out[0], &[1.0, 7.0]);
            assert_near(&out[1], &[1.0, -3.5]);
        }
        "rope_append" => {
            let mut caches = Caches::default();
            let qkv = tensor(6, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            let op = Op::RopeAppend { style: RopeStyle::Half, heads: 1, kv_heads: 1 };
            let out = run_in(Reading::Exact, &mut caches, 2, op, &[&qkv, &turns, &state]);
            assert_near(&out[0], &[1.0, 2.0, -2.0, 1.0]);
            assert_eq!(caches.get(0, 0).unwrap().keys, [[3.0, 4.0], [-4.0, 3.0]]);
            assert_eq!(caches.get(0, 0).unwrap().values, [[5.0, 6.0], [5.0, 6.0]]);
        }
        "pointwise" => {
            let body = vec![Scalar::Binary(BinaryKind::Add, 0, 1), Scalar::Binary(BinaryKind::Mul, 2, 1)];
            let (a, b) = (tensor(2, &[1.0, 2.0]), tensor(2, &[3.0, 5.0]));
            assert_near(&run(1, Op::Pointwise { body }, &[&a, &b])[0], &[12.0, 35.0]);
        }
        other => panic!("no meaning of `{other}` was worked out by hand"),
    }
}

#[test]
fn every_op_means_what_was_worked_out_by_hand() {
    Op::NAMES.iter().for_each(|name| by_hand(name));
}

#[test]
fn int8_compute_rounds_activations_by_groups_when_declared() {
    // Groups of two: the first has scale 127 / 127 = 1, the second 0.5 and a code of 2.4 -> 2.
    let x = tensor(4, &[127.0, 2.4, 63.5, 1.2]);
    let w = weight(1, &[1.0, 100.0, 1.0, 100.0]);
    let op = || linear(vec![segment(1, false)], Epilogue::None, Compute::Int8 { group: 2 });
    let declared = run_in(DECLARED, &mut Caches::default(), 1, op(), &[&x, &w]);
    assert_near(&declared[0], &[127.0 + 200.0 + 63.5 + 100.0]);
    let exact = run(1, op(), &[&x, &w]);
    assert!((exact[0].tensor().unwrap().data[0] - 550.5).abs() < 1e-4);
}

#[test]
fn bf16_rounds_activations_and_weights_where_declared() {
    // A step of bf16 above 1 is 2^-7: 1 + 2^-8 is a tie that goes to even, 1 + 3 * 2^-8 one that goes up.
    let (x, w) = (tensor(2, &[257.0 / 256.0, 259.0 / 256.0]), weight(1, &[257.0 / 256.0, 2.0]));
    let op = || linear(vec![segment(1, false)], Epilogue::None, Compute::Bf16);
    let declared = run_in(DECLARED, &mut Caches::default(), 1, op(), &[&x, &w]);
    assert_eq!(declared[0].tensor().unwrap().data, [1.0 + 2.0 * 1.015625]);
    let exact = run_in(Reading::Exact, &mut Caches::default(), 1, op(), &[&x, &w]);
    assert_eq!(exact[0].tensor().unwrap().data, [1.00390625 * 1.00390625 + 2.0 * 1.01171875]);
}

#[test]
fn bf16_attention_rounds_queries_and_weights_where_declared() {
    let bf16 = |x: f64| f64::from(widen_bf16(round_bf16(x as f32)));
    // A query of 257 / 256 is rounded to 1: scores are 0 and 1/2. Weights are relative to ln 2, the least multiple that is no smaller.
    let weights = [0.5, 0.5f64.exp() / 2.0];
    assert_eq!(bf16(weights[1]), 211.0 / 256.0);
    let attend = |reading| {
        let (state, mut caches) = (Val::State(0), Caches::default());
        let (k, v) = (tensor(2, &[0.0, 0.0, 1.0, 0.0]), tensor(2, &[0.0, 0.0, 1.0, 0.5]));
        run_in(reading, &mut caches, 2, Op::Append { kv_heads: 1 }, &[&state, &k, &v]);
        let compute = Computes { few: Compute::F32, many: Some((2, Compute::Bf16)) };
        let op = Op::Attention { heads: 1, kv_heads: 1, scale: 0.5, window: None, softcap: None, compute };
        let out = run_in(reading, &mut caches, 2, op, &[&tensor(2, &[1.0, 1.0, 257.0 / 256.0, 9.0]), &state]);
        out[0].tensor().unwrap().data[2]
    };
    assert!((attend(DECLARED) - 211.0 / 256.0 / (weights[0] + weights[1])).abs() < 1e-7);
    // What meets the code of a value is the weight times the scale.
    let scale = f64::from(1.0f32 / 127.0);
    let int8 = bf16(weights[1] * scale) * 127.0;
    assert!((int8 - 211.0 / 256.0).abs() > 1e-4);
    assert!((attend(Reading::Declared { kv: KvElem::Int8 }) - int8 / (weights[0] + weights[1])).abs() < 1e-7);
    let exact = (0.5f64 * 257.0 / 256.0).exp();
    assert!((attend(Reading::Exact) - exact / (1.0 + exact)).abs() < 1e-12);
}

#[test]
fn declared_results_are_f32() {
    let sum = |reading| {
        let (a, b) = (tensor(1, &[1.0]), tensor(1, &[1e-9]));
        run_in(reading, &mut Caches::default(), 1, Op::Binary { kind: BinaryKind::Add }, &[&a, &b])
    };
    assert_eq!(sum(DECLARED)[0].tensor().unwrap().data, [1.0]);
    assert!(sum(Reading::Exact)[0].tensor().unwrap().data[0] > 1.0);
}

#[test]
fn a_segmented_linear_is_its_parts_side_by_side() {
    let x = tensor(8, &random(1, 3 * 8));
    let (a, b, bias) = (weight(4, &random(2, 32)), weight(2, &random(3, 16)), weight(1, &random(4, 2)));
    let both = linear(vec![segment(4, false), segment(2, true)], Epilogue::None, Compute::F32);
    let both = run(3, both, &[&x, &a, &b, &bias]);
    let left = run(3, linear(vec![segment(4, false)], Epilogue::None, Compute::F32), &[&x, &a]);
    let right = run(3, linear(vec![segment(2, true)], Epilogue::None, Compute::F32), &[&x, &b, &bias]);
    let (left, right) = (left[0].tensor().unwrap(), right[0].tensor().unwrap());
    let expected: Vec<f64> = (0..3).flat_map(|r| [left.row(r), right.row(r)].concat()).collect();
    assert_near(&both[0], &expected);
}

#[test]
fn epilogues_are_the_ops_that_they_replace() {
    let x = tensor(8, &random(1, 3 * 8));
    let (gate, up) = (weight(4, &random(2, 32)), weight(4, &random(3, 32)));
    let residual = tensor(4, &random(4, 12));
    let plain =
        |w: &Val| run(3, linear(vec![segment(4, false)], Epilogue::None, Compute::F32), &[&x, w]).remove(0);
    let fused = linear(vec![segment(4, false)], Epilogue::Residual, Compute::F32);
    let parts = run(3, Op::Binary { kind: BinaryKind::Add }, &[&plain(&gate), &residual]);
    assert_same(&run(3, fused, &[&x, &gate, &residual])[0], &parts[0]);

    let fused = linear(vec![segment(4, false), segment(4, false)], Epilogue::Gated(Gate::Silu), Compute::F32);
    let silu = run(3, Op::Unary { kind: UnaryKind::Silu }, &[&plain(&gate)]);
    let parts = run(3, Op::Binary { kind: BinaryKind::Mul }, &[&silu[0], &plain(&up)]);
    assert_same(&run(3, fused, &[&x, &gate, &up])[0], &parts[0]);
}

#[test]
fn wrong_operands_are_errors() {
    let caches = &mut Caches::default();
    let mut cx = Context { reading: Reading::Exact, batch: &batch(1), caches };
    let x = tensor(2, &[1.0, 2.0]);
    let absent_expert = Op::RouteWeights { score: Score::Softmax, renormalise: false, scale: 1.0 };
    let bad = [
        run_node(&Op::Embed {}, &[&Val::Index(vec![3]), &weight(3, &[0.0; 6])], &mut cx),
        run_node(&Op::RmsNorm { eps: 0.0 }, &[&x], &mut cx),
        run_node(&Op::RmsNorm { eps: 0.0 }, &[&x, &x], &mut cx),
        run_node(
            &Op::Attention {
                heads: 1,
                kv_heads: 1,
                scale: 1.0,
                window: None,
                softcap: None,
                compute: Compute::F32.into(),
            },
            &[&x, &Val::State(0)],
            &mut cx,
        ),
        run_node(&Op::Input { input: Input::Slots }, &[], &mut cx),
        run_node(&absent_expert, &[&x, &Val::Index(vec![2])], &mut cx),
    ];
    assert!(bad.iter().all(Result::is_err), "{bad:?}");
}
