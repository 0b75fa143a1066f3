//! Names and shapes of a decoder's tensors in either container.

use super::{Decoder, QkNorm};
use crate::import::error::ImportError;
use crate::import::names::Naming;
use crate::import::rope::{self, Rope, RopeScaling};
use crate::import::source::Checkpoint;
use crate::import::tensors;
use std::ops::Range;

/// The place of a weight in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of every description of this architecture")]
pub enum Role {
    TokenEmbedding,
    OutputNorm,
    Output,
    AttentionNorm,
    AttentionOutNorm,
    Query,
    Key,
    Value,
    JointQkv,
    QueryNorm,
    KeyNorm,
    Sinks,
    AttentionOut,
    FfnNorm,
    FfnOutNorm,
    Gate,
    Up,
    JointGateUp,
    Down,
}

use Role::*;

const GLOBAL: [Role; 3] = [TokenEmbedding, OutputNorm, Output];
const BLOCK: [Role; 16] = [
    AttentionNorm,
    AttentionOutNorm,
    Query,
    Key,
    Value,
    JointQkv,
    QueryNorm,
    KeyNorm,
    Sinks,
    AttentionOut,
    FfnNorm,
    FfnOutNorm,
    Gate,
    Up,
    JointGateUp,
    Down,
];

impl Decoder {
    /// Name in the checkpoint. `layer` counts from 0 and is not used for tensors of the whole model.
    pub fn tensor_name(&self, role: Role, layer: usize) -> String {
        let (hf, gguf) = self.names(role);
        let usual = if self.naming == Naming::HuggingFace { hf } else { gguf };
        let renamed = self.renamed.iter().find(|(renamed, _)| *renamed == role);
        let name = renamed.map_or(usual, |(_, name)| name);
        match (GLOBAL.contains(&role), self.naming) {
            (true, _) => format!("{name}.weight"),
            // A parameter of the module itself.
            (false, Naming::HuggingFace) if role == Sinks => format!("model.layers.{layer}.{name}"),
            (false, Naming::HuggingFace) => format!("model.layers.{layer}.{name}.weight"),
            (false, Naming::Gguf) => format!("blk.{layer}.{name}.weight"),
        }
    }

    /// Name of the bias of a projection, if it has one.
    pub fn bias_name(&self, role: Role, layer: usize) -> Option<String> {
        let has = match role {
            Query | Key | Value | JointQkv => self.biases.qkv,
            AttentionOut => self.biases.out,
            Gate | Up | JointGateUp | Down => self.biases.ffn,
            _ => false,
        };
        let weight = self.tensor_name(role, layer);
        has.then(|| weight.strip_suffix(".weight").unwrap_or(&weight).to_owned() + ".bias")
    }

    /// Names in Hugging Face and in GGUF, below the block where there is one. In GGUF the rows of query and key (and of
    /// their biases) may be permuted: see [`rope::RopePairing::Interleaved`].
    fn names(&self, role: Role) -> (&'static str, &'static str) {
        match role {
            TokenEmbedding => ("model.embed_tokens", "token_embd"),
            OutputNorm => ("model.norm", "output_norm"),
            Output => ("lm_head", "output"),
            AttentionNorm => (self.norms.attention.unwrap_or(""), "attn_norm"),
            AttentionOutNorm => (self.norms.attention_out.unwrap_or(""), "post_attention_norm"),
            Query => ("self_attn.q_proj", "attn_q"),
            Key => ("self_attn.k_proj", "attn_k"),
            Value => ("self_attn.v_proj", "attn_v"),
            JointQkv => ("self_attn.qkv_proj", "attn_qkv"),
            QueryNorm => ("self_attn.q_norm", "attn_q_norm"),
            KeyNorm => ("self_attn.k_norm", "attn_k_norm"),
            Sinks => ("self_attn.sinks", "attn_sinks"),
            AttentionOut => ("self_attn.o_proj", "attn_output"),
            FfnNorm => (self.norms.ffn.unwrap_or(""), "ffn_norm"),
            FfnOutNorm => (self.norms.ffn_out.unwrap_or(""), "post_ffw_norm"),
            Gate => ("mlp.gate_proj", "ffn_gate"),
            Up => ("mlp.up_proj", "ffn_up"),
            JointGateUp => ("mlp.gate_up_proj", "ffn_up"),
            Down => ("mlp.down_proj", "ffn_down"),
        }
    }

