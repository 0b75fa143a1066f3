//! Where each layer's keys and values lie in a block.
//!
//! A plan counts elements. For types of whole elements their bytes follow; codes have scales between the heads, so the layers'
//! own shapes are needed.

use bessemer_format::kv;
use bessemer_format::manifest::KvElem;
use bessemer_format::nest::ViewElem;
use bessemer_format::plan::{Arg, Attention, Plan, StateDecl, StepKind};

/// Keys and values of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CacheLayer {
    pub(crate) state: usize,
    /// First element in a block.
    pub(crate) elems: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Whether there are keys only, which values are parts of.
    pub(crate) latent: bool,
}

impl CacheLayer {
    /// What an attention reads.
    pub(crate) fn of(a: &Attention) -> Self {
        Self {
            state: a.state as usize,
            elems: a.layer_elems as usize,
            kv_heads: a.kv_heads as usize,
            head_dim: a.head_dim as usize,
            latent: a.latent.is_some(),
        }
    }

    /// Every layer of the plan, ascending.
    pub(crate) fn all(plan: &Plan) -> Vec<Self> {
        let steps = plan.programs.iter().flat_map(|p| &p.steps);
        let mut layers: Vec<_> = steps
            .filter_map(|step| match &step.kind {
                StepKind::Attention(a) => Some(Self::of(a)),
                _ => None,
            })
            .collect();
        layers.sort_unstable();
        layers.dedup();
        layers
    }

    /// Heads of keys and of values.
    pub(crate) fn heads(&self) -> usize {
        if self.latent { self.kv_heads } else { 2 * self.kv_heads }
    }

    /// Elements in a block.
    pub(crate) fn len(&self) -> usize {
        self.heads() * kv::head_elems(self.head_dim)
    }

    /// Bytes in a block.
    fn bytes(&self, elem: KvElem) -> usize {
        self.heads() * kv::head_bytes(elem, self.head_dim)
    }
}

/// The blocks of a cache of one element type.
#[derive(Clone)]
pub(crate) struct BlockLayout {
    /// The element type.
    pub(crate) kv: KvElem,
    /// Bytes of a block of each state.
    pub(crate) block_bytes: Vec<usize>,
    /// The plan's layers.
    pub(crate) layers: Vec<CacheLayer>,
    /// Where each of them starts in its block, in bytes.
    pub(crate) layer_at: Vec<usize>,
}

impl BlockLayout {
    /// Of the plan's states, in `elem`. The error says why the plan has no cache of this type.
    pub(crate) fn new(plan: &Plan, elem: KvElem) -> Result<Self, String> {
        let layers = CacheLayer::all(plan);
        let bytes = |elems: usize| elems * elem.bits() / 8;
        if !elem.is_scaled() {
            return Ok(Self {
                kv: elem,
                block_bytes: states(plan, bytes),
                layer_at: layers.iter().map(|layer| bytes(layer.elems)).collect(),
                layers,
            });
        }
        let mut block_bytes = states(plan, |_| 0);
        let mut known = vec![0; plan.states.len()];
        let mut layer_at = Vec::with_capacity(layers.len());
        for layer in &layers {
            let (Some(bytes), Some(known)) = (block_bytes.get_mut(layer.state), known.get_mut(layer.state))
            else {
                return Err(format!("attention reads state {}, which does not exist", layer.state));
            };
            layer_at.push(*bytes);
            *bytes += layer.bytes(elem);
            *known += layer.len();
        }
        let is_known = |(known, state): (&usize, &StateDecl)| match state {
            StateDecl::Blocks { elems } => *known == *elems as usize,
            StateDecl::Recurrent { .. } => true,
        };
        if !known.iter().zip(&plan.states).all(is_known) || read_by_nests(plan) {
            return Err(format!(
                "this model's cache is read by loop nests, which know no scales; run it with {}, {} or {}",
                KvElem::Bf16.name(),
                KvElem::F16.name(),
                KvElem::F32.name()
            ));
        }
        Ok(Self { kv: elem, block_bytes, layers, layer_at })
    }
}

/// Bytes of a block of each state: those of a cache as `cache` says for its elements.
fn states(plan: &Plan, cache: impl Fn(usize) -> usize) -> Vec<usize> {
    let bytes = |state: &StateDecl| match state {
        StateDecl::Blocks { elems } => cache(*elems as usize),
        StateDecl::Recurrent { elems } => *elems as usize * size_of::<f32>(),
    };
    plan.states.iter().map(bytes).collect()
}

/// Whether a nest reads a cache, rather than only writing it.
fn read_by_nests(plan: &Plan) -> bool {
    let steps = plan.programs.iter().flat_map(|p| &p.steps);
    steps.into_iter().any(|step| match &step.kind {
        StepKind::Nest { nest, args, .. } => {
            let views = plan.nests.get(*nest as usize).map_or(&[][..], |nest| &nest.views);
            let reads = |(arg, view): (&Arg, &bessemer_format::nest::View)| {
                matches!(arg, Arg::State(_)) && view.elem == ViewElem::Kv && !view.store
            };
            args.iter().zip(views).any(reads)
        }
        _ => false,
    })
}
