//! Attention over the block table as a nest: three reductions over the visible tokens.
//!
//! The scores are computed anew in every reduction: a nest keeps no array. The attention kernels do better; this is the
//! meaning that they can be compared with, and the way of devices that have none.

use super::{Lowered, NestArg, activation, builder::NestBuilder, vector_elem};
use crate::states::LayerState;
use bessemer_format::kv;
use bessemer_format::nest::{Base, Extent, Index, Int, Op as NestOp, ReduceKind, Reg, Sym, ViewElem, ViewId};
use bessemer_format::plan::{Input, ModelFacts};
use bessemer_ir::{Op, TensorType};

struct Scores {
    query: ViewId,
    table: ViewId,
    cache: ViewId,
    start: Int,
    /// The last position that the row sees, but for its reach.
    last: Int,
    width: i64,
    group: u32,
    layer: LayerState,
    scale: Reg,
    softcap: Option<Reg>,
    bias: Option<Distances>,
    window: Option<Window>,
}

/// What is added to scores by the distance of two positions.
struct Distances {
    view: ViewId,
    /// The position of the row.
    position: Int,
    /// The table's row for a distance of 0.
    middle: i64,
    heads: i64,
}

/// A window of positions. A nest computes with numbers that it loads, not with its axes, so `counts[i] = i`.
struct Window {
    counts: ViewId,
    /// The row's position minus the oldest age that it sees: a token before it is hidden.
    oldest: Reg,
    /// Its position plus the same, where it sees tokens behind its own: a token behind it is hidden.
    newest: Option<Reg>,
}

/// Where the value of a token begins.
enum ValueAt {
    /// Among the values.
    Own(Index),
    /// Where its key does.
    Key(Index),
}

impl ValueAt {
    /// Element `d`.
    fn element(self, d: u8) -> Index {
        match self {
            ValueAt::Own(start) => start + Index::axis(d) * 2,
            ValueAt::Key(start) => start + key_element(d),
        }
    }
}

/// Element `d` of a key, counted from its first.
fn key_element(d: u8) -> Index {
    Index::div(Base::Axis(d), 2) * (2 * kv::COLUMNS as i64) + Index::rem(Base::Axis(d), 2)
}

/// What lowers the score of a hidden token so far that its weight is exactly zero.
const HIDDEN: f32 = 1e30;

impl Scores {
    /// Reduces `term(score, where the token's value lies)` over all visible tokens of head `h`.
    fn reduce(
        &self,
        b: &mut NestBuilder,
        kind: ReduceKind,
        h: u8,
        term: impl Fn(&mut NestBuilder, Reg, ValueAt) -> Reg,
    ) -> Reg {
        let tokens = kv::TOKENS as i64;
        let columns = kv::COLUMNS as u32;
        let head_dim = i64::from(self.layer.head_dim);
        let head_elems = kv::head_elems(self.layer.head_dim as usize) as i64;
        let blocks = Index::div(Base::Int(self.last), kv::TOKENS as u32).plus(1);
        b.reduce(kind, Extent::min(blocks, Index::sym(Sym::TableStride)), |b, axis| {
            let entry = Index::int(self.start) + Index::axis(axis);
            let block = b.load_int(self.table, entry, Index::constant(i64::from(i32::MAX)));
            let base = |part: i64| {
                let head = part * i64::from(self.layer.kv_heads) * head_elems;
                (Index::int(block) * self.layer.block_elems as i64
                    + Index::div(Base::Axis(h), self.group) * head_elems)
                    .plus(self.layer.first_elem as i64 + head)
            };
            let visible = (Index::int(self.last) + Index::axis(axis) * -tokens).plus(1);
            b.reduce(kind, Extent::min(visible, Index::constant(tokens)), |b, t| {
                let token = Index::div(Base::Axis(t), columns) * (kv::COLUMNS as i64 * head_dim)
                    + Index::rem(Base::Axis(t), columns) * 2;
                let dot = b.reduce(ReduceKind::Sum, Extent::constant(head_dim), |b, d| {
                    let q = b.row() * self.width + Index::axis(h) * head_dim + Index::axis(d);
                    let q = b.load(self.query, q);
                    let k = b.load(self.cache, base(0) + token.clone() + key_element(d));
                    b.mul(q, k)
                });
                let mut score = b.mul(dot, self.scale);
                if let Some(cap) = self.softcap {
                    let ratio = b.div(score, cap);
                    let tanh = b.tanh(ratio);
                    score = b.mul(cap, tanh);
                }
                if let Some(bias) = &self.bias {
                    let token = Index::axis(axis) * tokens + Index::axis(t);
                    let row = (token + Index::int(bias.position) * -1).plus(bias.middle);
                    let number = b.load(bias.view, row * bias.heads + Index::axis(h));
                    score = b.add(score, number);
                }
                if let Some(window) = &self.window {
                    let (block, within) =
                        (b.load(window.counts, Index::axis(axis)), b.load(window.counts, Index::axis(t)));
                    let (tokens, zero, far) =
                        (b.constant(kv::TOKENS as f32), b.constant(0.0), b.constant(HIDDEN));
                    let before = b.mul(block, tokens);
                    let token = b.add(before, within);
                    let ahead = b.sub(token, window.oldest);
                    let behind = b.op(NestOp::Min(ahead, zero));
                    let mut penalty = b.mul(behind, far);
                    if let Some(newest) = window.newest {
                        let left = b.sub(newest, token);
                        let beyond = b.op(NestOp::Min(left, zero));
                        let beyond = b.mul(beyond, far);
                        penalty = b.add(penalty, beyond);
                    }
                    score = b.add(score, penalty);
                }
                let value = match self.layer.latent() {
                    true => ValueAt::Key(base(0) + token),
                    false => {
                        let t = Index::div(Base::Axis(t), 2) * (2 * head_dim) + Index::rem(Base::Axis(t), 2);
                        ValueAt::Own(base(1) + t)
                    }
                };
                term(b, score, value)
            })
        })
    }
}

