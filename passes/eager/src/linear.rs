//! The product with a weight: over all threads, at the speed of memory for a few rows, by a matrix product for many.

use crate::ops::for_rows;
use crate::vector::{dot, dot_bf16};
use crate::weights::{Matrix, Numbers, widen};
use faer::linalg::matmul::matmul;
use faer::reborrow::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use pulp::Arch;
use rayon::prelude::*;

/// Up to so many rows each weight is read once and multiplied with every row: packing would cost more than it saves.
const FEW_ROWS: usize = 3;
/// Outputs that a thread takes at a time.
const TILE: usize = 32;
/// Outputs whose bf16 weights are widened at a time.
const WIDEN_ROWS: usize = 512;

/// `x w^T + bias` for `rows` rows.
pub(crate) fn linear(x: &[f32], rows: usize, w: &Matrix, bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![0f32; rows * w.rows];
    if rows == 0 || w.rows == 0 {
        return out;
    }
    if rows <= FEW_ROWS {
        few_rows(x, rows, w, &mut out);
    } else {
        many_rows(x, rows, w, &mut out);
    }
    if let Some(bias) = bias {
        for_rows(
            &mut out,
            w.rows,
            #[inline(always)]
            |_, row| row.iter_mut().zip(bias).for_each(|(o, b)| *o += b),
        );
    }
    out
}

fn few_rows(x: &[f32], rows: usize, w: &Matrix, out: &mut [f32]) {
    let k = w.k;
    // [output][row], so that threads write apart; one row needs no second pass.
    let mut by_output = if rows == 1 { Vec::new() } else { vec![0f32; out.len()] };
    let target = if rows == 1 { &mut *out } else { &mut by_output };
    target.par_chunks_mut(TILE * rows).enumerate().for_each(|(tile, out)| {
        Arch::new().dispatch(|| {
            for (i, out) in out.chunks_exact_mut(rows).enumerate() {
                let at = (tile * TILE + i) * k;
                for (o, x) in out.iter_mut().zip(x.chunks_exact(k)) {
                    *o = match &w.numbers {
                        Numbers::F32(w) => dot(&w[at..at + k], x),
                        Numbers::Bf16(w) => dot_bf16(&w[at..at + k], x),
                    };
                }
            }
        });
    });
    for (n, sums) in by_output.chunks_exact(rows).enumerate() {
        for (r, sum) in sums.iter().enumerate() {
            out[r * w.rows + n] = *sum;
        }
    }
}

fn many_rows(x: &[f32], rows: usize, w: &Matrix, out: &mut [f32]) {
    let k = w.k;
    let x = MatRef::from_row_major_slice(x, rows, k);
    let mut out = MatMut::from_row_major_slice_mut(out, rows, w.rows);
    let threads = Par::rayon(rayon::current_num_threads());
    match &w.numbers {
        Numbers::F32(weights) => {
            let weights = MatRef::from_row_major_slice(weights, w.rows, k).transpose();
            matmul(out, Accum::Replace, x, weights, 1.0, threads);
        }
        Numbers::Bf16(weights) => {
            let mut wide = vec![0f32; WIDEN_ROWS.min(w.rows) * k];
            for (block, weights) in weights.chunks(WIDEN_ROWS * k).enumerate() {
                let wide = &mut wide[..weights.len()];
                let pairs = wide.par_chunks_mut(TILE * k).zip(weights.par_chunks(TILE * k));
                pairs.for_each(|(to, from)| Arch::new().dispatch(|| widen(from, to)));
                let n = weights.len() / k;
                let part = MatRef::from_row_major_slice(&*wide, n, k).transpose();
                let columns = out.rb_mut().subcols_mut(block * WIDEN_ROWS, n);
                matmul(columns, Accum::Replace, x, part, 1.0, threads);
            }
        }
    }
}
