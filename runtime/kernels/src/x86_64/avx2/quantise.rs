//! Activations to signed bytes.

use bessemer_format::act::Int8Layout;
use std::arch::x86_64::*;

const LANES: usize = 16;

/// [`crate::linear::QuantiseFn`].
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn quantise(layout: &Int8Layout, x: &[f32], out: &mut [u8]) {
    let magnitude = _mm256_set1_epi32(i32::MAX);
    for (g, group) in x.chunks(layout.group).enumerate() {
        // The bits of a magnitude are ordered as the magnitude is, with infinities and NaNs on top.
        let mut max = _mm256_setzero_si256();
        for x in group.chunks(LANES) {
            for v in load(x) {
                max = _mm256_max_epu32(max, _mm256_and_si256(_mm256_castps_si256(v), magnitude));
            }
        }
        let amax = f32::from_bits(lanes(max).into_iter().fold(0, |m, v| m.max(v as u32)));
        let finite = amax.is_finite();
        let scale = if finite { amax / 127.0 } else { f32::NAN };
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let inverse = _mm256_set1_ps(if inverse.is_finite() { inverse } else { 0.0 });
        let mut sum = _mm256_setzero_si256();
        for (i, x) in group.chunks(LANES).enumerate() {
            // The conversion rounds to nearest even; a finite group's products are at most 127 after rounding.
            let [a, b] = load(x).map(|v| match finite {
                true => _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse)),
                false => _mm256_setzero_si256(),
            });
            sum = _mm256_add_epi32(sum, _mm256_add_epi32(a, b));
            // Packs within 128-bit halves, whose middle quarters then trade places.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
            let codes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            let out = &mut out[g * layout.group + i * LANES..][..LANES];
            // SAFETY: `out` is 16 bytes long.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), codes) };
        }
        let sum: i32 = lanes(sum).into_iter().sum();
        out[layout.scales_at() + 4 * g..][..4].copy_from_slice(&scale.to_le_bytes());
        out[layout.sums_at() + 4 * g..][..4].copy_from_slice(&sum.to_le_bytes());
    }
    out[layout.sums_at() + 4 * layout.groups()..].fill(0);
}

/// Up to 16 floats, the rest zero.
#[inline]
#[target_feature(enable = "avx2")]
fn load(x: &[f32]) -> [__m256; 2] {
    let mut padded = [0.0; LANES];
    let x = match x.first_chunk::<LANES>() {
        Some(x) => x,
        None => {
            padded[..x.len()].copy_from_slice(x);
            &padded
        }
    };
    // SAFETY: `x` is 16 floats long.
    unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
}

#[inline]
#[target_feature(enable = "avx2")]
fn lanes(v: __m256i) -> [i32; 8] {
    let mut out = [0; 8];
    // SAFETY: `out` is 32 bytes long.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), v) };
    out
}
