//! Precision as data: what the stored codes of a weight mean.
//!
//! A [`QuantScheme`] says how elements are coded, at which granularity scales stand and what is subtracted or
//! added. Where the bytes lie is another matter ([`crate::panel`]): the two axes are orthogonal, so packing cannot
//! change precision and quantising cannot change layout.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The code of one weight element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Elem {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Unsigned integer of 1 to 8 bits.
    U(u8),
    /// Two's complement integer of 2 to 8 bits.
    S(u8),
}

impl Elem {
    /// Bits that one code takes.
    pub const fn bits(self) -> u32 {
        match self {
            Elem::F32 => 32,
            Elem::F16 | Elem::Bf16 => 16,
            Elem::U(b) | Elem::S(b) => b as u32,
        }
    }

    /// Whether the code is itself a floating-point number, so that no scale belongs to it.
    pub const fn is_float(self) -> bool {
        matches!(self, Elem::F32 | Elem::F16 | Elem::Bf16)
    }
}

/// The number format of a scale or of a floating offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ScaleType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl ScaleType {
    /// Bytes that one scale takes.
    pub const fn bytes(self) -> usize {
        match self {
            ScaleType::F32 => 4,
            ScaleType::F16 | ScaleType::Bf16 => 2,
        }
    }

    /// Reads the little-endian scale at the head of `bytes` (shorter input reads as zero bytes).
    pub fn read(self, bytes: &[u8]) -> f32 {
        let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
        match self {
            ScaleType::F32 => f32::from_le_bytes([at(0), at(1), at(2), at(3)]),
            ScaleType::F16 => f16::from_le_bytes([at(0), at(1)]).to_f32(),
            ScaleType::Bf16 => bf16::from_le_bytes([at(0), at(1)]).to_f32(),
        }
    }

    /// Appends `value`, rounded to nearest even, in little-endian order.
    pub fn push(self, value: f32, out: &mut Vec<u8>) {
        match self {
            ScaleType::F32 => out.extend(value.to_le_bytes()),
            ScaleType::F16 => out.extend(f16::from_f32(value).to_le_bytes()),
            ScaleType::Bf16 => out.extend(bf16::from_f32(value).to_le_bytes()),
        }
    }

    /// `value` as it reads back after being stored.
    pub fn round(self, value: f32) -> f32 {
        match self {
            ScaleType::F32 => value,
            ScaleType::F16 => f16::from_f32(value).to_f32(),
            ScaleType::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }
}

/// One level of scales: a scale for every `rows` x `k` block. Zero means the whole axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Level {
    /// Output rows that share a scale.
    pub rows: u32,
    /// Input elements that share a scale: the group size.
    pub k: u32,
    /// How the scale is stored.
    pub ty: ScaleType,
}

/// Scales in one or two levels (the value of a two-level scale is inner times outer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Levels {
    /// The finer level.
    pub inner: Level,
    /// The coarser level, if any.
    pub outer: Option<Level>,
}

/// What is taken from or added to a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Offset {
    /// Nothing: symmetric.
    None,
    /// A constant subtracted from the code before scaling (Q4_0 has 8).
    Const(i32),
    /// A floating-point minimum a group, added after scaling (Q4_1).
    Float(Levels),
}

/// What the stored codes of a weight mean. See [`QuantScheme::dequant`] for the one definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct QuantScheme {
    /// The code of an element.
    pub elem: Elem,
    /// Scales; `None` exactly for floating-point elements.
    pub scale: Option<Levels>,
    /// Offset of the codes.
    pub offset: Offset,
}

impl QuantScheme {
    /// Plain binary32.
    pub const F32: Self = Self::float(Elem::F32);
    /// Plain binary16.
    pub const F16: Self = Self::float(Elem::F16);
    /// Plain bfloat16.
    pub const BF16: Self = Self::float(Elem::Bf16);
    /// GGUF Q4_0: 32 4-bit codes, offset 8, an f16 scale.
    pub const Q4_0: Self = Self::grouped(Elem::U(4), 32, ScaleType::F16, Offset::Const(8));
    /// GGUF Q4_1: 32 4-bit codes, an f16 scale and an f16 minimum.
    pub const Q4_1: Self =
        Self::grouped(Elem::U(4), 32, ScaleType::F16, Offset::Float(Levels::group(32, ScaleType::F16)));
    /// GGUF Q8_0: 32 signed bytes and an f16 scale.
    pub const Q8_0: Self = Self::grouped(Elem::S(8), 32, ScaleType::F16, Offset::None);

