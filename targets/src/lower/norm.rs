//! Norms: one or two reductions over a row, then a pass over its elements.

use super::{Lowered, NestArg, activation, builder::NestBuilder, vector_elem};
use bessemer_format::nest::{Extent, Index, Op as NestOp, ReduceKind, Reg, ViewElem};
use bessemer_ir::TensorType;

/// `x / sqrt(mean(x^2) + eps) * w` of each `w.len()` elements; with `add`, of the sum of two operands, which is a result too.
pub fn rms_norm(eps: f32, x: &TensorType, w: &TensorType, add: bool) -> Result<Lowered, String> {
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
        let factor = inverse_deviation(b, squares, count, eps);
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

/// `(x - mean) / sqrt(variance + eps) * w + b` of each of `parts` parts of a row, the variance from the distances to the mean.
pub fn layer_norm(
    eps: f32,
    parts: u32,
    x: &TensorType,
    w: &TensorType,
    b: Option<&TensorType>,
) -> Result<Lowered, String> {
    let (rows, width) = activation(x)?;
    let shift = b;
    let mut b = NestBuilder::new("layer_norm");
    let x = b.input("x", ViewElem::F32);
    let weight = b.input("w", vector_elem(w)?);
    let shift = shift.map(vector_elem).transpose()?.map(|elem| b.input("b", elem));
    let out = b.output("out", ViewElem::F32);
    let (parts, n) = (i64::from(parts), width / i64::from(parts.max(1)));
    // `first` is the first element of a part in its row.
    let norm = |b: &mut NestBuilder, first: Index| {
        let count = b.constant(n as f32);
        let at = |b: &NestBuilder, j: u8| b.row() * width + first.clone() + Index::axis(j);
        let sum = b.reduce(ReduceKind::Sum, Extent::constant(n), |b, j| b.load(x, at(b, j)));
        let mean = b.div(sum, count);
        let distance = |b: &mut NestBuilder, j| {
            let value = b.load(x, at(b, j));
            b.sub(value, mean)
        };
        let squares = b.reduce(ReduceKind::Sum, Extent::constant(n), |b, j| {
            let d = distance(b, j);
            b.mul(d, d)
        });
        let factor = inverse_deviation(b, squares, count, eps);
        b.for_each(Extent::constant(n), |b, j| {
            let d = distance(b, j);
            let normed = b.mul(d, factor);
            let w = b.load(weight, first.clone() + Index::axis(j));
            let mut value = b.mul(normed, w);
            if let Some(shift) = shift {
                let shift = b.load(shift, first.clone() + Index::axis(j));
                value = b.add(value, shift);
            }
            b.store(out, at(b, j), value);
        });
    };
    match parts {
        1 => norm(&mut b, Index::constant(0)),
        _ => b.for_each(Extent::constant(parts), |b, part| norm(b, Index::axis(part) * n)),
    }
    let operands = if shift.is_some() { 3 } else { 2 };
    let args = (0..operands).map(NestArg::Operand).chain([NestArg::Result(0)]).collect();
    Ok(Lowered { nest: b.finish(), rows, args })
}

/// `1 / sqrt(squares / count + eps)`
fn inverse_deviation(b: &mut NestBuilder, squares: Reg, count: Reg, eps: f32) -> Reg {
    let mean = b.div(squares, count);
    let eps = b.constant(eps);
    let shifted = b.add(mean, eps);
    let root = b.op(NestOp::Sqrt(shifted));
    let one = b.constant(1.0);
    b.div(one, root)
}
