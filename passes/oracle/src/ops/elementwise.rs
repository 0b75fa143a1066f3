//! Scalar functions of every element.

use super::same;
use crate::value::Tensor;
use bessemer_ir::attr::{BinaryKind, Scalar, UnaryKind};

/// A scalar function of one number.
pub fn scalar_unary(kind: UnaryKind, x: f64) -> f64 {
    match kind {
        UnaryKind::Silu => x / (1.0 + (-x).exp()),
        UnaryKind::Neg => -x,
        UnaryKind::Gelu => 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2),
        UnaryKind::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        }
        UnaryKind::Tanh => x.tanh(),
        UnaryKind::Scale(factor) => x * f64::from(factor),
        UnaryKind::Plus(number) => x + f64::from(number),
        UnaryKind::Clamp(low, high) => x.clamp(f64::from(low), f64::from(high)),
    }
}

/// A scalar function of two numbers.
pub fn scalar_binary(kind: BinaryKind, a: f64, b: f64) -> f64 {
    match kind {
        BinaryKind::Add => a + b,
        BinaryKind::Mul => a * b,
    }
}

/// `unary`.
pub fn unary(kind: UnaryKind, a: &Tensor) -> Tensor {
    let data = a.data.iter().map(|x| scalar_unary(kind, *x)).collect();
    Tensor { data, ..*a }
}

/// `binary`.
pub fn binary(kind: BinaryKind, a: &Tensor, b: &Tensor) -> Result<Tensor, String> {
    same("rows", a.rows, b.rows)?;
    same("width", a.width, b.width)?;
    let data = a.data.iter().zip(&b.data).map(|(x, y)| scalar_binary(kind, *x, *y)).collect();
    Ok(Tensor { data, ..*a })
}

/// `pointwise`: the instructions one behind the other, each on whole tensors.
pub fn pointwise(body: &[Scalar], inputs: &[&Tensor]) -> Result<Tensor, String> {
    let mut values: Vec<Tensor> = inputs.iter().map(|t| (*t).clone()).collect();
    let undefined = |i: u32| format!("number {i} is not defined yet");
    for instruction in body {
        let at = |i: u32| values.get(i as usize).ok_or_else(|| undefined(i));
        let result = match instruction {
            Scalar::Unary(kind, a) => unary(*kind, at(*a)?),
            Scalar::Binary(kind, a, b) => binary(*kind, at(*a)?, at(*b)?)?,
        };
        values.push(result);
    }
    values.pop().ok_or_else(|| "has no operand".into())
}
