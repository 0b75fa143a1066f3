//! The keys that most decoders' configurations share.

use super::{Biases, Decoder, Layers, Norms, QkNorm, Which};
use crate::import::config::{Fields, HARMLESS_HF, Harmless, gguf_fields};
use crate::import::error::ImportError;
use crate::import::names::Naming;
use crate::import::rope::{self, RopePairing};
use crate::import::source::{Checkpoint, Metadata};
use bessemer_format::plan::Gate;
use serde_json::{Map, Value};

/// What a family assumes where `config.json` is silent.
#[derive(Debug, Clone, Copy)]
pub struct HfDefaults {
    /// `head_dim`; hidden size by heads where there is none.
    pub head_dim: Option<usize>,
    /// `num_key_value_heads`; as many as heads where there is none.
    pub kv_heads: Option<usize>,
    /// `tie_word_embeddings`.
    pub tied: bool,
    /// `rope_theta`.
    pub theta: f64,
    /// `partial_rotary_factor`, where the family has it; elsewhere it must be 1.
    pub partial: Option<f64>,
    /// The keys of the width of the network, of which the first that is there counts.
    pub ffn: &'static [&'static str],
    /// The key of what norms add to the mean square.
    pub eps: &'static str,
    /// The key that names the activation, with what it may say.
    pub activation: (&'static str, &'static [(&'static str, Gate)]),
}

/// `hidden_act` of SwiGLU.
pub const SILU: (&str, &[(&str, Gate)]) = ("hidden_act", &[("silu", Gate::Silu), ("swish", Gate::Silu)]);

impl HfDefaults {
    /// What most families assume.
    pub const PLAIN: HfDefaults = HfDefaults {
        head_dim: None,
        kv_heads: None,
        tied: false,
        theta: 10000.0,
        partial: None,
        ffn: &["intermediate_size"],
        eps: "rms_norm_eps",
        activation: SILU,
    };
}

impl Decoder {
    /// The keys of `config.json` that most families share. Norms, biases, layers and whatever else a family has of its own
    /// are for its file to set.
    pub fn from_hf(fields: &Fields, defaults: HfDefaults) -> Result<Decoder, ImportError> {
        let hidden = fields.required_count("hidden_size")?;
        let heads = fields.required_count("num_attention_heads")?;
        let context = fields.required_count("max_position_embeddings")?;
        let head_dim = match fields.count("head_dim")?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let expected = format!("a divisor of hidden_size {hidden}");
                return Err(fields.error("num_attention_heads", expected, "correct the value"));
            }
        };
        let of_rope = rope::Defaults {
            head_dim,
            context,
            theta: defaults.theta,
            partial: defaults.partial.unwrap_or(1.0),
            can_be_partial: defaults.partial.is_some(),
        };
        let (activation, gates) = defaults.activation;
        let ffn = defaults.ffn.iter().find(|key| fields.has(key)).or(defaults.ffn.last()).unwrap_or(&"");
        let kv_heads = fields.count("num_key_value_heads")?.or(defaults.kv_heads).unwrap_or(heads);
        check_heads(fields, heads, kv_heads, head_dim, HF_HEADS)?;
        let (global, local) = rope::by_layer_kind(fields, of_rope)?;
        let mut decoder = Decoder {
            hidden,
            heads,
            kv_heads,
            head_dim,
            ffn: fields.required_count(ffn)?,
            vocab: fields.required_count("vocab_size")?,
            context,
            layers: Layers::plain(fields.required_count("num_hidden_layers")?),
            ropes: vec![global],
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(defaults.tied),
            rms_norm_eps: fields.required_positive(defaults.eps)?,
            gate: fields.choice(activation, gates)?.unwrap_or(gates[0].1),
            ..Decoder::plain(head_dim, Naming::HuggingFace)
        };
        if let Some(local) = local {
            decoder.local_rope(local);
        }
        Ok(decoder)
    }

    /// The keys of a GGUF file that most families share.
    pub fn from_gguf(
        checkpoint: &Checkpoint,
        fields: &Fields,
        pairing: RopePairing,
    ) -> Result<Decoder, ImportError> {
        let hidden = fields.required_count("embedding_length")?;
        let heads = fields.required_count("attention.head_count")?;
        let head_dim = match fields.count("attention.key_length")? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let expected = format!("a divisor of embedding_length {hidden}");
                return Err(fields.error("attention.head_count", expected, "correct the value"));
            }
        };
        fields.neutral("attention.value_length", &format!("the head size {head_dim}"), |value| {
            value.as_u64() == Some(head_dim as u64)
        })?;
        Self::from_gguf_of(checkpoint, fields, pairing, (head_dim, gguf_kv_heads(fields)?))
    }

    /// As [`Decoder::from_gguf`] for heads whose width and number of keys the family has read.
    pub fn from_gguf_of(
        checkpoint: &Checkpoint,
        fields: &Fields,
        pairing: RopePairing,
        (head_dim, kv_heads): (usize, usize),
    ) -> Result<Decoder, ImportError> {
        let hidden = fields.required_count("embedding_length")?;
        let heads = fields.required_count("attention.head_count")?;
        let context = fields.required_count("context_length")?;
        check_heads(fields, heads, kv_heads, head_dim, GGUF_HEADS)?;
        let of_rope =
            rope::Defaults { head_dim, context, theta: 10000.0, partial: 1.0, can_be_partial: true };
        let table =
            checkpoint.tensors().get("token_embd.weight").and_then(|info| info.shape.first().copied());
        let has = |name: &str| checkpoint.tensors().contains_key(name);
        Ok(Decoder {
            hidden,
            heads,
            kv_heads,
            head_dim,
            ffn: fields.required_count("feed_forward_length")?,
            // The key is optional; without it the table itself says how long it is, and a missing table is reported below.
            vocab: fields.count("vocab_size")?.or(table).unwrap_or(1),
            context,
            layers: Layers::plain(fields.required_count("block_count")?),
            ropes: vec![rope::from_gguf(checkpoint, fields, pairing, of_rope)?],
            // No key says these: the tensors do.
            tied: !has("output.weight"),
            biases: Biases {
                qkv: has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
                out: has("blk.0.attn_output.bias"),
                ffn: has("blk.0.ffn_down.bias"),
            },
            rms_norm_eps: fields.required_positive("attention.layer_norm_rms_epsilon")?,
            ..Decoder::plain(head_dim, Naming::Gguf)
        })
    }

    /// A decoder without sizes, in which nothing is out of the ordinary.
    fn plain(head_dim: usize, naming: Naming) -> Decoder {
        Decoder {
            hidden: 0,
            heads: 0,
            kv_heads: 0,
            head_dim,
            latent: None,
            conv: None,
            ffn: 0,
            experts: None,
            vocab: 0,
            context: 0,
            layers: Layers::plain(0),
            ropes: Vec::new(),
            tied: false,
            rms_norm_eps: 0.0,
            norms: Norms::BEFORE,
            norm_offset: 0.0,
            qk_norm: QkNorm::None,
            joint_qkv: false,
            joint_gate_up: false,
            biases: Biases::default(),
            gate: Gate::Silu,
            attention_scale: 1.0 / (head_dim as f64).sqrt(),
            attention_softcap: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_softcap: None,
            sinks: false,
            spare: Vec::new(),
            naming,
            renamed: &[],
        }
    }
}

