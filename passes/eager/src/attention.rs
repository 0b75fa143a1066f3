//! Causal attention: matrix products a block of query rows and head for prefill, dot products a row and head for decode.

use crate::defined::product;
use crate::kv::{Caches, Layer};
use crate::ops::SHARED;
use crate::vector::{add_scaled, dot, exp, max, sum, vectorised};
use bessemer_ir::exec::Batch;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Query rows that a task takes at a time: scores stay in the cache, and few of them lie above the diagonal.
const BLOCK: usize = 64;
/// As [`BLOCK`], where products are defined to the bit: those pack keys and values for each task.
const DEFINED_BLOCK: usize = 256;
/// Up to so many rows dot products beat a matrix product.
const FEW_ROWS: usize = 3;

/// What an attention op says.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    pub scores: Scores,
    /// Positions that a row sees, its own included.
    pub window: usize,
    /// Whether a row sees as many behind its own as before it.
    pub full: bool,
    /// Where there is, so many first elements of a key are its value.
    pub latent: Option<usize>,
    /// A score a head that joins its softmax with a value of zero.
    pub sinks: Option<&'a [f32]>,
    /// For each head what is added to scores by the distance of the two positions; in the middle that of a row to itself.
    pub distances: Option<&'a [f32]>,
}

/// What is done to the product of a query and a key.
#[derive(Clone, Copy)]
pub(crate) struct Scores {
    pub scale: f32,
    pub softcap: Option<f32>,
}

/// One head of a few query rows that follow each other in one sequence. Tasks write apart.
struct Task<'a> {
    /// `[row][d]` within rows of all heads.
    q: MatRef<'a, f32>,
    out: MatMut<'a, f32>,
    /// `[position][d]`, from the first position that the first row sees to that of the last row.
    keys: &'a [f32],
    values: &'a [f32],
    scores: Scores,
    /// Which of the keys is the first row's own.
    own: usize,
    /// Positions up to its own that a row sees, and from its own on.
    window: usize,
    ahead: usize,
    sink: f32,
    /// This head's numbers for each distance.
    distances: Option<&'a [f32]>,
    defined: bool,
}

/// Attention of every row over what its sequence holds up to it; by products that are `defined` to the bit if the result must be.
pub(crate) fn attention(
    shape: Heads<'_>,
    q: &[f32],
    layer: u32,
    batch: &Batch,
    caches: &Caches,
    defined: bool,
) -> Result<Vec<f32>, String> {
    let width = q.len().checked_div(batch.rows()).unwrap_or(0);
    let d = width / shape.heads;
    let value = shape.latent.unwrap_or(d);
    let out_width = shape.heads * value;
    let mut out = vec![0f32; batch.rows() * out_width];
    let (mut tasks, mut work) = (Vec::new(), 0);
    let (mut q, mut rest, mut start) = (q, out.as_mut_slice(), 0);
    for part in batch.sequences.chunk_by(|a, b| a == b) {
        let held = caches.get(layer, part[0]).filter(|held: &&Layer| held.head_dim == d);
        let held = held.ok_or("reads a state that nothing was appended to")?;
        let block = match defined {
            true => DEFINED_BLOCK,
            false if part.len() <= FEW_ROWS => 1,
            false => BLOCK,
        };
        for positions in batch.positions[start..start + part.len()].chunks(block) {
            let rows = positions.len();
            let first = (positions[0] as usize + 1).saturating_sub(shape.window);
            let (own, ahead) = (positions[0] as usize - first, if shape.full { shape.window } else { 1 });
            let len = held.keys[0].len() / d;
            let seen = first * d..len.min((positions[rows - 1] as usize).saturating_add(ahead)) * d;
            let distances = shape.distances.map(|all| (all, all.len() / shape.heads));
            if distances.is_some_and(|(_, count)| len > count / 2 + 1) {
                return Err(format!("a bias that ends before a sequence of {len} does"));
            }
            let (block_q, block_out);
            (block_q, q) = q.split_at(rows * width);
            (block_out, rest) = rest.split_at_mut(rows * out_width);
            let block_q = MatRef::from_row_major_slice(block_q, rows, width);
            let mut block_out = MatMut::from_row_major_slice_mut(block_out, rows, out_width);
            for h in 0..shape.heads {
                let kv = h / (shape.heads / shape.kv_heads);
                let values = if shape.latent.is_some() { &held.keys } else { &held.values };
                let (keys, values) = (&held.keys[kv][seen.clone()], &values[kv][seen.clone()]);
                let (out, others) = block_out.split_at_col_mut(value);
                block_out = others;
                let (scores, window) = (shape.scores, shape.window);
                let sink = shape.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[h]);
                let q = block_q.subcols(h * d, d);
                let distances = distances.map(|(all, count)| &all[h * count..][..count]);
                tasks.push(Task {
                    q,
                    out,
                    keys,
                    values,
                    scores,
                    own,
                    window,
                    ahead,
                    sink,
                    distances,
                    defined,
                });
                work += rows * seen.len();
            }
        }
        start += part.len();
    }
    if work < SHARED {
        let mut scores = Vec::new();
        tasks.into_iter().for_each(|task| task.run(&mut scores));
    } else {
        // Late blocks see the most: first come the long tasks.
        tasks.into_par_iter().rev().for_each_init(Vec::new, |scores, task| task.run(scores));
    }
    Ok(out)
}

