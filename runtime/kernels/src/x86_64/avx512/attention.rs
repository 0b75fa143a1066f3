//! Attention over one block. The layout of keys and values makes both products plain broadcasts: no transposition.
//!
//! One row has few queries and waits for memory, so each line that is read asks for its like of the next block. Many rows
//! wait for arithmetic, so up to [`QUERIES`] of them share each line, and what softmax does for a query alone stays short.

use super::{attention_widened, e4m3, exp};
use crate::attention::{KvBlock, KvElem, OnlineSoftmax, Queries};
use crate::math::LOG2_E;
use crate::x86_64::kv_elem::*;
use bessemer_format::kv::{COLUMNS, TOKENS};
use std::arch::x86_64::*;
use std::f32::consts::LN_2;

/// Most queries that share a load: two sums of tokens each fill half of the registers, and 16 sums in flight hide the
/// latency of an fma twice over.
pub(in crate::x86_64) const QUERIES: usize = 8;

/// Lines of the next block's values that are asked for between the two products: softmax waits for itself there, memory need not.
const AMID: usize = 16;

/// [`KvBlock::scales`].
type Scales<'a> = Option<[&'a [[u8; 4]]; 2]>;

/// [`crate::attention::AttentionFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn attend_block(block: &KvBlock<'_>, queries: &Queries<'_>, state: &mut OnlineSoftmax<'_>) {
    // SAFETY: the caller's promises are those of `attend`.
    unsafe {
        match block.elem {
            KvElem::F16 => attend_or_widen::<F16>(block, queries, state),
            // Two instructions make numbers of a line, which is no more than it takes to put them elsewhere and to read more bytes.
            KvElem::Bf16 => attend::<BF16>(block, None, queries, state),
            KvElem::F32 => attend::<F32>(block, None, queries, state),
            KvElem::Int8 => attend_or_widen::<INT8>(block, queries, state),
            KvElem::Fp8 => attend_or_widen::<FP8>(block, queries, state),
            KvElem::Int4 => attend_or_widen::<INT4>(block, queries, state),
        }
    }
}

/// The portable kernel, compiled for these instructions: for queries that hide tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn masked(block: &KvBlock<'_>, queries: &Queries<'_>, state: &mut OnlineSoftmax<'_>) {
    crate::attention::portable::attend_block(block, queries, state);
}

/// # Safety
/// As [`crate::attention::AttentionFn`], for the element type `ELEM`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn attend_or_widen<const ELEM: u8>(
    block: &KvBlock<'_>,
    queries: &Queries<'_>,
    state: &mut OnlineSoftmax<'_>,
) {
    // SAFETY: the caller's promises are the same.
    unsafe {
        match attention_widened::pays(block, queries) {
            true => attention_widened::attend::<ELEM>(block, queries, state),
            false => attend::<ELEM>(block, block.scales(), queries, state),
        }
    }
}

