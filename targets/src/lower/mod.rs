//! Lowering: a loop nest for every op of the table.
//!
//! What no hand-written kernel covers runs as one of these, so nothing ever fails for want of a kernel. For every op other than linear,
//! attention and embedding the nest is the only CPU implementation.

mod attention;
pub mod builder;
mod linear;
mod pointwise;
mod rope;

use crate::schedule::LayerState;
use bessemer_format::nest::{Base, Extent, Index, Nest, Op as NestOp, ReduceKind, Sym, ViewElem};
use bessemer_format::plan::{Input, ModelFacts, RowCount};
use bessemer_format::{Compute, Elem};
use bessemer_ir::{Dim, Layout, Op, TensorType};
use builder::NestBuilder;

/// A nest, the rows it runs over, and what its views are bound to.
#[derive(Clone, Debug, PartialEq)]
pub struct Lowered {
    /// The nest.
    pub nest: Nest,
    /// Rows of axis 0.
    pub rows: RowCount,
    /// Bindings of the nest's views, in their order.
    pub args: Vec<NestArg>,
}

/// What a view of a lowered op is bound to.
#[derive(Clone, Debug, PartialEq)]
pub enum NestArg {
    /// An operand of the op.
    Operand(usize),
    /// A result of the op.
    Result(u16),
    /// An array of the forward pass that the op needs beyond its operands.
    Input(Input),
    /// Numbers that the op carries as an attribute.
    Constant(Vec<f32>),
    /// The KV cache.
    State,
}

/// Lowers `op` with operands of these types. `layer` is where the state operand lies, for ops that have one.
pub fn lower(
    op: &Op,
    operands: &[TensorType],
    layer: Option<LayerState>,
    facts: &ModelFacts,
) -> Result<Lowered, String> {
    let layer = || layer.ok_or_else(|| "has no state operand".to_string());
    match op {
        Op::Input { .. } | Op::State { .. } | Op::Const { .. } | Op::Output {} => {
            Err("is a place, not a computation".into())
        }
        Op::Embed {} => embed(&operands[0], &operands[1]),
        Op::RmsNorm { eps } => rms_norm(*eps, &operands[0], &operands[1], false),
        Op::AddRmsNorm { eps } => rms_norm(*eps, &operands[0], &operands[2], true),
        Op::Linear { segments, epilogue, compute: Compute::F32 } => {
            linear::linear(segments, *epilogue, operands)
        }
        Op::Linear { compute, .. } => {
            Err(format!("computes in {compute:?}, which only the linear kernels do"))
        }
        Op::RopeTable { inv_freq, factor } => rope::table(inv_freq, *factor, &operands[0], facts),
        Op::Rope { style, heads } => rope::rope(*style, *heads, &operands[0], &operands[1]),
        Op::Append { kv_heads } => rope::append(*kv_heads, &operands[1], layer()?),
        Op::RopeAppend { style, heads, kv_heads } => {
            rope::rope_append(*style, *heads, *kv_heads, operands, layer()?)
        }
        Op::Attention { .. } => attention::attention(op, operands, layer()?, facts),
        Op::Unary { kind } => pointwise::unary(*kind, &operands[0]),
        Op::Binary { kind } => pointwise::binary(*kind, &operands[0]),
        Op::Pointwise { body } => pointwise::cluster(body, operands),
        Op::SelectRows {} => select_rows(&operands[0]),
    }
}

/// Rows and width of activations.
fn activation(ty: &TensorType) -> Result<(RowCount, i64), String> {
    let width = ty.const_dim(1).ok_or_else(|| format!("{ty} has no constant width"))?;
    Ok((row_count(ty)?, width as i64))
}

fn row_count(ty: &TensorType) -> Result<RowCount, String> {
    match ty.shape.first() {
        Some(Dim::Rows) => Ok(RowCount::Tokens),
        Some(Dim::LogitRows) => Ok(RowCount::Logits),
        _ => Err(format!("{ty} has no rows")),
    }
}

/// How a dense vector is viewed.
fn vector_elem(ty: &TensorType) -> Result<ViewElem, String> {
    match (ty.scheme().elem, ty.encoding.layout) {
        (Elem::F32, Layout::Dense) => Ok(ViewElem::F32),
        (Elem::F16, Layout::Dense) => Ok(ViewElem::F16),
        (Elem::Bf16, Layout::Dense) => Ok(ViewElem::Bf16),
        _ => Err(format!("{ty} is no dense vector of floats")),
    }
}

/// `base * width + axis`
fn element(base: Index, width: i64, axis: u8) -> Index {
    base * width + Index::axis(axis)
}

