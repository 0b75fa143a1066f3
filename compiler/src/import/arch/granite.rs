//! Granite: a Llama with factors on embedding, scores, residuals and logits.

use super::Architecture;
use crate::import::config::Fields;
use crate::import::decoder::keys::{self, HfDefaults};
use crate::import::decoder::{Biases, Decoder};
use crate::import::error::ImportError;
use crate::import::rope::RopePairing;
use crate::import::source::Checkpoint;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "granite",
    models: "Granite 3, Granite 4 (dense)",
    features: "scaled embedding, scores, residuals and logits",
    hf: &[("granite", "GraniteForCausalLM")],
    gguf: &["granite"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

/// Reads the configuration.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read(checkpoint, from_hf, from_gguf)
}

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_hf(fields, HfDefaults::PLAIN)?;
    let attention = fields.flag("attention_bias")?.unwrap_or(false);
    let ffn = fields.flag("mlp_bias")?.unwrap_or(false);
    decoder.biases = Biases { qkv: attention, out: attention, ffn };
    decoder.embedding_scale = fields.positive_or("embedding_multiplier", 1.0)?;
    decoder.residual_scale = fields.positive_or("residual_multiplier", 1.0)?;
    decoder.attention_scale = fields.positive_or("attention_multiplier", 1.0)?;
    decoder.logit_scale = 1.0 / fields.positive_or("logits_scaling", 1.0)?;
    Ok(decoder)
}

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_gguf(checkpoint, fields, RopePairing::Interleaved)?;
    decoder.embedding_scale = fields.positive_or("embedding_scale", 1.0)?;
    decoder.residual_scale = fields.positive_or("residual_scale", 1.0)?;
    decoder.attention_scale = fields.positive_or("attention.scale", decoder.attention_scale)?;
    decoder.logit_scale = 1.0 / fields.positive_or("logit_scale", 1.0)?;
    Ok(decoder)
}
