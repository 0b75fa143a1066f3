//! OLMo 2: norms only behind each half of a block, and of all query and key heads together.

use super::{Architecture, olmo3};
use crate::import::config::Fields;
use crate::import::decoder::keys::{self, HfDefaults};
use crate::import::decoder::{Biases, Decoder, Norms, QkNorm};
use crate::import::error::ImportError;
use crate::import::rope::RopePairing;
use crate::import::source::Checkpoint;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "olmo2",
    models: "OLMo 2",
    features: "norms behind attention and network, q/k norm of whole rows",
    hf: &[("olmo2", "Olmo2ForCausalLM")],
    // OLMo 3 comes under this name too; a window tells it.
    gguf: &["olmo2"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

/// Reads the configuration.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read(checkpoint, from_hf, from_gguf)
}

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_hf(fields, HfDefaults::PLAIN)?;
    let attention = fields.flag("attention_bias")?.unwrap_or(false);
    decoder.biases = Biases { qkv: attention, out: attention, ffn: false };
    Ok(normed_behind(decoder))
}

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    let decoder = Decoder::from_gguf(checkpoint, fields, RopePairing::HalfSplit)?;
    match fields.whole("attention.sliding_window")?.filter(|window| *window > 0) {
        Some(window) => olmo3::sliding(decoder, fields, window),
        None => Ok(normed_behind(decoder)),
    }
}

/// Norms behind each half of a block, and of all heads of queries and of keys together.
pub(super) fn normed_behind(mut decoder: Decoder) -> Decoder {
    decoder.qk_norm = QkNorm::Row;
    decoder.norms = Norms {
        attention: None,
        attention_out: Some("post_attention_layernorm"),
        ffn: None,
        ffn_out: Some("post_feedforward_layernorm"),
    };
    decoder
}
