//! Gemma 3, text: q/k norm, five sliding layers to a global one, each kind with its own rope.

use super::{Architecture, gemma2};
use crate::import::config::Fields;
use crate::import::decoder::keys::{self, HfDefaults, gguf_sliding_layers, sliding_layers};
use crate::import::decoder::{Biases, Decoder, QkNorm, Which};
use crate::import::error::ImportError;
use crate::import::rope::{Rope, RopePairing, RopeScaling};
use crate::import::source::Checkpoint;
use bessemer_format::plan::Gate;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma3",
    models: "Gemma 3 (text)",
    features: "sandwich norms, q/k norm, local and global layers with ropes of their own, GeGLU",
    hf: &[("gemma3_text", "Gemma3ForCausalLM")],
    gguf: &["gemma3"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

/// Reads the configuration.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read(checkpoint, from_hf, from_gguf)
}

/// Most layers slide; every so-many-th sees everything.
const PATTERN: usize = 6;

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_hf(fields, HfDefaults { theta: 1e6, ..gemma2::DEFAULTS })?;
    let attention = fields.flag("attention_bias")?.unwrap_or(false);
    decoder.biases = Biases { qkv: attention, out: attention, ffn: false };
    decoder.norm_offset = 1.0;
    decoder.qk_norm = QkNorm::Head;
    decoder.attention_scale = fields.positive_or("query_pre_attn_scalar", 256.0)?.powf(-0.5);
    decoder.attention_softcap = fields.positive("attn_logit_softcapping")?;
    decoder.logit_softcap = fields.positive("final_logit_softcapping")?;
    let pattern = fields.count("sliding_window_pattern")?.or(fields.count("_sliding_window_pattern")?);
    let otherwise = Which::AllButEvery(pattern.unwrap_or(PATTERN));
    decoder.layers.window =
        if fields.has("sliding_window") { fields.count("sliding_window")? } else { Some(4096) };
    decoder.layers.sliding = sliding_layers(fields, decoder.layers.count, otherwise)?;
    fields.skip(&[gemma2::GEMMA_HARMLESS]);
    Ok(gemma2::sandwich(decoder))
}

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_gguf(checkpoint, fields, RopePairing::HalfSplit)?;
    decoder.qk_norm = QkNorm::Head;
    decoder.attention_scale = gemma2::gguf_scale(&decoder, 62);
    decoder.layers.window = Some(fields.required_count("attention.sliding_window")?);
    decoder.layers.sliding = gguf_sliding_layers(fields, decoder.layers.count, PATTERN)?;
    // Sliding layers turn by a base of their own, unscaled.
    let theta = fields.positive_or("rope.freq_base_swa", 10000.0)?;
    decoder.local_rope(Rope { theta, scaling: RopeScaling::None, ..decoder.ropes[0].clone() });
    decoder.gate = Gate::GeluTanh;
    Ok(gemma2::sandwich(decoder))
}
