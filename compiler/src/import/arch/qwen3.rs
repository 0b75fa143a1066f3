//! Qwen3: queries and keys are normed head by head.

use super::Architecture;
use crate::import::config::Fields;
use crate::import::decoder::keys::{self, HfDefaults, upper_windows};
use crate::import::decoder::{Biases, Decoder, QkNorm};
use crate::import::error::ImportError;
use crate::import::rope::RopePairing;
use crate::import::source::Checkpoint;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3",
    models: "Qwen3 (dense)",
    features: "q/k norm, sliding window in upper layers",
    hf: &[("qwen3", "Qwen3ForCausalLM")],
    gguf: &["qwen3"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

/// Reads the configuration.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read(checkpoint, from_hf, from_gguf)
}

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let defaults = HfDefaults { head_dim: Some(128), ..HfDefaults::PLAIN };
    let mut decoder = Decoder::from_hf(fields, defaults)?;
    let attention = fields.flag("attention_bias")?.unwrap_or(false);
    decoder.biases = Biases { qkv: attention, out: attention, ffn: false };
    decoder.qk_norm = QkNorm::Head;
    upper_windows(fields, &mut decoder.layers)?;
    Ok(decoder)
}

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_gguf(checkpoint, fields, RopePairing::HalfSplit)?;
    decoder.qk_norm = QkNorm::Head;
    Ok(decoder)
}
