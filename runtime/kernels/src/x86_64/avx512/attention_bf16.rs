//! Attention with products of bfloat16 by `vdpbf16ps`: lines of keys hold pairs of elements, lines of values pairs of tokens.

use super::attention::{self as vectors, QUERIES, fetch, first_lanes};
use super::linear_bf16::add_products;
use crate::attention::{KvBlock, KvElem, OnlineSoftmax, Queries};
use crate::x86_64::kv_elem::{BF16, pair_bytes};
use bessemer_format::kv::{COLUMNS, TOKENS};
use bessemer_format::panel::LINE;
use std::arch::x86_64::*;

/// Pairs of bfloat16: a line.
type Pairs = [i32; COLUMNS];

/// [`crate::attention::AttentionFn`] for queries that round. Elements that are no bfloat16 are multiplied in f32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn attend_block(block: &KvBlock<'_>, queries: &Queries<'_>, state: &mut OnlineSoftmax<'_>) {
    if block.elem != KvElem::Bf16 {
        // SAFETY: the caller's promises are the same.
        return unsafe { vectors::attend_block(block, queries, state) };
    }
    let mut first = 0;
    for same in queries.visible.chunk_by(|a, b| a == b) {
        for some in same.chunks(QUERIES) {
            // SAFETY: the queries `first ..` are as many as the first const parameter of numbers says.
            unsafe {
                match some.len() {
                    _ if some[0] == 0 => {}
                    8 => attend_some::<8, 2>(block, queries, first, state),
                    7 => attend_some::<7, 2>(block, queries, first, state),
                    6 => attend_some::<6, 2>(block, queries, first, state),
                    5 => attend_some::<5, 2>(block, queries, first, state),
                    4 => attend_some::<4, 4>(block, queries, first, state),
                    3 => attend_some::<3, 4>(block, queries, first, state),
                    2 => attend_some::<2, 4>(block, queries, first, state),
                    _ => attend_some::<1, 4>(block, queries, first, state),
                }
            }
            first += some.len();
        }
    }
}

/// # Safety
/// As [`crate::attention::AttentionFn`] for keys and values of bfloat16; the `N` queries from `first` exist and see the same tokens, at
/// least one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn attend_some<const N: usize, const LINES: usize>(
    block: &KvBlock<'_>,
    queries: &Queries<'_>,
    first: usize,
    state: &mut OnlineSoftmax<'_>,
) {
    let d = block.head_dim;
    let (mut weights, mut corrections) = ([[0.0; TOKENS]; N], [0.0; COLUMNS]);
    // SAFETY: the slices hold `N` queries, and the block is as the caller was promised.
    unsafe {
        let mut scores = scores::<N>(block, &queries.q[first * d..][..N * d]);
        let masks = vectors::masks(&[queries.visible[first]; N]);
        let (m, l) = (&mut state.m[first..][..N], &mut state.l[first..][..N]);
        let Queries { scale, softcap, .. } = *queries;
        vectors::soften(&mut scores, scale, softcap, &masks, true, m, l, &mut weights, &mut corrections);
        let mut pairs = [[0; COLUMNS]; N];
        for i in 0..N {
            round(pairs[i].as_mut_ptr(), weights[i].as_ptr(), TOKENS);
        }
        let acc = &mut state.acc[first * d..][..N * d];
        weigh::<N, LINES>(block, &pairs, &corrections, queries.visible[first] as usize, acc);
    }
}

/// Writes the `count` numbers at `from` to `to` as bfloat16, and zeros behind them: 32 in all.
///
/// # Safety
/// So many are readable, and 64 bytes are writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(in crate::x86_64) unsafe fn round(to: *mut i32, from: *const f32, count: usize) {
    // SAFETY: the masks select the numbers that there are.
    unsafe {
        let low = _mm512_maskz_loadu_ps(first_lanes(count), from);
        let rest = first_lanes(count.saturating_sub(COLUMNS));
        let high = _mm512_maskz_loadu_ps(rest, from.wrapping_add(COLUMNS));
        let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
        _mm512_storeu_si512(to.cast(), both);
    }
}