/// Splits the queries into runs that see the same tokens and share every load.
///
/// # Safety
/// As [`crate::attention::AttentionFn`], for the element type `ELEM`, whose scales are `scales`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn attend<const ELEM: u8>(
    block: &KvBlock<'_>,
    scales: Scales<'_>,
    queries: &Queries<'_>,
    state: &mut OnlineSoftmax<'_>,
) {
    let mut first = 0;
    for same in queries.visible.chunk_by(|a, b| a == b) {
        for some in same.chunks(QUERIES) {
            // SAFETY: the queries `first ..` are as many as the first const parameter of numbers says.
            unsafe {
                match some.len() {
                    _ if some[0] == 0 => {}
                    8 => attend_some::<ELEM, 8, 2>(block, scales, queries, first, state),
                    7 => attend_some::<ELEM, 7, 2>(block, scales, queries, first, state),
                    6 => attend_some::<ELEM, 6, 2>(block, scales, queries, first, state),
                    5 => attend_some::<ELEM, 5, 2>(block, scales, queries, first, state),
                    4 => attend_some::<ELEM, 4, 4>(block, scales, queries, first, state),
                    3 => attend_some::<ELEM, 3, 4>(block, scales, queries, first, state),
                    2 => attend_some::<ELEM, 2, 4>(block, scales, queries, first, state),
                    _ => attend_some::<ELEM, 1, 4>(block, scales, queries, first, state),
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
unsafe fn attend_some<const ELEM: u8, const N: usize, const LINES: usize>(
    block: &KvBlock<'_>,
    scales: Scales<'_>,
    queries: &Queries<'_>,
    first: usize,
    state: &mut OnlineSoftmax<'_>,
) {
    let d = block.head_dim;
    let q = &queries.q[first * d..][..N * d];
    let (mut weights, mut corrections) = ([[0.0; TOKENS]; N], [0.0; COLUMNS]);
    // SAFETY: the slices hold `N` queries, and the block is as `attend` was promised.
    unsafe {
        let mut scores = scores::<ELEM, N>(block, q);
        let values = block.next.map_or(block.values, |(_, values)| values);
        for line in 0..AMID {
            fetch::<ELEM>(values.as_ptr(), line * COLUMNS * pair_bytes(ELEM));
        }
        weigh_tokens(scales, queries, first, &mut scores, state, &mut weights, &mut corrections);
        let acc = &mut state.acc[first * d..][..N * d];
        weigh::<ELEM, N, LINES>(block, &weights, &corrections, queries.visible[first] as usize, acc);
    }
}

/// Updates `m` and `l` of `N` queries by their products with the keys of a block. Gives the factors of its values, and for each
/// query that of what it summed before.
///
/// Loops and places for results in place of `map` and values: functions of the standard library are compiled without these
/// instructions, so that vectors would go through memory.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn weigh_tokens<const N: usize>(
    scales: Scales<'_>,
    queries: &Queries<'_>,
    first: usize,
    scores: &mut [[__m512; 2]; N],
    state: &mut OnlineSoftmax<'_>,
    weights: &mut [[f32; TOKENS]; N],
    corrections: &mut [f32; COLUMNS],
) {
    let masks = masks(&[queries.visible[first]; N]);
    let (m, l) = (&mut state.m[first..][..N], &mut state.l[first..][..N]);
    let Queries { scale, softcap, rounds, .. } = *queries;
    if let Some([keys, values]) = scales {
        let (keys, values) = (halves(keys), halves(values));
        for s in scores.iter_mut() {
            s[0] = _mm512_mul_ps(s[0], keys[0]);
            s[1] = _mm512_mul_ps(s[1], keys[1]);
        }
        soften(scores, scale, softcap, &masks, rounds, m, l, weights, corrections);
        for w in weights.iter_mut() {
            for half in 0..2 {
                let w = w[half * COLUMNS..][..COLUMNS].as_mut_ptr();
                // SAFETY: 16 floats are read and written in a slice of as many.
                unsafe { _mm512_storeu_ps(w, _mm512_mul_ps(_mm512_loadu_ps(w), values[half])) };
            }
        }
    } else {
        soften(scores, scale, softcap, &masks, rounds, m, l, weights, corrections);
    }
    if rounds {
        for w in weights.iter_mut() {
            for half in 0..2 {
                let w = w[half * COLUMNS..][..COLUMNS].as_mut_ptr();
                // SAFETY: 16 floats are read and written in a slice of as many.
                unsafe { _mm512_storeu_ps(w, rounded(_mm512_loadu_ps(w))) };
            }
        }
    }
}

/// [`crate::attention::rounded`] of every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn rounded(x: __m512) -> __m512 {
    let bits = _mm512_castps_si512(x);
    let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let up = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    // The carry of a NaN's mantissa could make an infinity or a zero of it.
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    let up = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(1 << 22));
    _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(-65536)))
}

/// The scales of both halves of a block's tokens.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(scales: &[[u8; 4]]) -> [__m512; 2] {
    let (low, high) = (&scales[..COLUMNS], &scales[COLUMNS..][..COLUMNS]);
    // SAFETY: 16 scales are read from a slice of as many.
    unsafe { [_mm512_loadu_ps(low.as_ptr().cast()), _mm512_loadu_ps(high.as_ptr().cast())] }
}

