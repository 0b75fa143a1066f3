//! Activation-aware scales (Lin et al. 2023, "AWQ"): columns whose activations are large are scaled up before they are rounded, and their
//! input is scaled down by as much. The search is theirs, over powers of the mean magnitude of activations; the loss is exact on the
//! calibration text, since the second moment is at hand.

use crate::grid::Grid;
use crate::statistics::Moment;
use bessemer_eager::defined::product;
use bessemer_format::QuantScheme;
use rayon::prelude::*;

/// Powers are tried in so many steps.
const STEPS: usize = 20;
/// Rows of a sample that a thread rounds at a time.
const ROWS: usize = 8;
/// Rows of errors that meet the moment together: it is by far larger than what a few of them do with it.
const TOGETHER: usize = 2048;

/// Rows of one of the weights that share an input, and what they are rounded to.
pub struct Sample {
    /// `[rows][k]`.
    pub values: Vec<f32>,
    /// Their scheme.
    pub scheme: QuantScheme,
}

/// The scale of each column that makes the loss over all samples smallest; `None` where no scale makes it smaller. `share` says which
/// scale a column has (columns may have to share one), `count` how many there are.
pub fn search(
    samples: &[Sample],
    moment: &Moment,
    count: usize,
    share: &dyn Fn(usize) -> usize,
) -> Option<Vec<f32>> {
    let k = moment.k;
    let mut candidates = vec![vec![1.0; count]];
    let magnitudes = shared(&moment.magnitudes, count, share);
    let weights = shared(&column_magnitudes(samples, k), count, share);
    for step in 1..STEPS {
        let power = step as f32 / STEPS as f32;
        // With and without regard to the size of the weights, as the authors have it.
        for against in [0.0, 1.0 - power] {
            let raw = magnitudes.iter().zip(&weights);
            let raw: Vec<f32> = raw
                .map(|(x, w)| (libm::powf(*x, power) / libm::powf(w.max(1e-4), against)).max(1e-4))
                .collect();
            let (low, high) = raw.iter().fold((f32::INFINITY, 0f32), |(l, h), v| (l.min(*v), h.max(*v)));
            let middle = (low * high).sqrt();
            let scales: Vec<f32> = raw.iter().map(|v| v / middle).collect();
            if scales.iter().all(|s| s.is_finite() && *s > 0.0) {
                candidates.push(scales);
            }
        }
    }
    let columns = |scales: &Vec<f32>| -> Vec<f32> { (0..k).map(|i| scales[share(i)]).collect() };
    let losses = losses(samples, &candidates.iter().map(columns).collect::<Vec<_>>(), &moment.full(), k);
    // Of equal ones the first.
    let best = (0..losses.len()).reduce(|best, c| if losses[c] < losses[best] { c } else { best });
    best.filter(|c| *c > 0).map(|c| candidates.swap_remove(c))
}

/// Means over the columns that share a scale.
fn shared(values: &[f32], count: usize, share: &dyn Fn(usize) -> usize) -> Vec<f32> {
    let (mut sums, mut counts) = (vec![0f32; count], vec![0f32; count]);
    for (i, v) in values.iter().enumerate() {
        sums[share(i)] += v;
        counts[share(i)] += 1.0;
    }
    sums.iter().zip(&counts).map(|(s, c)| s / c.max(1.0)).collect()
}

/// Mean magnitude of each column, relative to the largest of its group.
fn column_magnitudes(samples: &[Sample], k: usize) -> Vec<f32> {
    let (mut sums, mut rows) = (vec![0f32; k], 0f32);
    for sample in samples {
        let group = sample.scheme.group(k);
        for row in sample.values.chunks_exact(k) {
            rows += 1.0;
            for (x, sums) in row.chunks(group).zip(sums.chunks_mut(group)) {
                let top = x.iter().fold(0f32, |top, v| top.max(v.abs())).max(1e-12);
                x.iter().zip(sums).for_each(|(v, s)| *s += v.abs() / top);
            }
        }
    }
    sums.iter().map(|s| s / rows.max(1.0)).collect()
}

/// For each of some scales of the columns the sum over rows of `e H e^T`, where `e = Q(w s) / s - w`.
fn losses(samples: &[Sample], scales: &[Vec<f32>], moment: &[f32], k: usize) -> Vec<f64> {
    let mut losses = vec![0.0; scales.len()];
    for Sample { values, scheme } in samples {
        let together = (TOGETHER * k / values.len().max(1)).max(1);
        for (scales, losses) in scales.chunks(together).zip(losses.chunks_mut(together)) {
            let mut errors = vec![0f32; scales.len() * values.len()];
            let rows = errors.chunks_mut(values.len().max(1)).zip(scales);
            for (errors, scales) in rows {
                let rows = errors.par_chunks_mut(ROWS * k).zip(values.par_chunks(ROWS * k));
                rows.for_each(|(errors, values)| scaled_errors(scheme, values, scales, errors));
            }
            let seen = product(&errors, errors.len() / k.max(1), moment, k, k);
            let pairs = errors.chunks(values.len().max(1)).zip(seen.chunks(values.len().max(1)));
            losses.iter_mut().zip(pairs).for_each(|(loss, (errors, seen))| *loss += dot(errors, seen));
        }
    }
    losses
}

/// What rows whose columns are scaled lose, seen without the scales.
fn scaled_errors(scheme: &QuantScheme, values: &[f32], scales: &[f32], errors: &mut [f32]) {
    let scaled: Vec<f32> = values.iter().zip(scales.iter().cycle()).map(|(v, s)| v * s).collect();
    Grid::whole(scheme, scales.len(), &scaled).errors(&scaled, errors);
    errors.iter_mut().zip(scales.iter().cycle()).for_each(|(e, s)| *e /= s);
}

/// `sum over rows of e H e^T`.
pub fn squared(error: &[f32], moment: &[f32], k: usize) -> f64 {
    dot(error, &product(error, error.len() / k.max(1), moment, k, k))
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bessemer_ir::recipe::uniform;

    #[test]
    fn a_column_with_large_activations_is_scaled_up() {
        let k = 64;
        let values: Vec<f32> = (0..16 * k as u64).map(|i| uniform(1, i)).collect();
        let x: Vec<f32> =
            (0..200 * k).map(|i| uniform(2, i as u64) * if i % k == 7 { 50.0 } else { 1.0 }).collect();
        let mut moment = Moment::new(k, crate::Reach::Whole);
        moment.add(&x);
        let samples = [Sample { values, scheme: "u4:f16x32+f16".parse().unwrap() }];
        let scales = search(&samples, &moment, k, &|i| i).expect("scaling helps");
        let others = scales.iter().enumerate().filter(|(i, _)| *i != 7).map(|(_, s)| *s).fold(0.0, f32::max);
        assert!(scales[7] > 2.0 * others, "{} and {others}", scales[7]);
        let full = moment.full();
        let losses = losses(&samples, &[scales, vec![1.0; k]], &full, k);
        assert!(losses[0] < 0.6 * losses[1], "{losses:?}");
        // Whatever meets the moment together.
        let many = vec![vec![1.0; k]; 2 * TOGETHER / 16 + 3];
        assert!(super::losses(&samples, &many, &full, k).iter().all(|loss| *loss == losses[1]));
    }
}
