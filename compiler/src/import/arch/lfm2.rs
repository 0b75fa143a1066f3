//! LFM2: gated short convolutions, with attention in a few of the blocks.

use super::Architecture;
use crate::import::config::{Fields, Harmless};
use crate::import::decoder::keys::{self, HfDefaults};
use crate::import::decoder::{Decoder, Norms, QkNorm, Role, ShortConv};
use crate::import::error::ImportError;
use crate::import::rope::RopePairing;
use crate::import::source::Checkpoint;
use serde_json::Value;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "lfm2",
    models: "LFM2 (dense)",
    features: "gated short convolutions, attention in some layers, q/k norm",
    hf: &[("lfm2", "Lfm2ForCausalLM")],
    gguf: &["lfm2"],
    build: |checkpoint, context| read(checkpoint)?.model(checkpoint, context, ARCHITECTURE.name),
};

/// Reads the configuration.
pub fn read(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    keys::read(checkpoint, from_hf, from_gguf)
}

const DEFAULTS: HfDefaults = HfDefaults {
    tied: true,
    kv_heads: Some(8),
    theta: 1e6,
    ffn: &["block_ff_dim", "intermediate_size"],
    eps: "norm_eps",
    ..HfDefaults::PLAIN
};

const HF_NAMES: &[(Role, &str)] = &[
    (Role::OutputNorm, "model.embedding_norm"),
    (Role::QueryNorm, "self_attn.q_layernorm"),
    (Role::KeyNorm, "self_attn.k_layernorm"),
    (Role::AttentionOut, "self_attn.out_proj"),
    (Role::Gate, "feed_forward.w1"),
    (Role::Up, "feed_forward.w3"),
    (Role::Down, "feed_forward.w2"),
];

/// The converter keeps the name that the norm behind the last block has in these checkpoints.
const GGUF_NAMES: &[(Role, &str)] = &[(Role::OutputNorm, "token_embd_norm")];

const NORMS: Norms = Norms { attention: Some("operator_norm"), ffn: Some("ffn_norm"), ..Norms::BEFORE };

fn from_hf(fields: &Fields) -> Result<Decoder, ImportError> {
    let mut decoder = Decoder::from_hf(fields, DEFAULTS)?;
    decoder.tied = fields.flag("tie_embedding")?.unwrap_or(decoder.tied);
    decoder.ffn = network_width(fields, decoder.ffn)?;
    let taps = taps(fields, "conv_L_cache", fields.count("conv_L_cache")?.unwrap_or(3))?;
    decoder.conv = attending(fields, decoder.layers.count)?.map(|attending| ShortConv { taps, attending });
    decoder.qk_norm = QkNorm::Head;
    decoder.norms = NORMS;
    decoder.renamed = HF_NAMES;
    let same = |key: &str, size: usize| {
        fields.neutral(key, &size.to_string(), |value| value.as_u64() == Some(size as u64))
    };
    for key in ["block_dim", "conv_dim", "conv_dim_out"] {
        same(key, decoder.hidden)?;
    }
    same("num_heads", decoder.heads)?;
    fields.neutral("block_norm_eps", "norm_eps", |v| v.as_f64() == Some(decoder.rms_norm_eps))?;
    fields.neutral("conv_bias", "false", |value| value == false)?;
    for key in ["block_use_swiglu", "use_pos_enc"] {
        fields.neutral(key, "true", |value| value == true)?;
    }
    fields.skip(&[Harmless {
        reason: "how weights began",
        keys: &[
            "block_mlp_init_scale",
            "block_out_init_scale",
            "block_use_xavier_init",
            "conv_use_xavier_init",
        ],
    }]);
    Ok(decoder)
}

