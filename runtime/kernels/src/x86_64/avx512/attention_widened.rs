//! Attention of many queries over a block whose elements take instructions to become numbers: they become such once, in a room of
//! the L1 cache, not again for every few queries. The same products in the same order, so the same bits.

use super::attention::{self as vectors, QUERIES, fetch, load_pairs};
use crate::attention::{KvBlock, KvElem, OnlineSoftmax, Queries};
use crate::x86_64::kv_elem::{WIDENED, pair_bytes};
use bessemer_format::kv::COLUMNS;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// The largest head: keys and values are 32 KB then, which leaves some of the L1 cache to queries and sums.
const LARGEST: usize = 128;
/// The fewest queries: by the count of instructions, two runs of as many as share a load save no more than the stores take.
const FEWEST: usize = 2 * QUERIES + 1;

/// Lines of 16 pairs: their even elements, then the odd ones.
#[repr(align(64))]
struct Room {
    _lines: [[f32; 2 * COLUMNS]; 2 * LARGEST],
}

/// Whether it is worth it, and there is room.
pub(super) fn pays(block: &KvBlock<'_>, queries: &Queries<'_>) -> bool {
    let d = block.head_dim;
    queries.visible.len() >= FEWEST && d <= LARGEST && d.is_multiple_of(COLUMNS)
}

/// # Safety
/// As [`crate::attention::AttentionFn`], for the element type `ELEM`, and it [`pays`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn attend<const ELEM: u8>(
    block: &KvBlock<'_>,
    queries: &Queries<'_>,
    state: &mut OnlineSoftmax<'_>,
) {
    let mut room = MaybeUninit::<Room>::uninit();
    let room = room.as_mut_ptr().cast::<u8>();
    let (next_keys, next_values) = block.next.unwrap_or((block.keys, block.values));
    // Of keys and of values a head has as many lines as elements.
    let (lines, wide) = (block.head_dim, COLUMNS * pair_bytes(WIDENED));
    // SAFETY: a head's keys and values are `lines` lines each, and the room has twice as many as the largest head. All that is read of it
    // has been written.
    unsafe {
        for (first, from, next) in [(0, block.keys, next_keys), (lines, block.values, next_values)] {
            for line in 0..lines {
                let at = line * COLUMNS * pair_bytes(ELEM);
                fetch::<ELEM>(next.as_ptr(), at);
                let (even, odd) = load_pairs::<ELEM>(from.as_ptr().add(at), COLUMNS);
                let to = room.add((first + line) * wide).cast::<f32>();
                _mm512_store_ps(to, even);
                _mm512_store_ps(to.add(COLUMNS), odd);
            }
        }
        let keys = std::slice::from_raw_parts(room, lines * wide);
        let values = std::slice::from_raw_parts(room.add(lines * wide), lines * wide);
        let widened = KvBlock { elem: KvElem::F32, keys, values, next: None, ..*block };
        vectors::attend::<WIDENED>(&widened, block.scales(), queries, state);
    }
}
