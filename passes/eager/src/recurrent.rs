//! What recurrent layers carry on from token to token.

use crate::kv::Caches;
use crate::weights::Matrix;
use bessemer_ir::exec::Batch;

/// Each row, then those of the tokens before it, the latest first. Tokens before this pass are in what the last of them carried.
pub(crate) fn history(
    taps: usize,
    x: &[f32],
    layer: u32,
    batch: &Batch,
    caches: &Caches,
) -> Result<Vec<f32>, String> {
    let n = x.len().checked_div(batch.rows()).unwrap_or(0);
    let mut out = vec![0.0; taps * x.len()];
    let mut first = 0;
    for part in batch.sequences.chunk_by(|a, b| a == b) {
        let start = batch.positions[first] as usize;
        let held = caches.get(layer, part[0]).map(|held| (&held.keys[0], held.head_dim));
        let carried = match start.checked_sub(1) {
            Some(last) => {
                let row = held.and_then(|(rows, width)| rows.get(last * width..(last + 1) * width));
                row.ok_or("reads a state that nothing was carried to")?
            }
            None => &[],
        };
        for r in first..first + part.len() {
            let (before, out) = (r - first, &mut out[r * taps * n..(r + 1) * taps * n]);
            for (age, out) in out.chunks_exact_mut(n).enumerate().take(start + before + 1) {
                out.copy_from_slice(match age.checked_sub(before + 1) {
                    None => &x[(r - age) * n..][..n],
                    Some(entry) => carried.get(entry * n..(entry + 1) * n).ok_or("carries too little")?,
                });
            }
        }
        first += part.len();
    }
    Ok(out)
}

/// What goes on from each row: its first `width` numbers.
pub(crate) fn carry(layer: u32, width: usize, x: &[f32], batch: &Batch, caches: &mut Caches) {
    let m = x.len().checked_div(batch.rows()).unwrap_or(0);
    for (row, sequence) in x.chunks_exact(m.max(1)).zip(&batch.sequences) {
        caches.append(layer, *sequence, 1, width, &row[..width], &[]);
    }
}

/// A sum over the taps for each column.
pub(crate) fn depthwise(x: &[f32], w: &Matrix) -> Vec<f32> {
    let (n, taps) = (w.rows, w.k);
    let mut weights = vec![0.0; n * taps];
    weights.chunks_exact_mut(taps).enumerate().for_each(|(c, row)| w.copy_row(c, row));
    let mut out = Vec::with_capacity(x.len() / taps);
    for row in x.chunks_exact(n * taps) {
        let tap = |c: usize, age: usize| row[age * n + c] * weights[c * taps + taps - 1 - age];
        out.extend((0..n).map(|c| (0..taps).map(|age| tap(c, age)).sum::<f32>()));
    }
    out
}
