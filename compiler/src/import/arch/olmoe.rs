//! OLMoE: many small experts, and norms of all query and key heads together.

use super::Architecture;
use crate::import::config::Fields;
use crate::import::decoder::keys::{self, HfDefaults};
use crate::import::decoder::{Biases, Decoder, ExpertNames, Experts, QkNorm};
use crate::import::error::ImportError;
use crate::import::rope::RopePairing;
use crate::import::source::Checkpoint;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "olmoe",
    models: "OLMoE-1B-7B",
    features: "mixture of experts, q/k norm of whole rows",
    hf: &[("olmoe", "OlmoeForCausalLM")],
    gguf: &["olmoe"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

const NAMES: ExpertNames = ExpertNames {
    router: "mlp.gate",
    experts: "mlp.experts",
    projections: ["gate_proj", "up_proj", "down_proj"],
    joint: false,
};

/// Reads the configuration.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read(checkpoint, from_hf, from_gguf)
}

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_hf(fields, HfDefaults::PLAIN)?;
    let attention = fields.flag("attention_bias")?.unwrap_or(false);
    decoder.biases = Biases { qkv: attention, out: attention, ffn: false };
    decoder.qk_norm = QkNorm::Row;
    let renormalise = fields.flag("norm_topk_prob")?.unwrap_or(false);
    let keys = ["num_experts_per_tok", "num_experts"];
    decoder.experts = Some(Experts::by_softmax(fields, keys, decoder.ffn, renormalise, NAMES)?);
    fields.neutral("clip_qkv", "null", |_| false)?;
    Ok(decoder)
}

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_gguf(checkpoint, fields, RopePairing::HalfSplit)?;
    decoder.qk_norm = QkNorm::Row;
    let keys = ["expert_used_count", "expert_count"];
    decoder.experts = Some(Experts::by_softmax(fields, keys, decoder.ffn, false, NAMES)?);
    Ok(decoder)
}
