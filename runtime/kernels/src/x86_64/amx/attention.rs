//! Attention with products of bfloat16, by tiles: up to 16 queries by a block's 32 tokens, then their weights by 16 elements of values
//! at a time. Keys and values of bfloat16 are operands as they lie; between both products softmax is that of AVX-512.

use super::tile::{self, load, multiply, store, zero};
use crate::attention::{KvBlock, KvElem, OnlineSoftmax, Queries};
use crate::x86_64::avx512::attention::{self as vectors, first_lanes};
use crate::x86_64::avx512::attention_bf16::round;
use crate::x86_64::kv_elem::{BF16, pair_bytes};
use bessemer_format::kv::{COLUMNS, TOKENS};
use bessemer_format::panel::LINE;
use std::arch::x86_64::*;

/// Queries of a tile.
const QUERIES: usize = tile::ROWS;
/// Queries that [`vectors::soften`] takes at once.
const HALF: usize = vectors::QUERIES;
const _: () = assert!(QUERIES == 2 * HALF);
/// Bytes of two neighbouring elements.
const PAIR: usize = pair_bytes(BF16);

/// What a tile holds, as it lies in memory.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Tile([[f32; LINE / 4]; tile::ROWS]);

impl Tile {
    const ZERO: Self = Self([[0.0; LINE / 4]; tile::ROWS]);

    /// Where a row begins, and behind it the next ones.
    fn row(&mut self, row: usize) -> *mut f32 {
        self.0[row..].as_mut_ptr().cast()
    }
}

/// [`crate::attention::AttentionFn`] for queries that round. Elements that are no bfloat16 are multiplied in f32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn attend_block(block: &KvBlock<'_>, queries: &Queries<'_>, state: &mut OnlineSoftmax<'_>) {
    if block.elem != KvElem::Bf16 {
        // SAFETY: the caller's promises are the same.
        return unsafe { vectors::attend_block(block, queries, state) };
    }
    let (mut first, mut configured) = (0, 0);
    for some in queries.visible.chunks(QUERIES) {
        // A weight of zero hides a token from a query that does not see it, unless the value is no number: so nobody shares such.
        let shared = all_finite(block, fewest(some)..most(some));
        let runs = some.chunk_by(|a, b| shared || a == b);
        for run in runs {
            // SAFETY: the host runs AMX; the tiles are configured for the queries `first ..`, which are there.
            unsafe {
                if configured != run.len() {
                    configured = run.len();
                    let (queries, keys_or_values) = (run.len(), tile::ROWS);
                    tile::configure([queries, queries, queries, keys_or_values, keys_or_values, 0, 0, 0]);
                }
                attend_tile(block, queries, first, run, state);
            }
            first += run.len();
        }
    }
    // SAFETY: the host runs AMX.
    unsafe { tile::release() };
}

fn most(visible: &[u32]) -> usize {
    visible.iter().fold(0, |most, v| most.max(*v)) as usize
}

fn fewest(visible: &[u32]) -> usize {
    visible.iter().fold(TOKENS as u32, |least, v| least.min(*v)) as usize
}

/// Whether the values of all these tokens are finite numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn all_finite(block: &KvBlock<'_>, tokens: std::ops::Range<usize>) -> bool {
    let d = block.head_dim;
    let exponent = _mm512_set1_epi16(0x7f80);
    for pair in tokens.start / 2..tokens.end.div_ceil(2) {
        // Elements of the first token are the even ones.
        let even = if tokens.contains(&(2 * pair)) { 0x5555_5555 } else { 0 };
        let odd = if tokens.contains(&(2 * pair + 1)) { 0xaaaa_aaaa } else { 0 };
        let line = &block.values[pair * d * PAIR..][..d * PAIR];
        for at in (0..d).step_by(COLUMNS) {
            // SAFETY: the lanes are elements below d.
            let pairs =
                unsafe { _mm512_maskz_loadu_epi32(first_lanes(d - at), line.as_ptr().add(at * PAIR).cast()) };
            let pairs = _mm512_and_si512(pairs, exponent);
            if _mm512_mask_cmpeq_epi16_mask(even | odd, pairs, exponent) != 0 {
                return false;
            }
        }
    }
    true
}

/// Sums are in tiles 0 and 1, queries or weights in 2, keys or values in 3 and 4.
///
/// # Safety
/// As [`crate::attention::AttentionFn`] for keys and values of bfloat16. The queries from `first` on see what `visible` says; they are as
/// many as the tiles 0 to 2 are configured for, and tiles 3 and 4 are configured for [`tile::ROWS`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn attend_tile(
    block: &KvBlock<'_>,
    queries: &Queries<'_>,
    first: usize,
    visible: &[u32],
    state: &mut OnlineSoftmax<'_>,
) {
    let (d, count) = (block.head_dim, visible.len());
    let mut scores = [Tile::ZERO; 2];
    // SAFETY: the caller's promises.
    unsafe { products(block, &queries.q[first * d..][..count * d], &mut scores) };

    // Queries that are not there see nothing, which changes nothing.
    let (mut m, mut l) = ([f32::NEG_INFINITY; QUERIES], [0.0; QUERIES]);
    m[..count].copy_from_slice(&state.m[first..][..count]);
    l[..count].copy_from_slice(&state.l[first..][..count]);
    let (mut weights, mut factors) = (Tile::ZERO, [1.0; QUERIES]);
    for half in (0..count).step_by(HALF) {
        let mut lanes = [[_mm512_setzero_ps(); 2]; HALF];
        let mut seen = [0; HALF];
        for i in 0..HALF.min(count - half) {
            // SAFETY: a row of scores is 16 floats.
            lanes[i] =
                unsafe { [_mm512_load_ps(scores[0].row(half + i)), _mm512_load_ps(scores[1].row(half + i))] };
            seen[i] = visible[half + i];
        }
        let (mut unrounded, mut corrections) = ([[0.0; TOKENS]; HALF], [0.0; COLUMNS]);
        let (m, l) = (&mut m[half..][..HALF], &mut l[half..][..HALF]);
        let masks = vectors::masks(&seen);
        let Queries { scale, softcap, .. } = *queries;
        vectors::soften(&mut lanes, scale, softcap, &masks, true, m, l, &mut unrounded, &mut corrections);
        factors[half..][..HALF].copy_from_slice(&corrections[..HALF]);
        for i in 0..HALF {
            // SAFETY: 32 weights become a row of as many.
            unsafe { round(weights.row(half + i).cast(), unrounded[i].as_ptr(), TOKENS) };
        }
    }
    state.m[first..][..count].copy_from_slice(&m[..count]);
    state.l[first..][..count].copy_from_slice(&l[..count]);
    // SAFETY: the caller's promises.
    unsafe { weigh(block, &weights, &factors, most(visible), &mut state.acc[first * d..][..count * d]) };
}