/// Attention of every head of every row.
pub fn attention(
    op: &Op,
    operands: &[TensorType],
    layer: LayerState,
    facts: &ModelFacts,
) -> Result<Lowered, String> {
    let mut value_dim = i64::from(layer.head_dim);
    let (heads, scale, window, softcap, causal) = match *op {
        Op::LatentAttention { heads, value, scale, .. } if layer.latent() => {
            value_dim = i64::from(value);
            (heads, scale, None, None, true)
        }
        Op::Attention { heads, scale, window, softcap, .. } => (heads, scale, window, softcap, true),
        Op::FullAttention { heads, scale, reach, .. } => {
            (heads, scale, reach.map(|reach| reach.saturating_add(1)), None, false)
        }
        _ => return Err(format!("{} is no attention", op.name())),
    };
    let (rows, width) = activation(&operands[0])?;
    let mut b = NestBuilder::new("attention");
    let query = b.input("q", ViewElem::F32);
    let positions = b.input("positions", ViewElem::I32);
    let starts = b.input("table_starts", ViewElem::I32);
    let table = b.input("block_table", ViewElem::I32);
    let cache = b.input("cache", ViewElem::Kv);
    let (more, name) = (operands.get(2), if causal { "sinks" } else { "bias" });
    let more = more.map(|ty| Ok::<_, String>((b.input(name, vector_elem(ty)?), ty))).transpose()?;
    let sinks = more.filter(|_| causal).map(|(view, _)| view);
    let counts = window.map(|_| b.input("counts", ViewElem::F32));
    let last_positions = (!causal).then(|| b.input("last_positions", ViewElem::I32));
    let out = b.output("out", ViewElem::F32);
    let position = b.load_int(positions, b.row(), Index::constant(i64::from(facts.context)));
    let last = match last_positions {
        Some(last) => b.load_int(last, b.row(), Index::constant(i64::from(facts.context))),
        None => position,
    };
    let start = b.load_int(starts, b.row(), Index::constant(i64::from(i32::MAX)));
    let scale = b.constant(scale);
    let group = heads / layer.kv_heads.max(1);
    let softcap = softcap.map(|cap| b.constant(cap));
    let window = window.zip(counts).map(|(window, counts)| {
        let (position, age) = (b.op(NestOp::FromInt(position)), b.constant(window as f32 - 1.0));
        Window { counts, oldest: b.sub(position, age), newest: (!causal).then(|| b.add(position, age)) }
    });
    let hides = window.is_some();
    let bias = more.filter(|_| !causal).map(|(view, ty)| {
        let middle = ty.const_dim(0).unwrap_or(0) as i64 / 2;
        Distances { view, position, middle, heads: i64::from(heads) }
    });
    let scores =
        Scores { query, table, cache, start, last, width, group, layer, scale, softcap, bias, window };
    b.for_each(Extent::constant(i64::from(heads)), |b, h| {
        let mut max = scores.reduce(b, ReduceKind::Max, h, |_, score, _| score);
        let sink = sinks.map(|sinks| b.load(sinks, Index::axis(h)));
        if let Some(sink) = sink {
            max = b.op(NestOp::Max(max, sink));
        }
        let weight = |b: &mut NestBuilder, score: Reg| {
            let shifted = b.sub(score, max);
            b.op(NestOp::Exp(shifted))
        };
        let mut sum = scores.reduce(b, ReduceKind::Sum, h, |b, score, _| weight(b, score));
        if let Some(sink) = sink {
            let weight = weight(b, sink);
            sum = b.add(sum, weight);
        }
        b.for_each(Extent::constant(value_dim), |b, d| {
            let mixed = scores.reduce(b, ReduceKind::Sum, h, |b, score, value| {
                let p = weight(b, score);
                let v = b.load(cache, value.element(d));
                b.mul(p, v)
            });
            let value = b.div(mixed, sum);
            let out_width = i64::from(heads) * value_dim;
            b.store(out, b.row() * out_width + Index::axis(h) * value_dim + Index::axis(d), value);
        });
    });
    let mut args = vec![
        NestArg::Operand(0),
        NestArg::Input(Input::Positions),
        NestArg::Input(Input::TableStarts),
        NestArg::Input(Input::BlockTable),
        NestArg::State,
    ];
    args.extend(more.map(|_| NestArg::Operand(2)));
    if hides {
        let most = (facts.context as usize).div_ceil(kv::TOKENS).max(kv::TOKENS);
        args.push(NestArg::Constant((0..most).map(|i| i as f32).collect()));
    }
    if !causal {
        args.push(NestArg::Input(Input::LastPositions));
    }
    args.push(NestArg::Result(0));
    Ok(Lowered { nest: b.finish(), rows, args })
}
