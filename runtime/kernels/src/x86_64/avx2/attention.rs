//! Attention over one block. The layout of keys and values makes both products plain broadcasts: no transposition.

use super::{e4m3, exp};
use crate::attention::{KvBlock, KvElem, OnlineSoftmax, Queries, base, base_of, rounded};
use crate::x86_64::kv_elem::*;
use bessemer_format::kv::{COLUMNS, TOKENS};
use std::arch::x86_64::*;

const LANES: usize = 8;
/// Elements of values that are summed together: two vectors a query hide the latency of an fma.
const WIDE: usize = 2 * LANES;

/// [`crate::attention::AttentionFn`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn attend_block(block: &KvBlock<'_>, queries: &Queries<'_>, state: &mut OnlineSoftmax<'_>) {
    // SAFETY: the caller's promises are those of `attend`.
    unsafe {
        match block.elem {
            KvElem::F16 => attend::<F16>(block, queries, state),
            KvElem::Bf16 => attend::<BF16>(block, queries, state),
            KvElem::F32 => attend::<F32>(block, queries, state),
            KvElem::Int8 => attend::<INT8>(block, queries, state),
            KvElem::Fp8 => attend::<FP8>(block, queries, state),
            KvElem::Int4 => attend::<INT4>(block, queries, state),
        }
    }
}

/// The portable kernel, compiled for these instructions: for queries that hide tokens.
#[target_feature(enable = "avx2,fma")]
pub(crate) fn masked(block: &KvBlock<'_>, queries: &Queries<'_>, state: &mut OnlineSoftmax<'_>) {
    crate::attention::portable::attend_block(block, queries, state);
}

/// Splits the queries into runs of up to four that see the same tokens and share every load.
///
/// # Safety
/// As [`crate::attention::AttentionFn`], for the element type `ELEM`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn attend<const ELEM: u8>(block: &KvBlock<'_>, queries: &Queries<'_>, state: &mut OnlineSoftmax<'_>) {
    let mut first = 0;
    for same in queries.visible.chunk_by(|a, b| a == b) {
        for some in same.chunks(4) {
            // SAFETY: the queries `first ..` are at least as many as the const parameter says.
            unsafe {
                match some.len() {
                    _ if some[0] == 0 => {}
                    4 => attend_some::<ELEM, 4>(block, queries, first, state),
                    3 => attend_some::<ELEM, 3>(block, queries, first, state),
                    2 => attend_some::<ELEM, 2>(block, queries, first, state),
                    _ => attend_some::<ELEM, 1>(block, queries, first, state),
                }
            }
            first += some.len();
        }
    }
}

