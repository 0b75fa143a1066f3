//! What recurrent layers carry on from token to token.

use super::{Context, same};
use crate::value::{Tensor, Weight};

/// `history`: each row, then those of the tokens before it, the latest first. Tokens before this pass are in what the last of them carried.
pub fn history(taps: u32, x: &Tensor, layer: u32, cx: &Context<'_>) -> Result<Tensor, String> {
    same("rows of the batch", cx.batch.rows(), x.rows)?;
    let n = x.width;
    let mut out = Tensor::zeros(x.rows, taps as usize * n);
    for r in 0..x.rows {
        let (sequence, position) = (cx.batch.sequences[r], cx.batch.positions[r] as usize);
        let before = r - cx.batch.first_row(r);
        for age in 0..(taps as usize).min(position + 1) {
            let from = if age <= before {
                x.row(r - age)
            } else {
                let held =
                    cx.caches.get(layer, sequence).and_then(|held| held.keys.get(position - before - 1));
                let held =
                    held.ok_or_else(|| format!("layer {layer} of sequence {sequence} carries nothing"))?;
                let entry = (age - before - 1) * n;
                held.get(entry..entry + n).ok_or_else(|| format!("{} numbers are carried", held.len()))?
            };
            out.row_mut(r)[age * n..][..n].copy_from_slice(from);
        }
    }
    Ok(out)
}

/// `carry`: the first `width` numbers of a row are what goes on from its token.
pub fn carry(layer: u32, width: u32, x: &Tensor, cx: &mut Context<'_>) -> Result<(), String> {
    same("rows of the batch", cx.batch.rows(), x.rows)?;
    for (r, row) in x.each_row().enumerate() {
        let carried = row.get(..width as usize).ok_or("carries more than a row has")?.to_vec();
        cx.caches.append(
            layer,
            cx.batch.sequences[r],
            cx.batch.positions[r],
            carried,
            Vec::new(),
            Vec::new(),
        )?;
    }
    Ok(())
}

/// `depthwise`: a sum over the taps for each column.
pub fn depthwise(x: &Tensor, w: &Weight) -> Result<Tensor, String> {
    let (n, taps) = (w.rows, w.k);
    same("width of the taps", x.width, taps * n)?;
    let mut out = Tensor::zeros(x.rows, n);
    for r in 0..x.rows {
        for c in 0..n {
            let tap = |age: usize| x.row(r)[age * n + c] * f64::from(w.row(c)[taps - 1 - age]);
            out.row_mut(r)[c] = (0..taps).map(tap).sum();
        }
    }
    Ok(out)
}
