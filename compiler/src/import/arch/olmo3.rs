//! OLMo 3: an OLMo 2 in which three of four layers slide, and only the others scale their rope.

use super::{Architecture, olmo2};
use crate::import::config::Fields;
use crate::import::decoder::keys::{self, HfDefaults, gguf_sliding_layers, sliding_layers};
use crate::import::decoder::{Biases, Decoder, Which};
use crate::import::error::ImportError;
use crate::import::rope::{Rope, RopeScaling};
use crate::import::source::Checkpoint;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "olmo3",
    models: "OLMo 3",
    features: "norms behind attention and network, q/k norm of whole rows, local and global layers with ropes of their own",
    hf: &[("olmo3", "Olmo3ForCausalLM")],
    gguf: &["olmo2"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

/// Base of both ropes where `config.json` is silent, and of sliding layers wherever it has no object for them.
const THETA: f64 = 500_000.0;

/// Every so-many-th layer sees everything.
const PATTERN: usize = 4;

/// Reads the configuration. GGUF files of this family say that they are an OLMo 2.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read_hf(checkpoint, from_hf)
}

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_hf(fields, HfDefaults { theta: THETA, ..HfDefaults::PLAIN })?;
    let attention = fields.flag("attention_bias")?.unwrap_or(false);
    decoder.biases = Biases { qkv: attention, out: attention, ffn: false };
    decoder.layers.window =
        if fields.has("sliding_window") { fields.count("sliding_window")? } else { Some(4096) };
    decoder.layers.sliding = sliding_layers(fields, decoder.layers.count, Which::AllButEvery(PATTERN))?;
    if decoder.ropes.len() == 1 {
        let global = decoder.ropes[0].clone();
        decoder.local_rope(Rope { theta: THETA, scaling: RopeScaling::None, ..global });
    }
    Ok(olmo2::normed_behind(decoder))
}

/// What the keys of a GGUF file add to an OLMo 2 whose layers slide.
pub(super) fn sliding(mut decoder: Decoder, fields: &Fields, window: usize) -> Result<Decoder, ImportError> {
    decoder.layers.window = Some(window);
    decoder.layers.sliding = gguf_sliding_layers(fields, decoder.layers.count, PATTERN)?;
    let global = decoder.ropes[0].clone();
    let theta = fields.positive_or("rope.freq_base_swa", global.theta)?;
    decoder.local_rope(Rope { theta, scaling: RopeScaling::None, ..global });
    Ok(olmo2::normed_behind(decoder))
}
