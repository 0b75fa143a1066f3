//! Keys and values of every layer and sequence: lists of rows, nothing clever.

use std::collections::BTreeMap;

/// One layer of one sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layer {
    /// Key of each position.
    pub keys: Vec<Vec<f64>>,
    /// Value of each position.
    pub values: Vec<Vec<f64>>,
    /// The scales that the cache stores beside each position's value (or key, where it is the value), one a head.
    pub scales: Vec<Vec<f32>>,
}

/// The caches of all layers and sequences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Caches {
    layers: BTreeMap<(u32, u32), Layer>,
}

impl Caches {
    /// What `layer` holds of `sequence`.
    pub fn get(&self, layer: u32, sequence: u32) -> Option<&Layer> {
        self.layers.get(&(sequence, layer))
    }

    /// Enters a key, a value and its scales at `position`, which must be the next one.
    pub fn append(
        &mut self,
        layer: u32,
        sequence: u32,
        position: u32,
        key: Vec<f64>,
        value: Vec<f64>,
        scales: Vec<f32>,
    ) -> Result<(), String> {
        let held = self.layers.entry((sequence, layer)).or_default();
        if held.keys.len() != position as usize {
            return Err(format!(
                "position {position} of sequence {sequence} does not follow the {} positions held",
                held.keys.len()
            ));
        }
        held.keys.push(key);
        held.values.push(value);
        held.scales.push(scales);
        Ok(())
    }

    /// Forgets what lies at `len` and behind it.
    pub fn truncate(&mut self, sequence: u32, len: usize) {
        for (_, layer) in self.layers.range_mut((sequence, 0)..=(sequence, u32::MAX)) {
            layer.keys.truncate(len);
            layer.values.truncate(len);
            layer.scales.truncate(len);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.layers.clear();
    }
}