/// # Safety
/// As [`attend`]; the `N` queries from `first` exist and see the same tokens, at least one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn attend_some<const ELEM: u8, const N: usize>(
    block: &KvBlock<'_>,
    queries: &Queries<'_>,
    first: usize,
    state: &mut OnlineSoftmax<'_>,
) {
    let d = block.head_dim;
    let scales = block.scales();
    let visible = queries.visible[first] as usize;
    let q = queries.q[first * d..][..N * d].as_ptr();

    let next = block.next.unwrap_or((block.keys, block.values));
    let next = (next.0.as_ptr(), next.1.as_ptr());

    let mut weights = [[f32::NEG_INFINITY; TOKENS]; N];
    // Panels of keys that hold a visible token; within one, two vectors of tokens.
    for panel in 0..visible.div_ceil(COLUMNS) {
        let mut scores = [[_mm256_setzero_ps(); 2]; N];
        // SAFETY: a key panel holds d / 2 lines of 32 elements, and there are two of them; a query has d elements. The
        // weights of a query are 32 floats.
        unsafe {
            for pair in 0..d / 2 {
                let at = (panel * d / 2 + pair) * COLUMNS * pair_bytes(ELEM);
                let line = block.keys.as_ptr().add(at);
                fetch::<ELEM>(next.0, at);
                let k =
                    [0, 1].map(|half| load_pairs::<ELEM>(line.add(half * LANES * pair_bytes(ELEM)), LANES));
                for i in 0..N {
                    let q = [0, 1].map(|odd| _mm256_set1_ps(*q.add(i * d + 2 * pair + odd)));
                    for half in 0..2 {
                        let s = _mm256_fmadd_ps(q[0], k[half].0, scores[i][half]);
                        scores[i][half] = _mm256_fmadd_ps(q[1], k[half].1, s);
                    }
                }
            }
            for i in 0..N {
                for half in 0..2 {
                    let mut s = scores[i][half];
                    if let Some([keys, _]) = scales {
                        let keys = &keys[panel * COLUMNS + half * LANES..][..LANES];
                        s = _mm256_mul_ps(s, _mm256_loadu_ps(keys.as_ptr().cast()));
                    }
                    let s = _mm256_mul_ps(s, _mm256_set1_ps(queries.scale));
                    let s = queries.softcap.map_or(s, |cap| capped(s, cap));
                    _mm256_storeu_ps(weights[i].as_mut_ptr().add(panel * COLUMNS + half * LANES), s);
                }
            }
        }
    }

    let mut corrections = [_mm256_setzero_ps(); N];
    for i in 0..N {
        let w = &mut weights[i];
        // What is not visible may be NaN: it is replaced, not multiplied.
        w[visible..].fill(f32::NEG_INFINITY);
        let old = state.m[first + i];
        let mut max = _mm256_set1_ps(f32::NEG_INFINITY);
        let mut sum = _mm256_setzero_ps();
        // SAFETY: the weights of a query are 4 times 8 floats.
        unsafe {
            for part in w.as_chunks::<LANES>().0 {
                max = _mm256_max_ps(_mm256_loadu_ps(part.as_ptr()), max);
            }
            let largest = lanes(max).into_iter().fold(f32::NEG_INFINITY, f32::max);
            let m = old.max(base_of(largest, queries.rounds));
            for part in w.as_chunks_mut::<LANES>().0 {
                let s = _mm256_loadu_ps(part.as_ptr());
                let p = exp(_mm256_sub_ps(s, _mm256_set1_ps(base(m))));
                _mm256_storeu_ps(part.as_mut_ptr(), p);
                sum = _mm256_add_ps(sum, p);
            }
            if let Some([_, values]) = scales {
                for (part, values) in
                    w.as_chunks_mut::<LANES>().0.iter_mut().zip(values.as_chunks::<LANES>().0)
                {
                    let values = _mm256_loadu_ps(values.as_ptr().cast());
                    _mm256_storeu_ps(
                        part.as_mut_ptr(),
                        _mm256_mul_ps(_mm256_loadu_ps(part.as_ptr()), values),
                    );
                }
            }
            if queries.rounds {
                w.iter_mut().for_each(|w| *w = rounded(*w));
            }
            let c = crate::math::exp(old - base(m));
            state.m[first + i] = m;
            state.l[first + i] = state.l[first + i] * c + lanes(sum).into_iter().sum::<f32>();
            corrections[i] = _mm256_set1_ps(c);
        }
    }

    let acc = state.acc[first * d..][..N * d].as_mut_ptr();
    let values = (block.values.as_ptr(), next.1);
    // SAFETY: the accumulators are N times d floats, the values 16 lines of d pairs; whole columns end below d.
    unsafe {
        let whole = d / WIDE * WIDE;
        for at in (0..whole).step_by(WIDE) {
            weigh::<ELEM, N>(values, &weights, &corrections, visible, acc, d, at, [LANES; 2]);
        }
        if whole < d {
            let counts = [0, LANES].map(|half| LANES.min((d - whole).saturating_sub(half)));
            weigh::<ELEM, N>(values, &weights, &corrections, visible, acc, d, whole, counts);
        }
    }
}

