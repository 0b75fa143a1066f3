//! Attention over one block. The layout of keys and values makes both products plain broadcasts: no transposition.

use super::exp;
use crate::attention::{KvBlock, KvElem, OnlineSoftmax, Queries, base};
use bessemer_format::kv::{COLUMNS, TOKENS};
use bessemer_format::panel::LINE;
use std::arch::x86_64::*;

/// [`crate::attention::AttentionFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn attend_block(block: &KvBlock<'_>, queries: &Queries<'_>, state: &mut OnlineSoftmax<'_>) {
    // SAFETY: the caller's promises are those of `attend`.
    unsafe {
        match block.elem {
            KvElem::Bf16 => attend::<true>(block, queries, state),
            KvElem::F32 => attend::<false>(block, queries, state),
        }
    }
}

/// Splits the queries into runs of up to four that see the same tokens and share every load.
///
/// # Safety
/// As [`crate::attention::AttentionFn`], for the element type of `BF16`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn attend<const BF16: bool>(
    block: &KvBlock<'_>,
    queries: &Queries<'_>,
    state: &mut OnlineSoftmax<'_>,
) {
    let mut first = 0;
    for same in queries.visible.chunk_by(|a, b| a == b) {
        for some in same.chunks(4) {
            // SAFETY: the queries `first ..` are at least as many as the const parameter says.
            unsafe {
                match some.len() {
                    _ if some[0] == 0 => {}
                    4 => attend_some::<BF16, 4>(block, queries, first, state),
                    3 => attend_some::<BF16, 3>(block, queries, first, state),
                    2 => attend_some::<BF16, 2>(block, queries, first, state),
                    _ => attend_some::<BF16, 1>(block, queries, first, state),
                }
            }
            first += some.len();
        }
    }
}