/// The unscaled scores of the two halves of the tokens, visible or not (each is alone in its lane).
///
/// # Safety
/// As [`attend_some`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn scores<const N: usize>(block: &KvBlock<'_>, q: &[f32]) -> [[__m512; 2]; N] {
    let d = block.head_dim;
    let (q, keys) = (q[..N * d].as_ptr(), block.keys.as_ptr());
    let next = block.next.map_or(keys, |(keys, _)| keys.as_ptr());
    let mut scores = [[_mm512_setzero_ps(); 2]; N];
    let mut pairs: [Pairs; N] = [[0; COLUMNS]; N];
    for at in (0..d).step_by(2 * COLUMNS) {
        let elems = (2 * COLUMNS).min(d - at);
        for i in 0..N {
            // SAFETY: a query has d elements.
            unsafe { round(pairs[i].as_mut_ptr(), q.add(i * d + at), elems) };
        }
        for pair in 0..elems / 2 {
            let line = |half: usize| ((half * d + at) / 2 + pair) * LINE;
            for half in 0..2 {
                fetch::<BF16>(next, line(half));
                // SAFETY: a key panel holds d / 2 lines of 32 elements, and there are two of them.
                let k = unsafe { _mm512_loadu_si512(keys.add(line(half)).cast()) };
                for i in 0..N {
                    scores[i][half] = add_products(scores[i][half], k, _mm512_set1_epi32(pairs[i][pair]));
                }
            }
        }
    }
    scores
}

/// Corrects `acc` and adds the values of the first `visible` tokens, `LINES` vectors of elements at a time.
///
/// # Safety
/// As [`attend_some`]; `acc` holds the elements of `N` queries.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn weigh<const N: usize, const LINES: usize>(
    block: &KvBlock<'_>,
    weights: &[Pairs; N],
    corrections: &[f32; COLUMNS],
    visible: usize,
    acc: &mut [f32],
) {
    let d = block.head_dim;
    let acc = acc[..N * d].as_mut_ptr();
    let values = block.values.as_ptr();
    let next = block.next.map_or(values, |(_, values)| values.as_ptr());
    for at in (0..d).step_by(LINES * COLUMNS) {
        let lanes: [u16; LINES] = std::array::from_fn(|g| first_lanes(d.saturating_sub(at + g * COLUMNS)));
        let place = |i: usize, g: usize| acc.wrapping_add(i * d + at + g * COLUMNS);
        let line = |pair: usize, g: usize| (pair * d + at + g * COLUMNS) * pair_bytes(BF16);
        // SAFETY: `lanes` selects elements below d of each accumulator and of each of the token pairs, which are d pairs of
        // elements long; there are 16 of those.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); LINES]; N];
            for i in 0..N {
                for g in 0..LINES {
                    let old = _mm512_maskz_loadu_ps(lanes[g], place(i, g));
                    sums[i][g] = _mm512_mul_ps(old, _mm512_set1_ps(corrections[i]));
                }
            }
            for pair in 0..visible.div_ceil(2) {
                // The other token of the last pair may be any bytes.
                let seen = _mm512_set1_epi32(if 2 * pair + 1 < visible { -1 } else { 0xffff });
                for g in 0..LINES {
                    fetch::<BF16>(next, line(pair, g));
                    let v = _mm512_maskz_loadu_epi32(lanes[g], values.wrapping_add(line(pair, g)).cast());
                    let v = _mm512_and_si512(v, seen);
                    for i in 0..N {
                        sums[i][g] = add_products(sums[i][g], v, _mm512_set1_epi32(weights[i][pair]));
                    }
                }
            }
            for i in 0..N {
                for g in 0..LINES {
                    _mm512_mask_storeu_ps(place(i, g), lanes[g], sums[i][g]);
                }
            }
        }
    }
}
