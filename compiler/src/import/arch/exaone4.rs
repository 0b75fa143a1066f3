//! EXAONE 4: norms behind each half of a block, q/k norm; three of four layers slide, and only those rotate.

use super::Architecture;
use crate::import::config::Fields;
use crate::import::decoder::keys::{self, HfDefaults, gguf_sliding_layers, sliding_layers};
use crate::import::decoder::{Decoder, Norms, QkNorm, Which};
use crate::import::error::ImportError;
use crate::import::rope::RopePairing;
use crate::import::source::Checkpoint;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "exaone4",
    models: "EXAONE 4.0",
    features: "norms behind attention and network, q/k norm, global layers without rope",
    hf: &[("exaone4", "Exaone4ForCausalLM")],
    gguf: &["exaone4"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

/// Every so-many-th layer sees everything, where the others slide.
const PATTERN: usize = 4;

/// Reads the configuration.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read(checkpoint, from_hf, from_gguf)
}

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let decoder = Decoder::from_hf(fields, HfDefaults::PLAIN)?;
    let window = if fields.has("sliding_window") { fields.count("sliding_window")? } else { Some(4096) };
    // `LLLG` spells the pattern of 4.
    let spelled = fields.value("sliding_window_pattern").is_some_and(|pattern| pattern == "LLLG");
    let pattern = if spelled { Some(PATTERN) } else { fields.count("sliding_window_pattern")? };
    let sliding = Which::AllButEvery(pattern.unwrap_or(PATTERN));
    let sliding = sliding_layers(fields, decoder.layers.count, sliding)?;
    Ok(blocks(decoder, window, sliding))
}

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    let decoder = Decoder::from_gguf(checkpoint, fields, RopePairing::HalfSplit)?;
    let window = fields.whole("attention.sliding_window")?.filter(|window| *window > 0);
    let sliding = gguf_sliding_layers(fields, decoder.layers.count, PATTERN)?;
    Ok(blocks(decoder, window, sliding))
}

fn blocks(mut decoder: Decoder, window: Option<usize>, sliding: Which) -> Decoder {
    decoder.qk_norm = QkNorm::Head;
    decoder.norms = Norms {
        attention: None,
        attention_out: Some("post_attention_layernorm"),
        ffn: None,
        ffn_out: Some("post_feedforward_layernorm"),
    };
    decoder.layers.window = window;
    // Without a window all layers are alike and rotate.
    decoder.layers.rotating = if window.is_some() { sliding.clone() } else { Which::All };
    decoder.layers.sliding = sliding;
    decoder
}
