//! Phi-3 and Phi-4: query, key and value in one tensor, gate and up in another; partial and long rope.

use super::Architecture;
use crate::import::config::{Fields, Harmless};
use crate::import::decoder::Decoder;
use crate::import::decoder::keys::{self, HfDefaults};
use crate::import::error::ImportError;
use crate::import::rope::RopePairing;
use crate::import::source::Checkpoint;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "phi3",
    models: "Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
    features: "joint projections, partial rope, LongRoPE, sliding window",
    hf: &[("phi3", "Phi3ForCausalLM")],
    gguf: &["phi3"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

/// Reads the configuration.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read(checkpoint, from_hf, from_gguf)
}

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_hf(fields, HfDefaults { partial: Some(1.0), ..HfDefaults::PLAIN })?;
    decoder.layers.window = fields.count("sliding_window")?;
    for key in ["attention_bias", "mlp_bias"] {
        fields.neutral(key, "false", |value| value == false)?;
    }
    fields.skip(&[Harmless { reason: "names code that is not run", keys: &["auto_map"] }]);
    Ok(joint(decoder))
}

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_gguf(checkpoint, fields, RopePairing::HalfSplit)?;
    decoder.layers.window = fields.whole("attention.sliding_window")?.filter(|window| *window > 0);
    Ok(joint(decoder))
}

fn joint(mut decoder: Decoder) -> Decoder {
    decoder.joint_qkv = true;
    decoder.joint_gate_up = true;
    decoder
}