/// Two thirds of the stated width, times a factor, rounded up to a multiple; unless the width is meant as it stands.
fn network_width(fields: &Fields, stated: usize) -> Result<usize, ImportError> {
    let factor = fields.positive_or("block_ffn_dim_multiplier", 1.0)?;
    let multiple = fields.count("block_multiple_of")?.unwrap_or(256);
    if !fields.flag("block_auto_adjust_ff_dim")?.unwrap_or(true) {
        return Ok(stated);
    }
    let width = (factor * ((2 * stated) as f64 / 3.0).trunc()) as usize;
    match width.checked_next_multiple_of(multiple).filter(|width| (1..=0x7fff_ffff).contains(width)) {
        Some(width) => Ok(width),
        None => {
            let expected = format!("a factor that leaves some of {stated} and gives less than 2147483648");
            Err(fields.error("block_ffn_dim_multiplier", expected, "correct the value"))
        }
    }
}

/// The layers that attend, ascending; none where nothing is said, and all do.
fn attending(fields: &Fields, count: usize) -> Result<Option<Vec<usize>>, ImportError> {
    let listed = fields.wholes("full_attn_idxs")?;
    if let Some(value) = fields.value("layer_types") {
        let attends = |v: &Value| ["conv", "full_attention"].iter().position(|kind| v == kind);
        let kinds = value.as_array().and_then(|kinds| kinds.iter().map(attends).collect::<Option<Vec<_>>>());
        return match kinds.filter(|kinds| kinds.len() == count) {
            Some(kinds) => Ok(Some((0..count).filter(|layer| kinds[*layer] == 1).collect())),
            None => {
                let expected = format!("{count} times `conv` or `full_attention`");
                Err(fields.error("layer_types", expected, "correct the value"))
            }
        };
    }
    let Some(mut layers) = listed else { return Ok(None) };
    layers.sort_unstable();
    layers.dedup();
    match layers.last() {
        Some(last) if *last >= count => {
            Err(fields.error("full_attn_idxs", format!("layers below {count}"), "correct the value"))
        }
        _ => Ok(Some(layers)),
    }
}

fn taps(fields: &Fields, key: &str, taps: usize) -> Result<usize, ImportError> {
    match (2..=ShortConv::MAX_TAPS).contains(&taps) {
        true => Ok(taps),
        false => {
            let expected = format!("2 to {}", ShortConv::MAX_TAPS);
            Err(fields.error(key, expected, "this arithmetic is not built; use a model without it"))
        }
    }
}

fn from_gguf(checkpoint: &Checkpoint, fields: &Fields) -> Result<Decoder, ImportError> {
    const KV_HEADS: &str = "attention.head_count_kv";
    let layers = fields.required_count("block_count")?;
    // A number of each layer, 0 of those that convolve.
    let heads = fields.wholes(KV_HEADS)?.filter(|heads| heads.len() == layers).unwrap_or_default();
    let kv_heads = heads.iter().copied().find(|heads| *heads > 0);
    let Some(kv_heads) = kv_heads.filter(|n| heads.iter().all(|heads| [0, *n].contains(heads))) else {
        let expected = format!("{layers} numbers, 0 or the same of each layer, not all of them 0");
        return Err(fields.error(KV_HEADS, expected, "correct the value"));
    };
    let (hidden, query_heads) =
        (fields.required_count("embedding_length")?, fields.required_count("attention.head_count")?);
    let head_dim = fields.count("attention.key_length")?.unwrap_or(hidden / query_heads);
    fields.neutral("attention.value_length", &format!("the head size {head_dim}"), |value| {
        value.as_u64() == Some(head_dim as u64)
    })?;
    let of_heads = (head_dim, kv_heads);
    let mut decoder = Decoder::from_gguf_of(checkpoint, fields, RopePairing::HalfSplit, of_heads)?;
    let attending = (0..layers).filter(|layer| heads[*layer] > 0).collect();
    let key = "shortconv.l_cache";
    decoder.conv = Some(ShortConv { taps: taps(fields, key, fields.required_count(key)?)?, attending });
    decoder.qk_norm = QkNorm::Head;
    decoder.norms = NORMS;
    decoder.renamed = GGUF_NAMES;
    Ok(decoder)
}