const HF_HEADS: [&str; 3] = ["num_attention_heads", "num_key_value_heads", "head_dim"];
const GGUF_HEADS: [&str; 3] = ["attention.head_count", "attention.head_count_kv", "attention.key_length"];

/// Key and value heads of a GGUF file that says one number for all layers.
pub fn gguf_kv_heads(fields: &Fields) -> Result<usize, ImportError> {
    match fields.count("attention.head_count_kv")? {
        Some(kv_heads) => Ok(kv_heads),
        None => fields.required_count("attention.head_count"),
    }
}

/// What both containers leave to check: the relations between the sizes.
fn check_heads(
    fields: &Fields,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    keys: [&str; 3],
) -> Result<(), ImportError> {
    if heads < kv_heads || !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of the {heads} heads ({})", keys[0]);
        return Err(fields.error(keys[1], expected, "correct the value"));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(fields.error(keys[2], "an even head size, for RoPE", "correct the value"));
    }
    Ok(())
}

/// Reads the configuration of a decoder from either container, and refuses keys that nobody read.
pub fn read(
    checkpoint: &Checkpoint,
    from_hf: fn(&Fields) -> Result<Decoder, ImportError>,
    from_gguf: fn(&Checkpoint, &Fields) -> Result<Decoder, ImportError>,
) -> Result<Decoder, ImportError> {
    let path = checkpoint.config_path();
    match checkpoint.config() {
        Metadata::HuggingFace(config) => {
            let fields = Fields::new(path, "", config);
            let decoder = from_hf(&fields)?;
            finish_hf(fields)?;
            Ok(decoder)
        }
        Metadata::Gguf(metadata) => {
            let architecture = metadata.string("general.architecture").unwrap_or("");
            let map = gguf_fields(metadata, architecture);
            let fields = Fields::new(path, format!("{architecture}."), &map);
            let decoder = from_gguf(checkpoint, &fields)?;
            finish_gguf(fields)?;
            Ok(decoder)
        }
    }
}

/// As [`read`], for a family that GGUF does not know.
pub fn read_hf(
    checkpoint: &Checkpoint,
    from_hf: fn(&Fields) -> Result<Decoder, ImportError>,
) -> Result<Decoder, ImportError> {
    read(checkpoint, from_hf, |checkpoint, _| {
        Err(ImportError::NotACheckpoint {
            path: checkpoint.path().to_owned(),
            expected: "a directory with config.json: GGUF has no name for this family",
            found: "a GGUF file".into(),
            remedy: "fetch the model's safetensors",
        })
    })
}