    /// A floating-point element without scales.
    pub const fn float(elem: Elem) -> Self {
        Self { elem, scale: None, offset: Offset::None }
    }

    /// Integer codes with one level of scales, a scale a row and group of `k` (0: the whole row).
    pub const fn grouped(elem: Elem, k: u32, ty: ScaleType, offset: Offset) -> Self {
        Self { elem, scale: Some(Levels::group(k, ty)), offset }
    }

    /// Symmetric round-to-nearest INT8: signed bytes, f16 scales by group (0: per channel).
    pub const fn int8(group: u32) -> Self {
        Self::grouped(Elem::S(8), group, ScaleType::F16, Offset::None)
    }

    /// Asymmetric round-to-nearest INT4: nibbles, f16 scale and minimum by group (0: per channel).
    pub const fn int4(group: u32) -> Self {
        Self::grouped(Elem::U(4), group, ScaleType::F16, Offset::Float(Levels::group(group, ScaleType::F16)))
    }

    /// The group size along k, for a row of `k` elements (the whole row where the scheme says 0 or has no scale).
    pub fn group(&self, k: usize) -> usize {
        match self.scale {
            Some(Levels { inner, .. }) if inner.k != 0 => (inner.k as usize).min(k.max(1)),
            _ => k.max(1),
        }
    }

    /// Bits a weight including scales and offsets, for rows of `k` elements.
    pub fn bits_per_weight(&self, k: usize) -> f64 {
        let level = |l: &Level| {
            let group = if l.k == 0 { k.max(1) } else { l.k as usize } as f64;
            l.ty.bytes() as f64 * 8.0 / (group * f64::from(l.rows.max(1)))
        };
        let levels = |l: &Levels| level(&l.inner) + l.outer.as_ref().map_or(0.0, level);
        f64::from(self.elem.bits())
            + self.scale.as_ref().map_or(0.0, levels)
            + if let Offset::Float(l) = &self.offset { levels(l) } else { 0.0 }
    }

    /// The value of a code: THE definition of what a weight means.
    ///
    /// In f32, in this order, each operation rounded to nearest even:
    /// `None` and `Const`: the integer `code - offset` is exact, then one multiplication by `scale`;
    /// `Float`: one multiplication `code * scale`, then one addition of `offset`.
    /// Floating-point elements pass through (`scale` and `offset` are not looked at).
    #[inline]
    pub fn dequant(&self, code: f32, scale: f32, offset: f32) -> f32 {
        if self.elem.is_float() {
            return code;
        }
        match self.offset {
            Offset::None => code * scale,
            Offset::Const(c) => (code - c as f32) * scale,
            Offset::Float(_) => code * scale + offset,
        }
    }

    /// Whether the scheme is one that this version can pack and run, with the reason if not.
    pub fn check(&self) -> Result<(), String> {
        let level = |what: &str, l: &Levels| {
            if l.outer.is_some() {
                return Err(format!("{what}: two-level scales are not supported by this version"));
            }
            if l.inner.rows > 1 || (l.inner.rows == 0 && l.inner.k != 0) {
                return Err(format!(
                    "{what}: scales shared by several rows are not supported by this version"
                ));
            }
            if !l.inner.k.is_multiple_of(16) {
                return Err(format!("{what}: group size {} is no multiple of 16", l.inner.k));
            }
            Ok(())
        };
        match (self.elem, &self.scale) {
            (e, None) if e.is_float() => {}
            (e, Some(_)) if e.is_float() => return Err("a floating-point element takes no scale".into()),
            (_, None) => return Err("an integer element needs a scale".into()),
            (Elem::U(b), Some(s)) if (1..=8).contains(&b) => level("scale", s)?,
            (Elem::S(b), Some(s)) if (2..=8).contains(&b) => level("scale", s)?,
            (e, _) => return Err(format!("{e:?} has no such width")),
        }
        match (&self.offset, &self.scale) {
            (Offset::None, _) => Ok(()),
            (_, None) => Err("a floating-point element takes no offset".into()),
            (Offset::Const(c), Some(_)) if (-256..=256).contains(c) => Ok(()),
            (Offset::Const(c), Some(_)) => Err(format!("offset {c} is out of range")),
            (Offset::Float(o), Some(s)) => {
                level("offset", o)?;
                if o.inner.k != s.inner.k {
                    return Err("offset and scale groups differ".into());
                }
                Ok(())
            }
        }
    }
}