/// The unscaled scores of the two halves of the tokens, visible or not (each is alone in its lane).
///
/// # Safety
/// The block is as [`crate::attention::AttentionFn`] says, of the element type `ELEM`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn scores<const ELEM: u8, const N: usize>(block: &KvBlock<'_>, q: &[f32]) -> [[__m512; 2]; N] {
    let d = block.head_dim;
    let q = q[..N * d].as_ptr();
    let keys = block.keys.as_ptr();
    let next = block.next.map_or(keys, |(keys, _)| keys.as_ptr());
    let mut scores = [[_mm512_setzero_ps(); 2]; N];
    for pair in 0..d / 2 {
        let line = |half: usize| (half * d / 2 + pair) * COLUMNS * pair_bytes(ELEM);
        // SAFETY: a key panel holds d / 2 lines of 32 elements, and there are two of them; a query has d elements.
        unsafe {
            fetch::<ELEM>(next, line(0));
            fetch::<ELEM>(next, line(1));
            let k = [0, 1].map(|half| load_pairs::<ELEM>(keys.add(line(half)), COLUMNS));
            for i in 0..N {
                let q = q.add(i * d + 2 * pair);
                let (even, odd) = (_mm512_set1_ps(*q), _mm512_set1_ps(*q.add(1)));
                for half in 0..2 {
                    let s = _mm512_fmadd_ps(even, k[half].0, scores[i][half]);
                    scores[i][half] = _mm512_fmadd_ps(odd, k[half].1, s);
                }
            }
        }
    }
    scores
}

/// Which tokens of both halves queries see that see so many.
#[inline]
pub(in crate::x86_64) fn masks<const N: usize>(visible: &[u32; N]) -> [[u16; 2]; N] {
    visible.map(|visible| {
        let seen = ((1_u64 << visible) - 1) as u32;
        [seen as u16, (seen >> COLUMNS) as u16]
    })
}

/// Updates `m` and `l` by scores of the tokens that `masks` select. Gives the weights of the tokens and, for each query, the factor of
/// what it summed before.
#[inline]
#[allow(clippy::too_many_arguments, reason = "what softmax reads and what it changes")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(in crate::x86_64) fn soften<const N: usize>(
    scores: &mut [[__m512; 2]; N],
    scale: f32,
    softcap: Option<f32>,
    masks: &[[u16; 2]; N],
    rounds: bool,
    m: &mut [f32],
    l: &mut [f32],
    weights: &mut [[f32; TOKENS]; N],
    corrections: &mut [f32; COLUMNS],
) {
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    let scale = _mm512_set1_ps(scale);
    // What is not visible may be NaN: it is replaced, not multiplied.
    for i in 0..N {
        for half in 0..2 {
            let (s, seen) = (scores[i][half], masks[i][half]);
            scores[i][half] = match softcap {
                None => _mm512_mask_mul_ps(lowest, seen, s, scale),
                Some(cap) => _mm512_mask_mov_ps(lowest, seen, capped(_mm512_mul_ps(s, scale), cap)),
            };
        }
    }
    // The queries' own numbers are a lane each.
    let lanes = u16::MAX >> (COLUMNS - N);
    let (mut largest, mut sums) = ([lowest; QUERIES], [_mm512_setzero_ps(); QUERIES]);
    for i in 0..N {
        largest[i] = _mm512_max_ps(scores[i][0], scores[i][1]);
    }
    let mut lowered = [0.0f32; COLUMNS];
    // SAFETY: the mask selects `N` lanes, which are all of `m` and `l`; the arrays are 16 floats, and the weights of a query 32.
    unsafe {
        let old = _mm512_mask_loadu_ps(lowest, lanes, m[..N].as_ptr());
        // The second operand is taken where one is no number: a score's shows in its weight, a state's stays.
        let new = _mm512_max_ps(bases(reduce::<MAX>(&largest), rounds), old);
        // Nothing is `inf - inf`.
        let base = _mm512_mask_blend_ps(_mm512_cmpeq_ps_mask(new, lowest), new, _mm512_setzero_ps());
        _mm512_storeu_ps(lowered.as_mut_ptr(), base);
        for i in 0..N {
            let lowered = _mm512_set1_ps(lowered[i]);
            let low = exp(_mm512_sub_ps(scores[i][0], lowered));
            let high = exp(_mm512_sub_ps(scores[i][1], lowered));
            _mm512_storeu_ps(weights[i].as_mut_ptr(), low);
            _mm512_storeu_ps(weights[i].as_mut_ptr().add(COLUMNS), high);
            sums[i] = _mm512_add_ps(low, high);
        }
        let c = exp(_mm512_sub_ps(old, base));
        let before = _mm512_maskz_loadu_ps(lanes, l[..N].as_ptr());
        let sum = _mm512_fmadd_ps(before, c, reduce::<SUM>(&sums));
        _mm512_mask_storeu_ps(l.as_mut_ptr(), lanes, sum);
        _mm512_mask_storeu_ps(m.as_mut_ptr(), lanes, new);
        _mm512_storeu_ps(corrections.as_mut_ptr(), c);
    }
}