/// The windows of families that switch them on by a key: of the layers from `max_window_layers` on.
pub fn upper_windows(fields: &Fields, layers: &mut Layers) -> Result<(), ImportError> {
    let on = fields.flag("use_sliding_window")?.unwrap_or(false);
    let window = fields.count("sliding_window")?;
    let first = fields.whole("max_window_layers")?.unwrap_or(28);
    layers.window = window.filter(|_| on);
    layers.sliding = sliding_layers(fields, layers.count, Which::From(first))?;
    if window.is_none() && matches!(&layers.sliding, Which::Listed(kinds) if kinds.contains(&true)) {
        return Err(fields.error("sliding_window", "the window of the layers that slide", "add the key"));
    }
    Ok(())
}

/// Accepts a window only where it covers the whole context, so that it hides nothing.
pub fn full_window(fields: &Fields, key: &str, context: usize) -> Result<(), ImportError> {
    fields.neutral(key, "none, or a window of at least the context", |value| {
        value.as_u64().is_some_and(|window| window == 0 || window >= context as u64)
    })
}

/// Which layers slide, as `layer_types` lists them; `otherwise` where it does not.
pub fn sliding_layers(fields: &Fields, count: usize, otherwise: Which) -> Result<Which, ImportError> {
    const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];
    let Some(value) = fields.value("layer_types") else { return Ok(otherwise) };
    let kind = |v: &Value| KINDS.iter().position(|kind| v == kind).map(|kind| kind == 1);
    let kinds = value.as_array().and_then(|kinds| kinds.iter().map(kind).collect::<Option<Vec<_>>>());
    match kinds.filter(|kinds| kinds.len() == count) {
        Some(kinds) => Ok(Which::Listed(kinds)),
        None => {
            let expected = format!("{count} times `full_attention` or `sliding_attention`");
            Err(fields.error("layer_types", expected, "this arithmetic is not built; use a model without it"))
        }
    }
}

/// Which layers slide, as a GGUF file has it: every one but each so-many-th, or a truth value for each.
pub fn gguf_sliding_layers(fields: &Fields, count: usize, every: usize) -> Result<Which, ImportError> {
    const KEY: &str = "attention.sliding_window_pattern";
    if fields.value(KEY).is_some_and(Value::is_array) {
        return Ok(fields.switches(KEY, count)?.map_or(Which::All, Which::Listed));
    }
    Ok(Which::AllButEvery(fields.count(KEY)?.unwrap_or(every)))
}

/// Passes over what every decoder's `config.json` may hold and nothing computes with, and refuses the rest.
fn finish_hf(fields: Fields) -> Result<(), ImportError> {
    fields.neutral("pruned_heads", "{}", |value| value.as_object().is_some_and(Map::is_empty))?;
    let off = [
        "rope_interleaved",
        "use_sliding_window",
        "is_decoder",
        "is_encoder_decoder",
        "add_cross_attention",
        "tie_encoder_decoder",
        "use_bidirectional_attention",
    ];
    for key in off {
        // A family that knows the key has read it, and decided.
        if !fields.was_read(key) {
            fields.neutral(key, "false", |value| value == false)?;
        }
    }
    for key in ["sliding_window", "layer_types"] {
        let expected = "null: this family has no window";
        let full = |value: &Value| {
            value.as_array().is_some_and(|types| types.iter().all(|ty| ty == "full_attention"))
        };
        if !fields.was_read(key) {
            fields.neutral(key, expected, full)?;
        }
    }
    fields.skip(HARMLESS_HF);
    fields.skip(&[Harmless { reason: "chose the family", keys: &["model_type"] }]);
    fields.skip(&[Harmless {
        reason: "dropped in training only",
        keys: &["resid_pdrop", "embd_pdrop", "residual_dropout", "embedding_dropout"],
    }]);
    fields.finish()
}

/// Accepts what a GGUF file may say beside, where it says nothing, and refuses the rest.
fn finish_gguf(fields: Fields) -> Result<(), ImportError> {
    for key in ["expert_count", "expert_used_count", "attention.clamp_kqv", "attention.max_alibi_bias"] {
        // A family that knows the key has read it, and decided.
        if !fields.was_read(key) {
            fields.neutral(key, "0", |value| value.as_f64() == Some(0.0))?;
        }
    }
    fields.neutral("use_parallel_residual", "false", |value| value == false)?;
    fields.neutral("attention.causal", "true", |value| value == true)?;
    fields
        .neutral("tensor_data_layout", "`Meta AI original pth`", |value| value == "Meta AI original pth")?;
    if !fields.was_read("attention.sliding_window") {
        fields.neutral("attention.sliding_window", "none: this family has no window", |value| {
            value.as_u64() == Some(0)
        })?;
    }
    fields.finish()
}
