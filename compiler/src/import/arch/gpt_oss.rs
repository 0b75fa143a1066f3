//! gpt-oss: experts with biases and a clamped gate, attention with a sink a head and a window in every other layer. Published
//! checkpoints hold the experts in MXFP4, joint and with alternating rows of gate and up; without it they are transposed.

use super::Architecture;
use crate::import::config::Fields;
use crate::import::decoder::keys::{self, HfDefaults, sliding_layers};
use crate::import::decoder::{Biases, ClampedGate, Decoder, ExpertNames, Experts, Role, Which};
use crate::import::error::ImportError;
use crate::import::rope::{RopePairing, RopeScaling};
use crate::import::source::{Checkpoint, Metadata, StoredType};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gpt_oss",
    models: "gpt-oss 20B, 120B",
    features: "mixture of experts with biases and a clamped gate, attention sinks, local and global layers",
    hf: &[("gpt_oss", "GptOssForCausalLM")],
    gguf: &["gpt-oss"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

const NAMES: ExpertNames = ExpertNames {
    router: "mlp.router",
    experts: "mlp.experts",
    projections: ["gate_up_proj", "gate_up_proj", "down_proj"],
    joint: true,
};

/// How steep the gate's sigmoid is, and where it is clamped, where no key says so.
const GATE: ClampedGate = ClampedGate { limit: 7.0, slope: 1.702 };

/// Reads the configuration.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    let mut decoder = keys::read(checkpoint, from_hf, from_gguf)?;
    let joint = checkpoint.tensors().get("model.layers.0.mlp.experts.gate_up_proj");
    let packed = joint.is_some_and(|info| matches!(info.stored, StoredType::Packed(_)));
    if let Some(experts) = &mut decoder.experts {
        experts.transposed = matches!(checkpoint.config(), Metadata::HuggingFace(_)) && !packed;
    }
    Ok(decoder)
}

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let defaults =
        HfDefaults { head_dim: Some(64), kv_heads: Some(8), theta: 150_000.0, ..HfDefaults::PLAIN };
    let mut decoder = Decoder::from_hf(fields, defaults)?;
    let attention = fields.flag("attention_bias")?.unwrap_or(true);
    decoder.biases = Biases { qkv: attention, out: attention, ffn: false };
    let keys = ["num_experts_per_tok", "num_local_experts"];
    let mut experts = Experts::by_softmax(fields, keys, decoder.ffn, true, NAMES)?;
    // Other spellings, which must not contradict.
    let top_k = experts.choice.top_k;
    fields
        .neutral("experts_per_token", &format!("{top_k}, as num_experts_per_tok"), |value| value == top_k)?;
    let initial = fields.count("initial_context_length")?;
    if let (Some(RopeScaling::Yarn { original_context, .. }), Some(initial)) =
        (decoder.ropes.first().map(|rope| &rope.scaling), initial)
        && initial != *original_context
    {
        let expected = format!("{original_context}, as the rope has it");
        return Err(fields.error("initial_context_length", expected, "correct one of the two"));
    }
    experts.clamped = Some(ClampedGate {
        limit: fields.positive_or("swiglu_limit", GATE.limit)?,
        slope: fields.positive_or("swiglu_alpha", GATE.slope)?,
    });
    let window = if fields.has("sliding_window") { fields.count("sliding_window")? } else { Some(128) };
    decoder.layers.window = window;
    decoder.layers.sliding = sliding_layers(fields, decoder.layers.count, Which::AllButEvery(2))?;
    Ok(with(decoder, experts))
}

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_gguf(checkpoint, fields, RopePairing::HalfSplit)?;
    let ffn = fields.count("expert_feed_forward_length")?.unwrap_or(decoder.ffn);
    let keys = ["expert_used_count", "expert_count"];
    let mut experts = Experts::by_softmax(fields, keys, ffn, true, NAMES)?;
    experts.clamped = Some(GATE);
    decoder.layers.window = fields.count("attention.sliding_window")?;
    decoder.layers.sliding = Which::AllButEvery(2);
    decoder.renamed = &[(Role::FfnNorm, "post_attention_norm")];
    // No key says so, but the model was made with a ramp that begins and ends between pairs.
    for rope in &mut decoder.ropes {
        if let RopeScaling::Yarn { truncate, .. } = &mut rope.scaling {
            *truncate = false;
        }
    }
    Ok(with(decoder, experts))
}

fn with(mut decoder: Decoder, mut experts: Experts) -> Decoder {
    experts.biases = true;
    decoder.experts = Some(experts);
    decoder.sinks = true;
    decoder
}