/// [`crate::attention::base_of`], a query a lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn bases(largest: __m512, rounds: bool) -> __m512 {
    if !rounds {
        return largest;
    }
    let octaves = _mm512_mul_ps(largest, _mm512_set1_ps(LOG2_E));
    let octaves = _mm512_roundscale_ps::<{ _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC }>(octaves);
    _mm512_mul_ps(octaves, _mm512_set1_ps(LN_2))
}

/// What [`reduce`] makes of lanes: their sum, or the largest.
const SUM: bool = false;
const MAX: bool = true;

/// The sum (or maximum) of the lanes of each vector, a lane each, in order: halves, then halves of those, four times, always of
/// the same lanes. The lanes from [`QUERIES`] on mean nothing.
#[inline]
#[target_feature(enable = "avx512f")]
fn reduce<const OP: bool>(v: &[__m512; QUERIES]) -> __m512 {
    let (low, high) = (quarters::<OP>(v[0], v[1], v[2], v[3]), quarters::<OP>(v[4], v[5], v[6], v[7]));
    let pairs = join::<OP>(_mm512_unpacklo_ps(low, high), _mm512_unpackhi_ps(low, high));
    let single = join::<OP>(pairs, _mm512_permute_ps::<0b1110>(pairs));
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_ps(order, single)
}

/// Of four vectors the four quarters of each become one, a part of 128 bits each.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarters<const OP: bool>(a: __m512, b: __m512, c: __m512, d: __m512) -> __m512 {
    let ab = join::<OP>(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
    let cd = join::<OP>(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
    join::<OP>(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd))
}

/// The sum or the maximum of two vectors.
#[inline]
#[target_feature(enable = "avx512f")]
fn join<const OP: bool>(a: __m512, b: __m512) -> __m512 {
    if OP == MAX { _mm512_max_ps(a, b) } else { _mm512_add_ps(a, b) }
}

/// `cap * tanh(s / cap)`, where `tanh |x| = (1 - t) / (1 + t)` with `t = e^(-2 |x|)`: its exponent is never positive.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn capped(s: __m512, cap: f32) -> __m512 {
    let (one, cap) = (_mm512_set1_ps(1.0), _mm512_set1_ps(cap));
    let size = _mm512_abs_ps(_mm512_div_ps(s, cap));
    let t = exp(_mm512_mul_ps(size, _mm512_set1_ps(-2.0)));
    let tanh = _mm512_div_ps(_mm512_sub_ps(one, t), _mm512_add_ps(one, t));
    let sign = _mm512_and_si512(_mm512_castps_si512(s), _mm512_set1_epi32(i32::MIN));
    _mm512_mul_ps(cap, _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(tanh), sign)))
}

