//! Scales, offsets and codes that are best for each other. GPTQ chooses codes on a grid that was fixed before, and looks at no column
//! twice, so what it leaves is no minimum. Here it goes downhill for a few sweeps more.
//!
//! With `H` the second moment, a row that loses `e H e^T` loses `2 d (H e^T) + d H d^T` more when it is moved by d. So where `H e^T` is kept
//!
//! - the best scale and offset of a group, its codes as they are, solve two linear equations;
//! - the best code of a column, all else as it is, is the one nearest to `value - (H e^T)_j / H_jj`: coordinate descent.

use bessemer_eager::defined::{dot, product};
use bessemer_eager::vectorised;
use bessemer_format::rows::Rows;
use bessemer_format::scheme::{Levels, Offset};
use bessemer_ir::quantise::Group;
use std::ops::Range;

/// Times that all groups are gone through.
const SWEEPS: usize = 4;

/// Moves `rows`, which stand for `values`, to where they lose less. `moment` is `[k][k]`, and `damping` what is added to its diagonal, so that
/// a direction that the text never took costs something as well.
pub fn refine(rows: Rows, values: &[f32], moment: &[f32], damping: f32) -> Rows {
    let (n, k) = (rows.rows, rows.k);
    let errors: Vec<f32> = rows.values().iter().zip(values).map(|(r, v)| r - v).collect();
    let mut seen = product(&errors, n, moment, k, k);
    seen.iter_mut().zip(&errors).for_each(|(s, e)| *s += damping * e);
    let group = rows.scheme.group(k).max(1);
    let mut descent = Descent { groups: Group::of_rows(&rows), rows };
    for _ in 0..SWEEPS {
        for start in (0..k).step_by(group) {
            let columns = start..k.min(start + group);
            let mut beside: Vec<f32> =
                moment.chunks_exact(k).flat_map(|row| &row[columns.clone()]).copied().collect();
            (0..columns.len()).for_each(|i| beside[(start + i) * columns.len() + i] += damping);
            let within = &beside[start * columns.len()..][..columns.len() * columns.len()];
            let moved = descent.group(&columns, &Within::new(within, columns.len()), &seen);
            // What the group's columns do to what every column sees.
            let change = product(&moved, n, &beside, k, columns.len());
            seen.iter_mut().zip(&change).for_each(|(s, c)| *s += c);
        }
    }
    descent.rows
}

/// The moments of a group's columns with each other.
struct Within<'a> {
    /// `[len][len]`.
    moment: &'a [f32],
    /// Of each row of it.
    sums: Vec<f32>,
}

impl<'a> Within<'a> {
    fn new(moment: &'a [f32], len: usize) -> Self {
        Self { moment, sums: moment.chunks_exact(len).map(|row| row.iter().sum()).collect() }
    }
}

/// Rows on their way down.
struct Descent {
    rows: Rows,
    groups: Vec<Group>,
}

impl Descent {
    /// Improves one group of every row; gives what its values moved by. `seen` is `H e^T` of the rows.
    fn group(&mut self, columns: &Range<usize>, within: &Within<'_>, seen: &[f32]) -> Vec<f32> {
        let (n, k, len) = (self.rows.rows, self.rows.k, columns.len());
        let scheme = self.rows.scheme;
        let first = columns.start / scheme.group(k);
        // What scales multiply: the codes above the code of zero.
        let codes = (0..n).flat_map(|row| {
            let shift = self.groups[row * self.rows.groups() + first].shift;
            self.rows.codes[row * k..][columns.clone()].iter().map(move |code| code - shift)
        });
        let factors: Vec<f32> = codes.collect();
        let factors_seen = product(&factors, n, within.moment, len, len);
        let mut moved = vec![0f32; n * len];
        for (row, moved) in moved.chunks_exact_mut(len).enumerate() {
            let mut seen = seen[row * k..][columns.clone()].to_vec();
            let (factors, factors_seen) = (&factors[row * len..][..len], &factors_seen[row * len..][..len]);
            let (scale, offset) = self.refit(row, columns.start, within, factors, factors_seen, &seen);
            moved.iter_mut().zip(factors).for_each(|(m, f)| *m = scale * f + offset);
            let change = factors_seen.iter().zip(&within.sums).map(|(f, one)| scale * f + offset * one);
            seen.iter_mut().zip(change).for_each(|(s, c)| *s += c);

            let group = self.groups[row * self.rows.groups() + first];
            let codes = &mut self.rows.codes[row * k..][columns.clone()];
            for (i, (code, moment)) in codes.iter_mut().zip(within.moment.chunks_exact(len)).enumerate() {
                // Nothing is known of a column that was never used.
                if moment[i] <= 0.0 {
                    continue;
                }
                let value = group.value(&scheme, *code);
                let nearest = group.nearest(&scheme, value - seen[i] / moment[i]);
                if nearest != *code {
                    *code = nearest;
                    let by = group.value(&scheme, nearest) - value;
                    moved[i] += by;
                    vectorised(
                        #[inline(always)]
                        || seen.iter_mut().zip(moment).for_each(|(s, m)| *s += by * m),
                    );
                }
            }
        }
        moved
    }

