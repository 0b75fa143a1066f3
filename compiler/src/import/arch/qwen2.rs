//! Qwen2 and Qwen2.5: biases on query, key and value.

use super::Architecture;
use crate::import::config::Fields;
use crate::import::decoder::keys::{self, HfDefaults, upper_windows};
use crate::import::decoder::{Biases, Decoder};
use crate::import::error::ImportError;
use crate::import::rope::RopePairing;
use crate::import::source::Checkpoint;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2",
    models: "Qwen2, Qwen2.5",
    features: "q/k/v biases, sliding window in upper layers",
    hf: &[("qwen2", "Qwen2ForCausalLM")],
    gguf: &["qwen2"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

/// Reads the configuration.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read(checkpoint, from_hf, from_gguf)
}

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_hf(fields, HfDefaults::PLAIN)?;
    decoder.biases = Biases { qkv: true, ..Biases::default() };
    upper_windows(fields, &mut decoder.layers)?;
    Ok(decoder)
}

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    Decoder::from_gguf(checkpoint, fields, RopePairing::HalfSplit)
}
