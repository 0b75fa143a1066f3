//! Qwen3 with experts in every block.

use super::Architecture;
use crate::import::config::Fields;
use crate::import::decoder::keys::{self, HfDefaults};
use crate::import::decoder::{Biases, Decoder, ExpertNames, Experts, QkNorm};
use crate::import::error::ImportError;
use crate::import::rope::RopePairing;
use crate::import::source::Checkpoint;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3_moe",
    models: "Qwen3-30B-A3B, Qwen3-235B-A22B",
    features: "mixture of experts, q/k norm",
    hf: &[("qwen3_moe", "Qwen3MoeForCausalLM")],
    gguf: &["qwen3moe"],
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
    let mut decoder = Decoder::from_hf(fields, HfDefaults { kv_heads: Some(4), ..HfDefaults::PLAIN })?;
    let attention = fields.flag("attention_bias")?.unwrap_or(false);
    decoder.biases = Biases { qkv: attention, out: attention, ffn: false };
    decoder.qk_norm = QkNorm::Head;
    let ffn = fields.required_count("moe_intermediate_size")?;
    let renormalise = fields.flag("norm_topk_prob")?.unwrap_or(false);
    let keys = ["num_experts_per_tok", "num_experts"];
    decoder.experts = Some(Experts::by_softmax(fields, keys, ffn, renormalise, NAMES)?);
    fields.neutral("decoder_sparse_step", "1: experts in every block", |value| value == 1)?;
    fields.neutral("mlp_only_layers", "[]: experts in every block", |value| {
        value.as_array().is_some_and(Vec::is_empty)
    })?;
    keys::upper_windows(fields, &mut decoder.layers)?;
    Ok(decoder)
}

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_gguf(checkpoint, fields, RopePairing::HalfSplit)?;
    decoder.qk_norm = QkNorm::Head;
    let ffn = fields.required_count("expert_feed_forward_length")?;
    let keys = ["expert_used_count", "expert_count"];
    decoder.experts = Some(Experts::by_softmax(fields, keys, ffn, true, NAMES)?);
    Ok(decoder)
}