    /// Gives the group of a row that starts at a column the scale and the offset that are best for its codes, as far as they can be stored
    /// and if less is lost then. What they changed by.
    fn refit(
        &mut self,
        row: usize,
        column: usize,
        within: &Within<'_>,
        factors: &[f32],
        factors_seen: &[f32],
        seen: &[f32],
    ) -> (f32, f32) {
        let rows = &mut self.rows;
        let scheme = rows.scheme;
        let Some(scales) = scheme.scale else { return (0.0, 0.0) };
        let at = row * rows.groups() + column / scheme.group(rows.k);
        let outer = row * rows.outer_groups() + column / scheme.outer_group(rows.k);
        let group = self.groups[at];
        // The loss of a change (s, o) is `2 (s fe + o e) + s^2 ff + 2 s o f + o^2 h`.
        let sum = |values: &[f32]| values.iter().map(|v| f64::from(*v)).sum::<f64>();
        let dot = |a, b| f64::from(dot(a, b));
        let (ff, f, h) = (dot(factors, factors_seen), sum(factors_seen), sum(&within.sums));
        let (fe, e) = (dot(factors, seen), sum(seen));
        let offsets = if let Offset::Float(levels) = scheme.offset { Some(levels) } else { None };
        let best = match offsets {
            Some(_) => (f * e - h * fe) / (ff * h - f * f),
            None => -fe / ff,
        };
        let (number, scale) = stored(&scales, &rows.outer_scales, outer, group.scale + best as f32);
        let s = f64::from(scale - group.scale);
        // The offset that is best beside the scale as it is stored.
        let (offset_number, offset) = match offsets {
            Some(levels) => {
                let best = group.offset - ((e + s * f) / h) as f32;
                stored(&levels, &rows.outer_offsets, outer, best)
            }
            // That of a zero point is a multiple of the scale.
            None => (rows.offsets.get(at).copied().unwrap_or(0.0), -(group.shift * scale)),
        };
        let o = if offsets.is_some() { f64::from(offset - group.offset) } else { 0.0 };
        let change = 2.0 * (s * fe + o * e) + s * s * ff + 2.0 * s * o * f + o * o * h;
        // Where there is no best, it is no number.
        if scale == 0.0 || change.is_nan() || change >= 0.0 {
            return (0.0, 0.0);
        }
        rows.scales[at] = number;
        if let Some(stored) = rows.offsets.get_mut(at) {
            *stored = offset_number;
        }
        let (scale, offset) = rows.scale_offset(row, column);
        self.groups[at] = Group { scale, offset, ..group };
        (s as f32, o as f32)
    }
}

/// The number that is stored for `v` beside an outer one that stays, and what it stands for.
fn stored(levels: &Levels, outer: &[f32], at: usize, v: f32) -> (f32, f32) {
    let step = if levels.outer.is_some() { outer.get(at).copied().unwrap_or(1.0) } else { 1.0 };
    let number = if step == 0.0 { 0.0 } else { levels.inner.ty.round(v / step) };
    (number, number * step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::awq::squared;
    use crate::{Moment, gptq::Factor, grid::Grid};
    use bessemer_format::QuantScheme;
    use bessemer_ir::recipe::uniform;

    #[test]
    fn what_gptq_leaves_is_lost_less_and_can_be_stored() {
        let (k, n) = (96, 20);
        let mix: Vec<f32> = (0..12 * k as u64).map(|i| uniform(4, i)).collect();
        let mut moment = Moment::new(k, crate::Reach::Whole);
        for t in 0..400u64 {
            let x = |i: usize| {
                let shared: f32 = (0..12).map(|h| uniform(5, t * 12 + h as u64) * mix[h * k + i]).sum();
                shared + 0.3 * uniform(6, t * k as u64 + i as u64)
            };
            moment.add(&(0..k).map(x).collect::<Vec<_>>());
        }
        let full = moment.full();
        let values: Vec<f32> = (0..(n * k) as u64).map(|i| uniform(9, i)).collect();
        for (scheme, share) in [
            ("u4:f16x32+f16", 0.8),
            ("u4:f16x32-8", 0.85),
            ("u3:f16x48-u8", 0.95),
            ("s8:f16x96", 0.99),
            ("u4:u8x32*f16x0+u8*f16", 0.85),
            ("iq4:f16x32", 0.8),
            ("e4m3:f32x0", 0.7),
        ] {
            let scheme: QuantScheme = scheme.parse().unwrap();
            let loss = |rows: &Rows| {
                let error: Vec<f32> = rows.values().iter().zip(&values).map(|(a, b)| a - b).collect();
                squared(&error, &full, k)
            };
            let factor = Factor::new(&moment).unwrap();
            let rounded = factor.round(&values, Grid::whole(&scheme, k, &values));
            let (before, refined) = (loss(&rounded), refine(rounded, &values, &full, factor.damping()));
            let after = loss(&refined);
            println!("{scheme}: {}", after / before);
            assert!(after < share * before, "{scheme}: {after} of {before}");
            for (levels, numbers) in [(scheme.scale, &refined.scales), (offsets(&scheme), &refined.offsets)] {
                let ty = levels.map(|l| l.inner.ty);
                assert!(numbers.iter().all(|v| ty.is_some_and(|ty| ty.store(*v, &mut [0; 4]))), "{scheme}");
            }
        }
    }

    fn offsets(scheme: &QuantScheme) -> Option<Levels> {
        match scheme.offset {
            Offset::Float(levels) => Some(levels),
            Offset::Zero(ty) => Some(Levels::group(0, ty)),
            _ => None,
        }
    }
}
