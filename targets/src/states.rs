//! Where the state of each layer lies in a block.

use bessemer_format::kv;
use bessemer_format::plan::{StateDecl, StateId};
use bessemer_ir::{DType, Graph, NodeId, Op};
use std::collections::{BTreeMap, BTreeSet};

/// Where a layer's state lies in a block.
#[derive(Clone, Copy, Debug)]
pub struct LayerState {
    /// Which of the plan's states it is a part of.
    pub state: StateId,
    /// What it holds.
    pub holds: Holds,
    /// First element of the layer in a block.
    pub first_elem: u64,
    /// Key and value heads; 1 where there are none.
    pub kv_heads: u32,
    /// Elements of a head, or what stands in its place.
    pub head_dim: u32,
    /// Elements of a block, all layers.
    pub block_elems: u64,
}

/// What a layer's state holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// Keys and values of every token.
    KeysAndValues,
    /// A vector of every token, which is key and value.
    Latents,
    /// Numbers that the last token leaves to the next.
    Carried,
}

impl LayerState {
    /// Whether it holds keys only, of which values are a part.
    pub fn latent(&self) -> bool {
        self.holds == Holds::Latents
    }
}

/// The states of a plan.
#[derive(Clone, Debug, Default)]
pub struct States {
    /// Where each layer's is.
    pub layers: BTreeMap<u32, LayerState>,
    /// Elements of a block of keys and values, and of what is carried beside them.
    cache_elems: u64,
    carried_elems: u64,
}

impl States {
    /// Those of `graph`, in the order in which layers are run.
    pub fn of(graph: &Graph, order: &[NodeId]) -> Self {
        let mut states = Self::default();
        let kept = kept_layers(graph);
        let mut passing = 0;
        for (layer, holds, kv_heads, head_dim) in order.iter().filter_map(|node| layer_state(graph.op(*node)))
        {
            let elems = match holds {
                Holds::KeysAndValues => kv::layer_elems(kv_heads as usize, head_dim as usize) as u64,
                Holds::Latents => kv::latent_elems(head_dim as usize) as u64,
                Holds::Carried => u64::from(head_dim),
            };
            let carried = holds == Holds::Carried;
            let total = if carried { &mut states.carried_elems } else { &mut states.cache_elems };
            let first_elem = *total;
            let state = LayerState { state: 0, holds, first_elem, kv_heads, head_dim, block_elems: 0 };
            states.layers.insert(layer, state);
            if carried || kept.contains(&layer) {
                *total += elems;
            } else {
                passing = elems.max(passing);
            }
        }
        // Keys and values that no pass leaves behind are needed by their own layer only: one place serves all, behind what is kept.
        let passes = |layer: &u32, state: &LayerState| state.holds != Holds::Carried && !kept.contains(layer);
        for (_, state) in states.layers.iter_mut().filter(|(layer, state)| passes(layer, state)) {
            state.first_elem = states.cache_elems;
        }
        states.cache_elems += passing;
        for state in states.layers.values_mut() {
            (state.state, state.block_elems) = match state.holds {
                Holds::KeysAndValues | Holds::Latents => (0, states.cache_elems),
                Holds::Carried => (StateId::from(states.cache_elems > 0), states.carried_elems),
            };
        }
        states
    }

    /// As the plan declares them.
    pub fn declared(&self) -> Vec<StateDecl> {
        let states = [
            (self.cache_elems > 0).then_some(StateDecl::Blocks { elems: self.cache_elems }),
            (self.carried_elems > 0).then_some(StateDecl::Recurrent { elems: self.carried_elems }),
        ];
        states.into_iter().flatten().collect()
    }
}

/// The layer whose state a node is: its number, what it holds, heads and elements of a head.
fn layer_state(op: &Op) -> Option<(u32, Holds, u32, u32)> {
    match *op {
        Op::State { layer, kv_heads, head_dim } => Some((layer, Holds::KeysAndValues, kv_heads, head_dim)),
        Op::Latents { layer, width } => Some((layer, Holds::Latents, 1, width)),
        Op::Carried { layer, width } => Some((layer, Holds::Carried, 1, width)),
        _ => None,
    }
}

/// The layers whose state is an operand of the output: what a pass leaves behind.
fn kept_layers(graph: &Graph) -> BTreeSet<u32> {
    let mut kept = BTreeSet::new();
    let outputs = graph.output().map(|output| graph.operands(output)).unwrap_or_default();
    for value in outputs.into_iter().filter(|v| graph.ty(*v).dtype == DType::State) {
        let mut value = Some(value);
        while let Some(v) = value {
            kept.extend(graph.op(v.node).state_of());
            value = graph.operands(v.node).into_iter().find(|o| graph.ty(*o).dtype == DType::State);
        }
    }
    kept
}
