//! Llama 2 and 3, and what is built alike: SmolLM, TinyLlama.

use super::Architecture;
use crate::import::config::{Fields, Harmless};
use crate::import::decoder::keys::{self, HfDefaults, full_window};
use crate::import::decoder::{Biases, Decoder};
use crate::import::error::ImportError;
use crate::import::rope::RopePairing;
use crate::import::source::Checkpoint;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "llama",
    models: "Llama 2 and 3, SmolLM, TinyLlama",
    features: "grouped queries, biases, every kind of rope scaling",
    hf: &[("llama", "LlamaForCausalLM")],
    gguf: &["llama"],
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
    full_window(fields, "sliding_window", decoder.context)?;
    fields.skip(&[Harmless { reason: "says that this is a Llama", keys: &["is_llama_config"] }]);
    Ok(decoder)
}

/// Files of Mistral say that they are a Llama, and leave its window out.
fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    let decoder = Decoder::from_gguf(checkpoint, fields, RopePairing::Interleaved)?;
    full_window(fields, "attention.sliding_window", decoder.context)?;
    Ok(decoder)
}
