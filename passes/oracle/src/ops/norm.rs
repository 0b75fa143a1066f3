//! Normalisation.

use super::same;
use crate::value::{Tensor, Weight};

/// `rms_norm`: `x / sqrt(mean(x^2) + eps) * w`.
pub fn rms_norm(x: &Tensor, w: &Weight, eps: f32) -> Result<Tensor, String> {
    same("width", x.width, w.data.len())?;
    let mut out = Tensor::zeros(x.rows, x.width);
    for (r, row) in x.each_row().enumerate() {
        let mean_square = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
        let rms = (mean_square + f64::from(eps)).sqrt();
        for ((o, v), w) in out.row_mut(r).iter_mut().zip(row).zip(&w.data) {
            *o = v / rms * f64::from(*w);
        }
    }
    Ok(out)
}
