//! SmoothQuant (Xiao et al. 2023): where inputs are rounded too, a channel with large ones leaves few steps to all others of its token. A
//! scale for each channel moves half of that (in powers) into the weights, which bear it better.

/// The share of a channel's size that weights take over, as a power: the authors' choice for most models.
const STRENGTH: f32 = 0.5;

/// The factor of each column of the weights: `max |x|^a / max |w|^(1 - a)`, around 1. `share` says which scale a column has, `count` how many
/// there are.
pub fn scales(inputs: &[f32], weights: &[f32], count: usize, share: &dyn Fn(usize) -> usize) -> Vec<f32> {
    let (mut x, mut w) = (vec![0f32; count], vec![0f32; count]);
    for (i, (input, weight)) in inputs.iter().zip(weights).enumerate() {
        let at = share(i);
        (x[at], w[at]) = (x[at].max(*input), w[at].max(*weight));
    }
    let raw = x.iter().zip(&w).map(|(x, w)| match (*x, *w) {
        // Nothing to move.
        (0.0, _) | (_, 0.0) => 1.0,
        (x, w) => libm::powf(x, STRENGTH) / libm::powf(w, 1.0 - STRENGTH),
    });
    let raw: Vec<f32> = raw.collect();
    let (low, high) = raw.iter().fold((f32::INFINITY, 0f32), |(l, h), v| (l.min(*v), h.max(*v)));
    let middle = (low * high).sqrt();
    raw.into_iter().map(|v| v / middle).map(|s| if s.is_finite() && s > 0.0 { s } else { 1.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bessemer_ir::recipe::{quantise, uniform};

    /// Squared distance of products whose two factors are rounded to signed bytes, a scale for each row, from the exact ones.
    fn error(x: &[f32], w: &[f32], k: usize) -> f64 {
        let rounded = |v: &[f32]| quantise(&"s8:f32x0".parse().unwrap(), v.len() / k, k, v).values();
        let (rx, rw) = (rounded(x), rounded(w));
        let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum() };
        let rows = x.chunks(k).zip(rx.chunks(k));
        let pairs = |(x, rx)| w.chunks(k).zip(rw.chunks(k)).map(move |(w, rw)| dot(x, w) - dot(rx, rw));
        rows.flat_map(pairs).map(|e| e * e).sum()
    }

    #[test]
    fn channels_that_stand_out_no_longer_rob_the_others_of_their_steps() {
        let (k, rows, n) = (64, 50, 20);
        let x: Vec<f32> =
            (0..rows * k).map(|i| uniform(1, i as u64) * if i % k == 9 { 60.0 } else { 1.0 }).collect();
        let w: Vec<f32> = (0..n * k).map(|i| uniform(2, i as u64)).collect();
        let maxima = |v: &[f32]| -> Vec<f32> {
            (0..k).map(|c| v.chunks(k).fold(0f32, |m, row| m.max(row[c].abs()))).collect()
        };
        let by = scales(&maxima(&x), &maxima(&w), k, &|i| i);
        assert!(by[9] > 4.0 * by[8], "{} {}", by[9], by[8]);
        let smooth_x: Vec<f32> = x.iter().enumerate().map(|(i, v)| v / by[i % k]).collect();
        let smooth_w: Vec<f32> = w.iter().enumerate().map(|(i, v)| v * by[i % k]).collect();
        let (before, after) = (error(&x, &w, k), error(&smooth_x, &smooth_w, k));
        assert!(after < 0.2 * before, "{after} against {before}");
        assert_eq!(scales(&[0.0, 2.0], &[1.0, 0.0], 2, &|i| i), [1.0, 1.0]);
    }
}
