//! Mistral: a Llama whose layers may all slide.

use super::Architecture;
use crate::import::config::Fields;
use crate::import::decoder::Decoder;
use crate::import::decoder::keys::{self, HfDefaults};
use crate::import::error::ImportError;
use crate::import::source::Checkpoint;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "mistral",
    models: "Mistral 7B, Mistral Nemo, Mistral Small",
    features: "sliding window",
    hf: &[("mistral", "MistralForCausalLM")],
    gguf: &["llama"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

/// Reads the configuration. GGUF files of this family say that they are a Llama.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read_hf(checkpoint, from_hf)
}

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let has_window = fields.has("sliding_window");
    let has_heads = fields.has("num_key_value_heads");
    // What MistralConfig takes for a key that is not there; a null says that there is none.
    let kv_heads = if has_heads { None } else { Some(8) };
    let mut decoder = Decoder::from_hf(fields, HfDefaults { kv_heads, ..HfDefaults::PLAIN })?;
    decoder.layers.window = if has_window { fields.count("sliding_window")? } else { Some(4096) };
    Ok(decoder)
}
