//! Every op of the table has a nest, is a place, or says why it needs none.

use super::*;
use crate::states::Holds;
use bessemer_format::plan::{Output, Score};
use bessemer_ir::attr::{BinaryKind, Epilogue, PoolKind, RopeStyle, Scalar, Segment, UnaryKind};

fn facts() -> ModelFacts {
    ModelFacts { vocab: 32, context: 64, hidden: 16, layers: 1, output: Output::Logits, whole: false }
}

fn layer() -> LayerState {
    let holds = Holds::KeysAndValues;
    LayerState { state: 0, holds, first_elem: 0, kv_heads: 1, head_dim: 8, block_elems: 512 }
}

fn examples() -> Vec<(Op, Vec<TensorType>)> {
    let rows = |w: u64| TensorType::f32([Dim::Rows, Dim::Const(w)]);
    let vector = |n: u64| TensorType::f32([Dim::Const(n)]);
    let matrix =
        |n: u64, k: u64| TensorType::weight(&[n, k], bessemer_format::QuantScheme::Q8_0, Layout::Panel);
    let ints = TensorType::i32([Dim::Rows]);
    let segment = |width| Segment { name: "w".into(), width, bias: false };
    let linear =
        Op::Linear { segments: vec![segment(8)], epilogue: Epilogue::None, compute: Compute::F32.into() };
    let grouped = Op::GroupedLinear {
        groups: 4,
        slots: 2,
        routed: true,
        segments: vec![segment(8)],
        epilogue: Epilogue::None,
        compute: Compute::F32.into(),
    };
    vec![
        (Op::Embed {}, vec![ints.clone(), matrix(32, 16)]),
        (Op::RmsNorm { eps: 1e-5 }, vec![rows(16), vector(16)]),
        (Op::LayerNorm { eps: 1e-5, parts: 1 }, vec![rows(16), vector(16), vector(16)]),
        (linear, vec![rows(32), matrix(8, 32)]),
        (
            Op::RouteWeights { score: Score::Softmax, renormalise: true, scale: 1.0 },
            vec![rows(4), TensorType::i32([Dim::Rows, Dim::Const(2)])],
        ),
        (grouped, vec![rows(32), TensorType::i32([Dim::Rows, Dim::Const(2)]), matrix(32, 32)]),
        (Op::Combine {}, vec![rows(16), rows(2)]),
        (Op::ConcatHeads { heads: 2 }, vec![rows(16), rows(8)]),
        (Op::RopeTable { inv_freq: vec![1.0; 4], factor: 1.0 }, vec![ints]),
        (Op::Rope { style: RopeStyle::Half, heads: 2 }, vec![rows(16), rows(8)]),
        (Op::Append { kv_heads: 1 }, vec![TensorType::state(), rows(8), rows(8)]),
        (
            Op::Attention {
                heads: 2,
                kv_heads: 1,
                scale: 0.5,
                window: Some(40),
                softcap: Some(5.0),
                compute: Compute::F32.into(),
            },
            vec![rows(16), TensorType::state(), vector(2)],
        ),
        (Op::AppendLatent {}, vec![TensorType::state(), rows(8)]),
        (
            Op::LatentAttention { heads: 2, value: 6, scale: 0.5, compute: Compute::F32.into() },
            vec![rows(16), TensorType::state()],
        ),
        (Op::History { taps: 3 }, vec![rows(4), TensorType::state()]),
        (Op::Carry { width: 8 }, vec![TensorType::state(), rows(12)]),
        (
            Op::Depthwise {},
            vec![rows(12), TensorType::weight(&[4, 3], bessemer_format::QuantScheme::F32, Layout::Dense)],
        ),
        (
            Op::FullAttention {
                heads: 2,
                kv_heads: 1,
                scale: 0.5,
                reach: Some(3),
                compute: Compute::F32.into(),
            },
            vec![
                rows(16),
                TensorType::state(),
                TensorType::weight(&[127, 2], bessemer_format::QuantScheme::F32, Layout::Dense),
            ],
        ),
        (Op::Unary { kind: UnaryKind::Silu }, vec![rows(16)]),
        (Op::Binary { kind: BinaryKind::Add }, vec![rows(16), rows(16)]),
        (Op::Pool { kind: PoolKind::Mean }, vec![rows(16), TensorType::i32([Dim::LogitRows])]),
        (Op::SelectRows {}, vec![rows(16), TensorType::i32([Dim::LogitRows])]),
        (Op::AddRmsNorm { eps: 1e-5 }, vec![rows(16), rows(16), vector(16)]),
        (
            Op::RopeAppend { style: RopeStyle::Half, heads: 2, kv_heads: 1 },
            vec![rows(32), rows(8), TensorType::state()],
        ),
        (Op::Pointwise { body: vec![Scalar::Unary(UnaryKind::Silu, 0)] }, vec![rows(16)]),
    ]
}

#[test]
fn every_op_has_a_lowering() {
    // An argmax is no nest; its kernel runs everywhere.
    let places = ["input", "state", "latents", "carried", "const", "output", "route"];
    let examples = examples();
    for name in Op::NAMES {
        if places.contains(name) {
            continue;
        }
        let (op, operands) = examples
            .iter()
            .find(|(op, _)| op.name() == *name)
            .unwrap_or_else(|| panic!("`{name}` has no example here: add one, and a lowering"));
        let holds = match *name {
            "append_latent" | "latent_attention" => Holds::Latents,
            "history" | "carry" => Holds::Carried,
            _ => Holds::KeysAndValues,
        };
        let layer = LayerState { holds, ..layer() };
        let lowered =
            lower(op, operands, Some(layer), &facts()).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert_eq!(lowered.args.len(), lowered.nest.views.len(), "{name}");
        assert!(lowered.nest.loop_ends().is_some(), "{name}");
    }
}
