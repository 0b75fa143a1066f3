//! Round to nearest: THE definition of converting f32 rows to a scheme.

use bessemer_format::rows::Rows;
use bessemer_format::scheme::{Level, Levels, Offset};
use bessemer_format::{Elem, QuantScheme, ScaleType};

/// Rounds rows of `k` values to `scheme`.
///
/// Floating-point elements round to nearest even. Others a group at a time, in f32, with `high` the largest number of the element:
///
/// - without offset, `scale = amax / high`; for the codebook of IQ4, `x_of_largest_magnitude / -127`;
/// - with a constant offset c, `scale = x_of_largest_magnitude / -c`, as GGUF's Q4_0 has it;
/// - with a floating offset, `offset = min` (in two levels at most 0) and `scale = (max - offset) / high`;
/// - with a zero point, `scale = (max - min) / high` over a range that includes 0, and `zero = round_ties_even(-min / scale)`.
///
/// Signs of scales are dropped where their type has none. Scales and offsets are rounded to what is stored before codes are chosen: in two
/// levels first the outer number, the one of largest magnitude over the inner type's largest, then the inner ones. A code is then the
/// element's number nearest to `(x - offset) / scale`, plus the constant or zero point, clamped.
pub fn quantise(scheme: &QuantScheme, rows: usize, k: usize, values: &[f32]) -> Rows {
    if scheme.elem.is_float() {
        return Rows::floats(scheme.elem, rows, k, values.to_vec());
    }
    let mut out = grid(scheme, rows, k, values);
    let (mut codes, len) = (vec![0f32; rows * k], scheme.group(k));
    let groups = Group::of_rows(&out);
    let rows = values.chunks_exact(k.max(1)).zip(codes.chunks_exact_mut(k.max(1)));
    for ((x, codes), groups) in rows.zip(groups.chunks_exact(out.groups().max(1))) {
        for ((x, codes), group) in x.chunks(len).zip(codes.chunks_mut(len)).zip(groups) {
            group.codes(scheme, x, codes);
        }
    }
    out.codes = codes;
    out
}

/// The scales and offsets of [`quantise()`], without codes.
pub fn grid(scheme: &QuantScheme, rows: usize, k: usize, values: &[f32]) -> Rows {
    let mut out = Rows::empty(*scheme, rows, k);
    if let Some(levels) = scheme.scale {
        values.chunks_exact(k.max(1)).for_each(|row| grid_of_row(scheme, &levels, row, &mut out));
    }
    out
}

/// What the codes of a group stand on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// As [`QuantScheme::dequant`] takes it.
    pub scale: f32,
    /// As [`QuantScheme::dequant`] takes it.
    pub offset: f32,
    /// The code of zero: the scheme's constant, or the group's zero point.
    pub shift: f32,
}

impl Group {
    /// From what [`QuantScheme::combine`] gives, and the offset as it is stored.
    fn new(scheme: &QuantScheme, (scale, offset): (f32, f32), stored_offset: f32) -> Self {
        let shift = match scheme.offset {
            Offset::Const(c) => c as f32,
            Offset::Zero(_) => stored_offset,
            Offset::None | Offset::Float(_) => 0.0,
        };
        Self { scale, offset, shift }
    }

    /// Of a range alone. In two levels it is what the outer one would be rounded to, unrounded.
    pub fn of_range(scheme: &QuantScheme, range: (f32, f32)) -> Self {
        let Some(levels) = scheme.scale else { return Self { scale: 1.0, offset: 0.0, shift: 0.0 } };
        let rounded = |levels: &Levels, v| if levels.outer.is_some() { v } else { levels.inner.ty.round(v) };
        let offset = match scheme.offset {
            Offset::Float(o) => rounded(&o, least(&o, range)),
            _ => 0.0,
        };
        let scale = rounded(&levels, ideal_scale(scheme, &levels, range, offset));
        let zero = match scheme.offset {
            Offset::Zero(ty) => zero_point(ty, range, scale),
            _ => 0.0,
        };
        let offset = if let Offset::Zero(_) = scheme.offset { -(zero * scale) } else { offset };
        Self::new(scheme, (scale, offset), zero)
    }

