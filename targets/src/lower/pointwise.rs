//! Scalar functions of elements, one by one or in clusters.

use super::{Lowered, NestArg, activation, builder::NestBuilder, element};
use bessemer_format::nest::{Extent, Op as NestOp, Reg, ViewElem};
use bessemer_ir::TensorType;
use bessemer_ir::attr::{BinaryKind, Scalar, UnaryKind};

/// A unary op.
pub fn unary(kind: UnaryKind, x: &TensorType) -> Result<Lowered, String> {
    cluster(&[Scalar::Unary(kind, 0)], std::slice::from_ref(x))
}

/// A binary op of two operands of one type.
pub fn binary(kind: BinaryKind, x: &TensorType) -> Result<Lowered, String> {
    cluster(&[Scalar::Binary(kind, 0, 1)], &[x.clone(), x.clone()])
}

/// A cluster: every operand is read once, the last instruction is the result.
pub fn cluster(body: &[Scalar], operands: &[TensorType]) -> Result<Lowered, String> {
    let (rows, width) = activation(operands.first().ok_or("has no operand")?)?;
    let mut b = NestBuilder::new("pointwise");
    let views: Vec<_> = (0..operands.len()).map(|i| b.input(&format!("x{i}"), ViewElem::F32)).collect();
    let out = b.output("out", ViewElem::F32);
    b.for_each(Extent::constant(width), |b, j| {
        let at = element(b.row(), width, j);
        let mut values: Vec<Reg> = views.iter().map(|v| b.load(*v, at.clone())).collect();
        for s in body {
            let value = match *s {
                Scalar::Unary(UnaryKind::Silu, a) => b.silu(values[a as usize]),
                Scalar::Unary(UnaryKind::Neg, a) => b.op(NestOp::Neg(values[a as usize])),
                Scalar::Binary(BinaryKind::Add, x, y) => b.add(values[x as usize], values[y as usize]),
                Scalar::Binary(BinaryKind::Mul, x, y) => b.mul(values[x as usize], values[y as usize]),
            };
            values.push(value);
        }
        b.store(out, at, values[values.len() - 1]);
    });
    let args = (0..operands.len()).map(NestArg::Operand).chain([NestArg::Result(0)]).collect();
    Ok(Lowered { nest: b.finish(), rows, args })
}
