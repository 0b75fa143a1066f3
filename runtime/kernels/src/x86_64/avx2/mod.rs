//! AVX2 with FMA and F16C.

pub(crate) mod attention;
pub(crate) mod linear_bf16;
pub(crate) mod linear_f32;
pub(crate) mod linear_int8;
pub(crate) mod quantise;

use super::prefetch;
use crate::math::{EXP_MAX, EXP_MIN, LN2_HI, LN2_LO, LOG2_E, POLY, ROUND};
use bessemer_format::ScaleType;
use std::arch::x86_64::*;

super::portable_with!("avx2,fma,f16c");

/// Sixteen scales or offsets, as two halves.
///
/// # Safety
/// `16 * ty.bytes()` bytes are readable at `p`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn load16(ty: ScaleType, p: *const u8) -> [__m256; 2] {
    [0, 1].map(|half| {
        // SAFETY: each half reads exactly 8 numbers of the type.
        unsafe {
            let p = p.add(half * 8 * ty.bytes());
            match ty {
                ScaleType::F32 => _mm256_loadu_ps(p.cast()),
                ScaleType::F16 => _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
                ScaleType::Bf16 => {
                    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                }
            }
        }
    })
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
