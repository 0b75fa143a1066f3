//! Keys and values: contiguous f32 rows, one list a head.

use std::collections::BTreeMap;

/// One layer of one sequence: of each key head, `[position][d]`.
#[derive(Default)]
pub(crate) struct Layer {
    pub keys: Vec<Vec<f32>>,
    pub values: Vec<Vec<f32>>,
    pub head_dim: usize,
}

/// All layers of all sequences.
#[derive(Default)]
pub(crate) struct Caches {
    layers: BTreeMap<(u32, u32), Layer>,
}

impl Caches {
    pub fn get(&self, layer: u32, sequence: u32) -> Option<&Layer> {
        self.layers.get(&(sequence, layer))
    }

    /// Enters a key and a value of `kv_heads` heads behind what is held.
    pub fn append(&mut self, layer: u32, sequence: u32, kv_heads: usize, k: &[f32], v: &[f32]) {
        let held = self.layers.entry((sequence, layer)).or_default();
        held.head_dim = k.len() / kv_heads;
        held.keys.resize(kv_heads, Vec::new());
        held.values.resize(kv_heads, Vec::new());
        for (lists, row) in [(&mut held.keys, k), (&mut held.values, v)] {
            for (list, head) in lists.iter_mut().zip(row.chunks_exact(held.head_dim)) {
                list.extend_from_slice(head);
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
