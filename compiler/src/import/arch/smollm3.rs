//! SmolLM3: a Llama in which every fourth layer does not rotate.

use super::Architecture;
use crate::import::config::Fields;
use crate::import::decoder::keys::{self, HfDefaults, sliding_layers};
use crate::import::decoder::{Biases, Decoder, Which};
use crate::import::error::ImportError;
use crate::import::rope::RopePairing;
use crate::import::source::Checkpoint;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "smollm3",
    models: "SmolLM3",
    features: "layers without rope",
    hf: &[("smollm3", "SmolLM3ForCausalLM")],
    gguf: &["smollm3"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

/// Reads the configuration.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read(checkpoint, from_hf, from_gguf)
}

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let has_heads = fields.has("num_key_value_heads");
    let kv_heads = if has_heads { None } else { Some(4) };
    let defaults = HfDefaults { tied: true, theta: 2e6, kv_heads, ..HfDefaults::PLAIN };
    let mut decoder = Decoder::from_hf(fields, defaults)?;
    let attention = fields.flag("attention_bias")?.unwrap_or(false);
    let ffn = fields.flag("mlp_bias")?.unwrap_or(false);
    decoder.biases = Biases { qkv: attention, out: attention, ffn };
    let layers = &mut decoder.layers;
    let interval = fields.count("no_rope_layer_interval")?.unwrap_or(INTERVAL);
    layers.rotating = match fields.switches("no_rope_layers", layers.count)? {
        Some(rotating) => Which::Listed(rotating),
        None => Which::AllButEvery(interval),
    };
    let on = fields.flag("use_sliding_window")?.unwrap_or(false);
    layers.window = fields.count("sliding_window")?.filter(|_| on);
    // Without a list those slide that do not rotate.
    let still = match (&layers.rotating, layers.window) {
        (Which::Listed(rotating), Some(_)) => Which::Listed(rotating.iter().map(|r| !r).collect()),
        (_, Some(_)) => {
            return Err(fields.error("no_rope_layers", "the list, where layers slide", "add the key"));
        }
        (_, None) => Which::All,
    };
    layers.sliding = sliding_layers(fields, layers.count, still)?;
    Ok(decoder)
}

/// Every so-many-th layer does not rotate.
const INTERVAL: usize = 4;

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_gguf(checkpoint, fields, RopePairing::Interleaved)?;
    decoder.layers.rotating = Which::AllButEvery(INTERVAL);
    Ok(decoder)
}
