//! Precision as data: what the stored codes of a weight mean.
//!
//! A [`QuantScheme`] says how elements are coded, at which granularity scales stand and what is subtracted or
//! added. Where the bytes lie is another matter ([`crate::panel`]): the two axes are orthogonal, so packing cannot
//! change precision and quantising cannot change layout.

mod elem;
mod text;

pub use elem::{E2M1_HALVES, E4M3_NUMBERS, E5M2_NUMBERS, Elem, IQ4_CODEBOOK, ScaleType};

use serde::{Deserialize, Serialize};

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

/// Scales in one or two levels. The value of a two-level scale is inner times outer, rounded to f32 once.
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
    /// An integer zero point a scale group, subtracted from the code before scaling (AWQ, GPTQ).
    Zero(ScaleType),
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

    /// GGUF Q5_0: 32 5-bit codes, offset 16, an f16 scale.
    pub const Q5_0: Self = Self::grouped(Elem::U(5), 32, ScaleType::F16, Offset::Const(16));
    /// GGUF Q5_1: 32 5-bit codes, an f16 scale and an f16 minimum.
    pub const Q5_1: Self =
        Self::grouped(Elem::U(5), 32, ScaleType::F16, Offset::Float(Levels::group(32, ScaleType::F16)));
    /// GGUF Q2_K: 2-bit codes, scales and minima by 16 under f16 by 256.
    pub const Q2_K: Self = Self::super_block(Elem::U(2), Levels::K16_U8, Offset::Float(Levels::K16_U8));
    /// GGUF Q3_K: 3-bit codes, offset 4, signed scales by 16 under f16 by 256.
    pub const Q3_K: Self = Self::super_block(Elem::U(3), Levels::K16_S8, Offset::Const(4));
    /// GGUF Q4_K: 4-bit codes, scales and minima by 32 under f16 by 256.
    pub const Q4_K: Self = Self::super_block(Elem::U(4), Levels::K32_U8, Offset::Float(Levels::K32_U8));
    /// GGUF Q5_K: 5-bit codes, scales and minima by 32 under f16 by 256.
    pub const Q5_K: Self = Self::super_block(Elem::U(5), Levels::K32_U8, Offset::Float(Levels::K32_U8));
    /// GGUF Q6_K: 6-bit codes, offset 32, signed scales by 16 under f16 by 256.
    pub const Q6_K: Self = Self::super_block(Elem::U(6), Levels::K16_S8, Offset::Const(32));
    /// GGUF IQ4_NL: a codebook of 16 numbers and an f16 scale by 32.
    pub const IQ4_NL: Self = Self::grouped(Elem::Iq4, 32, ScaleType::F16, Offset::None);
    /// GGUF IQ4_XS: the same codebook, signed scales by 32 under f16 by 256.
    pub const IQ4_XS: Self =
        Self::super_block(Elem::Iq4, Levels::two(32, ScaleType::S8, 256, ScaleType::F16), Offset::None);
    /// OCP MXFP4: 4-bit floats, a power of two by 32.
    pub const MXFP4: Self = Self::grouped(Elem::E2M1, 32, ScaleType::E8M0, Offset::None);
    /// NVFP4: 4-bit floats, an E4M3 scale by 16 under one in f32 a row.
    pub const NVFP4: Self =
        Self::super_block(Elem::E2M1, Levels::two(16, ScaleType::E4M3, 0, ScaleType::F32), Offset::None);

    /// A floating-point element without scales.
    pub const fn float(elem: Elem) -> Self {
        Self { elem, scale: None, offset: Offset::None }
    }

    /// Codes with one level of scales, a scale a row and group of `k` (0: the whole row).
    pub const fn grouped(elem: Elem, k: u32, ty: ScaleType, offset: Offset) -> Self {
        Self { elem, scale: Some(Levels::group(k, ty)), offset }
    }

    const fn super_block(elem: Elem, scale: Levels, offset: Offset) -> Self {
        Self { elem, scale: Some(scale), offset }
    }

    /// Symmetric round-to-nearest INT8: signed bytes, f16 scales by group (0: per channel).
    pub const fn int8(group: u32) -> Self {
        Self::grouped(Elem::S(8), group, ScaleType::F16, Offset::None)
    }

    /// Asymmetric round-to-nearest INT4: nibbles, f16 scale and minimum by group (0: per channel).
    pub const fn int4(group: u32) -> Self {
        Self::grouped(Elem::U(4), group, ScaleType::F16, Offset::Float(Levels::group(group, ScaleType::F16)))
    }

    /// E4M3 with f32 scales by group (0: per channel). Scales of a block of rows, or of a whole tensor, are repeated by row.
    pub const fn fp8(group: u32) -> Self {
        Self::grouped(Elem::E4M3, group, ScaleType::F32, Offset::None)
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
        let offsets = match (&self.offset, &self.scale) {
            (Offset::Float(l), _) => levels(l),
            (Offset::Zero(ty), Some(scale)) => level(&Level { ty: *ty, ..scale.inner }),
            _ => 0.0,
        };
        f64::from(self.elem.bits()) + self.scale.as_ref().map_or(0.0, levels) + offsets
    }

    /// The coarser level of the scales, if there is one.
    pub fn outer(&self) -> Option<Level> {
        self.scale.and_then(|s| s.outer)
    }

    /// Elements along k that share an outer scale, for a row of `k` elements.
    pub fn outer_group(&self, k: usize) -> usize {
        match self.outer() {
            Some(outer) if outer.k != 0 => outer.k as usize,
            _ => k.max(1),
        }
    }

    /// The constant that is subtracted from codes (0 where there is none).
    pub fn constant(&self) -> i32 {
        if let Offset::Const(c) = self.offset { c } else { 0 }
    }

    /// Whether [`QuantScheme::combine`] changes stored numbers: there are two levels or zero points.
    pub fn combines(&self) -> bool {
        self.outer().is_some() || matches!(self.offset, Offset::Zero(_))
    }

    /// The number type of the stored offsets, floating or zero points, if there are any.
    pub fn offset_type(&self) -> Option<ScaleType> {
        match self.offset {
            Offset::Float(levels) => Some(levels.inner.ty),
            Offset::Zero(ty) => Some(ty),
            Offset::None | Offset::Const(_) => None,
        }
    }

    /// The number type of the stored outer offsets, if there are any.
    pub fn outer_offset_type(&self) -> Option<ScaleType> {
        match self.offset {
            Offset::Float(Levels { outer: Some(outer), .. }) => Some(outer.ty),
            _ => None,
        }
    }

    /// The scale and the offset that [`QuantScheme::dequant`] takes, from stored numbers: THE definition of two levels and of
    /// zero points. `outer` numbers are looked at only where the scheme has that level.
    ///
    /// In f32: a two-level number is `inner * outer`; the offset of a zero point is `-(zero * scale)`. The latter is exact for
    /// scales of 16 bits, so that `code * scale + offset` is `(code - zero) * scale` rounded once, as others define it.
    #[inline]
    pub fn combine(&self, scale: f32, outer_scale: f32, offset: f32, outer_offset: f32) -> (f32, f32) {
        let scale = if self.outer().is_some() { scale * outer_scale } else { scale };
        let offset = match self.offset {
            Offset::None | Offset::Const(_) => 0.0,
            Offset::Float(Levels { outer: None, .. }) => offset,
            Offset::Float(_) => offset * outer_offset,
            Offset::Zero(_) => -(offset * scale),
        };
        (scale, offset)
    }

    /// The value of a code: THE definition of what a weight means.
    ///
    /// `code` is the number that the element's code stands for ([`Elem::number`]), `scale` and `offset` are those of
    /// [`QuantScheme::combine`]. In f32, in this order, each operation rounded to nearest even:
    /// `None` and `Const`: `code - offset` is exact, then one multiplication by `scale`;
    /// `Float` and `Zero`: one multiplication `code * scale`, then one addition of `offset`.
    /// Floating-point elements without scales pass through (`scale` and `offset` are not looked at).
    #[inline]
    pub fn dequant(&self, code: f32, scale: f32, offset: f32) -> f32 {
        if self.elem.is_float() {
            return code;
        }
        match self.offset {
            Offset::None => code * scale,
            Offset::Const(c) => (code - c as f32) * scale,
            Offset::Float(_) | Offset::Zero(_) => code * scale + offset,
        }
    }

    /// Whether the scheme is one that this version can pack and run, with the reason if not.
    pub fn check(&self) -> Result<(), String> {
        let Some(scale) = &self.scale else {
            return match (self.elem.is_float(), self.offset) {
                (true, Offset::None) => Ok(()),
                (true, _) => Err("a floating-point element takes no offset".into()),
                (false, _) => Err("an element that is no plain float needs a scale".into()),
            };
        };
        match self.elem {
            e if e.is_float() => return Err("a plain floating-point element takes no scale".into()),
            Elem::U(b) if !(1..=8).contains(&b) => return Err(format!("no unsigned code has {b} bits")),
            Elem::S(b) if !(2..=8).contains(&b) => return Err(format!("no signed code has {b} bits")),
            _ => {}
        }
        scale.check("scale")?;
        let integer = matches!(self.elem, Elem::U(_) | Elem::S(_));
        match &self.offset {
            Offset::None => Ok(()),
            _ if !integer => Err(format!("{:?} takes no offset", self.elem)),
            Offset::Const(c) if (-256..=256).contains(c) => Ok(()),
            Offset::Const(c) => Err(format!("offset {c} is out of range")),
            Offset::Zero(ty) if ty.is_integer() => Ok(()),
            Offset::Zero(ty) => Err(format!("a zero point is an integer, no {ty}")),
            Offset::Float(o) => {
                o.check("offset")?;
                let groups = |l: &Levels| (l.inner.k, l.outer.map(|outer| outer.k));
                if groups(o) != groups(scale) {
                    return Err("offset and scale groups differ".into());
                }
                Ok(())
            }
        }
    }
}

