//! What most decoders share: blocks of attention and a gated network under RMSNorm, over one residual stream.
//!
//! A family's file reads its configuration into a [`Decoder`]; whatever families differ in is a field of it. Then
//! [`Decoder::model`] holds the checkpoint's tensors against it and builds the graph.

mod conv;
mod experts;
mod graph;
pub mod keys;
mod latent;
mod tensors;

pub use conv::ShortConv;
pub use experts::{ClampedGate, ExpertNames, Experts};
pub use latent::Latent;
pub use tensors::Role;

use graph::Blocks;

use super::error::ImportError;
use super::names::Naming;
use super::rope::Rope;
use super::source::Checkpoint;
use crate::import::build::Model;
use bessemer_format::plan::Gate;

/// What a checkpoint of a decoder computes, from either container.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoder {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads` (GQA).
    pub kv_heads: usize,
    /// Width of a head; even. Of compressed keys and values, the part of it that turns.
    pub head_dim: usize,
    /// How keys and values are compressed, where they are.
    pub latent: Option<Latent>,
    /// What stands in place of attention in some of the blocks, where something does.
    pub conv: Option<ShortConv>,
    /// Width of the feed-forward network.
    pub ffn: usize,
    /// What stands in place of the feed-forward network, where something does.
    pub experts: Option<Experts>,
    /// Rows of the token embedding.
    pub vocab: usize,
    /// Most positions that the model was trained for.
    pub context: usize,
    /// Blocks, first to last.
    pub layers: Layers,
    /// Rotary position embeddings: that of most layers, then those that [`Layer::rope`] names beside it.
    pub ropes: Vec<Rope>,
    /// Whether the token embedding is the output head too.
    pub tied: bool,
    /// Added to the mean square in RMSNorm. Models compute with its f32.
    pub rms_norm_eps: f64,
    /// Where norms are, and what they are called.
    pub norms: Norms,
    /// What is added to the stored weights of norms: 1 where they are stored as the distance from it.
    pub norm_offset: f32,
    /// Whether queries and keys are normed before they are rotated.
    pub qk_norm: QkNorm,
    /// Whether query, key and value are one tensor, one below the other.
    pub joint_qkv: bool,
    /// Whether gate and up are one tensor, one below the other.
    pub joint_gate_up: bool,
    /// Which projections have a bias.
    pub biases: Biases,
    /// Function of the gate.
    pub gate: Gate,
    /// Factor of the scores.
    pub attention_scale: f64,
    /// A scaled score s becomes `softcap * tanh(s / softcap)`.
    pub attention_softcap: Option<f64>,
    /// Factor of the embedded tokens.
    pub embedding_scale: f64,
    /// Factor of what a block adds to the residual stream.
    pub residual_scale: f64,
    /// Factor of the logits.
    pub logit_scale: f64,
    /// As [`Decoder::attention_softcap`], of the scaled logits.
    pub logit_softcap: Option<f64>,
    /// Whether each query head has a score that takes weight from all tokens.
    pub sinks: bool,
    /// Blocks behind the last one that checkpoints hold for training or for drafts, and that logits do not depend on.
    pub spare: Vec<usize>,
    /// Whose tensor names the checkpoint uses.
    pub naming: Naming,
    /// Tensors that it calls otherwise than most families do, below the block where they are in one.
    pub renamed: &'static [(Role, &'static str)],
}

/// Blocks. Their number may be absurd until the tensors are found, so that it is kept beside the rule, never as a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Layers {
    /// How many.
    pub count: usize,
    /// Positions that a sliding layer sees.
    pub window: Option<usize>,
    /// Which layers slide, where there is a window.
    pub sliding: Which,
    /// The rope of sliding layers, counted in [`Decoder::ropes`].
    pub sliding_rope: usize,
    /// Which layers rotate queries and keys.
    pub rotating: Which,
}

/// Some of the layers.
#[derive(Debug, Clone, PartialEq)]
pub enum Which {
    /// All of them.
    All,
    /// Every one but each `n`-th.
    AllButEvery(usize),
    /// Those from a number on.
    From(usize),
    /// As listed.
    Listed(Vec<bool>),
}

impl Which {
    /// Whether layer `i`, counted from 0, is one of them.
    pub fn contains(&self, i: usize) -> bool {
        match self {
            Which::All => true,
            Which::AllButEvery(n) => !(i + 1).is_multiple_of(*n),
            Which::From(first) => i >= *first,
            Which::Listed(layers) => layers.get(i).copied().unwrap_or(false),
        }
    }
}

/// How a block attends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Positions that a row sees, its own included.
    pub window: Option<usize>,
    /// Which rope turns queries and keys.
    pub rope: Option<usize>,
}

impl Layers {
    /// Layers that see everything and rotate by the first rope.
    pub fn plain(count: usize) -> Self {
        Self { count, window: None, sliding: Which::All, sliding_rope: 0, rotating: Which::All }
    }

    /// Layer `i`.
    pub fn get(&self, i: usize) -> Layer {
        let window = self.window.filter(|_| self.sliding.contains(i));
        let rope = if window.is_some() { self.sliding_rope } else { 0 };
        Layer { window, rope: self.rotating.contains(i).then_some(rope) }
    }
}

/// Names of a block's norms in Hugging Face, without `.weight`; none where there is no such norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Norms {
    /// Before attention.
    pub attention: Option<&'static str>,
    /// Of what attention adds to the stream.
    pub attention_out: Option<&'static str>,
    /// Before the feed-forward network.
    pub ffn: Option<&'static str>,
    /// Of what the network adds to the stream.
    pub ffn_out: Option<&'static str>,
}

impl Norms {
    /// A norm before each half of a block.
    pub const BEFORE: Norms = Norms {
        attention: Some("input_layernorm"),
        attention_out: None,
        ffn: Some("post_attention_layernorm"),
        ffn_out: None,
    };
}

/// Norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Each head by itself, all with one weight.
    Head,
    /// All heads of a row together.
    Row,
}

/// Which projections have a bias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Biases {
    /// Query, key and value.
    pub qkv: bool,
    /// The projection of what was attended to.
    pub out: bool,
    /// Gate, up and down.
    pub ffn: bool,
}

impl Decoder {
    /// Rows of the query projection.
    pub fn q_rows(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Rows of the key projection and of the value projection.
    pub fn kv_rows(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The experts of a block, where it has some.
    pub(super) fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| layer >= experts.first_layer)
    }

    /// The convolution that stands in place of a block's attention.
    pub(super) fn conv_of(&self, layer: usize) -> Option<&ShortConv> {
        self.conv.as_ref().filter(|conv| !conv.attending.contains(&layer))
    }

    /// Gives sliding layers a rope of their own.
    pub fn local_rope(&mut self, rope: Rope) {
        self.layers.sliding_rope = self.ropes.len();
        self.ropes.push(rope);
    }

    /// Checks that the checkpoint holds the tensors of this decoder, no others, in the right shapes; then its graph.
    pub fn model(
        &self,
        checkpoint: &Checkpoint,
        context: Option<usize>,
        architecture: &'static str,
    ) -> Result<Model, ImportError> {
        self.check_tensors(checkpoint)?;
        self.graph(checkpoint, context, architecture)
    }
}
