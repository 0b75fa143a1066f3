//! The values that codes can stand for: a scale and an offset for each group of a row.

use bessemer_eager::defined::{dot, product};
use bessemer_eager::vectorised;
use bessemer_format::QuantScheme;
use bessemer_format::rows::Rows;
use bessemer_ir::quantise::{self, Group};
use rayon::prelude::*;

/// Scales and offsets of some rows.
pub struct Grid {
    /// Without codes.
    rows: Rows,
    groups: Vec<Group>,
}

/// Whether this crate can round to a scheme: one whose groups are stretches of a row.
pub fn rounds(scheme: &QuantScheme) -> bool {
    let in_rows = |s: &bessemer_format::Levels| s.inner.rows == 1 && s.outer.is_none_or(|o| o.rows == 1);
    !scheme.elem.is_float() && scheme.scale.as_ref().is_some_and(in_rows)
}

/// Ranges are tried from whole down to half, in so many steps.
const SHRINKS: usize = 20;
/// Rows of a weight that are tried together.
const ROWS: usize = 32;
/// Elements of a group whose errors are seen together; of longer ones each is seen alone.
const WHOLE: usize = 1024;

impl Grid {
    /// The grid of round-to-nearest: each group's whole range.
    pub fn whole(scheme: &QuantScheme, k: usize, values: &[f32]) -> Self {
        let rows = quantise::grid(scheme, values.len() / k.max(1), k, values);
        Self { groups: Group::of_rows(&rows), rows }
    }

    /// The grid whose ranges are shrunk as far as makes `e H e^T` smallest, each group by itself. `moment` is `[k][k]`. Of groups too long
    /// for that, the diagonal of `H` counts.
    pub fn shrunk(scheme: &QuantScheme, k: usize, values: &[f32], moment: &[f32]) -> Self {
        let group = scheme.group(k);
        let mut clipped = values.to_vec();
        clipped.par_chunks_mut((ROWS * k).max(1)).for_each(|rows| {
            for start in (0..k).step_by(group.max(1)) {
                let columns = start..k.min(start + group);
                let trials = Trials::new(scheme, rows, k, columns.clone());
                let losses = trials.losses(|i| &moment[(start + i) * k..][columns.clone()]);
                for (row, losses) in rows.chunks_exact_mut(k).zip(losses.chunks_exact(SHRINKS)) {
                    let x = &mut row[columns.clone()];
                    let least =
                        (0..SHRINKS).reduce(|best, s| if losses[s] < losses[best] { s } else { best });
                    let (low, high) = shrunk_range(x, least.unwrap_or(0));
                    x.iter_mut().for_each(|v| *v = v.clamp(low, high));
                }
            }
        });
        Self::whole(scheme, k, &clipped)
    }

    /// The code nearest to `v` at `(row, column)`, and the value that it stands for.
    pub fn nearest(&self, row: usize, column: usize, v: f32) -> (f32, f32) {
        let scheme = &self.rows.scheme;
        let group = self.groups[row * self.rows.groups() + column / scheme.group(self.rows.k)];
        let code = group.nearest(scheme, v);
        (code, group.value(scheme, code))
    }

    /// Rows of this grid with the given codes.
    pub fn rows(self, codes: Vec<f32>) -> Rows {
        Rows { codes, ..self.rows }
    }

    /// Every value to its nearest code.
    pub fn round(self, values: &[f32]) -> Rows {
        let mut codes = vec![0f32; values.len()];
        self.for_groups(
            values,
            &mut codes,
            #[inline(always)]
            |group, scheme, x, codes| group.codes(scheme, x, codes),
        );
        self.rows(codes)
    }

    /// What every value loses by it.
    pub fn errors(&self, values: &[f32], errors: &mut [f32]) {
        self.for_groups(
            values,
            errors,
            #[inline(always)]
            |group, scheme, x, errors| group.errors(scheme, x, errors),
        );
    }