    /// Of every group of some rows, one row behind the other.
    pub fn of_rows(rows: &Rows) -> Vec<Self> {
        let (groups, group) = (rows.groups(), rows.scheme.group(rows.k));
        let of = |at: usize| {
            let stored = rows.offsets.get(at).copied().unwrap_or(0.0);
            Self::new(&rows.scheme, rows.scale_offset(at / groups, at % groups * group), stored)
        };
        (0..rows.rows * groups).map(of).collect()
    }

    /// The code that is nearest to a value.
    #[inline]
    pub fn nearest(&self, scheme: &QuantScheme, v: f32) -> f32 {
        let v = if let Offset::Float(_) = scheme.offset { v - self.offset } else { v };
        let ratio = if self.scale == 0.0 { 0.0 } else { v / self.scale };
        match integers(scheme) {
            Some((low, high)) => (ratio.round_ties_even() + self.shift).clamp(low, high),
            None => scheme.elem.nearest(ratio),
        }
    }

    /// The codes that are nearest to some values, without a choice of element inside the loop.
    #[inline(always)]
    pub fn codes(&self, scheme: &QuantScheme, values: &[f32], out: &mut [f32]) {
        let Some((low, high)) = integers(scheme).filter(|_| self.scale != 0.0) else {
            out.iter_mut().zip(values).for_each(|(o, v)| *o = self.nearest(scheme, *v));
            return;
        };
        let before = if let Offset::Float(_) = scheme.offset { self.offset } else { 0.0 };
        let (scale, shift) = (self.scale, self.shift);
        for (o, v) in out.iter_mut().zip(values) {
            *o = (((v - before) / scale).round_ties_even() + shift).clamp(low, high);
        }
    }

    /// What rounding to nearest loses of each of some values: `value(nearest(v)) - v`, without a choice of element inside the loop.
    #[inline(always)]
    pub fn errors(&self, scheme: &QuantScheme, values: &[f32], out: &mut [f32]) {
        let Some((low, high)) = integers(scheme) else {
            for (o, v) in out.iter_mut().zip(values) {
                *o = self.value(scheme, self.nearest(scheme, *v)) - v;
            }
            return;
        };
        // Of a value and of its code, so that one loop serves every kind of offset.
        let (before, between, after) = match scheme.offset {
            Offset::None => (0.0, 0.0, 0.0),
            Offset::Const(c) => (0.0, c as f32, 0.0),
            Offset::Float(_) => (self.offset, 0.0, self.offset),
            Offset::Zero(_) => (0.0, 0.0, self.offset),
        };
        let (scale, shift) = (self.scale, self.shift);
        if scale == 0.0 {
            let value = self.value(scheme, shift.clamp(low, high));
            out.iter_mut().zip(values).for_each(|(o, v)| *o = value - v);
            return;
        }
        for (o, v) in out.iter_mut().zip(values) {
            let code = (((v - before) / scale).round_ties_even() + shift).clamp(low, high);
            *o = (code - between) * scale + after - v;
        }
    }

    /// The value of a code.
    #[inline]
    pub fn value(&self, scheme: &QuantScheme, code: f32) -> f32 {
        scheme.dequant(code, self.scale, self.offset)
    }
}

/// The least and the largest code, where codes are integers. Of signed ones the range is symmetric: the lowest is not used.
#[inline(always)]
fn integers(scheme: &QuantScheme) -> Option<(f32, f32)> {
    let (low, high) = scheme.elem.range();
    match scheme.elem {
        Elem::U(_) => Some((low, high)),
        Elem::S(_) => Some((-high, high)),
        _ => None,
    }
}