    /// Shape of a weight; none where the model has no such weight.
    fn shape(&self, role: Role, layer: usize) -> Option<Vec<usize>> {
        let (q, kv, hidden, ffn) = (self.q_rows(), self.kv_rows(), self.hidden, self.ffn);
        let (dense, attends) = (self.experts_of(layer).is_none(), self.conv_of(layer).is_none());
        let apart = attends && !self.joint_qkv && self.latent.is_none();
        let norm = |there: bool, width: usize| there.then(|| vec![width]);
        let matrix = |there: bool, rows: usize, columns: usize| there.then(|| vec![rows, columns]);
        let qk_norm = |rows: usize| match self.qk_norm {
            _ if !attends => None,
            QkNorm::None => None,
            QkNorm::Head => Some(vec![self.head_dim]),
            QkNorm::Row => Some(vec![rows]),
        };
        match role {
            TokenEmbedding => matrix(true, self.vocab, hidden),
            OutputNorm => norm(true, hidden),
            Output => matrix(!self.tied, self.vocab, hidden),
            AttentionNorm => norm(self.norms.attention.is_some(), hidden),
            AttentionOutNorm => norm(self.norms.attention_out.is_some(), hidden),
            FfnNorm => norm(self.norms.ffn.is_some(), hidden),
            FfnOutNorm => norm(self.norms.ffn_out.is_some(), hidden),
            Query => matrix(apart, q, hidden),
            Key | Value => matrix(apart, kv, hidden),
            JointQkv => matrix(attends && self.joint_qkv, q + 2 * kv, hidden),
            QueryNorm => qk_norm(q),
            KeyNorm => qk_norm(kv),
            Sinks => norm(attends && self.sinks, self.heads),
            AttentionOut => matrix(attends, hidden, self.latent.map_or(q, |l| self.heads * l.value)),
            Gate | Up => matrix(dense && !self.joint_gate_up, ffn, hidden),
            JointGateUp => matrix(dense && self.joint_gate_up, 2 * ffn, hidden),
            Down => matrix(dense, hidden, ffn),
        }
    }

    /// Whether the model has such a weight.
    pub(super) fn has(&self, role: Role, layer: usize) -> bool {
        self.shape(role, layer).is_some()
    }

    /// The weight and perhaps the bias of a role.
    fn tensors(&self, role: Role, layer: usize) -> impl Iterator<Item = (String, Vec<usize>)> {
        let shape = self.shape(role, layer);
        let bias = shape.as_ref().and_then(|shape| Some((self.bias_name(role, layer)?, vec![shape[0]])));
        shape.map(|shape| (self.tensor_name(role, layer), shape)).into_iter().chain(bias)
    }

    pub(super) fn check_tensors(&self, checkpoint: &Checkpoint) -> Result<(), ImportError> {
        let of =
            |roles: &'static [Role], layer| roles.iter().flat_map(move |role| self.tensors(*role, layer));
        let block = |layer| {
            let experts = self.experts_of(layer).into_iter();
            let latent = self.latent.iter().flat_map(move |latent| latent.tensors(self, layer));
            let conv = self.conv_of(layer).into_iter().flat_map(move |conv| conv.tensors(self, layer));
            of(&BLOCK, layer)
                .chain(latent)
                .chain(conv)
                .chain(experts.flat_map(move |e| e.tensors(self.hidden, self.naming, layer)))
        };
        let count = of(&GLOBAL, 0).count() + self.count_in_blocks(|layer| block(layer).count());
        let expected = of(&GLOBAL, 0).chain((0..self.layers.count).flat_map(block));

        let head = self.tensor_name(Output, 0);
        let stored_tie = self.tied && checkpoint.tensors().contains_key(&head);
        let has_factors =
            |r: &Rope| matches!(r.scaling, RopeScaling::Factors { .. } | RopeScaling::Long { .. });
        let factors = self.ropes.iter().any(has_factors);
        tensors::check(checkpoint, count, expected, |name| {
            // Old checkpoints store the rotary frequencies, which follow from the configuration.
            name.ends_with(".self_attn.rotary_emb.inv_freq")
                || (factors && name == rope::FREQUENCY_FACTORS)
                || (factors && rope::LONG_FACTORS.contains(&name))
                || (name == head && stored_tie)
                || self.spare.iter().any(|layer| name.starts_with(&format!("model.layers.{layer}.")))
        })?;
        if stored_tie { self.check_stored_tie(checkpoint) } else { Ok(()) }
    }

    /// What all blocks have of a thing. Blocks of a kind are counted together, as a configuration may ask for absurdly many.
    fn count_in_blocks(&self, of: impl Fn(usize) -> usize) -> usize {
        let layers = self.layers.count;
        let first_mixed = self.experts.as_ref().map_or(layers, |e| e.first_layer.min(layers));
        let runs = [0..first_mixed, first_mixed..layers];
        let count = |run: Range<usize>| match &self.conv {
            None => run.clone().next().map_or(0, |layer| run.len() * of(layer)),
            Some(conv) => {
                let attending = conv.attending.iter().filter(|layer| run.contains(layer));
                let (some, attend) = (attending.clone().next(), attending.count());
                let convolving = run.clone().find(|layer| !conv.attending.contains(layer));
                some.map_or(0, |layer| attend * of(*layer))
                    + convolving.map_or(0, |layer| (run.len() - attend) * of(layer))
            }
        };
        runs.into_iter().map(count).sum()
    }

    /// A tied head that is stored all the same is harmless only as an exact copy.
    fn check_stored_tie(&self, checkpoint: &Checkpoint) -> Result<(), ImportError> {
        let [table, head] = [TokenEmbedding, Output].map(|role| self.tensor_name(role, 0));
        let (table_info, head_info) = (checkpoint.tensor(&table)?, checkpoint.tensor(&head)?);
        let same = table_info.shape == head_info.shape && table_info.stored == head_info.stored;
        if same && checkpoint.bytes(&table)? == checkpoint.bytes(&head)? {
            return Ok(());
        }
        Err(ImportError::Config {
            path: checkpoint.config_path().to_owned(),
            key: "tie_word_embeddings".into(),
            expected: format!("false, because `{head}` differs from `{table}`"),
            found: "true".into(),
            remedy: "set it to false, or remove the head from the weights",
        })
    }
}
