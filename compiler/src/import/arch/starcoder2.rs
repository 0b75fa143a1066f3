//! StarCoder2: Llama's plan with LayerNorm, biases everywhere, and a network of two linears with GELU between them.

use bessemer_format::plan::{Input, ModelFacts, Output};
use bessemer_ir::Value;
use bessemer_ir::attr::{BinaryKind, UnaryKind};
use serde_json::{Map, Value as Json};

use super::Architecture;
use crate::import::build::{Attention, Builder, Model};
use crate::import::config::{Fields, HARMLESS_HF, Harmless, gguf_fields};
use crate::import::error::ImportError;
use crate::import::gguf::GgufMetadata;
use crate::import::names::{Names, Naming};
use crate::import::rope::{self, Defaults, Rope, RopePairing};
use crate::import::source::{Checkpoint, Metadata};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "starcoder2",
    models: "StarCoder2",
    features: "LayerNorm, biases, GELU, sliding window",
    hf: &[("starcoder2", "Starcoder2ForCausalLM")],
    gguf: &["starcoder2"],
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
    window: Option<usize>,
    rope: Rope,
    tied: bool,
}

fn defaults(head_dim: usize, context: usize) -> Defaults {
    Defaults { head_dim, context, theta: 10000.0, partial: 1.0, can_be_partial: false }
}

const HEAD: &str = "lm_head.weight";

#[rustfmt::skip]
const NAMES: Names<Config> = Names {
    blocks: "model.layers.",
    whole: &[
        ("model.embed_tokens.weight", "token_embd.weight", |c| vec![c.vocab, c.hidden]),
        ("model.norm.weight", "output_norm.weight", |c| vec![c.hidden]),
        ("model.norm.bias", "output_norm.bias", |c| vec![c.hidden]),
        (HEAD, "output.weight", |c| vec![c.vocab, c.hidden]),
    ],
    block: &[
        ("input_layernorm.weight", "attn_norm.weight", |c| vec![c.hidden]),
        ("input_layernorm.bias", "attn_norm.bias", |c| vec![c.hidden]),
        ("self_attn.q_proj.weight", "attn_q.weight", |c| vec![c.hidden, c.hidden]),
        ("self_attn.q_proj.bias", "attn_q.bias", |c| vec![c.hidden]),
        ("self_attn.k_proj.weight", "attn_k.weight", |c| vec![c.kv_rows(), c.hidden]),
        ("self_attn.k_proj.bias", "attn_k.bias", |c| vec![c.kv_rows()]),
        ("self_attn.v_proj.weight", "attn_v.weight", |c| vec![c.kv_rows(), c.hidden]),
        ("self_attn.v_proj.bias", "attn_v.bias", |c| vec![c.kv_rows()]),
        ("self_attn.o_proj.weight", "attn_output.weight", |c| vec![c.hidden, c.hidden]),
        ("self_attn.o_proj.bias", "attn_output.bias", |c| vec![c.hidden]),
        ("post_attention_layernorm.weight", "ffn_norm.weight", |c| vec![c.hidden]),
        ("post_attention_layernorm.bias", "ffn_norm.bias", |c| vec![c.hidden]),
        ("mlp.c_fc.weight", "ffn_up.weight", |c| vec![c.ffn, c.hidden]),
        ("mlp.c_fc.bias", "ffn_up.bias", |c| vec![c.ffn]),
        ("mlp.c_proj.weight", "ffn_down.weight", |c| vec![c.hidden, c.ffn]),
        ("mlp.c_proj.bias", "ffn_down.bias", |c| vec![c.hidden]),
    ],
};

impl Config {
    fn read(checkpoint: &Checkpoint) -> Result<Config, ImportError> {
        let config = match checkpoint.config() {
            Metadata::HuggingFace(config) => Config::from_hf(checkpoint, config)?,
            Metadata::Gguf(metadata) => Config::from_gguf(checkpoint, metadata)?,
        };
        let has = |_: Option<usize>, name: &str| name != HEAD || !config.tied;
        NAMES.check(checkpoint, &config, config.layers, has, |name| name, |_| false)?;
        Ok(config)
    }

    fn kv_rows(&self) -> usize {
        self.kv_heads * (self.hidden / self.heads)
    }