impl Levels {
    /// One scale a row and group of `k` elements.
    pub const fn group(k: u32, ty: ScaleType) -> Self {
        // A per-channel level spans the whole k axis of one row.
        Self { inner: Level { rows: 1, k, ty }, outer: None }
    }
}

/// What a linear computes in: declared, shown by `inspect`, never chosen silently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Compute {
    /// Activations stay f32; weights are dequantised to f32 in registers; f32 accumulation.
    F32,
    /// Activations are rounded to signed bytes by groups of `group` elements ([`quantise_int8`]); i32 accumulation
    /// within a group, then f32 fused multiply-add over the groups in ascending k.
    Int8 {
        /// Elements that share an activation scale.
        group: u32,
    },
    /// Activations are rounded to bfloat16 ([`round_bf16`]), and so is what the weights dequantise to (exact for weights that
    /// are bfloat16); f32 accumulation of the products. Subnormal numbers may count as zero, as CPUs' instructions have it.
    Bf16,
}

/// Rounds to bfloat16, to nearest and ties to even: THE definition of [`Compute::Bf16`]'s rounding. NaNs stay NaNs.
#[inline(always)]
pub fn round_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // The carry of a NaN's mantissa could make an infinity or a zero of it.
    (if v.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

/// The number that a bfloat16's bits stand for.
#[inline(always)]
pub fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds one activation group to signed bytes: THE definition of [`Compute::Int8`]'s rounding.
///
/// `scale = amax / 127`, `inverse = 1 / scale` (0 for an all-zero group), `code = round_ties_even(x * inverse)`,
/// all in f32. Returns the scale. A non-finite input gives a NaN scale, so that it cannot pass unseen.
pub fn quantise_int8(x: &[f32], codes: &mut [i8]) -> f32 {
    let (scale, inverse) = int8_scale(x);
    for (q, &v) in codes.iter_mut().zip(x) {
        *q = int8_code(v, inverse);
    }
    scale
}

/// The scale of a group and the inverse that [`int8_code`] multiplies with (0 where every code is zero).
#[inline]
pub fn int8_scale(x: &[f32]) -> (f32, f32) {
    let mut amax = 0.0f32;
    let mut finite = true;
    for &v in x {
        finite &= v.is_finite();
        amax = amax.max(v.abs());
    }
    if !finite {
        return (f32::NAN, 0.0);
    }
    let scale = amax / 127.0;
    // A scale so small that its inverse overflows codes as zero: the group is smaller than f32 resolves.
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    (scale, if inverse.is_finite() { inverse } else { 0.0 })
}

/// The code of one element, given its group's inverse.
#[inline]
pub fn int8_code(v: f32, inverse: f32) -> i8 {
    // Infinity times zero is NaN, which casts to zero.
    (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i8
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Elem::F32 => f.write_str("f32"),
            Elem::F16 => f.write_str("f16"),
            Elem::Bf16 => f.write_str("bf16"),
            Elem::U(b) => write!(f, "u{b}"),
            Elem::S(b) => write!(f, "s{b}"),
        }
    }
}

impl fmt::Display for ScaleType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ScaleType::F32 => "f32",
            ScaleType::F16 => "f16",
            ScaleType::Bf16 => "bf16",
        })
    }
}

/// `u4:f16x32`, `u4:f16x32-8`, `u4:f16x32+f16`, `f32`: element, scale type x group (0: per channel), offset.
impl fmt::Display for QuantScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.elem)?;
        if let Some(s) = &self.scale {
            write!(f, ":{}x{}", s.inner.ty, s.inner.k)?;
        }
        match &self.offset {
            Offset::None => Ok(()),
            Offset::Const(c) => write!(f, "-{c}"),
            Offset::Float(o) => write!(f, "+{}", o.inner.ty),
        }
    }
}

