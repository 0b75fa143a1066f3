//! AVX-512 with VNNI and VBMI.

pub(crate) mod attention;
pub(crate) mod linear_bf16;
pub(crate) mod linear_f32;
pub(crate) mod linear_int8;
pub(crate) mod quantise;

use super::prefetch;
use crate::math::{EXP_MIN, LN2_HI, LN2_LO, LOG2_E, POLY, ROUND};
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
