//! The ops beside linear, threaded where there is work enough to share.

use crate::kv::Caches;
use crate::vector::{add_scaled, dot, exp};
use bessemer_ir::attr::{BinaryKind, RopeStyle, UnaryKind};
use bessemer_ir::exec::Batch;
use pulp::Arch;
use rayon::prelude::*;

/// Below so many elements handing out work costs more than the work.
const SHARED: usize = 1 << 14;

/// Runs `f(row, out)` for every row of `width` elements.
fn for_rows(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let arch = Arch::new();
    if width == 0 {
        return;
    }
    if out.len() < SHARED {
        arch.dispatch(|| out.chunks_exact_mut(width).enumerate().for_each(|(r, row)| f(r, row)));
    } else {
        let rows = out.par_chunks_exact_mut(width).enumerate();
        rows.for_each(|(r, row)| arch.dispatch(|| f(r, row)));
    }
}

pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let mut out = x.to_vec();
    for_rows(
        &mut out,
        w.len(),
        #[inline(always)]
        |_, row| {
            let factor = 1.0 / (dot(row, row) / row.len() as f32 + eps).sqrt();
            row.iter_mut().zip(w).for_each(|(o, w)| *o = *o * factor * w);
        },
    );
    out
}

#[inline(always)]
fn unary_row(kind: UnaryKind, x: &mut [f32]) {
    match kind {
        UnaryKind::Silu => x.iter_mut().for_each(|v| *v /= 1.0 + exp(-*v)),
        UnaryKind::Neg => x.iter_mut().for_each(|v| *v = -*v),
    }
}

pub(crate) fn unary(kind: UnaryKind, mut x: Vec<f32>) -> Vec<f32> {
    let width = x.len().clamp(1, 1 << 10);
    let whole = x.len() / width * width;
    let (head, tail) = x.split_at_mut(whole);
    for_rows(
        head,
        width,
        #[inline(always)]
        |_, row| unary_row(kind, row),
    );
    unary_row(kind, tail);
    x
}

pub(crate) fn binary(kind: BinaryKind, mut a: Vec<f32>, b: &[f32]) -> Vec<f32> {
    match kind {
        BinaryKind::Add => a.iter_mut().zip(b).for_each(|(a, b)| *a += b),
        BinaryKind::Mul => a.iter_mut().zip(b).for_each(|(a, b)| *a *= b),
    }
    a
}

pub(crate) fn rope_table(positions: &[u32], inv_freq: &[f32], factor: f32) -> Vec<f32> {
    let half = inv_freq.len();
    let mut out = vec![0f32; positions.len() * 2 * half];
    for (row, position) in out.chunks_exact_mut(2 * half).zip(positions) {
        for (j, freq) in inv_freq.iter().enumerate() {
            let (sin, cos) = (*position as f32 * freq).sin_cos();
            row[j] = cos * factor;
            row[half + j] = sin * factor;
        }
    }
    out
}

pub(crate) fn rope(style: RopeStyle, heads: usize, mut x: Vec<f32>, table: &[f32], rows: usize) -> Vec<f32> {
    let width = x.len().checked_div(rows).unwrap_or(0);
    let d = width / heads;
    for_rows(
        &mut x,
        width,
        #[inline(always)]
        |r, row| {
            let (cos, sin) = table[r * d..(r + 1) * d].split_at(d / 2);
            for head in row.chunks_exact_mut(d) {
                match style {
                    RopeStyle::Half => {
                        let (a, b) = head.split_at_mut(d / 2);
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

/// Attention, a task a row and head.
pub(crate) fn attention(
    heads: usize,
    kv_heads: usize,
    scale: f32,
    q: &[f32],
    layer: u32,
    batch: &Batch,
    caches: &Caches,
) -> Result<Vec<f32>, String> {
    let rows = batch.rows();
    if rows == 0 {
        return Ok(Vec::new());
    }
    let d = q.len() / rows / heads;
    let held = batch.sequences.iter().map(|s| caches.get(layer, *s).filter(|held| held.head_dim == d));
    let held = held.collect::<Option<Vec<_>>>().ok_or("reads a state that nothing was appended to")?;
    let mut out = vec![0f32; q.len()];
    let arch = Arch::new();
    out.par_chunks_exact_mut(d).enumerate().for_each_init(Vec::new, |scores: &mut Vec<f32>, (task, out)| {
        let (r, h) = (task / heads, task % heads);
        let kv = h / (heads / kv_heads);
        let seen = (batch.positions[r] as usize + 1) * d;
        let (keys, values) = (&held[r].keys[kv][..seen], &held[r].values[kv][..seen]);
        arch.dispatch(|| {
            scores.clear();
            scores.extend(keys.chunks_exact(d).map(|k| dot(&q[task * d..][..d], k) * scale));
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            scores.iter_mut().for_each(|s| *s = exp(*s - max));
            let total: f32 = scores.iter().sum();
            for (s, v) in scores.iter().zip(values.chunks_exact(d)) {
                add_scaled(out, *s / total, v);
            }
        });
    });
    Ok(out)
}
