//! Mixtures of experts, and heads that have a weight each.

use super::{Lowered, NestArg, activation, builder::NestBuilder, element, vector_elem};
use bessemer_format::nest::{Extent, Index, Op as NestOp, ReduceKind, Reg, ViewElem, ViewId};
use bessemer_format::plan::Score;
use bessemer_ir::attr::{Epilogue, Segment};
use bessemer_ir::{Layout, TensorType};

/// Up to so many slots a combination holds all weights in registers.
const FEW_SLOTS: i64 = 12;

/// The scores of chosen experts as weights.
pub fn route_weights(
    score: Score,
    renormalise: bool,
    scale: f32,
    logits: &TensorType,
    chosen: &TensorType,
) -> Result<Lowered, String> {
    let (rows, experts) = activation(logits)?;
    let (_, top_k) = activation(chosen)?;
    let mut b = NestBuilder::new("route_weights");
    let logits = b.input("logits", ViewElem::F32);
    let chosen = b.input("chosen", ViewElem::I32);
    let out = b.output("out", ViewElem::F32);
    let one = b.constant(1.0);
    let power = |b: &mut NestBuilder, at: Index, max: Option<Reg>| {
        let x = b.load(logits, at);
        match max {
            Some(max) => {
                let shifted = b.sub(x, max);
                b.op(NestOp::Exp(shifted))
            }
            None => {
                let negative = b.op(NestOp::Neg(x));
                let e = b.op(NestOp::Exp(negative));
                let denominator = b.add(one, e);
                b.div(one, denominator)
            }
        }
    };
    let max = (score == Score::Softmax).then(|| {
        b.reduce(ReduceKind::Max, Extent::constant(experts), |b, e| {
            let at = element(b.row(), experts, e);
            b.load(logits, at)
        })
    });
    // An integer is loaded outside of vector loops only, hence the loop of one iteration.
    let of_slot = |b: &mut NestBuilder, slot: u8| {
        let at = element(b.row(), top_k, slot);
        let expert = b.load_int(chosen, at, Index::constant(experts));
        b.reduce(ReduceKind::Sum, Extent::constant(1), |b, _| {
            let at = b.row() * experts + Index::int(expert);
            power(b, at, max)
        })
    };
    let scale = b.constant(scale);
    let factor = if renormalise {
        let total = b.reduce(ReduceKind::Sum, Extent::constant(top_k), of_slot);
        let tiny = b.constant(1e-20);
        let divisor = b.add(total, tiny);
        b.div(scale, divisor)
    } else if score == Score::Softmax {
        let total = b.reduce(ReduceKind::Sum, Extent::constant(experts), |b, e| {
            let at = element(b.row(), experts, e);
            power(b, at, max)
        });
        b.div(scale, total)
    } else {
        scale
    };
    b.for_each(Extent::constant(top_k), |b, slot| {
        let value = of_slot(b, slot);
        let weight = b.mul(value, factor);
        b.store(out, element(b.row(), top_k, slot), weight);
    });
    let args = vec![NestArg::Operand(0), NestArg::Operand(1), NestArg::Result(0)];
    Ok(Lowered { nest: b.finish(), rows, args })
}

/// What a grouped linear is made of.
pub struct Grouped<'a> {
    /// Weights of a stack.
    pub groups: i64,
    /// Results of a row.
    pub slots: i64,
    /// Whether rows choose.
    pub routed: bool,
    /// Segments of a slot.
    pub segments: &'a [Segment],
    /// What happens before the result is stored.
    pub epilogue: Epilogue,
}

/// A segment's weight, whether it is packed, its elements of a row, its bias, its width.
#[derive(Clone, Copy)]
struct Stack {
    weight: ViewId,
    packed: bool,
    k: i64,
    bias: Option<ViewId>,
    width: i64,
}