impl Levels {
    const K32_U8: Self = Self::two(32, ScaleType::U8, 256, ScaleType::F16);
    const K16_U8: Self = Self::two(16, ScaleType::U8, 256, ScaleType::F16);
    const K16_S8: Self = Self::two(16, ScaleType::S8, 256, ScaleType::F16);

    /// One scale a row and group of `k` elements.
    pub const fn group(k: u32, ty: ScaleType) -> Self {
        // A per-channel level spans the whole k axis of one row.
        Self { inner: Level { rows: 1, k, ty }, outer: None }
    }

    /// A scale a row and group of `k` elements, times one a row and group of `outer_k` (0: the whole row).
    pub const fn two(k: u32, ty: ScaleType, outer_k: u32, outer_ty: ScaleType) -> Self {
        Self { inner: Level { rows: 1, k, ty }, outer: Some(Level { rows: 1, k: outer_k, ty: outer_ty }) }
    }

    fn check(&self, what: &str) -> Result<(), String> {
        let Level { rows, k, ty } = self.inner;
        if rows != 1 || self.outer.is_some_and(|outer| outer.rows != 1) {
            return Err(format!(
                "{what}: packed scales are those of one row; repeat a scale that rows share"
            ));
        }
        if !k.is_multiple_of(16) {
            return Err(format!("{what}: group size {k} is no multiple of 16"));
        }
        match self.outer {
            None if ty.is_integer() => {
                Err(format!("{what}: integer scales ({ty}) need a floating-point scale above them"))
            }
            None => Ok(()),
            Some(outer) if outer.ty.bytes() == 1 => {
                Err(format!("{what}: the outer level is f32, f16 or bf16, no {}", outer.ty))
            }
            Some(outer) if k == 0 || !outer.k.is_multiple_of(k) => {
                Err(format!("{what}: outer groups of {} are not made of groups of {k}", outer.k))
            }
            Some(_) => Ok(()),
        }
    }
}

