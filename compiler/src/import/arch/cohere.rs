//! Cohere (Command-R, Aya): attention and a gated network side by side behind one LayerNorm without bias, ropes of neighbouring
//! pairs, scaled logits; from Command-R7B on, only layers that slide rotate.

use bessemer_format::plan::{Gate, Input, ModelFacts, Output};
use bessemer_ir::attr::{BinaryKind, UnaryKind};
use serde_json::{Map, Value as Json};

use super::Architecture;
use crate::import::build::{Attention, Builder, Model};
use crate::import::config::{Fields, HARMLESS_HF, Harmless, gguf_fields};
use crate::import::decoder::{Which, keys};
use crate::import::error::ImportError;
use crate::import::gguf::GgufMetadata;
use crate::import::names::{Names, Naming};
use crate::import::rope::{self, Defaults, Rope, RopePairing};
use crate::import::source::{Checkpoint, Metadata};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "cohere",
    models: "Command-R, Command-R+, Command-R7B, Aya",
    features: "LayerNorm, parallel halves of a block, norms of heads, sliding window, layers without rope, scaled logits",
    hf: &[("cohere", "CohereForCausalLM"), ("cohere2", "Cohere2ForCausalLM")],
    gguf: &["command-r", "cohere2"],
    build: |checkpoint, context| Config::read(checkpoint)?.build(checkpoint, context),
};

struct Config {
    naming: Naming,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    ffn: usize,
    vocab: usize,
    context: usize,
    eps: f64,
    rope: Rope,
    logit_scale: f64,
    tied: bool,
    /// Whether heads of queries and keys are normed before they turn.
    qk_norm: bool,
    /// The second version: what a sliding layer sees, and which layers slide; the others do not rotate.
    sliding: Option<(usize, Which)>,
}

/// Where a file does not say which layers slide: all but every fourth.
const PATTERN: usize = 4;
const HEAD: &str = "lm_head.weight";
const QK_NORMS: [&str; 2] = ["self_attn.q_norm.weight", "self_attn.k_norm.weight"];

#[rustfmt::skip]
const NAMES: Names<Config> = Names {
    blocks: "model.layers.",
    whole: &[
        ("model.embed_tokens.weight", "token_embd.weight", |c| vec![c.vocab, c.hidden]),
        ("model.norm.weight", "output_norm.weight", |c| vec![c.hidden]),
        (HEAD, "output.weight", |c| vec![c.vocab, c.hidden]),
    ],
    block: &[
        ("input_layernorm.weight", "attn_norm.weight", |c| vec![c.hidden]),
        ("self_attn.q_proj.weight", "attn_q.weight", |c| vec![c.hidden, c.hidden]),
        ("self_attn.k_proj.weight", "attn_k.weight", |c| vec![c.kv_rows(), c.hidden]),
        ("self_attn.v_proj.weight", "attn_v.weight", |c| vec![c.kv_rows(), c.hidden]),
        (QK_NORMS[0], "attn_q_norm.weight", |c| vec![c.heads, c.hidden / c.heads]),
        (QK_NORMS[1], "attn_k_norm.weight", |c| vec![c.kv_heads, c.hidden / c.heads]),
        ("self_attn.o_proj.weight", "attn_output.weight", |c| vec![c.hidden, c.hidden]),
        ("mlp.gate_proj.weight", "ffn_gate.weight", |c| vec![c.ffn, c.hidden]),
        ("mlp.up_proj.weight", "ffn_up.weight", |c| vec![c.ffn, c.hidden]),
        ("mlp.down_proj.weight", "ffn_down.weight", |c| vec![c.hidden, c.ffn]),
    ],
};

impl Config {
    fn read(checkpoint: &Checkpoint) -> Result<Config, ImportError> {
        let config = match checkpoint.config() {
            Metadata::HuggingFace(config) => Config::from_hf(checkpoint, config)?,
            Metadata::Gguf(metadata) => Config::from_gguf(checkpoint, metadata)?,
        };
        let has = |_: Option<usize>, name: &str| match name {
            HEAD => !config.tied,
            name if QK_NORMS.contains(&name) => config.qk_norm,
            _ => true,
        };
        NAMES.check(checkpoint, &config, config.layers, has, |name| name, |_| false)?;
        Ok(config)
    }

    fn kv_rows(&self) -> usize {
        self.kv_heads * (self.hidden / self.heads)
    }

