//! What a GPU takes of a model: the layers from one of them on, with the head, and what they need.

use super::memory::WeightPlaces;
use super::{FAULT_WORDS, Model};
use crate::device::Room;
use crate::device::program::InputLayout;
use bessemer_format::gpu::{GpuArg, GpuCode, Launch};
use bessemer_format::kv::TOKENS;
use bessemer_format::plan::{Cut, Plan, StateId, WeightId};
use std::collections::BTreeSet;

/// Where program `index` begins a layer, if another one comes before it.
pub(super) fn cut(plan: &Plan, index: usize, layer: usize) -> Option<&Cut> {
    plan.programs.get(index)?.cuts.get(layer).filter(|_| layer > 0)
}

/// The layers from one on, and the memory that they take.
pub(super) struct Part {
    /// The first step of each program. Programs for more rows than a pass may have are left out, and what only they use.
    pub(super) first_steps: Vec<usize>,
    pub(super) weights: WeightPlaces,
    /// Bytes of a block of each state; none of states that belong to other layers.
    pub(super) held: Vec<usize>,
    /// Bytes of all blocks.
    pub(super) cache: usize,
    pub(super) arena: usize,
    /// Words of the arrays of a pass.
    pub(super) words: usize,
    /// Words of results, the fault included.
    pub(super) results: usize,
}

impl Part {
    /// The layers from `first` on.
    pub(super) fn new(model: &Model<'_>, room: &Room, first: usize) -> Self {
        let plan = model.plan;
        let programs = plan.programs.iter().position(|p| p.regime.max_rows as usize >= room.rows);
        let programs = &plan.programs[..programs.map_or(plan.programs.len(), |last| last + 1)];
        let step = |index| cut(plan, index, first).map_or(0, |cut| cut.step as usize);
        let first_steps: Vec<usize> = (0..programs.len()).map(step).collect();
        let (mut weights, mut states) = (BTreeSet::<WeightId>::new(), BTreeSet::<StateId>::new());
        for arg in launches(model.code, &first_steps).flat_map(|launch| &launch.args) {
            match arg {
                GpuArg::Weight(id) => drop(weights.insert(*id)),
                GpuArg::State(id) => drop(states.insert(*id)),
                _ => {}
            }
        }
        let bytes = room.layout.block_bytes.iter().enumerate();
        let held: Vec<usize> =
            bytes.map(|(id, bytes)| if states.contains(&(id as StateId)) { *bytes } else { 0 }).collect();
        let stride = room.blocks.min((plan.model.context as usize).div_ceil(TOKENS)).max(1);
        let rows = |p: &bessemer_format::plan::Program| p.regime.max_rows as usize;
        let words = programs.iter().map(|p| InputLayout::new(rows(p)).words(stride)).max().unwrap_or(0);
        let largest = programs.last().map_or(0, rows);
        Self {
            weights: WeightPlaces::new(&plan.weights, &weights),
            cache: held.iter().map(|bytes| bytes * room.blocks).sum(),
            held,
            arena: programs.iter().map(|p| p.arena_bytes).max().unwrap_or(0) as usize,
            words,
            results: FAULT_WORDS + largest * plan.model.output_width() as usize,
            first_steps,
        }
    }

    /// The launches of its steps.
    pub(super) fn launches<'a>(&'a self, code: &'a GpuCode) -> impl Iterator<Item = &'a Launch> {
        launches(code, &self.first_steps)
    }

    /// Bytes in all.
    pub(super) fn needed(&self) -> u64 {
        (self.weights.bytes + self.cache + self.arena + 4 * (self.words + self.results)) as u64
    }
}

/// The launches of each program from its first step on.
fn launches<'a>(code: &'a GpuCode, first_steps: &'a [usize]) -> impl Iterator<Item = &'a Launch> {
    let programs = code.programs.iter().zip(first_steps);
    programs.flat_map(|(all, first)| all.iter().filter(move |launch| launch.step as usize >= *first))
}
