//! AVX2 with FMA and F16C.

pub(crate) mod attention;
pub(crate) mod linear_bf16;
pub(crate) mod linear_f32;
pub(crate) mod linear_int8;
pub(crate) mod quantise;

use super::{Side, prefetch};
use crate::math::{EXP_MAX, EXP_MIN, LN2_HI, LN2_LO, LOG2_E, POLY, ROUND};
use bessemer_format::{Offset, PanelLayout, ScaleType};
use std::arch::x86_64::*;

super::portable_with!("avx2,fma,f16c");

/// Sixteen scales or offsets of a type that holds numbers as they are, as two halves; others read as binary32.
///
/// # Safety
/// `16 * ty.bytes()` bytes are readable at `p`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load16(ty: ScaleType, p: *const u8) -> [__m256; 2] {
    [0, 1].map(|half| {
        // SAFETY: each half reads exactly 8 numbers of the type.
        unsafe {
            match ty {
                ScaleType::F16 => _mm256_cvtph_ps(_mm_loadu_si128(p.add(half * 16).cast())),
                ScaleType::Bf16 => {
                    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(half * 16).cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                }
                _ => _mm256_loadu_ps(p.add(half * 32).cast()),
            }
        }
    })
}

/// Sixteen scales or offsets, as two halves.
///
/// # Safety
/// `16 * ty.bytes()` bytes are readable at `p`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn any16(ty: ScaleType, p: *const u8) -> [__m256; 2] {
    [0, 1].map(|half| {
        // SAFETY: each half reads exactly 8 numbers of the type.
        unsafe {
            let all = p;
            let p = p.add(half * 8 * ty.bytes());
            match ty {
                ScaleType::F32 | ScaleType::F16 | ScaleType::Bf16 => load16(ty, all)[half],
                ScaleType::U8 => _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))),
                ScaleType::S8 => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))),
                ScaleType::E4M3 => e4m3(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))),
                ScaleType::E8M0 => {
                    let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
                    // The lowest power is subnormal, and the highest code no number: both are the code's bits and one more.
                    let low = _mm256_cmpeq_epi32(codes, _mm256_setzero_si256());
                    let ends = _mm256_or_si256(low, _mm256_cmpeq_epi32(codes, _mm256_set1_epi32(255)));
                    let more = _mm256_and_si256(ends, _mm256_set1_epi32(1 << 22));
                    _mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32::<23>(codes), more))
                }
            }
        }
    })
}

/// The numbers of the 8 E4M3 codes in the low bytes of 32-bit lanes, whose other bytes are zero.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn e4m3(codes: __m256i) -> __m256 {
    let set = |v: i32| _mm256_set1_epi32(v);
    let magnitude = _mm256_and_si256(codes, set(0x7f));
    let sign = _mm256_slli_epi32::<24>(_mm256_xor_si256(codes, magnitude));
    // Exponent and mantissa in place, the bias corrected. A subnormal, thereby read as `2^-7 * (1 + m / 8)`, is
    // `m / 8 * 2^-6`: twice that, less 2^-6.
    let normal = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32::<20>(magnitude), set(120 << 23)));
    let twice = _mm256_fmadd_ps(normal, _mm256_set1_ps(2.0), _mm256_set1_ps(-0.015625));
    let subnormal = _mm256_castsi256_ps(_mm256_cmpgt_epi32(set(8), magnitude));
    let number = _mm256_castps_si256(_mm256_blendv_ps(normal, twice, subnormal));
    let nan = _mm256_and_si256(_mm256_cmpeq_epi32(magnitude, set(0x7f)), set(0x7fc0_0000));
    _mm256_castsi256_ps(_mm256_or_si256(_mm256_or_si256(number, nan), sign))
}

