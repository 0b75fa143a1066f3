//! AVX-512 with VNNI and VBMI.

pub(crate) mod attention;
pub(crate) mod linear_f32;
pub(crate) mod linear_int8;
pub(crate) mod quantise;

use super::prefetch;
use crate::math::{EXP_MAX, EXP_MIN, LN2_HI, LN2_LO, LOG2_E, POLY, ROUND};
use bessemer_format::ScaleType;
use std::arch::x86_64::*;

super::portable_with!("avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c");

/// Sixteen scales or offsets.
///
/// # Safety
/// `16 * ty.bytes()` bytes are readable at `p`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load16(ty: ScaleType, p: *const u8) -> __m512 {
    // SAFETY: each load reads exactly 16 numbers of the type.
    unsafe {
        match ty {
            ScaleType::F32 => _mm512_loadu_ps(p.cast()),
            ScaleType::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())),
            ScaleType::Bf16 => {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
        }
    }
}

/// [`crate::math::exp`] of 16 lanes, with the same bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp(x: __m512) -> __m512 {
    let set = |v: f32| _mm512_set1_ps(v);
    let round = set(ROUND);
    let t = _mm512_add_ps(_mm512_mul_ps(x, set(LOG2_E)), round);
    let n = _mm512_sub_ps(t, round);
    let r = _mm512_sub_ps(x, _mm512_mul_ps(n, set(LN2_HI)));
    let r = _mm512_sub_ps(r, _mm512_mul_ps(n, set(LN2_LO)));
    let mut p = set(POLY[0]);
    for &c in &POLY[1..] {
        p = _mm512_add_ps(_mm512_mul_ps(p, r), set(c));
    }
    let y = _mm512_add_ps(_mm512_mul_ps(p, _mm512_mul_ps(r, r)), r);
    let y = _mm512_add_ps(y, set(1.0));
    let i = _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_castps_si512(round));
    let h = _mm512_srai_epi32::<1>(i);
    let power = |e| _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(e, _mm512_set1_epi32(127))));
    let y = _mm512_mul_ps(_mm512_mul_ps(y, power(h)), power(_mm512_sub_epi32(i, h)));
    let low = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, set(EXP_MIN));
    let high = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, set(EXP_MAX));
    let y = _mm512_mask_blend_ps(low, y, _mm512_setzero_ps());
    _mm512_mask_blend_ps(high, y, set(f32::INFINITY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[target_feature(enable = "avx512f")]
    fn check(x: [f32; 16]) {
        // SAFETY: the arrays are 16 floats long.
        let got: [f32; 16] = unsafe { std::mem::transmute(exp(_mm512_loadu_ps(x.as_ptr()))) };
        for (x, got) in x.into_iter().zip(got) {
            let want = crate::math::exp(x);
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{x}: {got} or {want}");
        }
    }

    #[test]
    fn exp_has_the_scalar_bits() {
        if !crate::testkit::host_runs("avx512 exp", crate::Isa::Avx512) {
            return;
        }
        for bits in (0..u32::MAX - 16 * 997).step_by(16 * 997) {
            // SAFETY: the host was asked above.
            unsafe { check(std::array::from_fn(|i| f32::from_bits(bits + 997 * i as u32))) };
        }
    }
}
