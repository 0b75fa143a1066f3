//! Scalar functions of elements, one by one or in clusters.

use super::{Lowered, NestArg, activation, builder::NestBuilder, element};
use bessemer_format::nest::{Extent, Op as NestOp, Reg, ViewElem};
use bessemer_ir::TensorType;
use bessemer_ir::attr::{BinaryKind, Scalar, UnaryKind};
use bessemer_kernels::math::{ERF_POLY, ERF_T, GELU_TANH};

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
                Scalar::Unary(kind, a) => scalar(b, kind, values[a as usize]),
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

/// A scalar function of a register: the operations of `bessemer-kernels`' `math`, in their order.
pub fn scalar(b: &mut NestBuilder, kind: UnaryKind, x: Reg) -> Reg {
    match kind {
        UnaryKind::Silu => b.silu(x),
        UnaryKind::Neg => b.op(NestOp::Neg(x)),
        UnaryKind::Tanh => b.tanh(x),
        UnaryKind::Scale(factor) => {
            let factor = b.constant(factor);
            b.mul(x, factor)
        }
        UnaryKind::Plus(number) => {
            let number = b.constant(number);
            b.add(x, number)
        }
        // Both as nests order them, so that a NaN stays one.
        UnaryKind::Clamp(low, high) => {
            let [low, high] = [low, high].map(|bound| b.constant(bound));
            let below = b.op(NestOp::Min(x, high));
            b.op(NestOp::Max(below, low))
        }
        UnaryKind::GeluTanh => {
            let [linear, cubic] = GELU_TANH.map(|c| b.constant(c));
            let square = b.mul(x, x);
            let part = b.mul(cubic, square);
            let slope = b.add(linear, part);
            let exponent = b.mul(x, slope);
            let e = b.op(NestOp::Exp(exponent));
            let one = b.constant(1.0);
            let denominator = b.add(one, e);
            b.div(x, denominator)
        }
        UnaryKind::Gelu => {
            let size = b.op(NestOp::Abs(x));
            let (one, rate) = (b.constant(1.0), b.constant(ERF_T));
            let grown = b.mul(rate, size);
            let denominator = b.add(one, grown);
            let t = b.div(one, denominator);
            let mut p = b.constant(ERF_POLY[0]);
            for c in &ERF_POLY[1..] {
                let (product, c) = (b.mul(p, t), b.constant(*c));
                p = b.add(product, c);
            }
            let p = b.mul(p, t);
            let (square, half) = (b.mul(size, size), b.constant(-0.5));
            let exponent = b.mul(square, half);
            let e = b.op(NestOp::Exp(exponent));
            let tail = b.mul(p, e);
            let (zero, below) = (b.constant(0.0), b.mul(size, tail));
            let above = b.op(NestOp::Max(x, zero));
            b.sub(above, below)
        }
    }
}