/// # Safety
/// As [`attend`]; the `N` queries from `first` exist and see the same tokens, at least one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn attend_some<const BF16: bool, const N: usize>(
    block: &KvBlock<'_>,
    queries: &Queries<'_>,
    first: usize,
    state: &mut OnlineSoftmax<'_>,
) {
    let d = block.head_dim;
    let bytes = block.elem.bytes();
    let visible = queries.visible[first] as usize;
    let q = queries.q[first * d..][..N * d].as_ptr();

    // Both halves of the tokens at once, even and odd elements apart: 4 N sums in flight hide the latency of an fma.
    let mut scores = [[_mm512_setzero_ps(); 2]; N];
    let mut odds = [[_mm512_setzero_ps(); 2]; N];
    for pair in 0..d / 2 {
        // SAFETY: a key panel holds d / 2 lines of 32 elements, and there are two of them; a query has d elements. The
        // values are as long as the keys.
        unsafe {
            let at = |half: usize| (half * d / 2 + pair) * 2 * COLUMNS * bytes;
            // They are read next, and a block is too short for the hardware to see them coming.
            _mm_prefetch::<_MM_HINT_T0>(block.values.as_ptr().add(at(0)).cast());
            _mm_prefetch::<_MM_HINT_T0>(block.values.as_ptr().add(at(1)).cast());
            let (even0, odd0) = load_pairs::<BF16>(block.keys.as_ptr().add(at(0)), COLUMNS);
            let (even1, odd1) = load_pairs::<BF16>(block.keys.as_ptr().add(at(1)), COLUMNS);
            for i in 0..N {
                let q = q.add(i * d + 2 * pair);
                let (even, odd) = (_mm512_set1_ps(*q), _mm512_set1_ps(*q.add(1)));
                scores[i][0] = _mm512_fmadd_ps(even, even0, scores[i][0]);
                scores[i][1] = _mm512_fmadd_ps(even, even1, scores[i][1]);
                odds[i][0] = _mm512_fmadd_ps(odd, odd0, odds[i][0]);
                odds[i][1] = _mm512_fmadd_ps(odd, odd1, odds[i][1]);
            }
        }
    }
    for (scores, odds) in scores.iter_mut().zip(odds) {
        *scores = [_mm512_add_ps(scores[0], odds[0]), _mm512_add_ps(scores[1], odds[1])];
    }

    let mask = (u32::MAX >> (TOKENS - visible)) as u64;
    let masks = [mask as u16, (mask >> 16) as u16];
    let mut weights = [[0.0f32; TOKENS]; N];
    let mut corrections = [_mm512_setzero_ps(); N];
    for i in 0..N {
        let scale = _mm512_set1_ps(queries.scale);
        let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
        // What is not visible may be NaN: it is replaced, not multiplied.
        let s = [0, 1].map(|h| _mm512_mask_mul_ps(lowest, masks[h], scores[i][h], scale));
        let old = state.m[first + i];
        let m = old.max(_mm512_reduce_max_ps(_mm512_max_ps(s[0], s[1])));
        let p = s.map(|s| exp(_mm512_sub_ps(s, _mm512_set1_ps(base(m)))));
        let c = crate::math::exp(old - base(m));
        // SAFETY: the weights of a query are 32 floats.
        unsafe {
            _mm512_storeu_ps(weights[i].as_mut_ptr(), p[0]);
            _mm512_storeu_ps(weights[i].as_mut_ptr().add(COLUMNS), p[1]);
        }
        state.m[first + i] = m;
        state.l[first + i] = state.l[first + i] * c + _mm512_reduce_add_ps(_mm512_add_ps(p[0], p[1]));
        corrections[i] = _mm512_set1_ps(c);
    }

    // Two lines of elements at once, even and odd tokens apart, for the same reason. Each step fetches its share of the keys that
    // come next.
    let mut next = block.next.chunks(2 * LINE);
    let acc = state.acc[first * d..][..N * d].as_mut_ptr();
    for at in (0..d).step_by(2 * COLUMNS) {
        let lanes = [0, 1].map(|half| COLUMNS.min((d - at).saturating_sub(half * COLUMNS)));
        let masks = lanes.map(|lanes| ((1_u32 << lanes) - 1) as u16);
        // SAFETY: masks and `lanes` select elements `at .. at + 32` below d of each accumulator and of each of the token
        // pairs, which are d pairs of elements long; there are 16 of those.
        unsafe {
            let place = |i: usize, half: usize| acc.add(i * d + at).wrapping_add(half * COLUMNS);
            let line = |pair: usize, half: usize| {
                block.values.as_ptr().wrapping_add((pair * d + at + half * COLUMNS) * 2 * bytes)
            };
            let mut sums = [[_mm512_setzero_ps(); 2]; N];
            let mut odds = [[_mm512_setzero_ps(); 2]; N];
            for i in 0..N {
                for half in 0..2 {
                    let old = _mm512_maskz_loadu_ps(masks[half], place(i, half));
                    sums[i][half] = _mm512_mul_ps(old, corrections[i]);
                }
            }
            for pair in 0..visible / 2 {
                for line in next.next().unwrap_or_default().chunks(LINE) {
                    _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
                }
                let (even0, odd0) = load_pairs::<BF16>(line(pair, 0), lanes[0]);
                let (even1, odd1) = load_pairs::<BF16>(line(pair, 1), lanes[1]);
                for i in 0..N {
                    let even = _mm512_set1_ps(weights[i][2 * pair]);
                    let odd = _mm512_set1_ps(weights[i][2 * pair + 1]);
                    sums[i][0] = _mm512_fmadd_ps(even, even0, sums[i][0]);
                    sums[i][1] = _mm512_fmadd_ps(even, even1, sums[i][1]);
                    odds[i][0] = _mm512_fmadd_ps(odd, odd0, odds[i][0]);
                    odds[i][1] = _mm512_fmadd_ps(odd, odd1, odds[i][1]);
                }
            }
            if visible % 2 == 1 {
                for half in 0..2 {
                    let (even, _) = load_pairs::<BF16>(line(visible / 2, half), lanes[half]);
                    for i in 0..N {
                        let weight = _mm512_set1_ps(weights[i][visible - 1]);
                        sums[i][half] = _mm512_fmadd_ps(weight, even, sums[i][half]);
                    }
                }
            }
            for i in 0..N {
                for half in 0..2 {
                    let sum = _mm512_add_ps(sums[i][half], odds[i][half]);
                    _mm512_mask_storeu_ps(place(i, half), masks[half], sum);
                }
            }
        }
    }
}

/// The even and the odd elements of `lanes` pairs (the rest zero).
///
/// # Safety
/// `2 * lanes` elements are readable at `p`, and `lanes` is at most 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load_pairs<const BF16: bool>(p: *const u8, lanes: usize) -> (__m512, __m512) {
    // SAFETY: the masks select the promised elements only.
    unsafe {
        if BF16 {
            let v = _mm512_maskz_loadu_epi32(((1_u32 << lanes) - 1) as u16, p.cast());
            let odd = _mm512_and_si512(v, _mm512_set1_epi32(-65536));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(v)), _mm512_castsi512_ps(odd))
        } else {
            let mask = ((1_u64 << (2 * lanes)) - 1) as u32;
            let a = _mm512_maskz_loadu_ps(mask as u16, p.cast());
            let b = _mm512_maskz_loadu_ps((mask >> 16) as u16, p.cast::<f32>().wrapping_add(16));
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            (_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b))
        }
    }
}