/// The products of queries with the keys of both halves of the tokens.
///
/// # Safety
/// As [`attend_tile`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn products(block: &KvBlock<'_>, q: &[f32], scores: &mut [Tile; 2]) {
    let d = block.head_dim;
    let (mut rows, mut rest) = (Tile::ZERO, [Tile::ZERO; 2]);
    // SAFETY: both halves of the keys have a line of 16 pairs for every pair along d; a query has d elements.
    unsafe {
        zero!("tmm0");
        zero!("tmm1");
        for at in (0..d).step_by(tile::BF16) {
            let elems = tile::BF16.min(d - at);
            for (i, q) in q.chunks_exact(d).enumerate() {
                round(rows.row(i).cast(), q.as_ptr().add(at), elems);
            }
            let mut keys = [0, 1].map(|half| block.keys.as_ptr().add((half * d + at) / 2 * LINE));
            if elems < tile::BF16 {
                // Behind the last lines are other keys, or nothing.
                for (rest, keys) in rest.iter_mut().zip(&mut keys) {
                    keys.copy_to_nonoverlapping(rest.row(0).cast(), elems / 2 * LINE);
                    *keys = rest.row(0).cast();
                }
            }
            load!("tmm2", rows.row(0), LINE);
            load!("tmm3", keys[0], LINE);
            multiply!("tdpbf16ps", "tmm0", "tmm2", "tmm3");
            load!("tmm4", keys[1], LINE);
            multiply!("tdpbf16ps", "tmm1", "tmm2", "tmm4");
        }
        store!("tmm0", scores[0].row(0));
        store!("tmm1", scores[1].row(0));
    }
}

/// Multiplies `acc` by the queries' factors and adds the values of the first `visible` tokens, weighted.
///
/// # Safety
/// As [`attend_tile`]; `acc` holds the elements of its queries.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn weigh(
    block: &KvBlock<'_>,
    weights: &Tile,
    factors: &[f32; QUERIES],
    visible: usize,
    acc: &mut [f32],
) {
    let d = block.head_dim;
    // Most blocks hold no score so large that the base moves.
    for (acc, factor) in acc.chunks_exact_mut(d).zip(factors).filter(|(_, factor)| **factor != 1.0) {
        let factor = _mm512_set1_ps(*factor);
        for at in (0..d).step_by(COLUMNS) {
            let lanes = first_lanes(d - at);
            // SAFETY: the lanes are elements below d.
            unsafe {
                let place = acc.as_mut_ptr().add(at);
                _mm512_mask_storeu_ps(
                    place,
                    lanes,
                    _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, place), factor),
                );
            }
        }
    }
    let (mut some, mut edge) = (Tile::ZERO, Tile::ZERO);
    // SAFETY: values are lines of d pairs, one for two tokens each, and a query has d sums; what is fewer goes by way of a tile in memory.
    unsafe {
        load!("tmm2", weights.0.as_ptr(), LINE);
        for at in (0..d).step_by(COLUMNS) {
            let (whole, lanes) = (d - at >= COLUMNS, first_lanes(d - at));
            let values = block.values.as_ptr().add(at * PAIR);
            let sums = acc.as_mut_ptr().add(at);
            if whole && visible == TOKENS {
                load!("tmm3", values, d * PAIR);
            } else {
                for pair in 0..visible.div_ceil(2) {
                    let line = _mm512_maskz_loadu_epi32(lanes, values.add(pair * d * PAIR).cast());
                    // The other token of the last pair may be any bytes.
                    let seen = if 2 * pair + 1 < visible { -1 } else { 0xffff };
                    _mm512_store_si512(
                        some.row(pair).cast(),
                        _mm512_and_si512(line, _mm512_set1_epi32(seen)),
                    );
                }
                load!("tmm3", some.row(0), LINE);
            }
            if whole {
                load!("tmm0", sums, d * size_of::<f32>());
                multiply!("tdpbf16ps", "tmm0", "tmm2", "tmm3");
                store!("tmm0", sums, d * size_of::<f32>());
                continue;
            }
            let rows = acc.len() / d;
            for i in 0..rows {
                _mm512_store_ps(edge.row(i), _mm512_maskz_loadu_ps(lanes, sums.add(i * d)));
            }
            load!("tmm0", edge.row(0), LINE);
            multiply!("tdpbf16ps", "tmm0", "tmm2", "tmm3");
            store!("tmm0", edge.row(0));
            for i in 0..rows {
                _mm512_mask_storeu_ps(sums.add(i * d), lanes, _mm512_load_ps(edge.row(i)));
            }
        }
    }
}
