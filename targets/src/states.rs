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
    /// What each state holds, and elements of its blocks.
    declared: Vec<StateDecl>,
}

/// A piece of a block that one layer has, or several after each other.
#[derive(Default)]
struct Piece {
    layers: Vec<(u32, LayerState)>,
    elems: u64,
}

impl States {
    /// Those of `graph`, in the order in which layers are run: a state for all caches and one for all that is carried, or one for each
    /// layer where they are to lie `apart`. One behind the other, the states of a block hold the same numbers either way.
    pub fn of(graph: &Graph, order: &[NodeId], apart: bool) -> Self {
        let kept = kept_layers(graph);
        let (mut caches, mut carried, mut passing) = (Vec::new(), Vec::new(), Piece::default());
        for (layer, holds, kv_heads, head_dim) in order.iter().filter_map(|node| layer_state(graph.op(*node)))
        {
            let elems = match holds {
                Holds::KeysAndValues => kv::layer_elems(kv_heads as usize, head_dim as usize) as u64,
                Holds::Latents => kv::latent_elems(head_dim as usize) as u64,
                Holds::Carried => u64::from(head_dim),
            };
            let state = LayerState { state: 0, holds, first_elem: 0, kv_heads, head_dim, block_elems: 0 };
            match holds {
                Holds::Carried => carried.push(Piece { layers: vec![(layer, state)], elems }),
                _ if kept.contains(&layer) => caches.push(Piece { layers: vec![(layer, state)], elems }),
                // Keys and values that no pass leaves behind are needed by their own layer only: one place serves all.
                _ => {
                    passing.layers.push((layer, state));
                    passing.elems = passing.elems.max(elems);
                }
            }
        }
        if passing.elems > 0 {
            caches.push(passing);
        }
        let mut states = Self::default();
        states.declare(caches, apart, |elems| StateDecl::Blocks { elems });
        states.declare(carried, apart, |elems| StateDecl::Recurrent { elems });
        states
    }

    /// Declares states of one kind for `pieces`.
    fn declare(&mut self, pieces: Vec<Piece>, apart: bool, kind: impl Fn(u64) -> StateDecl) {
        let mut blocks: Vec<Vec<Piece>> = Vec::new();
        for piece in pieces {
            match blocks.last_mut().filter(|_| !apart) {
                Some(block) => block.push(piece),
                None => blocks.push(vec![piece]),
            }
        }
        for block in blocks {
            let block_elems = block.iter().map(|piece| piece.elems).sum();
            let mut first_elem = 0;
            for Piece { layers, elems } in block {
                for (layer, state) in layers {
                    let place = LayerState {
                        state: self.declared.len() as StateId,
                        first_elem,
                        block_elems,
                        ..state
                    };
                    self.layers.insert(layer, place);
                }
                first_elem += elems;
            }
            self.declared.push(kind(block_elems));
        }
    }

    /// As the plan declares them.
    pub fn declared(&self) -> Vec<StateDecl> {
        self.declared.clone()
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
