//! Gemma 2: norms on both sides of each half of a block, capped scores and logits, every other layer slides.

use super::Architecture;
use crate::import::config::{Fields, Harmless};
use crate::import::decoder::keys::{self, HfDefaults, sliding_layers};
use crate::import::decoder::{Biases, Decoder, Norms, Which};
use crate::import::error::ImportError;
use crate::import::rope::RopePairing;
use crate::import::source::Checkpoint;
use bessemer_format::plan::Gate;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma2",
    models: "Gemma 2",
    features: "sandwich norms, capped scores and logits, local and global layers, GeGLU",
    hf: &[("gemma2", "Gemma2ForCausalLM")],
    gguf: &["gemma2"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

/// Reads the configuration.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read(checkpoint, from_hf, from_gguf)
}

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_hf(fields, DEFAULTS)?;
    let attention = fields.flag("attention_bias")?.unwrap_or(false);
    decoder.biases = Biases { qkv: attention, out: attention, ffn: false };
    decoder.norm_offset = 1.0;
    decoder.attention_scale = fields.positive_or("query_pre_attn_scalar", 256.0)?.powf(-0.5);
    // A null switches a cap off, a missing key does not.
    let cap = |key: &str, default| if fields.has(key) { fields.positive(key) } else { Ok(Some(default)) };
    decoder.attention_softcap = cap("attn_logit_softcapping", 50.0)?;
    decoder.logit_softcap = cap("final_logit_softcapping", 30.0)?;
    decoder.layers.window =
        if fields.has("sliding_window") { fields.count("sliding_window")? } else { Some(4096) };
    decoder.layers.sliding = sliding_layers(fields, decoder.layers.count, Which::AllButEvery(2))?;
    fields.skip(&[GEMMA_HARMLESS]);
    Ok(sandwich(decoder))
}

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_gguf(checkpoint, fields, RopePairing::HalfSplit)?;
    decoder.attention_scale = gguf_scale(&decoder, 46);
    decoder.attention_softcap = Some(fields.positive_or("attn_logit_softcapping", 50.0)?);
    decoder.logit_softcap = Some(fields.positive_or("final_logit_softcapping", 30.0)?);
    decoder.layers.window = Some(fields.count("attention.sliding_window")?.unwrap_or(4096));
    decoder.layers.sliding = Which::AllButEvery(2);
    decoder.gate = Gate::GeluTanh;
    Ok(sandwich(decoder))
}

/// What `config.json` leaves out, in all generations since this one.
pub(super) const DEFAULTS: HfDefaults = HfDefaults {
    head_dim: Some(256),
    kv_heads: Some(4),
    tied: true,
    theta: 10000.0,
    activation: ("hidden_activation", &[("gelu_pytorch_tanh", Gate::GeluTanh), ("gelu", Gate::Gelu)]),
    ..HfDefaults::PLAIN
};

/// Old files name the activation twice, and `hidden_activation` is the one that counts.
pub(super) const GEMMA_HARMLESS: Harmless = Harmless {
    reason: "older spelling, or a choice of execution",
    keys: &["hidden_act", "cache_implementation"],
};

/// Norms before and behind each half of a block, and tokens that are scaled by the root of the width. The norms of GGUF
/// files have the 1 added already.
pub(super) fn sandwich(mut decoder: Decoder) -> Decoder {
    decoder.norms = Norms {
        attention: Some("input_layernorm"),
        attention_out: Some("post_attention_layernorm"),
        ffn: Some("pre_feedforward_layernorm"),
        ffn_out: Some("post_feedforward_layernorm"),
    };
    decoder.embedding_scale = (decoder.hidden as f64).sqrt();
    decoder
}

/// The scale of scores, which GGUF does not tell: as llama.cpp has it, by the width of a head, but in the largest model
/// (known by its number of layers) by the width of the stream divided by the heads.
pub(super) fn gguf_scale(decoder: &Decoder, layers_of_largest: usize) -> f64 {
    let width = match decoder.layers.count == layers_of_largest {
        true => decoder.hidden / decoder.heads,
        false => decoder.head_dim,
    };
    1.0 / (width as f64).sqrt()
}