    #[inline(always)]
    fn for_groups(
        &self,
        values: &[f32],
        out: &mut [f32],
        of: impl Fn(&Group, &QuantScheme, &[f32], &mut [f32]),
    ) {
        let (scheme, k) = (&self.rows.scheme, self.rows.k.max(1));
        let len = scheme.group(k);
        vectorised(
            #[inline(always)]
            || {
                let rows = values.chunks_exact(k).zip(out.chunks_exact_mut(k));
                for ((x, out), groups) in rows.zip(self.groups.chunks_exact(k.div_ceil(len))) {
                    for ((x, out), group) in x.chunks(len).zip(out.chunks_mut(len)).zip(groups) {
                        of(group, scheme, x, out);
                    }
                }
            },
        );
    }
}

/// The whole range of a group, shrunk by some steps.
fn shrunk_range(x: &[f32], steps: usize) -> (f32, f32) {
    let (min, max) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    let ratio = 1.0 - 0.5 * steps as f32 / SHRINKS as f32;
    // Towards zero: a bound on its far side stays.
    (min.max(min * ratio), max.min(max * ratio))
}

/// One group of some rows under every range that is tried: `[row][range][element]` errors.
struct Trials {
    errors: Vec<f32>,
    len: usize,
}

impl Trials {
    fn new(scheme: &QuantScheme, rows: &[f32], k: usize, columns: std::ops::Range<usize>) -> Self {
        let len = columns.len();
        let mut errors = vec![0f32; rows.len() / k * SHRINKS * len];
        for (row, errors) in rows.chunks_exact(k).zip(errors.chunks_exact_mut(SHRINKS * len)) {
            let x = &row[columns.clone()];
            for (steps, errors) in errors.chunks_exact_mut(len).enumerate() {
                let group = Group::of_range(scheme, shrunk_range(x, steps));
                vectorised(
                    #[inline(always)]
                    || group.errors(scheme, x, errors),
                );
            }
        }
        Self { errors, len }
    }

    /// What each loses, `[row][range]`. `moment(i)` are the moments of the group's element i and its others.
    fn losses<'a>(&self, moment: impl Fn(usize) -> &'a [f32]) -> Vec<f32> {
        let Self { errors, len } = self;
        let seen = if *len <= WHOLE {
            let moment: Vec<f32> = (0..*len).flat_map(&moment).copied().collect();
            product(errors, errors.len() / len, &moment, *len, *len)
        } else {
            let diagonal: Vec<f32> = (0..*len).map(|i| moment(i)[i]).collect();
            errors.iter().zip(diagonal.iter().cycle()).map(|(e, d)| e * d).collect()
        };
        errors.chunks_exact(*len).zip(seen.chunks_exact(*len)).map(|(e, s)| dot(e, s)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bessemer_ir::quantise::quantise;
    use bessemer_ir::recipe::uniform;

    #[test]
    fn the_whole_range_is_round_to_nearest() {
        let x: Vec<f32> = (0..3 * 96).map(|i| uniform(7, i)).collect();
        for scheme in [
            "s8:f16x32",
            "u4:f16x48+f16",
            "u4:f16x32-8",
            "u4:f16x32-u8",
            "u2:u8x16*f16x96+u8*f16",
            "iq4:f16x32",
            "e4m3:f32x0",
        ] {
            let scheme: QuantScheme = scheme.parse().unwrap();
            assert_eq!(Grid::whole(&scheme, 96, &x).round(&x), quantise(&scheme, 3, 96, &x), "{scheme}");
        }
    }

    #[test]
    fn an_outlier_in_a_column_without_activations_is_cut() {
        let k = 32;
        let mut x: Vec<f32> = (0..k as u64).map(|i| uniform(8, i)).collect();
        x[5] = 1.8;
        let mut moment = vec![0f32; k * k];
        (0..k).for_each(|i| moment[i * k + i] = if i == 5 { 1e-6 } else { 1.0 });
        let scheme = "u3:f16x32+f16".parse().unwrap();
        let loss = |rows: Rows| -> f32 {
            rows.values()
                .iter()
                .zip(&x)
                .enumerate()
                .map(|(i, (a, b))| (a - b) * (a - b) * moment[i * k + i])
                .sum()
        };
        let (whole, shrunk) = (Grid::whole(&scheme, k, &x), Grid::shrunk(&scheme, k, &x, &moment));
        assert!(loss(shrunk.round(&x)) < 0.8 * loss(whole.round(&x)));
    }
}