fn grid_of_row(scheme: &QuantScheme, levels: &Levels, row: &[f32], out: &mut Rows) {
    let group = scheme.group(row.len());
    let outer_groups = scheme.outer_group(row.len()).div_ceil(group);
    let ranges: Vec<(f32, f32)> = row.chunks(group).map(range).collect();
    let offsets = match scheme.offset {
        Offset::Float(o) => {
            let ideal = ranges.iter().map(|range| least(&o, *range)).collect();
            stored(&o, outer_groups, ideal, &mut out.offsets, &mut out.outer_offsets)
        }
        _ => vec![0.0; ranges.len()],
    };
    let ideal = ranges.iter().zip(&offsets).map(|(range, o)| ideal_scale(scheme, levels, *range, *o));
    let scales = stored(levels, outer_groups, ideal.collect(), &mut out.scales, &mut out.outer_scales);
    if let Offset::Zero(ty) = scheme.offset {
        out.offsets.extend(ranges.iter().zip(scales).map(|(range, scale)| zero_point(ty, *range, scale)));
    }
}

/// The offset of a range, before it is rounded.
fn least(offset: &Levels, (min, _): (f32, f32)) -> f32 {
    if offset.outer.is_some() { min.min(0.0) } else { min }
}

/// The scale of a range above an offset, before it is rounded.
fn ideal_scale(scheme: &QuantScheme, levels: &Levels, (min, max): (f32, f32), offset: f32) -> f32 {
    let high = scheme.elem.range().1;
    let signed = !matches!(levels.inner.ty, ScaleType::U8 | ScaleType::E8M0);
    let largest = if max.abs() > min.abs() { max } else { min };
    match (scheme.offset, scheme.elem) {
        (Offset::None, Elem::Iq4) if signed => largest / -127.0,
        (Offset::None, _) => largest.abs() / high,
        (Offset::Const(c), _) if signed => largest / -(c as f32),
        (Offset::Const(c), _) => (max / (high - c as f32)).max(-min / c as f32),
        (Offset::Float(_), _) => (max - offset) / high,
        (Offset::Zero(_), _) => (max.max(0.0) - min.min(0.0)) / high,
    }
}

/// The zero point of a range.
fn zero_point(ty: ScaleType, (min, _): (f32, f32), scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { ty.round(-min.min(0.0) / scale) }
}

/// The least and the largest number; NaNs are passed over.
fn range(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), &v| (min.min(v), max.max(v)))
}