    fn from_hf(checkpoint: &Checkpoint, config: &Map<String, Json>) -> Result<Config, ImportError> {
        let fields = Fields::new(checkpoint.config_path(), "", config);
        let (hidden, heads) =
            (fields.required_count("hidden_size")?, fields.required_count("num_attention_heads")?);
        let context = fields.required_count("max_position_embeddings")?;
        let read = Config {
            naming: Naming::HuggingFace,
            hidden,
            layers: fields.required_count("num_hidden_layers")?,
            heads,
            kv_heads: fields.required_count("num_key_value_heads")?,
            ffn: fields.required_count("intermediate_size")?,
            vocab: fields.required_count("vocab_size")?,
            context,
            eps: fields.positive("norm_epsilon")?.unwrap_or(1e-5),
            window: fields.count("sliding_window")?,
            rope: rope::from_hf(&fields, defaults(hidden / heads, context))?,
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(true),
        };
        fields.neutral("hidden_act", "gelu_pytorch_tanh", |value| value == "gelu_pytorch_tanh")?;
        fields.neutral("use_bias", "true", |value| value == true)?;
        fields.neutral("norm_type", "layer_norm", |value| value == "layer_norm")?;
        fields.neutral("mlp_type", "default", |value| value == "default")?;
        for key in ["is_decoder", "is_encoder_decoder", "add_cross_attention"] {
            fields.neutral(key, "false", |value| value == false)?;
        }
        fields.skip(HARMLESS_HF);
        fields.skip(&[Harmless { reason: "chose this family", keys: &["model_type"] }]);
        fields.skip(&[Harmless {
            reason: "used in training only",
            keys: &["embedding_dropout", "residual_dropout"],
        }]);
        fields.shared_heads("num_attention_heads", read.hidden, read.heads, read.kv_heads)?;
        fields.finish()?;
        Ok(read)
    }

    fn from_gguf(checkpoint: &Checkpoint, metadata: &GgufMetadata) -> Result<Config, ImportError> {
        let map = gguf_fields(metadata, "starcoder2");
        let fields = Fields::new(checkpoint.config_path(), "starcoder2.", &map);
        let has = |name: &str| checkpoint.tensors().get(name);
        let table = has("token_embd.weight").and_then(|info| info.shape.first().copied());
        let (hidden, heads) =
            (fields.required_count("embedding_length")?, fields.required_count("attention.head_count")?);
        let context = fields.required_count("context_length")?;
        // Rows of query and key are not permuted.
        let defaults = defaults(hidden / heads, context);
        let rope = rope::from_gguf(checkpoint, &fields, RopePairing::HalfSplit, defaults)?;
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
            window: fields.count("attention.sliding_window")?,
            rope,
            tied: has("output.weight").is_none(),
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
            let pair = |hf: &str| {
                ["weight", "bias"].map(|kind| NAMES.block(self.naming, layer, &format!("{hf}.{kind}")))
            };
            let norm = |b: &mut Builder, x: Value, hf: &str| {
                let [weight, bias] = pair(hf);
                b.layer_norm(x, &weight, Some(&bias), self.eps)
            };
            let linear = |b: &mut Builder, x: Value, hf: &str| {
                let [weight, bias] = pair(hf);
                b.linear(x, &weight, Some(&bias))
            };
            let h = norm(&mut b, x, "input_layernorm")?;
            let q = linear(&mut b, h, "self_attn.q_proj")?;
            let k = linear(&mut b, h, "self_attn.k_proj")?;
            let v = linear(&mut b, h, "self_attn.v_proj")?;
            let q = b.rope(name("q.rope"), q, angles, self.heads, &self.rope)?;
            let k = b.rope(name("k.rope"), k, angles, self.kv_heads, &self.rope)?;
            let state = b.state(layer, self.kv_heads, head_dim)?;
            let state = b.append(name("append"), state, k, v, self.kv_heads)?;
            states.push(state);
            let shape =
                Attention { window: self.window, ..Attention::plain(self.heads, self.kv_heads, head_dim) };
            let a = b.attention(name("attention"), q, state, shape)?;
            let o = linear(&mut b, a, "self_attn.o_proj")?;
            x = b.binary(name("attention.residual"), BinaryKind::Add, x, o)?;
            let h = norm(&mut b, x, "post_attention_layernorm")?;
            let up = linear(&mut b, h, "mlp.c_fc")?;
            let h = b.unary(name("gelu"), UnaryKind::GeluTanh, up)?;
            let down = linear(&mut b, h, "mlp.c_proj")?;
            x = b.binary(name("ffn.residual"), BinaryKind::Add, x, down)?;
        }
        let x = b.select_rows(x, logit_rows)?;
        let [weight, bias] = ["weight", "bias"].map(|kind| whole(&format!("model.norm.{kind}")));
        let x = b.layer_norm(x, &weight, Some(&bias), self.eps)?;
        let head = whole(HEAD);
        let logits =
            if self.tied { b.linear_value(x, table, &head, None)? } else { b.linear(x, &head, None)? };
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