/// What a linear or attention computes in: declared, shown by `inspect`, never chosen silently.
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

impl Compute {
    /// Whether products are of floats: all that attention can declare.
    pub const fn of_floats(self) -> bool {
        matches!(self, Compute::F32 | Compute::Bf16)
    }
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

/// Rounds to binary16, to nearest and ties to even; numbers beyond its range become its largest. Infinities and NaNs stay such: they are
/// somebody's mistake, which must not pass unseen.
#[inline]
pub fn round_f16(v: f32) -> u16 {
    let largest = half::f16::MAX.to_f32_const();
    half::f16::from_f32(if v.is_finite() { v.clamp(-largest, largest) } else { v }).to_bits()
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn f16_rounding_is_that_of_ieee_but_at_its_end() {
        for bits in (0..=u32::MAX).step_by(4093) {
            let v = f32::from_bits(bits);
            let want = half::f16::from_f32(v);
            let beyond = want.is_infinite() && v.is_finite();
            let want =
                if beyond { half::f16::MAX.to_bits() | want.to_bits() & 0x8000 } else { want.to_bits() };
            assert_eq!(round_f16(v), want, "{v}");
        }
        assert_eq!([65519.0, 65520.0, 1e30, f32::INFINITY].map(round_f16), [0x7bff, 0x7bff, 0x7bff, 0x7c00]);
        assert_eq!([f32::NEG_INFINITY, -1e30, -0.0, 3e-8].map(round_f16), [0xfc00, 0xfbff, 0x8000, 1]);
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
        assert_eq!(QuantScheme::Q4_K.bits_per_weight(4096), 4.625);
        assert_eq!(QuantScheme::Q6_K.bits_per_weight(4096), 6.5625);
        assert_eq!(QuantScheme::MXFP4.bits_per_weight(4096), 4.25);
    }
}