    fn from_hf(checkpoint: &Checkpoint, config: &Map<String, Json>) -> Result<Config, ImportError> {
        let fields = Fields::new(checkpoint.config_path(), "", config);
        let hidden = fields.required_count("hidden_size")?;
        let heads = fields.required_count("num_attention_heads")?;
        let layers = fields.required_count("num_hidden_layers")?;
        // The first version's files name the context that it was trained for under the tokeniser's key.
        let positions = fields.required_count("max_position_embeddings")?;
        let context = fields.count("model_max_length")?.unwrap_or(positions);
        let is_second = config.get("model_type").is_some_and(|name| name == "cohere2");
        // What transformers takes for a key that is not there.
        let theta = if is_second { 10000.0 } else { 500000.0 };
        let defaults =
            Defaults { head_dim: hidden / heads, context, theta, partial: 1.0, can_be_partial: false };
        let rope = Rope { pairing: RopePairing::Interleaved, ..rope::from_hf(&fields, defaults)? };
        let sliding = if is_second {
            let pattern = fields.count("sliding_window_pattern")?.unwrap_or(PATTERN);
            fields.neutral("layer_switch", "sliding_window_pattern", |value| {
                value.as_u64() == Some(pattern as u64)
            })?;
            fields.neutral("order_of_interleaved_layers", "local_attn_first", |value| {
                value == "local_attn_first"
            })?;
            let which = keys::sliding_layers(&fields, layers, Which::AllButEvery(pattern))?;
            Some((fields.count("sliding_window")?.unwrap_or(4096), which))
        } else {
            None
        };
        let read = Config {
            naming: Naming::HuggingFace,
            hidden,
            layers,
            heads,
            kv_heads: fields.count("num_key_value_heads")?.unwrap_or(heads),
            ffn: fields.required_count("intermediate_size")?,
            vocab: fields.required_count("vocab_size")?,
            context,
            eps: fields.positive("layer_norm_eps")?.unwrap_or(1e-5),
            rope,
            logit_scale: fields.positive("logit_scale")?.unwrap_or(0.0625),
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(true),
            // Only the first version has the key.
            qk_norm: !is_second && fields.flag("use_qk_norm")?.unwrap_or(false),
            sliding,
        };
        let head_dim = (hidden / heads) as u64;
        fields.neutral("head_dim", "hidden_size / num_attention_heads", |value| {
            value.as_u64() == Some(head_dim)
        })?;
        fields.neutral("hidden_act", "silu", |value| value == "silu")?;
        fields.neutral("position_embedding_type", "rope_gptj", |value| value == "rope_gptj")?;
        fields.neutral("rotary_pct", "1", |value| value.as_f64() == Some(1.0))?;
        for key in ["use_parallel_block", "use_gated_activation", "use_embedding_sharing"] {
            fields.neutral(key, "true", |value| value == true)?;
        }
        for key in
            ["attention_bias", "use_qk_norm", "is_decoder", "is_encoder_decoder", "add_cross_attention"]
        {
            if !fields.was_read(key) {
                fields.neutral(key, "false", |value| value == false)?;
            }
        }
        fields.skip(HARMLESS_HF);
        fields.skip(&[Harmless { reason: "chose this family", keys: &["model_type"] }]);
        let reason = "says how the model is split between devices, or how transformers caches";
        fields.skip(&[Harmless { reason, keys: &["use_parallel_embedding", "cache_implementation"] }]);
        fields.shared_heads("num_attention_heads", read.hidden, read.heads, read.kv_heads)?;
        fields.finish()?;
        Ok(read)
    }

    fn from_gguf(checkpoint: &Checkpoint, metadata: &GgufMetadata) -> Result<Config, ImportError> {
        let name = metadata.string("general.architecture").unwrap_or("");
        let map = gguf_fields(metadata, name);
        let fields = Fields::new(checkpoint.config_path(), format!("{name}."), &map);
        let has = |name: &str| checkpoint.tensors().get(name);
        let table = has("token_embd.weight").and_then(|info| info.shape.first().copied());
        let hidden = fields.required_count("embedding_length")?;
        let heads = fields.required_count("attention.head_count")?;
        let context = fields.required_count("context_length")?;
        let head_dim = hidden / heads;
        let defaults = Defaults { head_dim, context, theta: 10000.0, partial: 1.0, can_be_partial: false };
        for key in ["attention.key_length", "attention.value_length"] {
            fields.neutral(key, "the width by heads", |value| value.as_u64() == Some(head_dim as u64))?;
        }
        let sliding = match name {
            "cohere2" => {
                Some((fields.required_count("attention.sliding_window")?, Which::AllButEvery(PATTERN)))
            }
            _ => None,
        };
        let read = Config {
            naming: Naming::Gguf,
            hidden,
            layers: fields.required_count("block_count")?,
            heads,
            kv_heads: fields.count("attention.head_count_kv")?.unwrap_or(heads),
            ffn: fields.required_count("feed_forward_length")?,
            vocab: fields.count("vocab_size")?.or(table).unwrap_or(1),
            context,
            eps: fields.required_positive("attention.layer_norm_epsilon")?,
            rope: rope::from_gguf(checkpoint, &fields, RopePairing::Interleaved, defaults)?,
            logit_scale: fields.required_positive("logit_scale")?,
            tied: has("output.weight").is_none(),
            // No key says so: the tensors do.
            qk_norm: has("blk.0.attn_q_norm.weight").is_some(),
            sliding,
        };
        fields.shared_heads("attention.head_count", read.hidden, read.heads, read.kv_heads)?;
        fields.finish()?;
        Ok(read)
    }