/// Corrects `acc` and adds the values of the first `visible` tokens, `LINES` vectors of elements at a time.
///
/// # Safety
/// As [`scores`]; `acc` holds the elements of `N` queries.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn weigh<const ELEM: u8, const N: usize, const LINES: usize>(
    block: &KvBlock<'_>,
    weights: &[[f32; TOKENS]; N],
    corrections: &[f32; COLUMNS],
    visible: usize,
    acc: &mut [f32],
) {
    let d = block.head_dim;
    let acc = acc[..N * d].as_mut_ptr();
    let values = block.values.as_ptr();
    let next = block.next.map_or(values, |(_, values)| values.as_ptr());
    for at in (0..d).step_by(LINES * COLUMNS) {
        let lanes: [usize; LINES] = std::array::from_fn(|g| COLUMNS.min(d.saturating_sub(at + g * COLUMNS)));
        let place = |i: usize, g: usize| acc.wrapping_add(i * d + at + g * COLUMNS);
        let line = |pair: usize, g: usize| (pair * d + at + g * COLUMNS) * pair_bytes(ELEM);
        // SAFETY: `lanes` selects elements below d of each accumulator and of each of the token pairs, which are d pairs of
        // elements long; there are 16 of those.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); LINES]; N];
            for i in 0..N {
                for g in 0..LINES {
                    let old = _mm512_maskz_loadu_ps(first_lanes(lanes[g]), place(i, g));
                    sums[i][g] = _mm512_mul_ps(old, _mm512_set1_ps(corrections[i]));
                }
            }
            for pair in 0..visible / 2 {
                let mut v = [(_mm512_setzero_ps(), _mm512_setzero_ps()); LINES];
                for g in 0..LINES {
                    if line(pair, g) >= AMID * COLUMNS * pair_bytes(ELEM) {
                        fetch::<ELEM>(next, line(pair, g));
                    }
                    v[g] = load_pairs::<ELEM>(values.wrapping_add(line(pair, g)), lanes[g]);
                }
                for i in 0..N {
                    let even = _mm512_set1_ps(weights[i][2 * pair]);
                    let odd = _mm512_set1_ps(weights[i][2 * pair + 1]);
                    for g in 0..LINES {
                        sums[i][g] = _mm512_fmadd_ps(even, v[g].0, sums[i][g]);
                        sums[i][g] = _mm512_fmadd_ps(odd, v[g].1, sums[i][g]);
                    }
                }
            }
            if visible % 2 == 1 {
                for g in 0..LINES {
                    let (even, _) = load_pairs::<ELEM>(values.wrapping_add(line(visible / 2, g)), lanes[g]);
                    for i in 0..N {
                        let weight = _mm512_set1_ps(weights[i][visible - 1]);
                        sums[i][g] = _mm512_fmadd_ps(weight, even, sums[i][g]);
                    }
                }
            }
            for i in 0..N {
                for g in 0..LINES {
                    _mm512_mask_storeu_ps(place(i, g), first_lanes(lanes[g]), sums[i][g]);
                }
            }
        }
    }
}

/// Asks for the line of 32 elements at `offset`, which need not exist: a prefetch never faults. With the hint for all caches: the one for
/// data that is read once reads as fast on Zen 5, and at little more than half the rate on Emerald Rapids (6 against 10.4 GB/s a core).
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn fetch<const ELEM: u8>(p: *const u8, offset: usize) {
    if ELEM == WIDENED {
        return;
    }
    _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(offset).cast());
    if ELEM == F32 {
        _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(offset + 64).cast());
    }
}

/// A mask of the first `count` lanes, or of all.
#[inline]
pub(in crate::x86_64) fn first_lanes(count: usize) -> u16 {
    ((1_u32 << count.min(COLUMNS)) - 1) as u16
}

/// [`OnlineSoftmax::merge`], queries' own numbers in a lane each. Decode merges a state for each query of each chunk: what a call
/// takes beside its sums counts.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn merge(state: &mut OnlineSoftmax<'_>, later: &OnlineSoftmax<'_>) {
    let queries = state.m.len();
    assert!(state.l.len() == queries && later.m.len() == queries && later.l.len() == queries);
    assert!(state.acc.len() == later.acc.len() && (queries == 0 || state.acc.len().is_multiple_of(queries)));
    let d = state.acc.len() / queries.max(1);
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    for first in (0..queries).step_by(COLUMNS) {
        let count = COLUMNS.min(queries - first);
        let lanes = first_lanes(count);
        let (mut a, mut b) = ([0.0f32; COLUMNS], [0.0f32; COLUMNS]);
        // SAFETY: the mask selects `count` lanes, and so many numbers there are behind `first`; the arrays are 16 floats.
        unsafe {
            let (m, l) = (state.m.as_mut_ptr().add(first), state.l.as_mut_ptr().add(first));
            let (old, new) = (
                _mm512_mask_loadu_ps(lowest, lanes, m),
                _mm512_mask_loadu_ps(lowest, lanes, later.m.as_ptr().add(first)),
            );
            let largest = _mm512_max_ps(new, old);
            // Nothing is `inf - inf`.
            let empty = _mm512_cmpeq_ps_mask(largest, lowest);
            let base = _mm512_mask_blend_ps(empty, largest, _mm512_setzero_ps());
            let (x, y) = (exp(_mm512_sub_ps(old, base)), exp(_mm512_sub_ps(new, base)));
            let sum = _mm512_add_ps(
                _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, l), x),
                _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, later.l.as_ptr().add(first)), y),
            );
            _mm512_mask_storeu_ps(m, lanes, largest);
            _mm512_mask_storeu_ps(l, lanes, sum);
            _mm512_storeu_ps(a.as_mut_ptr(), x);
            _mm512_storeu_ps(b.as_mut_ptr(), y);
        }
        for i in 0..count {
            let (x, y) = (_mm512_set1_ps(a[i]), _mm512_set1_ps(b[i]));
            let at = (first + i) * d;
            let (sums, more) = (&mut state.acc[at..][..d], &later.acc[at..][..d]);
            for at in (0..d).step_by(COLUMNS) {
                let lanes = first_lanes(d - at);
                // SAFETY: the mask selects elements below d, which both have.
                unsafe {
                    let place = sums.as_mut_ptr().add(at);
                    let old = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, place), x);
                    let new = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, more.as_ptr().add(at)), y);
                    _mm512_mask_storeu_ps(place, lanes, _mm512_add_ps(old, new));
                }
            }
        }
    }
}

