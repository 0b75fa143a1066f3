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
    let full = moment.full();
    let mut best = (loss(samples, &vec![1.0; k], &full, k), None);
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
            if scales.iter().any(|s| !s.is_finite() || *s <= 0.0) {
                continue;
            }
            let columns: Vec<f32> = (0..k).map(|i| scales[share(i)]).collect();
            let found = loss(samples, &columns, &full, k);
            if found < best.0 {
                best = (found, Some(scales));
            }
        }
    }
    best.1
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

/// Sum over rows of `e H e^T`, where `e = Q(w s) / s - w`.
fn loss(samples: &[Sample], scales: &[f32], moment: &[f32], k: usize) -> f64 {
    let losses = samples.iter().map(|Sample { values, scheme }| {
        let mut errors = vec![0f32; values.len()];
        errors.par_chunks_mut(ROWS * k).zip(values.par_chunks(ROWS * k)).for_each(|(errors, values)| {
            let scaled: Vec<f32> = values.iter().zip(scales.iter().cycle()).map(|(v, s)| v * s).collect();
            let rounded = Grid::whole(scheme, k, &scaled).round(&scaled).values();
            let pairs = rounded.iter().zip(scales.iter().cycle()).zip(values);
            errors.iter_mut().zip(pairs).for_each(|(e, ((q, s), v))| *e = q / s - v);
        });
        squared(&errors, moment, k)
    });
    losses.sum()
}

/// `sum over rows of e H e^T`.
pub fn squared(error: &[f32], moment: &[f32], k: usize) -> f64 {
    let seen = product(error, error.len() / k.max(1), moment, k, k);
    error.iter().zip(&seen).map(|(e, s)| f64::from(*e) * f64::from(*s)).sum()
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
        let mut moment = Moment::new(k);
        moment.add(&x);
        let samples = [Sample { values, scheme: "u4:f16x32+f16".parse().unwrap() }];
        let scales = search(&samples, &moment, k, &|i| i).expect("scaling helps");
        let others = scales.iter().enumerate().filter(|(i, _)| *i != 7).map(|(_, s)| *s).fold(0.0, f32::max);
        assert!(scales[7] > 2.0 * others, "{} and {others}", scales[7]);
        let full = moment.full();
        assert!(loss(&samples, &scales, &full, k) < 0.6 * loss(&samples, &vec![1.0; k], &full, k));
    }
}