/// Scales and offsets (zero where there are none) of run `r`, which lie from `side` on.
///
/// # Safety
/// `panel` is a panel of `layout`, the one that `stored` was made of, and `r` one of its runs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scales(
    stored: Side,
    layout: &PanelLayout,
    panel: *const u8,
    side: *const u8,
    r: usize,
) -> ([__m256; 2], [__m256; 2]) {
    // SAFETY: both lie inside the panel, one behind the other.
    unsafe {
        if stored.plain {
            let offset = stored.offset.map(|ty| load16(ty, side.add(layout.scale_bytes())));
            return (load16(stored.scale, side), offset.unwrap_or([_mm256_setzero_ps(); 2]));
        }
        combine(stored, layout, panel, side, r)
    }
}

/// The scales and offsets of run `r` from the stored ones, by [`bessemer_format::QuantScheme::combine`].
///
/// # Safety
/// As [`scales`].
#[cold]
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn combine(
    stored: Side,
    layout: &PanelLayout,
    panel: *const u8,
    side: *const u8,
    r: usize,
) -> ([__m256; 2], [__m256; 2]) {
    // SAFETY: the outer level lies inside the panel, as the inner ones do.
    let load = |(ty, at): (ScaleType, usize)| unsafe { any16(ty, panel.add(at)) };
    // SAFETY: as above.
    let (mut scale, mut offset) = unsafe {
        let offset = stored.offset.map(|ty| any16(ty, side.add(layout.scale_bytes())));
        (any16(stored.scale, side), offset.unwrap_or([_mm256_setzero_ps(); 2]))
    };
    let times = |a: [__m256; 2], b: [__m256; 2]| [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])];
    let outer = layout.outer(r);
    if let Some(outer) = outer {
        scale = times(scale, load(outer.scale));
    }
    if let Offset::Zero(_) = layout.scheme().offset {
        offset = times(offset, scale).map(|o| _mm256_xor_ps(o, _mm256_set1_ps(-0.0)));
    } else if let Some(outer) = outer.and_then(|o| o.offset) {
        offset = times(offset, load(outer));
    }
    (scale, offset)
}

/// [`crate::math::exp`] of 8 lanes, with the same bits.
#[inline]
#[target_feature(enable = "avx2")]
fn exp(x: __m256) -> __m256 {
    let set = |v: f32| _mm256_set1_ps(v);
    let round = set(ROUND);
    let t = _mm256_add_ps(_mm256_mul_ps(x, set(LOG2_E)), round);
    let n = _mm256_sub_ps(t, round);
    let r = _mm256_sub_ps(x, _mm256_mul_ps(n, set(LN2_HI)));
    let r = _mm256_sub_ps(r, _mm256_mul_ps(n, set(LN2_LO)));
    let mut p = set(POLY[0]);
    for &c in &POLY[1..] {
        p = _mm256_add_ps(_mm256_mul_ps(p, r), set(c));
    }
    let y = _mm256_add_ps(_mm256_mul_ps(p, _mm256_mul_ps(r, r)), r);
    let y = _mm256_add_ps(y, set(1.0));
    let i = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(round));
    let h = _mm256_srai_epi32::<1>(i);
    let power = |e| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(e, _mm256_set1_epi32(127))));
    let y = _mm256_mul_ps(_mm256_mul_ps(y, power(h)), power(_mm256_sub_epi32(i, h)));
    let y = _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, set(EXP_MIN)), y);
    _mm256_blendv_ps(y, set(f32::INFINITY), _mm256_cmp_ps::<_CMP_GT_OQ>(x, set(EXP_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[target_feature(enable = "avx2")]
    fn check(x: [f32; 8]) {
        // SAFETY: the arrays are 8 floats long.
        let got: [f32; 8] = unsafe { std::mem::transmute(exp(_mm256_loadu_ps(x.as_ptr()))) };
        for (x, got) in x.into_iter().zip(got) {
            let want = crate::math::exp(x);
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{x}: {got} or {want}");
        }
    }

    #[test]
    fn exp_has_the_scalar_bits() {
        if !crate::testkit::host_runs("avx2 exp", crate::Isa::Avx2) {
            return;
        }
        for bits in (0..u32::MAX - 8 * 997).step_by(8 * 997) {
            // SAFETY: the host was asked above.
            unsafe { check(std::array::from_fn(|i| f32::from_bits(bits + 997 * i as u32))) };
        }
    }
}
