//! Normalisation.

use super::same;
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

/// `layer_norm`: `(x - mean) / sqrt(variance + eps) * w + b`, with the mean and the variance of each of `parts` parts of a row.
pub fn layer_norm(
    x: &Tensor,
    w: &Weight,
    b: Option<&Weight>,
    eps: f32,
    parts: u32,
) -> Result<Tensor, String> {
    same("width", x.width, w.data.len())?;
    b.map_or(Ok(()), |b| same("width", x.width, b.data.len()))?;
    let n = super::head_dim(x.width, parts)?;
    let mut out = Tensor::zeros(x.rows, x.width);
    for (at, (out, part)) in out.data.chunks_exact_mut(n).zip(x.data.chunks_exact(n)).enumerate() {
        let first = at % parts as usize * n;
        let mean = part.iter().sum::<f64>() / n as f64;
        let variance = part.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
        let deviation = (variance + f64::from(eps)).sqrt();
        for (i, (o, v)) in (first..).zip(out.iter_mut().zip(part)) {
            let shift = b.map_or(0.0, |b| f64::from(b.data[i]));
            *o = (v - mean) / deviation * f64::from(w.data[i]) + shift;
        }
    }
    Ok(out)
}