/// A grouped linear that computes in f32: a dot product a result.
pub fn grouped_linear(g: &Grouped<'_>, operands: &[TensorType]) -> Result<Lowered, String> {
    let (rows, x_width) = activation(&operands[0])?;
    let mut b = NestBuilder::new("grouped_linear");
    let x = b.input("x", ViewElem::F32);
    let chosen = g.routed.then(|| b.input("chosen", ViewElem::I32));
    let mut next = 1 + usize::from(g.routed);
    let mut stacks = Vec::new();
    for s in g.segments {
        let ty = &operands[next];
        let packed = ty.encoding.layout == Layout::Panel;
        let weight = b.input("w", if packed { ViewElem::Panel } else { vector_elem(ty)? });
        let k = ty.const_dim(1).ok_or("a weight without constant extents")? as i64;
        next += 1 + usize::from(s.bias);
        let bias = s.bias.then(|| vector_elem(&operands[next - 1])).transpose()?;
        let bias = bias.map(|elem| b.input("bias", elem));
        stacks.push(Stack { weight, packed, k, bias, width: s.width as i64 });
    }
    let out = b.output("out", ViewElem::F32);
    let width: i64 = match g.epilogue {
        Epilogue::Gated(_) => stacks[0].width,
        _ => stacks.iter().map(|s| s.width).sum(),
    };
    let row_width = width * g.slots;
    let dot = |b: &mut NestBuilder, s: Stack, group: &Index, slot: u8, n: u8| {
        let row = group.clone() * s.width + Index::axis(n);
        let sum = b.reduce(ReduceKind::Sum, Extent::constant(s.k), |b, j| {
            let mut at = element(b.row(), x_width, j);
            if x_width != s.k {
                at = at + Index::axis(slot) * s.k;
            }
            let a = b.load(x, at);
            let w = match s.packed {
                true => b.load_weight(s.weight, row.clone(), Index::axis(j)),
                false => b.load(s.weight, element(row.clone(), s.k, j)),
            };
            b.mul(a, w)
        });
        match s.bias {
            Some(bias) => {
                let bias = b.load(bias, row);
                b.add(sum, bias)
            }
            None => sum,
        }
    };
    b.for_each(Extent::constant(g.slots), |b, slot| {
        let group = match chosen {
            Some(chosen) => {
                let at = element(b.row(), g.slots, slot);
                Index::int(b.load_int(chosen, at, Index::constant(g.groups)))
            }
            None => Index::axis(slot),
        };
        let at = |b: &NestBuilder, n: u8| element(b.row(), row_width, n) + Index::axis(slot) * width;
        if let (Epilogue::Gated(function), [gate, up]) = (g.epilogue, &stacks[..]) {
            b.for_each(Extent::constant(width), |b, n| {
                let gate = dot(b, *gate, &group, slot, n);
                let up = dot(b, *up, &group, slot, n);
                let gate = super::pointwise::scalar(b, function.into(), gate);
                let value = b.mul(gate, up);
                b.store(out, at(b, n), value);
            });
            return;
        }
        let mut column = 0;
        for s in &stacks {
            b.for_each(Extent::constant(s.width), |b, n| {
                let value = dot(b, *s, &group, slot, n);
                b.store(out, at(b, n).plus(column), value);
            });
            column += s.width;
        }
    });
    let args = (0..next).map(NestArg::Operand).chain([NestArg::Result(0)]).collect();
    Ok(Lowered { nest: b.finish(), rows, args })
}

/// The weighted sum of the slots of each row.
pub fn combine(y: &TensorType, weights: &TensorType) -> Result<Lowered, String> {
    let (rows, row_width) = activation(y)?;
    let (_, slots) = activation(weights)?;
    let width = row_width / slots.max(1);
    let mut b = NestBuilder::new("combine");
    let y = b.input("y", ViewElem::F32);
    let weights = b.input("weights", ViewElem::F32);
    let out = b.output("out", ViewElem::F32);
    let weight = |b: &mut NestBuilder, slot: Index| {
        let at = b.row() * slots + slot;
        b.load(weights, at)
    };
    let few: Vec<Reg> = match slots <= FEW_SLOTS {
        true => (0..slots).map(|s| weight(&mut b, Index::constant(s))).collect(),
        false => Vec::new(),
    };
    b.for_each(Extent::constant(width), |b, j| {
        let at = |b: &NestBuilder, slot: Index| element(b.row(), row_width, j) + slot * width;
        let value = if few.is_empty() {
            b.reduce(ReduceKind::Sum, Extent::constant(slots), |b, slot| {
                let w = weight(b, Index::axis(slot));
                let y = b.load(y, at(b, Index::axis(slot)));
                b.mul(w, y)
            })
        } else {
            let mut sum = None;
            for (slot, w) in few.iter().enumerate() {
                let y = b.load(y, at(b, Index::constant(slot as i64)));
                let term = b.mul(*w, y);
                sum = Some(sum.map_or(term, |sum| b.add(sum, term)));
            }
            sum.unwrap_or(few[0])
        };
        b.store(out, element(b.row(), width, j), value);
    });
    let args = vec![NestArg::Operand(0), NestArg::Operand(1), NestArg::Result(0)];
    Ok(Lowered { nest: b.finish(), rows, args })
}

/// Each head of a, then the same head of b.
pub fn concat_heads(heads: u32, a: &TensorType, b_type: &TensorType) -> Result<Lowered, String> {
    let (rows, a_width) = activation(a)?;
    let (_, b_width) = activation(b_type)?;
    let heads = i64::from(heads);
    let mut b = NestBuilder::new("concat_heads");
    let views = [(b.input("a", ViewElem::F32), a_width), (b.input("b", ViewElem::F32), b_width)];
    let out = b.output("out", ViewElem::F32);
    let out_width = a_width + b_width;
    b.for_each(Extent::constant(heads), |b, h| {
        let mut column = 0;
        for (view, width) in views {
            let part = width / heads;
            b.for_each(Extent::constant(part), |b, j| {
                let at = element(b.row(), width, j) + Index::axis(h) * part;
                let value = b.load(view, at);
                let at = element(b.row(), out_width, j) + Index::axis(h) * (out_width / heads);
                b.store(out, at.plus(column), value);
            });
            column += part;
        }
    });
    let args = vec![NestArg::Operand(0), NestArg::Operand(1), NestArg::Result(0)];
    Ok(Lowered { nest: b.finish(), rows, args })
}
