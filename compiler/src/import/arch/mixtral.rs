//! Mixtral: experts in place of the feed-forward network. In GGUF it goes by the name of the dense family it grew from.

use super::Architecture;
use crate::import::config::Fields;
use crate::import::decoder::keys::{self, HfDefaults};
use crate::import::decoder::{Decoder, ExpertNames, Experts};
use crate::import::error::ImportError;
use crate::import::rope::RopePairing;
use crate::import::source::Checkpoint;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "mixtral",
    models: "Mixtral 8x7B, 8x22B",
    features: "mixture of experts",
    hf: &[("mixtral", "MixtralForCausalLM")],
    gguf: &["llama with experts"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

const NAMES: ExpertNames = ExpertNames {
    router: "block_sparse_moe.gate",
    experts: "block_sparse_moe.experts",
    projections: ["w1", "w3", "w2"],
    joint: false,
};

/// Reads the configuration.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read(checkpoint, from_hf, from_gguf)
}

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let defaults = HfDefaults { kv_heads: Some(8), theta: 1e6, ..HfDefaults::PLAIN };
    let mut decoder = Decoder::from_hf(fields, defaults)?;
    let keys = ["num_experts_per_tok", "num_local_experts"];
    decoder.experts = Some(Experts::by_softmax(fields, keys, decoder.ffn, true, NAMES)?);
    decoder.layers.window = fields.count("sliding_window")?;
    Ok(decoder)
}

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_gguf(checkpoint, fields, RopePairing::Interleaved)?;
    let keys = ["expert_used_count", "expert_count"];
    decoder.experts = Some(Experts::by_softmax(fields, keys, decoder.ffn, true, NAMES)?);
    Ok(decoder)
}
