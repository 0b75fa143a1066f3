//! The ops beside linear, threaded where there is work enough to share.

use crate::vector::{dot, exp, sum, vectorised};
use crate::weights::Matrix;
use bessemer_ir::attr::{BinaryKind, PoolKind, RopeStyle, UnaryKind};
use rayon::prelude::*;
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

/// Below so many elements handing out work costs more than the work.
pub(crate) const SHARED: usize = 1 << 14;
/// Elements of a pointwise op that a thread takes at a time.
const CHUNK: usize = 1 << 12;

/// Runs `f(row, out)` for every row of `width` elements; the last may be shorter.
pub(crate) fn for_rows(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if width == 0 {
        return;
    }
    if out.len() < SHARED {
        vectorised(
            #[inline(always)]
            || {
                for (r, row) in out.chunks_mut(width).enumerate() {
                    f(r, row);
                }
            },
        );
    } else {
        let rows = out.par_chunks_mut(width).enumerate();
        rows.for_each(|(r, row)| {
            vectorised(
                #[inline(always)]
                || f(r, row),
            )
        });
    }
}

pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    for_rows(
        &mut out,
        w.len(),
        #[inline(always)]
        |r, out| {
            let x = &x[r * w.len()..][..w.len()];
            let factor = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
            out.iter_mut().zip(x).zip(w).for_each(|((o, x), w)| *o = x * factor * w);
        },
    );
    out
}

pub(crate) fn layer_norm(x: &[f32], w: &[f32], b: Option<&[f32]>, eps: f32, parts: usize) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    let n = w.len() / parts;
    for_rows(
        &mut out,
        n,
        #[inline(always)]
        |r, out| {
            let x = &x[r * n..][..n];
            let first = r % parts * n;
            let (w, b) = (&w[first..][..n], b.map(|b| &b[first..][..n]));
            let mean = sum(x) / x.len() as f32;
            out.iter_mut().zip(x).for_each(|(o, x)| *o = x - mean);
            let factor = 1.0 / (dot(out, out) / x.len() as f32 + eps).sqrt();
            out.iter_mut().zip(w).for_each(|(o, w)| *o = *o * factor * w);
            if let Some(b) = b {
                out.iter_mut().zip(b).for_each(|(o, b)| *o += b);
            }
        },
    );
    out
}

pub(crate) fn embed(tokens: &[u32], table: &Matrix) -> Vec<f32> {
    let mut out = vec![0f32; tokens.len() * table.k];
    for_rows(
        &mut out,
        table.k,
        #[inline(always)]
        |r, row| table.copy_row(tokens[r] as usize, row),
    );
    out
}

pub(crate) fn unary(kind: UnaryKind, mut x: Vec<f32>) -> Vec<f32> {
    for_rows(
        &mut x,
        CHUNK,
        #[inline(always)]
        |_, x| match kind {
            UnaryKind::Silu => x.iter_mut().for_each(|v| *v /= 1.0 + exp(-*v)),
            UnaryKind::Neg => x.iter_mut().for_each(|v| *v = -*v),
            UnaryKind::Gelu => x.iter_mut().for_each(|v| *v = *v * 0.5 * libm::erfcf(-*v * FRAC_1_SQRT_2)),
            // x * (1 + tanh u) / 2 = x / (1 + e^-2u)
            UnaryKind::GeluTanh => x.iter_mut().for_each(|v| {
                let u = (2.0 * FRAC_2_PI.sqrt()) * (*v + 0.044715 * *v * *v * *v);
                *v /= 1.0 + exp(-u);
            }),
            UnaryKind::Tanh => x.iter_mut().for_each(|v| *v = libm::tanhf(*v)),
            UnaryKind::Scale(factor) => x.iter_mut().for_each(|v| *v *= factor),
            UnaryKind::Plus(number) => x.iter_mut().for_each(|v| *v += number),
            UnaryKind::Clamp(low, high) => x.iter_mut().for_each(|v| *v = v.clamp(low, high)),
        },
    );
    x
}

pub(crate) fn binary(kind: BinaryKind, mut a: Vec<f32>, b: &[f32]) -> Vec<f32> {
    for_rows(
        &mut a,
        CHUNK,
        #[inline(always)]
        |r, a| {
            let pairs = a.iter_mut().zip(&b[r * CHUNK..]);
            match kind {
                BinaryKind::Add => pairs.for_each(|(a, b)| *a += b),
                BinaryKind::Mul => pairs.for_each(|(a, b)| *a *= b),
            }
        },
    );
    a
}

/// The mean, or the first, of rows `first..=last`.
pub(crate) fn pool(kind: PoolKind, x: &[f32], width: usize, first: usize, last: usize) -> Vec<f32> {
    let mut out = x[first * width..(first + 1) * width].to_vec();
    if kind == PoolKind::Mean {
        for row in x[(first + 1) * width..(last + 1) * width].chunks_exact(width) {
            out.iter_mut().zip(row).for_each(|(o, v)| *o += v);
        }
        let count = (last - first + 1) as f32;
        out.iter_mut().for_each(|o| *o /= count);
    }
    out
}

pub(crate) fn rope_table(positions: &[u32], inv_freq: &[f32], factor: f32) -> Vec<f32> {
    let half = inv_freq.len();
    let mut out = vec![0f32; positions.len() * 2 * half];
    for_rows(&mut out, 2 * half, |r, row| {
        for (j, freq) in inv_freq.iter().enumerate() {
            // Not the platform's, whose last bit differs from one to the next.
            let (sin, cos) = libm::sincosf(positions[r] as f32 * freq);
            row[j] = cos * factor;
            row[half + j] = sin * factor;
        }
    });
    out
}

pub(crate) fn rope(style: RopeStyle, heads: usize, mut x: Vec<f32>, table: &[f32], rows: usize) -> Vec<f32> {
    let width = x.len().checked_div(rows).unwrap_or(0);
    let d = width / heads;
    let turned = table.len().checked_div(rows).unwrap_or(0);
    for_rows(
        &mut x,
        width,
        #[inline(always)]
        |r, row| {
            let (cos, sin) = table[r * turned..(r + 1) * turned].split_at(turned / 2);
            for head in row.chunks_exact_mut(d) {
                let head = &mut head[..turned];
                match style {
                    RopeStyle::Half => {
                        let (a, b) = head.split_at_mut(turned / 2);
                        for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                        }
                    }
                    RopeStyle::Interleaved => {
                        for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                            let (a, b) = (pair[0], pair[1]);
                            (pair[0], pair[1]) = (a * cos - b * sin, b * cos + a * sin);
                        }
                    }
                }
            }
        },
    );
    x
}