    fn build(&self, checkpoint: &Checkpoint, context: Option<usize>) -> Result<Model, ImportError> {
        let context = self.rope.context(self.context, context);
        let mut b = Builder::new(checkpoint);
        let whole = |hf: &str| NAMES.whole(self.naming, hf);
        let head_dim = self.hidden / self.heads;
        let tokens = b.input("tokens", Input::Tokens)?;
        let positions = b.input("positions", Input::Positions)?;
        let logit_rows = b.input("logit_rows", Input::LogitRows)?;
        let table = b.weight(&whole("model.embed_tokens.weight"))?;
        let angles = b.rope_table("rope".into(), positions, &self.rope, context)?;
        let mut x = b.embed(tokens, table)?;
        let mut states = Vec::new();
        for layer in 0..self.layers {
            let name = |what: &str| format!("layer.{layer}.{what}");
            let tensor = |hf: &str| NAMES.block(self.naming, layer, hf);
            let (window, rotates) = match &self.sliding {
                None => (None, true),
                Some((window, which)) if which.contains(layer) => (Some(*window), true),
                Some(_) => (None, false),
            };
            let h = b.layer_norm(x, &tensor("input_layernorm.weight"), None, self.eps)?;
            let mut q = b.linear(h, &tensor("self_attn.q_proj.weight"), None)?;
            let mut k = b.linear(h, &tensor("self_attn.k_proj.weight"), None)?;
            let v = b.linear(h, &tensor("self_attn.v_proj.weight"), None)?;
            if self.qk_norm {
                q = b.heads_layer_norm(q, &tensor(QK_NORMS[0]), self.heads, self.eps)?;
                k = b.heads_layer_norm(k, &tensor(QK_NORMS[1]), self.kv_heads, self.eps)?;
            }
            if rotates {
                q = b.rope(name("q.rope"), q, angles, self.heads, &self.rope)?;
                k = b.rope(name("k.rope"), k, angles, self.kv_heads, &self.rope)?;
            }
            let state = b.state(layer, self.kv_heads, head_dim)?;
            let state = b.append(name("append"), state, k, v, self.kv_heads)?;
            states.push(state);
            let window = window.filter(|window| *window < context);
            let shape = Attention { window, ..Attention::plain(self.heads, self.kv_heads, head_dim) };
            let a = b.attention(name("attention"), q, state, shape)?;
            let o = b.linear(a, &tensor("self_attn.o_proj.weight"), None)?;
            let attended = b.binary(name("attention.residual"), BinaryKind::Add, x, o)?;
            let gate = b.linear(h, &tensor("mlp.gate_proj.weight"), None)?;
            let up = b.linear(h, &tensor("mlp.up_proj.weight"), None)?;
            let gate = b.unary(name("gate"), UnaryKind::from(Gate::Silu), gate)?;
            let gated = b.binary(name("gated"), BinaryKind::Mul, gate, up)?;
            let down = b.linear(gated, &tensor("mlp.down_proj.weight"), None)?;
            x = b.binary(name("ffn.residual"), BinaryKind::Add, attended, down)?;
        }
        let x = b.select_rows(x, logit_rows)?;
        let x = b.layer_norm(x, &whole("model.norm.weight"), None, self.eps)?;
        let head = whole(HEAD);
        let logits =
            if self.tied { b.linear_value(x, table, &head, None)? } else { b.linear(x, &head, None)? };
        let scale = UnaryKind::Scale(self.logit_scale as f32);
        let logits = b.unary("logits.scale".into(), scale, logits)?;
        let facts = ModelFacts {
            vocab: self.vocab as u32,
            context: context as u32,
            hidden: self.hidden as u32,
            layers: self.layers as u32,
            output: Output::Logits,
            whole: false,
        };
        Ok(Model { graph: b.finish(logits, &states)?, facts, architecture: ARCHITECTURE.name })
    }
}
