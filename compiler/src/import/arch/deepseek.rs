//! DeepSeek V2 and V3: compressed keys and values, experts that are chosen by groups beside some that all tokens take, plain
//! networks in the first blocks. The two differ in how experts are scored; in GGUF they share a name.

use super::Architecture;
use crate::import::config::{Fields, Harmless};
use crate::import::decoder::keys::{self, HfDefaults};
use crate::import::decoder::{Decoder, ExpertNames, Experts, Latent};
use crate::import::error::ImportError;
use crate::import::rope::{RopePairing, RopeScaling};
use crate::import::source::Checkpoint;
use bessemer_format::plan::Score;

pub(super) const V2: Architecture = Architecture {
    name: "deepseek_v2",
    models: "DeepSeek V2, V2 Lite, Coder V2",
    features: "latent attention, experts by groups and shared ones",
    hf: &[("deepseek_v2", "DeepseekV2ForCausalLM")],
    gguf: &["deepseek2"],
    build: |checkpoint, context| {
        let decoder = keys::read(checkpoint, |fields| from_hf(fields, Version::V2), from_gguf)?;
        decoder.model(checkpoint, context, V2.name)
    },
};

pub(super) const V3: Architecture = Architecture {
    name: "deepseek_v3",
    models: "DeepSeek V3, V3.1, R1",
    features: "latent attention, experts by groups with corrected sigmoid scores and shared ones",
    hf: &[("deepseek_v3", "DeepseekV3ForCausalLM")],
    gguf: &["deepseek2"],
    build: |checkpoint, context| {
        let decoder = keys::read_hf(checkpoint, |fields| from_hf(fields, Version::V3))?;
        decoder.model(checkpoint, context, V3.name)
    },
};

const NAMES: ExpertNames = ExpertNames {
    router: "mlp.gate",
    experts: "mlp.experts",
    projections: ["gate_proj", "up_proj", "down_proj"],
    joint: false,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V2,
    V3,
}

fn from_hf(fields: &Fields, version: Version) -> Result<Decoder, ImportError> {
    let latent = Latent {
        q_rank: fields.count("q_lora_rank")?,
        kv_rank: even(fields, "kv_lora_rank")?,
        plain: fields.required_count("qk_nope_head_dim")?,
        turning: even(fields, "qk_rope_head_dim")?,
        value: fields.required_count("v_head_dim")?,
        split: false,
    };
    let turning = latent.turning;
    fields.neutral("head_dim", &format!("{turning}, as qk_rope_head_dim"), |v| *v == turning)?;
    let heads = fields.required_count("num_attention_heads")?;
    fields.neutral("num_key_value_heads", &format!("the {heads} heads"), |v| *v == heads)?;
    let mut decoder = Decoder::from_hf(fields, HfDefaults { head_dim: Some(turning), ..HfDefaults::PLAIN })?;
    let interleaved = fields.flag("rope_interleave")?.unwrap_or(true);
    let scaling = match fields.object("rope_parameters")? {
        Some(scaling) => Some(scaling),
        None => fields.object("rope_scaling")?,
    };
    let of_all = scaling.map_or(Ok(None), |scaling| scaling.positive("mscale_all_dim"))?;
    for rope in &mut decoder.ropes {
        if interleaved {
            rope.pairing = RopePairing::Interleaved;
        }
    }
    let mscale = match decoder.ropes.first().map(|rope| &rope.scaling) {
        Some(RopeScaling::Yarn { factor, .. }) if *factor > 1.0 => {
            1.0 + 0.1 * of_all.unwrap_or(0.0) * factor.ln()
        }
        _ => 1.0,
    };
    for key in ["attention_bias", "mlp_bias"] {
        fields.neutral(key, "false", |value| value == false)?;
    }
    let spare = fields.whole("num_nextn_predict_layers")?.unwrap_or(0);
    decoder.spare = (0..spare.min(MOST_SPARE)).map(|i| decoder.layers.count + i).collect();
    fields.skip(&[Harmless {
        reason: "the balance of experts in training, or where they run",
        keys: &["aux_loss_alpha", "seq_aux", "ep_size"],
    }]);
    fields.neutral("moe_layer_freq", "1: experts in every block behind the first ones", |v| *v == 1)?;
    decoder.experts = Some(experts(fields, version)?);
    Ok(with(decoder, latent, mscale))
}

/// Elements that lie in the cache, two by two.
fn even(fields: &Fields, key: &str) -> Result<usize, ImportError> {
    let count = fields.required_count(key)?;
    match count.is_multiple_of(2) {
        true => Ok(count),
        false => Err(fields.error(key, "an even number", "correct the value")),
    }
}

/// Blocks for drafts that a checkpoint may hold: publishers have one.
const MOST_SPARE: usize = 16;