/// `cap * tanh(s / cap)`, where `tanh |x| = (1 - t) / (1 + t)` with `t = e^(-2 |x|)`: its exponent is never positive.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn capped(s: __m256, cap: f32) -> __m256 {
    let (sign, one, cap) = (_mm256_set1_ps(-0.0), _mm256_set1_ps(1.0), _mm256_set1_ps(cap));
    let size = _mm256_andnot_ps(sign, _mm256_div_ps(s, cap));
    let t = exp(_mm256_mul_ps(size, _mm256_set1_ps(-2.0)));
    let tanh = _mm256_div_ps(_mm256_sub_ps(one, t), _mm256_add_ps(one, t));
    _mm256_mul_ps(cap, _mm256_or_ps(tanh, _mm256_and_ps(sign, s)))
}

/// Corrects the elements from `at` on, `counts` of them in two vectors, of `N` accumulators, and adds the values (the first
/// pointer; the other is to those of the next block) of the first `visible` tokens.
///
/// # Safety
/// `acc` is `N` times `d` floats, a line of values `d` pairs of elements of the type `ELEM`, 16 lines in all, and
/// `counts` end at `d` or before.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "inlined, so that the counts of whole vectors become constants")]
unsafe fn weigh<const ELEM: u8, const N: usize>(
    (values, next): (*const u8, *const u8),
    weights: &[[f32; TOKENS]; N],
    corrections: &[__m256; N],
    visible: usize,
    acc: *mut f32,
    d: usize,
    at: usize,
    counts: [usize; 2],
) {
    let place = |i: usize, half: usize| acc.wrapping_add(i * d + at + half * LANES);
    let line = |pair: usize, half: usize| (pair * d + at + half * LANES) * pair_bytes(ELEM);
    // SAFETY: the caller promises that the counted elements exist, and the host has AVX2.
    unsafe {
        let masks = counts.map(|count| first_lanes(count));
        let mut sums = [[_mm256_setzero_ps(); 2]; N];
        for i in 0..N {
            for half in 0..2 {
                let old = _mm256_maskload_ps(place(i, half), masks[half]);
                sums[i][half] = _mm256_mul_ps(old, corrections[i]);
            }
        }
        let mut add = |v: [__m256; 2], token: usize| {
            for i in 0..N {
                let w = _mm256_set1_ps(weights[i][token]);
                for half in 0..2 {
                    sums[i][half] = _mm256_fmadd_ps(w, v[half], sums[i][half]);
                }
            }
        };
        for pair in 0..visible.div_ceil(2) {
            fetch::<ELEM>(next, line(pair, 0));
            let v =
                [0, 1].map(|half| load_pairs::<ELEM>(values.wrapping_add(line(pair, half)), counts[half]));
            add([v[0].0, v[1].0], 2 * pair);
            if 2 * pair + 1 < visible {
                add([v[0].1, v[1].1], 2 * pair + 1);
            }
        }
        for i in 0..N {
            for half in 0..2 {
                _mm256_maskstore_ps(place(i, half), masks[half], sums[i][half]);
            }
        }
    }
}

/// Asks for the line of 32 elements at `offset`, which need not exist: a prefetch never faults.
#[inline]
#[target_feature(enable = "avx2")]
fn fetch<const ELEM: u8>(p: *const u8, offset: usize) {
    _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(offset).cast());
    if ELEM == F32 {
        _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(offset + 64).cast());
    }
}

/// [`OnlineSoftmax::merge`] with this instruction set's vectors.
#[target_feature(enable = "avx2,fma")]
pub(crate) fn merge(state: &mut OnlineSoftmax<'_>, later: &OnlineSoftmax<'_>) {
    state.merge(later);
}

/// A mask of the first `count` lanes (all of them for 8 and more).
#[inline]
#[target_feature(enable = "avx2")]
fn first_lanes(count: usize) -> __m256i {
    let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lane)
}

