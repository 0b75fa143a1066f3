//! The product with a weight: over all threads, at the speed of memory for a few rows, by a matrix product for many.

use crate::ops::for_rows;
use crate::vector::{dot, dot_bf16, vectorised};
use crate::weights::{MatrixRows, NumberSlice, widen};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Up to so many rows each weight is read once and multiplied with every row: packing would cost more than it saves.
const FEW_ROWS: usize = 3;
/// Outputs that a thread takes at a time.
const TILE: usize = 32;
/// At most so many outputs are a task of a matrix product: their weights stay in the cache, also when they are widened.
const BLOCK: usize = 256;
/// Tasks of a matrix product are multiples of so many outputs, what a vector kernel takes at a time.
const PACKED: usize = 32;

/// `x w^T + bias` for a number of rows.
pub(crate) type Linear = fn(&[f32], usize, MatrixRows<'_>, Option<&[f32]>) -> Vec<f32>;

/// The fast [`Linear`].
pub(crate) fn linear(x: &[f32], rows: usize, w: MatrixRows<'_>, bias: Option<&[f32]>) -> Vec<f32> {
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

fn few_rows(x: &[f32], rows: usize, w: MatrixRows<'_>, out: &mut [f32]) {
    let k = w.k;
    // [output][row], so that threads write apart; one row needs no second pass.
    let mut by_output = if rows == 1 { Vec::new() } else { vec![0f32; out.len()] };
    let target = if rows == 1 { &mut *out } else { &mut by_output };
    target.par_chunks_mut(TILE * rows).enumerate().for_each(|(tile, out)| {
        vectorised(
            #[inline(always)]
            || {
                for (i, out) in out.chunks_exact_mut(rows).enumerate() {
                    let at = (tile * TILE + i) * k;
                    for (o, x) in out.iter_mut().zip(x.chunks_exact(k)) {
                        *o = match w.numbers {
                            NumberSlice::F32(w) => dot(&w[at..at + k], x),
                            NumberSlice::Bf16(w) => dot_bf16(&w[at..at + k], x),
                        };
                    }
                }
            },
        );
    });
    for (n, sums) in by_output.chunks_exact(rows).enumerate() {
        for (r, sum) in sums.iter().enumerate() {
            out[r * w.rows + n] = *sum;
        }
    }
}

fn many_rows(x: &[f32], rows: usize, w: MatrixRows<'_>, out: &mut [f32]) {
    let k = w.k;
    let x = MatRef::from_row_major_slice(x, rows, k);
    let mut rest = MatMut::from_row_major_slice_mut(out, rows, w.rows);
    // Several tasks a thread, so that a thread which is held up does not hold up the others.
    let tasks = 4 * rayon::current_num_threads();
    let block = w.rows.div_ceil(tasks).next_multiple_of(PACKED).min(BLOCK);
    let mut columns = Vec::with_capacity(w.rows.div_ceil(block));
    for start in (0..w.rows).step_by(block) {
        let (part, others) = rest.split_at_col_mut(block.min(w.rows - start));
        rest = others;
        columns.push((start * k, part));
    }
    // One thread a product: those of the GEMM crate's own pool spin, and would fight with these for cores.
    columns.into_par_iter().for_each_init(Vec::new, |wide, (at, out)| {
        let n = out.ncols();
        let weights = match w.numbers {
            NumberSlice::F32(w) => &w[at..at + n * k],
            NumberSlice::Bf16(w) => {
                wide.resize(n * k, 0.0);
                vectorised(
                    #[inline(always)]
                    || widen(&w[at..at + n * k], wide),
                );
                wide.as_slice()
            }
        };
        let weights = MatRef::from_row_major_slice(weights, n, k).transpose();
        matmul(out, Accum::Replace, x, weights, 1.0, Par::Seq);
    });
}