/// Rounds the ideal numbers of one row's groups to what is stored, appends that, and returns what it stands for.
fn stored(
    levels: &Levels,
    outer_groups: usize,
    mut ideal: Vec<f32>,
    inner: &mut Vec<f32>,
    outer: &mut Vec<f32>,
) -> Vec<f32> {
    let ty = levels.inner.ty;
    let Some(Level { ty: outer_ty, .. }) = levels.outer else {
        ideal.iter_mut().for_each(|v| *v = ty.round(*v));
        inner.extend(&ideal);
        return ideal;
    };
    for group in ideal.chunks_mut(outer_groups.max(1)) {
        let (min, max) = range(group);
        let largest = if max.abs() > min.abs() { max } else { min };
        // An unsigned inner number leaves the sign to the outer one.
        let largest = if ty == ScaleType::U8 { largest } else { largest.abs() };
        let step = outer_ty.round(largest / ty.largest());
        outer.push(step);
        for v in group {
            let number = if step == 0.0 { 0.0 } else { ty.round(*v / step) };
            inner.push(number);
            *v = number * step;
        }
    }
    ideal
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::uniform;

    const K: usize = 288;

    fn numbers() -> Vec<f32> {
        (0..3 * K as u64).map(|i| uniform(1, i) * if i % 7 == 0 { 1.0 } else { 0.3 }).collect()
    }

    #[test]
    fn rounding_stays_within_half_a_step() {
        let x = numbers();
        for scheme in [
            "s8:f32x32",
            "u4:f32x32+f32",
            "u4:f32x48-8",
            "s4:f32x0",
            "u3:f32x16+f32",
            "s6:f32x96",
            "u5:f32x16-16",
            "u4:f16x32-u8",
            "u8:f32x0-u8",
            "s8:s8x32*f16x96",
            "u4:u8x32*f16x256+u8*f16",
            "u6:s8x16*f16x256-32",
            "u2:u8x16*f16x0+u8*f16",
        ] {
            let scheme: QuantScheme = scheme.parse().unwrap();
            let q = quantise(&scheme, 3, K, &x);
            // A constant offset leaves the positive side one step short; rounded scales and offsets reach less far.
            let slack = if scheme.outer().is_some() { 1.0 } else { 0.01 };
            let steps = if matches!(scheme.offset, Offset::Const(_)) { 1.0 } else { 0.5 } + slack;
            let offset = |levels: &Levels| levels.outer.map_or(0.0, |_| 1.0 / 255.0);
            let offset = if let Offset::Float(o) = &scheme.offset { offset(o) } else { 0.0 };
            for (i, x) in x.iter().enumerate() {
                let (scale, _) = q.scale_offset(i / K, i % K);
                let error = (q.value(i / K, i % K) - x).abs();
                assert!(error <= scale.abs() * steps + offset, "{scheme} at {i}: {error} {scale}");
            }
        }
    }

    /// The relative error of the values that codes of a table round to.
    #[test]
    fn tables_round_to_their_nearest_number() {
        let x = numbers();
        for (scheme, most) in [
            ("e4m3:f32x0", 0.03),
            ("e4m3:bf16x96", 0.03),
            ("e5m2:f32x32", 0.06),
            ("e2m1:e8m0x32", 0.16),
            ("e2m1:e4m3x16*f32x0", 0.12),
            ("iq4:f16x32", 0.11),
            ("iq4:s8x32*f16x256", 0.11),
        ] {
            let scheme: QuantScheme = scheme.parse().unwrap();
            let q = quantise(&scheme, 3, K, &x);
            let (mut error, mut size) = (0.0, 0.0);
            for (x, v) in x.iter().zip(q.values()) {
                error += (x - v) * (x - v);
                size += x * x;
            }
            let relative = (error / size).sqrt();
            assert!(relative < most, "{scheme}: {relative}");
            // No other number of the element is nearer.
            for (i, &x) in x.iter().enumerate() {
                let (scale, _) = q.scale_offset(i / K, i % K);
                let numbers = &scheme.elem.numbers().unwrap()[..1 << scheme.elem.bits()];
                let nearest = numbers.iter().filter(|n| n.is_finite()).map(|n| (n * scale - x).abs());
                let nearest = nearest.fold(f32::INFINITY, f32::min);
                let found = (q.value(i / K, i % K) - x).abs();
                assert!(found <= nearest * 1.0001 + 1e-6, "{scheme} at {i}: {found} {nearest}");
            }
        }
    }

    #[test]
    fn errors_are_those_of_the_nearest_codes() {
        let mut x = numbers();
        x.truncate(K);
        for scheme in
            ["s8:f32x32", "u4:f16x32+f16", "u4:f16x32-8", "u4:f16x32-u8", "iq4:f16x32", "e4m3:f32x0"]
        {
            let scheme: QuantScheme = scheme.parse().unwrap();
            for range in [(-1.0, 1.0), (-0.3, 0.5), (0.0, 0.0)] {
                let group = Group::of_range(&scheme, range);
                let mut errors = vec![0.0; K];
                group.errors(&scheme, &x, &mut errors);
                let expected = x.iter().map(|v| group.value(&scheme, group.nearest(&scheme, *v)) - v);
                assert_eq!(errors, expected.collect::<Vec<_>>(), "{scheme} {range:?}");
            }
        }
    }

    #[test]
    fn conversion_of_converted_rows_is_stable() {
        let x: Vec<f32> = (0..64).map(|i| uniform(2, i)).collect();
        let once = quantise(&QuantScheme::Q8_0, 1, 64, &x);
        let twice = quantise(&QuantScheme::Q8_0, 1, 64, &once.values());
        assert_eq!(once.codes, twice.codes);
    }
}
