//! AVX-512 with VNNI and VBMI.

pub(crate) mod attention;
pub(crate) mod attention_bf16;
mod attention_widened;
mod gemm_int8;
pub(crate) mod linear_bf16;
pub(crate) mod linear_f32;
pub(crate) mod linear_int8;
pub(crate) mod quantise;
mod sums;

use super::{Side, prefetch};
use crate::math::{EXP_MIN, LN2_HI, LN2_LO, LOG2_E, POLY, ROUND};
use bessemer_format::{Offset, PanelLayout, ScaleType};
use std::arch::x86_64::*;

super::portable_with!("avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c");

/// Sixteen scales or offsets of a type that holds numbers as they are; others read as binary32.
///
/// # Safety
/// `16 * ty.bytes()` bytes are readable at `p`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load16(ty: ScaleType, p: *const u8) -> __m512 {
    // SAFETY: each load reads exactly 16 numbers of the type.
    unsafe {
        match ty {
            ScaleType::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())),
            ScaleType::Bf16 => {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
            _ => _mm512_loadu_ps(p.cast()),
        }
    }
}

/// Sixteen scales or offsets.
///
/// # Safety
/// `16 * ty.bytes()` bytes are readable at `p`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn any16(ty: ScaleType, p: *const u8) -> __m512 {
    // SAFETY: each load reads exactly 16 numbers of the type.
    unsafe {
        match ty {
            ScaleType::F32 | ScaleType::F16 | ScaleType::Bf16 => load16(ty, p),
            ScaleType::U8 => _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))),
            ScaleType::S8 => _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))),
            ScaleType::E4M3 => e4m3(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))),
            ScaleType::E8M0 => {
                let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
                // The lowest power is subnormal, and the highest code no number: both are the code's bits and one more.
                let ends = _mm512_cmpeq_epi32_mask(codes, _mm512_setzero_si512())
                    | _mm512_cmpeq_epi32_mask(codes, _mm512_set1_epi32(255));
                let power = _mm512_slli_epi32::<23>(codes);
                _mm512_castsi512_ps(_mm512_mask_or_epi32(power, ends, power, _mm512_set1_epi32(1 << 22)))
            }
        }
    }
}

/// The numbers of the 16 E4M3 codes in the low bytes of 32-bit lanes, whose other bytes are zero.
#[inline]
#[target_feature(enable = "avx512f")]
fn e4m3(codes: __m512i) -> __m512 {
    let set = |v: i32| _mm512_set1_epi32(v);
    let magnitude = _mm512_and_si512(codes, set(0x7f));
    let sign = _mm512_slli_epi32::<24>(_mm512_xor_si512(codes, magnitude));
    // Exponent and mantissa in place, the bias corrected. A subnormal, thereby read as `2^-7 * (1 + m / 8)`, is
    // `m / 8 * 2^-6`: twice that, less 2^-6.
    let normal = _mm512_add_epi32(_mm512_slli_epi32::<20>(magnitude), set(120 << 23));
    let subnormal = _mm512_cmplt_epi32_mask(magnitude, set(8));
    let (normal, two, step) = (_mm512_castsi512_ps(normal), _mm512_set1_ps(2.0), _mm512_set1_ps(-0.015625));
    let number = _mm512_castps_si512(_mm512_mask_fmadd_ps(normal, subnormal, two, step));
    let nan = _mm512_cmpeq_epi32_mask(magnitude, set(0x7f));
    let number = _mm512_mask_or_epi32(number, nan, number, set(0x7fc0_0000));
    _mm512_castsi512_ps(_mm512_or_si512(number, sign))
}