/// The even and the odd elements of `count` pairs (the rest zero).
///
/// # Safety
/// `2 * count` elements are readable at `p`, and `count` is at most 8.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn load_pairs<const ELEM: u8>(p: *const u8, count: usize) -> (__m256, __m256) {
    // SAFETY: whole vectors are read for 8 pairs; else the masks select, and the copies take, the promised elements only.
    unsafe {
        match ELEM {
            BF16 => {
                let v = pairs_of_halves(p, count);
                let odd = _mm256_and_si256(v, _mm256_set1_epi32(-65536));
                (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(v)), _mm256_castsi256_ps(odd))
            }
            F16 => {
                let v = pairs_of_halves(p, count);
                // Within 128-bit halves the even ones first, whose quarters then trade places.
                let order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
                let v = _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(order));
                let v = _mm256_permute4x64_epi64::<0b11_01_10_00>(v);
                let odd = _mm256_extracti128_si256::<1>(v);
                (_mm256_cvtph_ps(_mm256_castsi256_si128(v)), _mm256_cvtph_ps(odd))
            }
            INT8 => {
                let v = _mm256_cvtepi16_epi32(few_bytes(p, 2 * count));
                let even = _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(v));
                (_mm256_cvtepi32_ps(even), _mm256_cvtepi32_ps(_mm256_srai_epi32::<8>(v)))
            }
            FP8 => {
                let v = _mm256_cvtepu16_epi32(few_bytes(p, 2 * count));
                (e4m3(_mm256_and_si256(v, _mm256_set1_epi32(0xff))), e4m3(_mm256_srli_epi32::<8>(v)))
            }
            INT4 => {
                let v = _mm256_cvtepu8_epi32(few_bytes(p, count));
                let eight = _mm256_set1_epi32(8);
                let even = _mm256_and_si256(v, _mm256_set1_epi32(15));
                let code = |v| _mm256_cvtepi32_ps(_mm256_sub_epi32(v, eight));
                (code(even), code(_mm256_srli_epi32::<4>(v)))
            }
            _ => {
                let p = p.cast::<f32>();
                let (a, b) = match count {
                    LANES => (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(LANES))),
                    _ => {
                        let second = first_lanes((2 * count).saturating_sub(LANES));
                        let b = _mm256_maskload_ps(p.wrapping_add(LANES), second);
                        (_mm256_maskload_ps(p, first_lanes(2 * count)), b)
                    }
                };
                // Gathers within 128-bit halves, whose middle quarters then trade places.
                let even = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
                let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0b11_01_11_01>(a, b));
                (
                    _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(even)),
                    _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(odd)),
                )
            }
        }
    }
}

/// `count` pairs of elements of 16 bits, at most 8, the rest zero.
///
/// # Safety
/// They are readable at `p`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn pairs_of_halves(p: *const u8, count: usize) -> __m256i {
    // SAFETY: a whole vector is read for 8 pairs; else the mask selects the promised ones only.
    unsafe {
        match count {
            LANES => _mm256_loadu_si256(p.cast()),
            _ => _mm256_maskload_epi32(p.cast(), first_lanes(count)),
        }
    }
}

/// `count` bytes, at most 16, the rest zero.
///
/// # Safety
/// They are readable at `p`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn few_bytes(p: *const u8, count: usize) -> __m128i {
    // SAFETY: the caller promises the bytes; the array is 16 bytes long.
    unsafe {
        match count {
            16 => _mm_loadu_si128(p.cast()),
            8 => _mm_loadl_epi64(p.cast()),
            _ => {
                let mut bytes = [0; 16];
                p.copy_to_nonoverlapping(bytes.as_mut_ptr(), count);
                _mm_loadu_si128(bytes.as_ptr().cast())
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn lanes(v: __m256) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    // SAFETY: `out` is 8 floats long.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) };
    out
}
