//! The linear family.

use super::elementwise::scalar_unary;
use super::same;
use crate::oracle::Reading;
use crate::value::{Tensor, Val, Weight};
use bessemer_format::Compute;
use bessemer_format::scheme::{quantise_int8, round_bf16, widen_bf16};
use bessemer_ir::attr::{Epilogue, Segment, UnaryKind};
use std::num::NonZero;

/// `linear`: each segment's product and bias side by side, then the epilogue, on numbers that are not rounded in between.
pub fn linear(
    segments: &[Segment],
    epilogue: Epilogue,
    compute: Compute,
    operands: &[&Val],
    reading: Reading,
) -> Result<Tensor, String> {
    let mut rest = operands.iter();
    let mut next = || rest.next().copied().ok_or("an operand is missing");
    let x = activations(next()?.tensor()?, compute, reading)?;
    let mut parts = Vec::new();
    for segment in segments {
        let w = next()?.weight()?;
        same(&segment.name, w.rows, segment.width as usize)?;
        let mut part = match rounded(w, compute, reading) {
            Some(w) => product(&x, &w)?,
            None => product(&x, w)?,
        };
        if segment.bias {
            let bias = next()?.weight()?;
            same("bias", bias.data.len(), part.width)?;
            for r in 0..part.rows {
                part.row_mut(r).iter_mut().zip(&bias.data).for_each(|(o, b)| *o += f64::from(*b));
            }
        }
        parts.push(part);
    }
    match (epilogue, &parts[..]) {
        (Epilogue::None, _) => Ok(beside(&parts)),
        (Epilogue::Residual, _) => {
            super::elementwise::binary(bessemer_ir::attr::BinaryKind::Add, &beside(&parts), next()?.tensor()?)
        }
        (Epilogue::Gated(function), [gate, up]) => {
            same("gate and up", gate.width, up.width)?;
            let gated = |(g, u): (&f64, &f64)| scalar_unary(UnaryKind::from(function), *g) * u;
            Ok(Tensor { data: gate.data.iter().zip(&up.data).map(gated).collect(), ..*gate })
        }
        (Epilogue::Gated(_), _) => Err("a gated epilogue takes two segments".into()),
    }
}

/// The nearest number of bfloat16.
pub fn to_bf16(v: f32) -> f32 {
    widen_bf16(round_bf16(v))
}

/// The weights as the product reads them, where that differs from what they dequantise to: `Compute::Bf16` rounds them.
fn rounded(w: &Weight, compute: Compute, reading: Reading) -> Option<Weight> {
    let applies = matches!((compute, reading), (Compute::Bf16, Reading::Declared { .. }));
    applies.then(|| {
        let mut w = w.clone();
        w.data.iter_mut().for_each(|v| *v = to_bf16(*v));
        w
    })
}

/// The activations as the product reads them: `Compute::Int8` rounds f32 numbers by groups; a group at the end may be short.
fn activations(x: &Tensor, compute: Compute, reading: Reading) -> Result<Tensor, String> {
    let group = match (compute, reading) {
        (Compute::F32, _) | (_, Reading::Exact) => return Ok(x.clone()),
        (Compute::Bf16, Reading::Declared { .. }) => {
            let mut out = x.clone();
            out.data.iter_mut().for_each(|v| *v = f64::from(to_bf16(*v as f32)));
            return Ok(out);
        }
        (Compute::Int8 { group: 0 }, _) => return Err("int8 groups of no element".into()),
        (Compute::Int8 { group }, Reading::Declared { .. }) => group as usize,
    };
    let mut out = x.clone();
    for r in 0..out.rows {
        for x in out.row_mut(r).chunks_mut(group) {
            let floats: Vec<f32> = x.iter().map(|v| *v as f32).collect();
            let mut codes = vec![0i8; x.len()];
            let scale = quantise_int8(&floats, &mut codes);
            x.iter_mut().zip(codes).for_each(|(v, code)| *v = f64::from(code) * f64::from(scale));
        }
    }
    Ok(out)
}

/// `x w^T`, every sum in f64 in ascending k. Rows run innermost (x is transposed) and threads share the outputs, which changes no sum.
pub fn product(x: &Tensor, w: &Weight) -> Result<Tensor, String> {
    same("k", x.width, w.k)?;
    let (rows, k) = (x.rows, x.width);
    let mut out = Tensor::zeros(rows, w.rows);
    if rows == 0 || k == 0 {
        return Ok(out);
    }
    let mut by_k = vec![0.0; k * rows];
    for (r, row) in x.each_row().enumerate() {
        row.iter().enumerate().for_each(|(i, v)| by_k[i * rows + r] = *v);
    }
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let share = w.rows.div_ceil(threads);
    let mut by_output = vec![0.0; w.rows * rows];
    std::thread::scope(|scope| {
        for (part, out) in by_output.chunks_mut(share * rows).enumerate() {
            let by_k = &by_k;
            scope.spawn(move || {
                for (n, sums) in out.chunks_exact_mut(rows).enumerate() {
                    for (w, x) in w.row(part * share + n).iter().zip(by_k.chunks_exact(rows)) {
                        sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(*w) * x);
                    }
                }
            });
        }
    });
    for r in 0..rows {
        out.row_mut(r).iter_mut().enumerate().for_each(|(n, o)| *o = by_output[n * rows + r]);
    }
    Ok(out)
}

fn beside(parts: &[Tensor]) -> Tensor {
    let width = parts.iter().map(|p| p.width).sum();
    let rows = parts.first().map_or(0, |p| p.rows);
    let data = (0..rows).flat_map(|r| parts.iter().flat_map(move |p| p.row(r).iter().copied())).collect();
    Tensor { rows, width, data }
}
