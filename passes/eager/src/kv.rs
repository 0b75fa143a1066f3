//! Keys and values: contiguous f32 rows, one list a head.

use crate::ops::SHARED;
use bessemer_format::kv;
use bessemer_format::manifest::KvElem;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// One layer of one sequence: of each key head, `[position][d]`.
#[derive(Default)]
pub(crate) struct Layer {
    pub keys: Vec<Vec<f32>>,
    pub values: Vec<Vec<f32>>,
    pub head_dim: usize,
}

/// All layers of all sequences.
pub(crate) struct Caches {
    layers: BTreeMap<(u32, u32), Layer>,
    elem: KvElem,
}

impl Caches {
    /// Empty ones, whose elements are what a cache of `elem` would hold.
    pub fn new(elem: KvElem) -> Self {
        Self { layers: BTreeMap::new(), elem }
    }

    pub fn get(&self, layer: u32, sequence: u32) -> Option<&Layer> {
        self.layers.get(&(sequence, layer))
    }

    /// Enters rows of keys and values of `kv_heads` heads behind what is held.
    pub fn append(&mut self, layer: u32, sequence: u32, kv_heads: usize, width: usize, k: &[f32], v: &[f32]) {
        let elem = self.elem;
        let held = self.layers.entry((sequence, layer)).or_default();
        let d = width / kv_heads;
        held.head_dim = d;
        let stored: fn(KvElem, &mut [f32]) = kv::stored;
        // Vectors that are keys and values at once come without values.
        let stored_key = if v.is_empty() { stored } else { kv::stored_key };
        for (lists, rows, store) in [(&mut held.keys, k, stored_key), (&mut held.values, v, stored)] {
            lists.resize(kv_heads, Vec::new());
            let enter = |(h, list): (usize, &mut Vec<f32>)| {
                for row in rows.chunks_exact(width) {
                    let start = list.len();
                    list.extend_from_slice(&row[h * d..][..d]);
                    store(elem, &mut list[start..]);
                }
            };
            if rows.len() < SHARED {
                lists.iter_mut().enumerate().for_each(enter);
            } else {
                lists.par_iter_mut().enumerate().for_each(enter);
            }
        }
    }

    pub fn truncate(&mut self, sequence: u32, len: usize) {
        for (_, layer) in self.layers.range_mut((sequence, 0)..=(sequence, u32::MAX)) {
            for list in layer.keys.iter_mut().chain(&mut layer.values) {
                list.truncate(len * layer.head_dim);
            }
        }
    }

    pub fn clear(&mut self) {
        self.layers.clear();
    }
}
