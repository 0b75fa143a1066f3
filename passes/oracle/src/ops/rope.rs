//! Rotary position embedding.

use super::{head_dim, same};
use crate::value::Tensor;
use bessemer_ir::attr::RopeStyle;

/// `rope_table`: cosines, then sines. The angle is the f32 product, as every implementation has it: its rounding moves the angle of far
/// positions by more than any other rounding of the model, so it is part of the definition.
pub fn table(positions: &[u32], inv_freq: &[f32], factor: f32) -> Tensor {
    let half = inv_freq.len();
    let mut out = Tensor::zeros(positions.len(), 2 * half);
    for (r, &position) in positions.iter().enumerate() {
        let row = out.row_mut(r);
        for (j, freq) in inv_freq.iter().enumerate() {
            let angle = f64::from(position as f32 * freq);
            row[j] = angle.cos() * f64::from(factor);
            row[half + j] = angle.sin() * f64::from(factor);
        }
    }
    out
}

/// The two elements of pair `j` in a head of `d` elements.
pub fn pair(style: RopeStyle, d: usize, j: usize) -> (usize, usize) {
    match style {
        RopeStyle::Half => (j, j + d / 2),
        RopeStyle::Interleaved => (2 * j, 2 * j + 1),
    }
}

/// `rope`: rotates each pair `(a, b)` of the elements of each head that the table has angles for: `(a cos - b sin, b cos + a sin)`.
pub fn rotate(style: RopeStyle, heads: u32, x: &Tensor, table: &Tensor) -> Result<Tensor, String> {
    let d = head_dim(x.width, heads)?;
    let turned = table.width;
    if turned > d {
        return Err(format!("a table for {turned} elements of heads of {d}"));
    }
    same("table rows", table.rows, x.rows)?;
    let mut out = x.clone();
    for r in 0..x.rows {
        let (cos, sin) = table.row(r).split_at(turned / 2);
        for head in out.row_mut(r).chunks_exact_mut(d) {
            for (j, (cos, sin)) in cos.iter().zip(sin).enumerate() {
                let (i, k) = pair(style, turned, j);
                let (a, b) = (head[i], head[k]);
                head[i] = a * cos - b * sin;
                head[k] = b * cos + a * sin;
            }
        }
    }
    Ok(out)
}