impl Task<'_> {
    fn run(self, scores: &mut Vec<f32>) {
        if self.q.nrows() == 1 && !self.defined { self.row(scores) } else { self.block(scores) }
    }

    fn row(self, scores: &mut Vec<f32>) {
        let Self { q, out, keys, values, scores: Scores { scale, softcap }, own, sink, distances, .. } = self;
        let q = q.row(0).try_as_row_major().map(|q| q.as_slice());
        let out = out.row_mut(0).try_as_row_major_mut().map(|out| out.as_slice_mut());
        let (Some(q), Some(out)) = (q, out) else { unreachable!("rows of heads are contiguous") };
        scores.resize(keys.len() / q.len(), 0.0);
        vectorised(
            #[inline(always)]
            || {
                for (s, k) in scores.iter_mut().zip(keys.chunks_exact(q.len())) {
                    *s = dot(q, k) * scale;
                }
                cap(scores, softcap);
                shift(scores, distances, own);
                softmax(scores, sink);
                for (s, v) in scores.iter().zip(values.chunks_exact(q.len())) {
                    add_scaled(out, *s, &v[..out.len()]);
                }
            },
        );
    }

    /// The products run on this thread alone: tasks are many.
    fn block(self, scores: &mut Vec<f32>) {
        let Self { q, mut out, keys, values, scores: Scores { scale, softcap }, .. } = self;
        let Self { own, window, ahead, sink, distances, defined, .. } = self;
        let (rows, d) = (q.nrows(), q.ncols());
        let seen = keys.len() / d;
        let values = MatRef::from_row_major_slice(values, seen, d).subcols(0, out.ncols());
        if defined {
            *scores = product(&by_rows(q), rows, keys, seen, d);
            scores.iter_mut().for_each(|s| *s *= scale);
        } else {
            let keys = MatRef::from_row_major_slice(keys, seen, d).transpose();
            scores.resize(rows * seen, 0.0);
            let product = MatMut::from_row_major_slice_mut(&mut *scores, rows, seen);
            matmul(product, Accum::Replace, q, keys, scale, Par::Seq);
        }
        vectorised(
            #[inline(always)]
            || {
                cap(scores, softcap);
                for (r, scores) in scores.chunks_exact_mut(seen).enumerate() {
                    shift(scores, distances, own + r);
                    let (near, behind) = scores.split_at_mut(seen.min((own + r).saturating_add(ahead)));
                    let (before, near) = near.split_at_mut((own + r + 1).saturating_sub(window));
                    softmax(near, sink);
                    before.fill(0.0);
                    behind.fill(0.0);
                }
            },
        );
        if defined {
            let sums = product(scores, rows, &by_rows(values.transpose()), values.ncols(), seen);
            out.copy_from(MatRef::from_row_major_slice(&sums, rows, values.ncols()));
        } else {
            let weights = MatRef::from_row_major_slice(&*scores, rows, seen);
            matmul(out, Accum::Replace, weights, values, 1.0, Par::Seq);
        }
    }
}

/// The elements of a matrix, one row behind the other.
fn by_rows(matrix: MatRef<'_, f32>) -> Vec<f32> {
    (0..matrix.nrows()).flat_map(|r| matrix.row(r).iter().copied()).collect()
}

#[inline(always)]
fn cap(scores: &mut [f32], softcap: Option<f32>) {
    if let Some(cap) = softcap {
        scores.iter_mut().for_each(|s| *s = cap * libm::tanhf(*s / cap));
    }
}

/// Adds to the score of each key the number for its distance from the key `own`.
#[inline(always)]
fn shift(scores: &mut [f32], distances: Option<&[f32]>, own: usize) {
    if let Some(distances) = distances {
        let first = distances.len() / 2 - own;
        scores.iter_mut().zip(&distances[first..]).for_each(|(s, d)| *s += d);
    }
}

#[inline(always)]
fn softmax(scores: &mut [f32], sink: f32) {
    let top = max(scores).max(sink);
    scores.iter_mut().for_each(|s| *s = exp(*s - top));
    let factor = 1.0 / (sum(scores) + exp(sink - top));
    scores.iter_mut().for_each(|s| *s *= factor);
}