fn experts(fields: &Fields, version: Version) -> Result<Experts, ImportError> {
    let ffn = fields.required_count("moe_intermediate_size")?;
    let keys = ["num_experts_per_tok", "n_routed_experts"];
    let mut experts = Experts::by_softmax(fields, keys, ffn, false, NAMES)?;
    experts.first_layer = fields.whole("first_k_dense_replace")?.unwrap_or(0);
    experts.shared = shared(fields, "n_shared_experts", ffn)?;
    experts.scale = fields.positive_or("routed_scaling_factor", 1.0)?;
    let methods: &[(&str, bool)] = match version {
        Version::V2 => &[("greedy", false), ("group_limited_greedy", true)],
        Version::V3 => &[("noaux_tc", true)],
    };
    let grouped = fields.choice("topk_method", methods)?.unwrap_or(version == Version::V3);
    let [groups, best] = [fields.count("n_group")?, fields.count("topk_group")?].map(|n| n.unwrap_or(1));
    if grouped {
        let group_keys = if version == Version::V3 { 2 } else { 1 };
        (experts.choice.groups, experts.choice.best_groups) = (groups as u32, best as u32);
        experts.choice.group_keys = if groups > 1 { group_keys } else { 1 };
    }
    match version {
        Version::V2 => {
            fields.choice("scoring_func", &[("softmax", ())])?;
            fields.neutral("norm_topk_prob", "false", |value| value == false)?;
        }
        Version::V3 => {
            fields.choice("scoring_func", &[("sigmoid", ())])?;
            experts.choice.score = Score::Sigmoid;
            experts.corrected = true;
            experts.renormalise = fields.flag("norm_topk_prob")?.unwrap_or(true);
        }
    }
    checked(fields, experts, ["n_group", "topk_group"])
}

/// Width of the network that all tokens take.
fn shared(fields: &Fields, key: &str, ffn: usize) -> Result<usize, ImportError> {
    let count = fields.whole(key)?.unwrap_or(0);
    let width = count.checked_mul(ffn).filter(|width| *width <= 0x7fff_ffff);
    width.ok_or_else(|| fields.error(key, "a count that memory can hold", "correct the value"))
}

/// Groups that experts do not divide into, or too few of them for the experts of a token, are errors of the configuration.
fn checked(fields: &Fields, experts: Experts, keys: [&str; 2]) -> Result<Experts, ImportError> {
    match experts.choice.check(experts.count as u64) {
        Ok(()) => Ok(experts),
        Err(why) => {
            let wrong = !experts.count.is_multiple_of(experts.choice.groups.max(1) as usize);
            let key = if wrong { keys[0] } else { keys[1] };
            Err(fields.error(key, format!("groups that fit the other keys ({why})"), "correct the value"))
        }
    }
}

/// Both versions. llama.cpp takes `mscale` and `mscale_all_dim` to be equal, so that angles have no factor.
fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    let split = checkpoint.tensors().contains_key(Latent::SPLIT);
    let turning = even(fields, "rope.dimension_count")?;
    let kv_rank = even(fields, "attention.kv_lora_rank")?;
    // Converted with compressed keys in mind, the plain keys speak of what is in the cache.
    let lengths = ["attention.key_length", "attention.value_length"];
    let of_heads = ["attention.key_length_mla", "attention.value_length_mla"];
    let [key, value] = if fields.has(of_heads[0]) {
        for (key, expected) in lengths.into_iter().zip([kv_rank + turning, kv_rank]) {
            fields.neutral(key, &expected.to_string(), |v| *v == expected)?;
        }
        of_heads
    } else {
        lengths
    };
    let (head, value) = (fields.required_count(key)?, fields.required_count(value)?);
    let plain = head.checked_sub(turning).filter(|plain| *plain > 0);
    let plain = plain.ok_or_else(|| {
        fields.error(key, format!("more than rope.dimension_count {turning}"), "correct the value")
    })?;
    let q_rank = fields.count("attention.q_lora_rank")?;
    let latent = Latent { q_rank, kv_rank, plain, turning, value, split };
    let heads = (turning, keys::gguf_kv_heads(fields)?);
    let mut decoder = Decoder::from_gguf_of(checkpoint, fields, RopePairing::Interleaved, heads)?;
    let log_multiplier = fields.positive("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
    let mut mscale = 1.0;
    for rope in &mut decoder.ropes {
        if let RopeScaling::Yarn { factor, attention_factor, .. } = &mut rope.scaling {
            *attention_factor = 1.0;
            mscale = 1.0 + log_multiplier * factor.max(1.0).ln();
        }
    }
    let ffn = fields.required_count("expert_feed_forward_length")?;
    let keys = ["expert_used_count", "expert_count"];
    let renormalise = fields.flag("expert_weights_norm")?.unwrap_or(false);
    let mut experts = Experts::by_softmax(fields, keys, ffn, renormalise, NAMES)?;
    experts.first_layer = fields.whole("leading_dense_block_count")?.unwrap_or(0);
    experts.shared = shared(fields, "expert_shared_count", ffn)?;
    experts.scale = fields.positive_or("expert_weights_scale", 1.0)?;
    let sigmoid = match fields.whole("expert_gating_func")? {
        None | Some(1) => false,
        Some(2) => true,
        Some(_) => {
            return Err(fields.error(
                "expert_gating_func",
                "1 (softmax) or 2 (sigmoid)",
                "use another model",
            ));
        }
    };
    if sigmoid {
        experts.choice.score = Score::Sigmoid;
    }
    let correction = format!("blk.{}.exp_probs_b.bias", experts.first_layer);
    experts.corrected = checkpoint.tensors().contains_key(&correction);
    let groups = fields.count("expert_group_count")?.unwrap_or(1);
    let best = fields.count("expert_group_used_count")?.unwrap_or(groups);
    (experts.choice.groups, experts.choice.best_groups) = (groups as u32, best as u32);
    experts.choice.group_keys = if groups > 1 && sigmoid { 2 } else { 1 };
    decoder.experts = Some(checked(fields, experts, ["expert_group_count", "expert_group_used_count"])?);
    Ok(with(decoder, latent, mscale))
}

fn with(mut decoder: Decoder, latent: Latent, mscale: f64) -> Decoder {
    decoder.attention_scale = mscale * mscale / (latent.head_dim() as f64).sqrt();
    decoder.latent = Some(latent);
    decoder
}
