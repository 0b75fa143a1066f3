//! Codes that make up for each other (Frantar et al. 2022, "GPTQ"), column by column, the ones with the largest activations first.
//!
//! With `H = L L^T` the loss of a row's error e is `|e L|^2`, and element j of `e L` is `sum over i >= j of e_i L_ij`. From the last column
//! down, `e_j` is free to cancel what the columns after it left: the best target of w_j is `w_j - (sum over i > j of e_i L_ij) / L_jj`. That
//! is GPTQ's update, written without an inverse (Chen et al. 2025 show that it is Babai's nearest plane). So the column to round first
//! stands last.

use crate::grid::Grid;
use crate::statistics::Moment;
use bessemer_eager::defined::dot;
use bessemer_format::rows::Rows;
use rayon::prelude::*;

/// Share of the mean diagonal that is added to it, so that columns without activations do not make the factor singular.
const DAMPING: f64 = 0.01;
/// Rows of a weight that go through the factor together.
const ROWS: usize = 16;

/// The Cholesky factor of a moment, in the order in which columns are rounded.
pub struct Factor {
    /// Column of the weight at each place; the last is rounded first.
    order: Vec<usize>,
    /// `[j][i - j]` for `i >= j`: columns of L, one behind the other.
    columns: Vec<Vec<f32>>,
    damping: f32,
}

impl Factor {
    /// Factors a moment. More damping is tried where rounding leaves it indefinite.
    pub fn new(moment: &Moment) -> Result<Self, String> {
        let k = moment.k;
        let full = moment.full();
        let diagonal = |i: usize| full[i * k + i];
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|a, b| diagonal(*a).total_cmp(&diagonal(*b)).then(b.cmp(a)));
        let mean = (0..k).map(|i| f64::from(diagonal(i))).sum::<f64>() / k.max(1) as f64;
        for damping in [DAMPING, 10.0 * DAMPING, 100.0 * DAMPING] {
            // Without any activations every rounding is as good as another.
            let added = if mean > 0.0 { damping * mean } else { 1.0 };
            let element = |i: usize, j: usize| {
                f64::from(full[order[i] * k + order[j]]) + if i == j { added } else { 0.0 }
            };
            if let Some(rows) = cholesky(k, &element) {
                let columns =
                    (0..k).into_par_iter().map(|j| (j..k).map(|i| rows[i][j] as f32).collect()).collect();
                return Ok(Self { order, columns, damping: added as f32 });
            }
        }
        Err("the second moment of its input is not positive definite; calibrate on more text".into())
    }

    /// What was added to the diagonal.
    pub fn damping(&self) -> f32 {
        self.damping
    }

    /// Rounds rows of a weight on `grid`.
    pub fn round(&self, values: &[f32], grid: Grid) -> Rows {
        let k = self.order.len();
        let mut codes = vec![0f32; values.len()];
        codes.par_chunks_mut(ROWS * k).enumerate().for_each(|(block, codes)| {
            let rows = codes.len() / k;
            // Errors in the order of the factor.
            let mut errors = vec![0f32; codes.len()];
            for j in (0..k).rev() {
                let (column, factor) = (self.order[j], &self.columns[j]);
                for r in 0..rows {
                    let row = block * ROWS + r;
                    let w = values[row * k + column];
                    let left = dot(&errors[r * k + j + 1..(r + 1) * k], &factor[1..]);
                    let (code, value) = grid.nearest(row, column, w - left / factor[0]);
                    codes[r * k + column] = code;
                    errors[r * k + j] = value - w;
                }
            }
        });
        grid.rows(codes)
    }
}

/// Rows of the lower factor, by the textbook; `None` if a pivot is not positive. Every element is one dot product in f64, in ascending
/// order within four sums, so no thread count or instruction set changes a bit.
fn cholesky(k: usize, element: &(dyn Fn(usize, usize) -> f64 + Sync)) -> Option<Vec<Vec<f64>>> {
    let mut rows: Vec<Vec<f64>> = (0..k).map(|i| (0..=i).map(|j| element(i, j)).collect()).collect();
    for j in 0..k {
        let (above, below) = rows.split_at_mut(j + 1);
        let pivot_row = &mut above[j];
        let pivot = pivot_row[j] - dot_f64(&pivot_row[..j], &pivot_row[..j]);
        if pivot.is_nan() || pivot <= 0.0 {
            return None;
        }
        pivot_row[j] = pivot.sqrt();
        let pivot_row = &above[j];
        below.par_iter_mut().with_min_len(64).for_each(|row| {
            row[j] = (row[j] - dot_f64(&row[..j], &pivot_row[..j])) / pivot_row[j];
        });
    }
    Some(rows)
}

fn dot_f64(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; 4];
    let (a4, b4) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = a4.remainder().iter().zip(b4.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a4.zip(b4) {
        (0..4).for_each(|l| sums[l] += x[l] * y[l]);
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::awq::squared;
    use bessemer_ir::recipe::uniform;

    /// Inputs of which a few directions carry most.
    fn moment(k: usize) -> Moment {
        let mix: Vec<f32> = (0..8 * k as u64).map(|i| uniform(4, i)).collect();
        let mut x = Vec::new();
        for t in 0..400u64 {
            let hidden: Vec<f32> = (0..8).map(|h| uniform(5, t * 8 + h)).collect();
            for i in 0..k {
                let shared: f32 = (0..8).map(|h| hidden[h] * mix[h * k + i]).sum();
                x.push(shared + 0.1 * uniform(6, t * k as u64 + i as u64));
            }
        }
        let mut moment = Moment::new(k, crate::Reach::Whole);
        moment.add(&x);
        moment
    }

    #[test]
    fn the_factor_gives_the_damped_moment_back() {
        let moment = moment(40);
        let (full, factor) = (moment.full(), Factor::new(&moment).unwrap());
        let mean = (0..40).map(|i| full[i * 41]).sum::<f32>() / 40.0;
        for i in 0..40 {
            for j in 0..40 {
                let product: f32 =
                    (0..=i.min(j)).map(|c| factor.columns[c][i - c] * factor.columns[c][j - c]).sum();
                let damped =
                    full[factor.order[i] * 40 + factor.order[j]] + if i == j { 0.01 * mean } else { 0.0 };
                assert!((product - damped).abs() < 1e-4 * mean, "{i} {j}: {product} {damped}");
            }
        }
    }

    #[test]
    fn columns_make_up_for_each_other_at_any_thread_count() {
        let k = 64;
        let (moment, values) = (moment(k), (0..40 * k as u64).map(|i| uniform(9, i)).collect::<Vec<f32>>());
        let scheme = "u3:f16x32+f16".parse().unwrap();
        let grid = || Grid::whole(&scheme, k, &values);
        let loss = |rows: &Rows| {
            let error: Vec<f32> = rows.values().iter().zip(&values).map(|(a, b)| a - b).collect();
            squared(&error, &moment.full(), k)
        };
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Factor::new(&moment).unwrap().round(&values, grid()))
        };
        let (one, three) = (on(1), on(3));
        assert_eq!(one, three);
        let (nearest, compensated) = (loss(&grid().round(&values)), loss(&one));
        assert!(compensated < 0.5 * nearest, "{compensated} against {nearest}");
    }
}
