//! Normalisation.

use crate::value::{Tensor, Weight};

/// `rms_norm`: `x / sqrt(mean(x^2) + eps) * w` of each `w.len()` elements.
pub fn rms_norm(x: &Tensor, w: &Weight, eps: f32) -> Result<Tensor, String> {
    let n = w.data.len();
    if n == 0 || !x.width.is_multiple_of(n) {
        return Err(format!("rows of {} elements do not divide into parts of {n}", x.width));
    }
    let mut out = Tensor::zeros(x.rows, x.width);
    for (out, part) in out.data.chunks_exact_mut(n).zip(x.data.chunks_exact(n)) {
        let mean_square = part.iter().map(|v| v * v).sum::<f64>() / n as f64;
        let rms = (mean_square + f64::from(eps)).sqrt();
        for ((o, v), w) in out.iter_mut().zip(part).zip(&w.data) {
            *o = v / rms * f64::from(*w);
        }
    }
    Ok(out)
}
