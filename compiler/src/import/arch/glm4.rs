//! GLM-4: norms on both sides, half of each head rotates by neighbouring pairs, gate and up in one tensor.

use super::Architecture;
use crate::import::config::Fields;
use crate::import::decoder::keys::{self, HfDefaults};
use crate::import::decoder::{Biases, Decoder, Norms};
use crate::import::error::ImportError;
use crate::import::rope::RopePairing;
use crate::import::source::Checkpoint;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "glm4",
    models: "GLM-4-0414",
    features: "sandwich norms, partial rope, q/k/v biases",
    hf: &[("glm4", "Glm4ForCausalLM")],
    gguf: &["glm4"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

/// Reads the configuration.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read(checkpoint, from_hf, from_gguf)
}

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let defaults =
        HfDefaults { head_dim: Some(128), kv_heads: Some(2), partial: Some(0.5), ..HfDefaults::PLAIN };
    let mut decoder = Decoder::from_hf(fields, defaults)?;
    let attention = fields.flag("attention_bias")?.unwrap_or(true);
    decoder.biases = Biases { qkv: attention, ..Biases::default() };
    decoder.ropes[0].pairing = RopePairing::Interleaved;
    Ok(sandwich(decoder))
}

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    Ok(sandwich(Decoder::from_gguf(checkpoint, fields, RopePairing::Interleaved)?))
}

fn sandwich(mut decoder: Decoder) -> Decoder {
    decoder.joint_gate_up = true;
    decoder.norms = Norms {
        attention: Some("input_layernorm"),
        attention_out: Some("post_self_attn_layernorm"),
        ffn: Some("post_attention_layernorm"),
        ffn_out: Some("post_mlp_layernorm"),
    };
    decoder
}
