//! Appending to a cache of codes.
//!
//! Loop nests write numbers. Where the cache holds codes with a scale a token and head, a thread lets a nest write
//! [`TOKENS`] rows at a time into a block of its own, in f32, and then stores their codes. So one set of nests serves every
//! element type, and nothing wider than a layer of one block exists beside the cache.

use super::Pass;
use crate::bind::{Appends, BoundArg};
use crate::pool::SharedBytes;
use crate::state::CacheLayer;
use bessemer_format::kv::{self, TOKENS};
use bessemer_format::manifest::KvElem;
use std::ops::Range;

/// What a thread writes before it is stored.
#[derive(Default)]
pub(crate) struct Staged {
    /// A block of one layer.
    block: Vec<f32>,
    /// A head of one token.
    head: Vec<f32>,
}

impl Pass<'_> {
    /// Runs rows of a nest that appends to a layer, by way of `staged`.
    pub(super) fn staged_nest(
        &self,
        nest: usize,
        rows: Range<usize>,
        args: &[BoundArg],
        appends: &Appends,
        staged: &mut Staged,
    ) -> Result<(), String> {
        let layer = self.state.layout.layers[appends.layer];
        // A nest finds its layer as it does in a block of all layers. Only the layer's own part is ever touched, and always
        // the same memory: what it takes for the block's start lies as far before it.
        let layers = || self.state.layout.layers.iter();
        let most = layers().map(|l| l.elems).max().unwrap_or(0);
        if staged.block.is_empty() {
            let largest = layers().map(CacheLayer::len).max();
            staged.block = vec![0.0; most + largest.unwrap_or(0)];
        }
        let (start, end) = (self.whole_pair(rows.start), self.whole_pair(rows.end));
        let mut first = start;
        while first < end {
            // Slots repeat after so many rows.
            let some = first..end.min(first + TOKENS);
            let memory = SharedBytes::read_write(&mut staged.block[most - layer.elems..]);
            self.nest(nest, some.clone(), args, Some(memory))?;
            if appends.last {
                some.clone()
                    .for_each(|row| self.store(row, appends, &staged.block[most..], &mut staged.head));
            }
            first = some.end;
        }
        Ok(())
    }

    /// The row itself, or the next one if it is the second token of a pair: tokens of a pair may share bytes, so one thread
    /// stores both.
    fn whole_pair(&self, row: usize) -> usize {
        let second = |row: usize| {
            let slots = &self.inputs.slots;
            slots.get(row).is_some_and(|slot| slot % 2 == 1 && row > 0 && slots[row - 1] + 1 == *slot)
        };
        if second(row) { row + 1 } else { row }
    }

    /// Stores the codes of a row's keys and values, which lie in `staged` as in a block of the layer alone.
    fn store(&self, row: usize, appends: &Appends, staged: &[f32], x: &mut Vec<f32>) {
        let (layer, layer_at) =
            (&self.state.layout.layers[appends.layer], self.state.layout.layer_at[appends.layer]);
        let (d, elem) = (layer.head_dim, self.state.layout.kv);
        x.resize(d, 0.0);
        let slot = self.inputs.slots[row] as usize;
        let (block, token) = (self.state.block(layer.state, slot / TOKENS), slot % TOKENS);
        let heads = staged.chunks_exact(kv::head_elems(d)).take(layer.heads()).enumerate();
        for (head, staged) in heads {
            let place = if head < layer.kv_heads { kv::key } else { kv::value };
            (0..d).for_each(|i| x[i] = staged[place(d, row % TOKENS, i)]);
            if head < layer.kv_heads && !layer.latent {
                kv::turn(x);
            }
            let scale = kv::scale(elem, x);
            let at = layer_at + head * kv::head_bytes(elem, d);
            for (i, &x) in x.iter().enumerate() {
                let (code, element) = (kv::code(elem, x, scale), place(d, token, i));
                if elem == KvElem::Int4 {
                    let byte = &mut block.get_mut::<u8>(at + element / 2..at + element / 2 + 1)[0];
                    let shift = element % 2 * 4;
                    *byte = *byte & !(15 << shift) | code << shift;
                } else {
                    block.get_mut::<u8>(at + element..at + element + 1)[0] = code;
                }
            }
            let scale_at = (at + kv::scales_at(elem, d)) / 4 + token;
            block.get_mut::<f32>(scale_at..scale_at + 1)[0] = scale;
        }
    }
}
