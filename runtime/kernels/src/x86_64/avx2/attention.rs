//! Attention over one block. The layout of keys and values makes both products plain broadcasts: no transposition.

use super::exp;
use crate::attention::{KvBlock, KvElem, OnlineSoftmax, Queries, base};
use bessemer_format::kv::{COLUMNS, TOKENS};
use std::arch::x86_64::*;

const LANES: usize = 8;

/// [`crate::attention::AttentionFn`].
#[target_feature(enable = "avx2,fma")]
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
#[target_feature(enable = "avx2,fma")]
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
#[target_feature(enable = "avx2,fma")]
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

    let mut weights = [[f32::NEG_INFINITY; TOKENS]; N];
    // Panels of keys that hold a visible token; within one, two vectors of tokens.
    for panel in 0..visible.div_ceil(COLUMNS) {
        let mut scores = [[_mm256_setzero_ps(); 2]; N];
        // SAFETY: a key panel holds d / 2 lines of 32 elements, and there are two of them; a query has d elements. The
        // weights of a query are 32 floats.
        unsafe {
            for pair in 0..d / 2 {
                let line = block.keys.as_ptr().add((panel * d / 2 + pair) * 2 * COLUMNS * bytes);
                let k = [0, 1].map(|half| load_pairs::<BF16>(line.add(half * COLUMNS * bytes), LANES));
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
                    let s = _mm256_mul_ps(scores[i][half], _mm256_set1_ps(queries.scale));
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
        let mut max = _mm256_set1_ps(old);
        let mut sum = _mm256_setzero_ps();
        // SAFETY: the weights of a query are 4 times 8 floats.
        unsafe {
            for part in w.as_chunks::<LANES>().0 {
                max = _mm256_max_ps(_mm256_loadu_ps(part.as_ptr()), max);
            }
            let m = lanes(max).into_iter().fold(old, f32::max);
            for part in w.as_chunks_mut::<LANES>().0 {
                let s = _mm256_loadu_ps(part.as_ptr());
                let p = exp(_mm256_sub_ps(s, _mm256_set1_ps(base(m))));
                _mm256_storeu_ps(part.as_mut_ptr(), p);
                sum = _mm256_add_ps(sum, p);
            }
            let c = crate::math::exp(old - base(m));
            state.m[first + i] = m;
            state.l[first + i] = state.l[first + i] * c + lanes(sum).into_iter().sum::<f32>();
            corrections[i] = _mm256_set1_ps(c);
        }
    }

    let acc = state.acc[first * d..][..N * d].as_mut_ptr();
    let mut at = 0;
    while at < d {
        let count = LANES.min(d - at);
        let mask = first_lanes(count);
        // SAFETY: the mask and `count` select elements `at .. at + count` of each accumulator and of each of the token
        // pairs, which are d pairs of elements long; there are 16 of those.
        unsafe {
            let mut sums = [_mm256_setzero_ps(); N];
            for i in 0..N {
                sums[i] = _mm256_mul_ps(_mm256_maskload_ps(acc.add(i * d + at), mask), corrections[i]);
            }
            let line = |pair: usize| block.values.as_ptr().add((pair * d + at) * 2 * bytes);
            for pair in 0..visible / 2 {
                let (even, odd) = load_pairs::<BF16>(line(pair), count);
                for i in 0..N {
                    sums[i] = _mm256_fmadd_ps(_mm256_set1_ps(weights[i][2 * pair]), even, sums[i]);
                    sums[i] = _mm256_fmadd_ps(_mm256_set1_ps(weights[i][2 * pair + 1]), odd, sums[i]);
                }
            }
            if visible % 2 == 1 {
                let (even, _) = load_pairs::<BF16>(line(visible / 2), count);
                for i in 0..N {
                    sums[i] = _mm256_fmadd_ps(_mm256_set1_ps(weights[i][visible - 1]), even, sums[i]);
                }
            }
            for i in 0..N {
                _mm256_maskstore_ps(acc.add(i * d + at), mask, sums[i]);
            }
        }
        at += LANES;
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
/// `2 * count` elements are readable at `p`, and `count` is 1 to 8.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_pairs<const BF16: bool>(p: *const u8, count: usize) -> (__m256, __m256) {
    // SAFETY: whole vectors are read for 8 pairs; else the masks select the promised elements only.
    unsafe {
        if BF16 {
            let v = match count {
                LANES => _mm256_loadu_si256(p.cast()),
                _ => _mm256_maskload_epi32(p.cast(), first_lanes(count)),
            };
            let odd = _mm256_and_si256(v, _mm256_set1_epi32(-65536));
            (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(v)), _mm256_castsi256_ps(odd))
        } else {
            let p = p.cast::<f32>();
            let (a, b) = match count {
                LANES => (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(LANES))),
                _ => (
                    _mm256_maskload_ps(p, first_lanes(2 * count)),
                    _mm256_maskload_ps(p.wrapping_add(LANES), first_lanes((2 * count).saturating_sub(LANES))),
                ),
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

#[inline]
#[target_feature(enable = "avx2")]
fn lanes(v: __m256) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    // SAFETY: `out` is 8 floats long.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) };
    out
}