fn embed(tokens: &TensorType, table: &TensorType) -> Result<Lowered, String> {
    let rows = row_count(tokens)?;
    let (vocab, width) = (table.const_dim(0), table.const_dim(1));
    let (Some(vocab), Some(width)) = (vocab, width) else { return Err(format!("table {table}")) };
    let packed = table.encoding.layout == Layout::Panel;
    let elem = if packed { ViewElem::Panel } else { vector_elem(table)? };
    let mut b = NestBuilder::new("embed");
    let tokens = b.input("tokens", ViewElem::I32);
    let table = b.input("table", elem);
    let out = b.output("out", ViewElem::F32);
    let token = b.load_int(tokens, b.row(), Index::constant(vocab as i64));
    b.for_each(Extent::constant(width as i64), |b, j| {
        let value = if packed {
            b.load_weight(table, Index::int(token), Index::axis(j))
        } else {
            b.load(table, element(Index::int(token), width as i64, j))
        };
        b.store(out, element(b.row(), width as i64, j), value);
    });
    Ok(Lowered {
        nest: b.finish(),
        rows,
        args: vec![NestArg::Operand(0), NestArg::Operand(1), NestArg::Result(0)],
    })
}

/// `x / sqrt(mean(x^2) + eps) * w` of each `w.len()` elements; with `add`, of the sum of two operands, which is a result too.
fn rms_norm(eps: f32, x: &TensorType, w: &TensorType, add: bool) -> Result<Lowered, String> {
    let (rows, width) = activation(x)?;
    let group = w.const_dim(0).filter(|n| *n > 0).ok_or_else(|| format!("norm weight {w}"))? as i64;
    let mut b = NestBuilder::new(if add { "add_rms_norm" } else { "rms_norm" });
    let x = b.input("x", ViewElem::F32);
    let residual = add.then(|| b.input("residual", ViewElem::F32));
    let weight = b.input("w", vector_elem(w)?);
    let sum = add.then(|| b.output("sum", ViewElem::F32));
    let out = b.output("out", ViewElem::F32);
    let load = |b: &mut NestBuilder, at: &Index| {
        let value = b.load(x, at.clone());
        match residual {
            Some(residual) => {
                let r = b.load(residual, at.clone());
                b.add(value, r)
            }
            None => value,
        }
    };
    let norm = |b: &mut NestBuilder, start: Index| {
        let squares = b.reduce(ReduceKind::Sum, Extent::constant(group), |b, j| {
            let value = load(b, &(start.clone() + Index::axis(j)));
            b.mul(value, value)
        });
        let count = b.constant(group as f32);
        let mean = b.div(squares, count);
        let eps = b.constant(eps);
        let shifted = b.add(mean, eps);
        let root = b.op(NestOp::Sqrt(shifted));
        let one = b.constant(1.0);
        let factor = b.div(one, root);
        b.for_each(Extent::constant(group), |b, j| {
            let at = start.clone() + Index::axis(j);
            let value = load(b, &at);
            if let Some(sum) = sum {
                b.store(sum, at.clone(), value);
            }
            let normed = b.mul(value, factor);
            let w = b.load(weight, Index::axis(j));
            let scaled = b.mul(normed, w);
            b.store(out, at, scaled);
        });
    };
    let row = b.row() * width;
    match width / group {
        1 => norm(&mut b, row),
        parts => b.for_each(Extent::constant(parts), |b, part| norm(b, row + Index::axis(part) * group)),
    }
    let args = if add {
        vec![
            NestArg::Operand(0),
            NestArg::Operand(1),
            NestArg::Operand(2),
            NestArg::Result(0),
            NestArg::Result(1),
        ]
    } else {
        vec![NestArg::Operand(0), NestArg::Operand(1), NestArg::Result(0)]
    };
    Ok(Lowered { nest: b.finish(), rows, args })
}

fn select_rows(x: &TensorType) -> Result<Lowered, String> {
    let (_, width) = activation(x)?;
    let mut b = NestBuilder::new("select_rows");
    let x = b.input("x", ViewElem::F32);
    let rows = b.input("rows", ViewElem::I32);
    let out = b.output("out", ViewElem::F32);
    let from = b.load_int(rows, b.row(), Index::sym(Sym::Rows));
    b.for_each(Extent::constant(width), |b, j| {
        let value = b.load(x, element(Index::of(Base::Int(from)), width, j));
        b.store(out, element(b.row(), width, j), value);
    });
    Ok(Lowered {
        nest: b.finish(),
        rows: RowCount::Logits,
        args: vec![NestArg::Operand(0), NestArg::Operand(1), NestArg::Result(0)],
    })
}

#[cfg(test)]
mod tests;