/// Scales and offsets (zero where there are none) of run `r`, which lie from `side` on.
///
/// # Safety
/// `panel` is a panel of `layout`, the one that `stored` was made of, and `r` one of its runs.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn scales(
    stored: Side,
    layout: &PanelLayout,
    panel: *const u8,
    side: *const u8,
    r: usize,
) -> (__m512, __m512) {
    // SAFETY: both lie inside the panel, one behind the other.
    unsafe {
        if stored.plain {
            let offset = stored.offset.map(|ty| load16(ty, side.add(layout.scale_bytes())));
            return (load16(stored.scale, side), offset.unwrap_or(_mm512_setzero_ps()));
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
#[target_feature(enable = "avx512f")]
unsafe fn combine(
    stored: Side,
    layout: &PanelLayout,
    panel: *const u8,
    side: *const u8,
    r: usize,
) -> (__m512, __m512) {
    // SAFETY: the outer level lies inside the panel, as the inner ones do.
    let load = |(ty, at): (ScaleType, usize)| unsafe { any16(ty, panel.add(at)) };
    // SAFETY: as above.
    let (scale, offset) = unsafe {
        let offset = stored.offset.map(|ty| any16(ty, side.add(layout.scale_bytes())));
        (any16(stored.scale, side), offset.unwrap_or(_mm512_setzero_ps()))
    };
    let outer = layout.outer(r);
    let scale = outer.map_or(scale, |o| _mm512_mul_ps(scale, load(o.scale)));
    let offset = match (layout.scheme().offset, outer.and_then(|o| o.offset)) {
        (Offset::Zero(_), _) => {
            let product = _mm512_castps_si512(_mm512_mul_ps(offset, scale));
            _mm512_castsi512_ps(_mm512_xor_si512(product, _mm512_set1_epi32(i32::MIN)))
        }
        (_, Some(outer)) => _mm512_mul_ps(offset, load(outer)),
        (_, None) => offset,
    };
    (scale, offset)
}

/// [`crate::math::exp`] of 16 lanes that are at most 0, with products fused into sums and a scaling in one instruction: half
/// of the instructions, as exact, but not the same bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp(x: __m512) -> __m512 {
    let set = |v: f32| _mm512_set1_ps(v);
    let n = _mm512_sub_ps(_mm512_fmadd_ps(x, set(LOG2_E), set(ROUND)), set(ROUND));
    let r = _mm512_fnmadd_ps(n, set(LN2_LO), _mm512_fnmadd_ps(n, set(LN2_HI), x));
    let mut p = set(POLY[0]);
    for &c in &POLY[1..] {
        p = _mm512_fmadd_ps(p, r, set(c));
    }
    let y = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), set(1.0));
    // Not less: NaN is kept.
    let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, set(EXP_MIN));
    _mm512_maskz_scalef_ps(kept, y, n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[target_feature(enable = "avx512f")]
    fn check(x: [f32; 16]) {
        // SAFETY: the arrays are 16 floats long.
        let got: [f32; 16] = unsafe { std::mem::transmute(exp(_mm512_loadu_ps(x.as_ptr()))) };
        for (x, got) in x.into_iter().zip(got) {
            if x.is_nan() {
                assert!(got.is_nan());
            } else if x < EXP_MIN {
                assert_eq!(got.to_bits(), 0, "{x}");
            } else {
                let want = f64::from(x).exp();
                let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
                assert!((f64::from(got) - want).abs() <= ulp, "{x}: {got} or {want}");
            }
        }
    }

    #[test]
    fn exp_of_what_is_not_positive_is_within_an_ulp() {
        if !crate::testkit::host_runs("avx512 exp", crate::Isa::Avx512) {
            return;
        }
        // From -0 through minus infinity to NaN, and 0.
        for bits in (1 << 31..u32::MAX - 16 * 97).step_by(16 * 97) {
            // SAFETY: the host was asked above.
            unsafe { check(std::array::from_fn(|i| f32::from_bits(bits + 97 * i as u32))) };
        }
        let edges = [0.0, -0.0, EXP_MIN, EXP_MIN.next_down(), f32::NEG_INFINITY, f32::NAN];
        // SAFETY: as above.
        unsafe { check(std::array::from_fn(|i| edges[i % edges.len()])) };
    }
}
