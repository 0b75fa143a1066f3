//! Activations to signed bytes.

use bessemer_format::act::Int8Layout;
use std::arch::x86_64::*;

const LANES: usize = 16;
/// The group that is converted sixteen at a time.
const GROUP: usize = 2 * LANES;

/// [`crate::linear::QuantiseFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn quantise(layout: &Int8Layout, x: &[f32], out: &mut [u8]) {
    let (codes, rest) = out.split_at_mut(layout.scales_at());
    let (scales, rest) = rest.split_at_mut(4 * layout.groups());
    let (sums, rest) = rest.split_at_mut(4 * layout.groups());
    rest.fill(0);
    let mut done = 0;
    if layout.group == GROUP {
        let sixteens = x.as_chunks::<{ GROUP * LANES }>().0;
        let scales = scales.as_chunks_mut::<{ 4 * LANES }>().0;
        let sums = sums.as_chunks_mut::<{ 4 * LANES }>().0;
        let codes = codes.as_chunks_mut::<{ GROUP * LANES }>().0;
        for (((x, codes), scales), sums) in sixteens.iter().zip(codes).zip(scales).zip(sums) {
            sixteen_groups(x, codes, scales, sums);
            done += LANES;
        }
    }
    for (g, x) in x.chunks(layout.group).enumerate().skip(done) {
        let codes = &mut codes[g * layout.group..];
        let (scale, sum) = one_group(x, codes);
        scales[4 * g..][..4].copy_from_slice(&scale.to_le_bytes());
        sums[4 * g..][..4].copy_from_slice(&sum.to_le_bytes());
    }
    codes[layout.k.next_multiple_of(LANES).min(layout.padded_k)..].fill(0);
}

/// Sixteen groups: what is done once a group, above all its two divisions, is done for all of them at once.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn sixteen_groups(
    x: &[f32; GROUP * LANES],
    codes: &mut [u8; GROUP * LANES],
    scales: &mut [u8; 4 * LANES],
    sums: &mut [u8; 4 * LANES],
) {
    let magnitude = _mm512_set1_epi32(i32::MAX);
    let halves = |g: usize| [load(&x[g * GROUP..][..LANES]), load(&x[g * GROUP + LANES..][..LANES])];
    let mut max = [_mm512_setzero_si512(); LANES];
    for (g, max) in max.iter_mut().enumerate() {
        // The bits of a magnitude are ordered as the magnitude is, with infinities and NaNs on top.
        let [a, b] = halves(g).map(|v| _mm512_and_si512(_mm512_castps_si512(v), magnitude));
        *max = _mm512_max_epu32(a, b);
    }
    let amax = _mm512_castsi512_ps(across(max, |a, b| _mm512_max_epu32(a, b)));
    let infinity = _mm512_set1_ps(f32::INFINITY);
    let finite = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(amax, infinity);
    let scale = _mm512_div_ps(amax, _mm512_set1_ps(127.0));
    let inverse = _mm512_div_ps(_mm512_set1_ps(1.0), scale);
    // A scale of zero has an infinite inverse; NaN is not below either. Such groups are codes of zero.
    let inverse = _mm512_maskz_mov_ps(finite & _mm512_cmp_ps_mask::<_CMP_LT_OQ>(inverse, infinity), inverse);
    let scale = _mm512_mask_mov_ps(_mm512_set1_ps(f32::NAN), finite, scale);
    let mut inverses = [0.0f32; LANES];
    // SAFETY: both arrays are 64 bytes long.
    unsafe {
        _mm512_storeu_ps(inverses.as_mut_ptr(), inverse);
        _mm512_storeu_ps(scales.as_mut_ptr().cast(), scale);
    }
    let mut sum = [_mm512_setzero_si512(); LANES];
    for (g, sum) in sum.iter_mut().enumerate() {
        let inverse = _mm512_set1_ps(inverses[g]);
        // Infinity times zero is NaN, which converts to the lowest integer: it is masked, as the group is.
        let mask = if finite & (1 << g) != 0 { u16::MAX } else { 0 };
        let [a, b] = halves(g).map(|v| _mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(v, inverse)));
        *sum = _mm512_add_epi32(a, b);
        let bytes = [a, b].map(|v| _mm512_cvtsepi32_epi8(v));
        for (half, bytes) in bytes.into_iter().enumerate() {
            let out = &mut codes[g * GROUP + half * LANES..][..LANES];
            // SAFETY: `out` is 16 bytes long.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) };
        }
    }
    let sum = across(sum, |a, b| _mm512_add_epi32(a, b));
    // SAFETY: the array is 64 bytes long.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum) };
}

/// Lane i of the result: all lanes of `v[i]`, combined by `f`, which is associative and commutative.
#[inline]
#[target_feature(enable = "avx512f")]
fn across(v: [__m512i; LANES], f: impl Fn(__m512i, __m512i) -> __m512i) -> __m512i {
    // Each step transposes pairs at one distance and combines them, which halves the vectors.
    let halves = |a, b| f(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    // Lanes of each 128 bits: a0+a2, b0+b2, a1+a3, b1+b3.
    let pairs: [__m512i; 8] = std::array::from_fn(|i| halves(v[2 * i], v[2 * i + 1]));
    // Lanes of each 128 bits: a, b, c, d.
    let fours: [__m512i; 4] = std::array::from_fn(|i| {
        let (ab, cd) = (pairs[2 * i], pairs[2 * i + 1]);
        f(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
    });
    // Each a sum within 128 bits: those of vectors 0 and 1 (and 2 and 3) side by side.
    let eights: [__m512i; 2] = std::array::from_fn(|i| {
        let (a, b) = (fours[2 * i], fours[2 * i + 1]);
        f(_mm512_shuffle_i32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b))
    });
    let (a, b) = (eights[0], eights[1]);
    f(_mm512_shuffle_i32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b))
}

/// The scale and the sum of the codes of a group.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn one_group(group: &[f32], codes: &mut [u8]) -> (f32, i32) {
    let magnitude = _mm512_set1_epi32(i32::MAX);
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
    for (x, out) in group.chunks(LANES).zip(codes.as_chunks_mut::<LANES>().0) {
        // The conversion rounds to nearest even; a finite group's products are at most 127 after rounding.
        let codes = match finite {
            true => _mm512_cvtps_epi32(_mm512_mul_ps(load(x), inverse)),
            false => _mm512_setzero_si512(),
        };
        sum = _mm512_add_epi32(sum, codes);
        // SAFETY: `out` is 16 bytes long.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(codes)) };
    }
    (scale, _mm512_reduce_add_epi32(sum))
}

/// Up to 16 floats, the rest zero.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32]) -> __m512 {
    // SAFETY: the mask selects as many elements as the slice has (lanes beyond it are not accessed).
    unsafe { _mm512_maskz_loadu_ps((0xffff_u32 >> (LANES - x.len().min(LANES))) as u16, x.as_ptr()) }
}
