//! Activations to signed bytes.

use bessemer_format::act::Int8Layout;
use std::arch::x86_64::*;

const LANES: usize = 16;

/// [`crate::linear::QuantiseFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn quantise(layout: &Int8Layout, x: &[f32], out: &mut [u8]) {
    let magnitude = _mm512_set1_epi32(i32::MAX);
    for (g, group) in x.chunks(layout.group).enumerate() {
        // The bits of a magnitude are ordered as the magnitude is, with infinities and NaNs on top.
        let mut max = _mm512_setzero_si512();
        for x in group.chunks(LANES) {
            max = _mm512_max_epu32(max, _mm512_and_si512(_mm512_castps_si512(load(x)), magnitude));
        }
        let amax = f32::from_bits(_mm512_reduce_max_epu32(max));
        let finite = amax.is_finite();
        let scale = if finite { amax / 127.0 } else { f32::NAN };
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let inverse = _mm512_set1_ps(if inverse.is_finite() { inverse } else { 0.0 });
        let mut sum = _mm512_setzero_si512();
        for (i, x) in group.chunks(LANES).enumerate() {
            // The conversion rounds to nearest even; a finite group's products are at most 127 after rounding.
            let codes = match finite {
                true => _mm512_cvtps_epi32(_mm512_mul_ps(load(x), inverse)),
                false => _mm512_setzero_si512(),
            };
            sum = _mm512_add_epi32(sum, codes);
            let out = &mut out[g * layout.group + i * LANES..][..LANES];
            // SAFETY: `out` is 16 bytes long.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(codes)) };
        }
        let sum = _mm512_reduce_add_epi32(sum);
        out[layout.scales_at() + 4 * g..][..4].copy_from_slice(&scale.to_le_bytes());
        out[layout.sums_at() + 4 * g..][..4].copy_from_slice(&sum.to_le_bytes());
    }
    out[layout.sums_at() + 4 * layout.groups()..].fill(0);
}

/// Up to 16 floats, the rest zero.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32]) -> __m512 {
    // SAFETY: the mask selects as many elements as the slice has (lanes beyond it are not accessed).
    unsafe { _mm512_maskz_loadu_ps((0xffff_u32 >> (LANES - x.len().min(LANES))) as u16, x.as_ptr()) }
}