/// Parses what [`fmt::Display`] prints.
impl std::str::FromStr for QuantScheme {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad =
            || format!("`{s}` is no scheme (examples: f32, bf16, s8:f16x32, u4:f16x32-8, u4:f16x32+f16)");
        let ty = |t: &str| match t {
            "f32" => Ok(ScaleType::F32),
            "f16" => Ok(ScaleType::F16),
            "bf16" => Ok(ScaleType::Bf16),
            _ => Err(bad()),
        };
        let (elem, rest) = s.split_once(':').map_or((s, None), |(e, r)| (e, Some(r)));
        let width = |t: &str| t.parse::<u8>().map_err(|_| bad());
        let elem = match elem {
            "f32" => Elem::F32,
            "f16" => Elem::F16,
            "bf16" => Elem::Bf16,
            e if e.starts_with('u') => Elem::U(width(&e[1..])?),
            e if e.starts_with('s') => Elem::S(width(&e[1..])?),
            _ => return Err(bad()),
        };
        let scheme = match rest {
            None => Self::float(elem),
            Some(rest) => {
                let (scale, offset) = match (rest.split_once('+'), rest.split_once('-')) {
                    (Some((scale, o)), _) => (scale, Some((true, o))),
                    (_, Some((scale, o))) => (scale, Some((false, o))),
                    _ => (rest, None),
                };
                let (t, k) = scale.split_once('x').ok_or_else(bad)?;
                let k = k.parse::<u32>().map_err(|_| bad())?;
                let offset = match offset {
                    None => Offset::None,
                    Some((true, o)) => Offset::Float(Levels::group(k, ty(o)?)),
                    Some((false, o)) => Offset::Const(o.parse().map_err(|_| bad())?),
                };
                Self::grouped(elem, k, ty(t)?, offset)
            }
        };
        scheme.check().map_err(|why| format!("`{s}`: {why}"))?;
        Ok(scheme)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for s in [
            QuantScheme::F32,
            QuantScheme::BF16,
            QuantScheme::Q4_0,
            QuantScheme::Q4_1,
            QuantScheme::Q8_0,
            QuantScheme::int8(0),
            QuantScheme::int4(128),
        ] {
            s.check().unwrap();
            assert_eq!(s.to_string().parse::<QuantScheme>().unwrap(), s);
        }
        assert!("u9:f16x32".parse::<QuantScheme>().is_err());
        assert!("u4:f16x33".parse::<QuantScheme>().is_err());
        assert!("f32:f16x32".parse::<QuantScheme>().is_err());
    }

    #[test]
    fn int8_rounding_is_symmetric_and_marks_infinities() {
        let x = [1.0, -1.0, 0.5, -0.5, 0.0];
        let mut q = [0i8; 5];
        let s = quantise_int8(&x, &mut q);
        assert_eq!(q, [127, -127, 64, -64, 0]);
        assert_eq!(s, 1.0 / 127.0);
        assert!(quantise_int8(&[f32::INFINITY, 0.0], &mut q[..2]).is_nan());
        assert_eq!(quantise_int8(&[0.0; 4], &mut q[..4]), 0.0);
    }

    #[test]
    fn bf16_rounding_is_that_of_ieee() {
        for bits in (0..=u32::MAX).step_by(4093).chain([0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, 0xffff_ffff]) {
            let (v, got) = (f32::from_bits(bits), f32::from_bits(bits));
            let (got, want) = (round_bf16(got), half::bf16::from_f32(v));
            assert_eq!(got, want.to_bits(), "{bits:08x}");
            assert_eq!(widen_bf16(got).to_bits(), want.to_f32().to_bits());
        }
    }

    #[test]
    fn bits_count_scales() {
        assert_eq!(QuantScheme::Q4_0.bits_per_weight(4096), 4.5);
        assert_eq!(QuantScheme::Q4_1.bits_per_weight(4096), 5.0);
        assert_eq!(QuantScheme::Q8_0.bits_per_weight(4096), 8.5);
    }
}