/// Where the halves of 16 pairs lie, the even ones first.
const EVEN_THEN_ODD: [u16; 2 * COLUMNS] = {
    let mut order = [0; 2 * COLUMNS];
    let mut i = 0;
    while i < COLUMNS {
        order[i] = 2 * i as u16;
        order[COLUMNS + i] = 2 * i as u16 + 1;
        i += 1;
    }
    order
};

/// The even and the odd elements of `lanes` pairs (the rest zero).
///
/// # Safety
/// `2 * lanes` elements are readable at `p`, and `lanes` is at most 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn load_pairs<const ELEM: u8>(p: *const u8, lanes: usize) -> (__m512, __m512) {
    let mask = first_lanes(lanes);
    // SAFETY: the masks select the promised elements only.
    unsafe {
        match ELEM {
            BF16 => {
                let v = _mm512_maskz_loadu_epi32(mask, p.cast());
                let odd = _mm512_and_si512(v, _mm512_set1_epi32(-65536));
                (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(v)), _mm512_castsi512_ps(odd))
            }
            // Only whole lines are widened.
            WIDENED => (
                _mm512_maskz_loadu_ps(mask, p.cast()),
                _mm512_maskz_loadu_ps(mask, p.cast::<f32>().wrapping_add(COLUMNS)),
            ),
            F16 => {
                let v = _mm512_maskz_loadu_epi32(mask, p.cast());
                let order = std::mem::transmute::<[u16; 2 * COLUMNS], __m512i>(EVEN_THEN_ODD);
                let v = _mm512_permutexvar_epi16(order, v);
                let odd = _mm512_extracti64x4_epi64::<1>(v);
                (_mm512_cvtph_ps(_mm512_castsi512_si256(v)), _mm512_cvtph_ps(odd))
            }
            INT8 => {
                let v = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, p.cast()));
                let even = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(v));
                (_mm512_cvtepi32_ps(even), _mm512_cvtepi32_ps(_mm512_srai_epi32::<8>(v)))
            }
            FP8 => {
                let v = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p.cast()));
                (e4m3(_mm512_and_si512(v, _mm512_set1_epi32(0xff))), e4m3(_mm512_srli_epi32::<8>(v)))
            }
            INT4 => {
                let v = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p.cast()));
                let eight = _mm512_set1_epi32(8);
                let even = _mm512_and_si512(v, _mm512_set1_epi32(15));
                let code = |v| _mm512_cvtepi32_ps(_mm512_sub_epi32(v, eight));
                (code(even), code(_mm512_srli_epi32::<4>(v)))
            }
            _ => {
                let mask = ((1_u64 << (2 * lanes)) - 1) as u32;
                let a = _mm512_maskz_loadu_ps(mask as u16, p.cast());
                let b = _mm512_maskz_loadu_ps((mask >> 16) as u16, p.cast::<f32>().wrapping_add(16));
                let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
                (_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b))
            }
        }
    }
}
