//! GPT-NeoX (Pythia): attention and feed-forward side by side on one residual stream, rotary positions on a part of each head.

use bessemer_format::plan::{Input, ModelFacts, Output};
use bessemer_ir::Value;
use bessemer_ir::attr::{BinaryKind, UnaryKind};
use bessemer_ir::recipe::Part;
use serde_json::{Map, Value as Json};

use super::Architecture;
use crate::import::build::{Attention, Builder, Model};
use crate::import::config::{Fields, HARMLESS_HF, Harmless, gguf_fields};
use crate::import::error::ImportError;
use crate::import::gguf::GgufMetadata;
use crate::import::names::{Names, Naming};
use crate::import::rope::{Rope, RopePairing, RopeScaling};
use crate::import::source::{Checkpoint, Metadata};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gpt-neox",
    models: "GPT-NeoX, Pythia",
    features: "LayerNorm, parallel halves of a block, partial rope",
    hf: &[("gpt_neox", "GPTNeoXForCausalLM")],
    gguf: &["gptneox"],
    build: |checkpoint, _| Config::read(checkpoint)?.build(checkpoint),
};

struct Config {
    naming: Naming,
    hidden: usize,
    layers: usize,
    heads: usize,
    ffn: usize,
    vocab: usize,
    context: usize,
    eps: f64,
    gelu: UnaryKind,
    /// Elements of a head that are rotated.
    rotary: usize,
    theta: f64,
    /// Whether the feed-forward network reads the block's input beside attention, not its result.
    parallel: bool,
}

#[rustfmt::skip]
const NAMES: Names<Config> = Names {
    blocks: "gpt_neox.layers.",
    whole: &[
        ("gpt_neox.embed_in.weight", "token_embd.weight", |c| vec![c.vocab, c.hidden]),
        ("gpt_neox.final_layer_norm.weight", "output_norm.weight", |c| vec![c.hidden]),
        ("gpt_neox.final_layer_norm.bias", "output_norm.bias", |c| vec![c.hidden]),
        ("embed_out.weight", "output.weight", |c| vec![c.vocab, c.hidden]),
    ],
    block: &[
        ("input_layernorm.weight", "attn_norm.weight", |c| vec![c.hidden]),
        ("input_layernorm.bias", "attn_norm.bias", |c| vec![c.hidden]),
        ("attention.query_key_value.weight", "attn_qkv.weight", |c| vec![3 * c.hidden, c.hidden]),
        ("attention.query_key_value.bias", "attn_qkv.bias", |c| vec![3 * c.hidden]),
        ("attention.dense.weight", "attn_output.weight", |c| vec![c.hidden, c.hidden]),
        ("attention.dense.bias", "attn_output.bias", |c| vec![c.hidden]),
        ("post_attention_layernorm.weight", "ffn_norm.weight", |c| vec![c.hidden]),
        ("post_attention_layernorm.bias", "ffn_norm.bias", |c| vec![c.hidden]),
        ("mlp.dense_h_to_4h.weight", "ffn_up.weight", |c| vec![c.ffn, c.hidden]),
        ("mlp.dense_h_to_4h.bias", "ffn_up.bias", |c| vec![c.ffn]),
        ("mlp.dense_4h_to_h.weight", "ffn_down.weight", |c| vec![c.hidden, c.ffn]),
        ("mlp.dense_4h_to_h.bias", "ffn_down.bias", |c| vec![c.hidden]),
    ],
};

impl Config {
    fn read(checkpoint: &Checkpoint) -> Result<Config, ImportError> {
        let config = match checkpoint.config() {
            Metadata::HuggingFace(config) => Config::from_hf(checkpoint, config)?,
            Metadata::Gguf(metadata) => Config::from_gguf(checkpoint, metadata)?,
        };
        // Masks and rotary frequencies, which old checkpoints store, follow from the configuration.
        let harmless = |name: &str| {
            [".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"]
                .iter()
                .any(|end| name.ends_with(end))
        };
        NAMES.check(checkpoint, &config, config.layers, |_, _| true, |name| name, harmless)?;
        Ok(config)
    }

    fn from_hf(checkpoint: &Checkpoint, config: &Map<String, Json>) -> Result<Config, ImportError> {
        let fields = Fields::new(checkpoint.config_path(), "", config);
        let hidden = fields.required_count("hidden_size")?;
        let heads = fields.required_count("num_attention_heads")?;
        let gelu = match fields.text("hidden_act")?.unwrap_or("gelu") {
            "gelu" => UnaryKind::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => UnaryKind::GeluTanh,
            _ => {
                let remedy = "this activation is not built; use a model without it";
                return Err(fields.error(
                    "hidden_act",
                    "gelu, gelu_new, gelu_fast or gelu_pytorch_tanh",
                    remedy,
                ));
            }
        };
        // transformers 5 keeps base and part in `rope_parameters`.
        let new = fields.object("rope_parameters")?;
        let (mut theta, mut part) = (fields.positive("rotary_emb_base")?, fields.positive("rotary_pct")?);
        if let Some(new) = new {
            theta = new.positive("rope_theta")?.or(theta);
            part = new.positive("partial_rotary_factor")?.or(part);
            new.neutral("rope_type", "default", |value| value == "default")?;
            new.finish()?;
        }
        let read = Config {
            naming: Naming::HuggingFace,
            hidden,
            layers: fields.required_count("num_hidden_layers")?,
            heads,
            ffn: fields.required_count("intermediate_size")?,
            vocab: fields.required_count("vocab_size")?,
            context: fields.required_count("max_position_embeddings")?,
            eps: fields.positive("layer_norm_eps")?.unwrap_or(1e-5),
            gelu,
            rotary: ((hidden / heads) as f64 * part.unwrap_or(0.25)) as usize,
            theta: theta.unwrap_or(10000.0),
            parallel: fields.flag("use_parallel_residual")?.unwrap_or(true),
        };
        fields.neutral("rope_scaling", "null", |_| false)?;
        fields.neutral("attention_bias", "true", |value| value == true)?;
        for key in ["tie_word_embeddings", "is_decoder", "is_encoder_decoder", "add_cross_attention"] {
            fields.neutral(key, "false", |value| value == false)?;
        }
        fields.skip(HARMLESS_HF);
        fields.skip(&[Harmless { reason: "chose this family", keys: &["model_type"] }]);
        fields.skip(&[Harmless { reason: "used in training only", keys: &["classifier_dropout"] }]);
        let read = read.checked(&fields, "num_attention_heads")?;
        fields.finish()?;
        Ok(read)
    }

    fn from_gguf(checkpoint: &Checkpoint, metadata: &GgufMetadata) -> Result<Config, ImportError> {
        let map = gguf_fields(metadata, "gptneox");
        let fields = Fields::new(checkpoint.config_path(), "gptneox.", &map);
        let table =
            checkpoint.tensors().get("token_embd.weight").and_then(|info| info.shape.first().copied());
        let read = Config {
            naming: Naming::Gguf,
            hidden: fields.required_count("embedding_length")?,
            layers: fields.required_count("block_count")?,
            heads: fields.required_count("attention.head_count")?,
            ffn: fields.required_count("feed_forward_length")?,
            vocab: fields.count("vocab_size")?.or(table).unwrap_or(1),
            context: fields.required_count("context_length")?,
            eps: fields.required_positive("attention.layer_norm_epsilon")?,
            gelu: UnaryKind::Gelu,
            rotary: fields.required_count("rope.dimension_count")?,
            theta: fields.positive("rope.freq_base")?.unwrap_or(10000.0),
            parallel: fields.flag("use_parallel_residual")?.unwrap_or(true),
        };
        let read = read.checked(&fields, "attention.head_count")?;
        fields.finish()?;
        Ok(read)
    }

    fn checked(self, fields: &Fields, heads: &str) -> Result<Config, ImportError> {
        let head = self.hidden / self.heads;
        let rotates = self.rotary.is_multiple_of(2) && (2..=head).contains(&self.rotary);
        if self.hidden.is_multiple_of(self.heads) && head.is_multiple_of(2) && rotates {
            return Ok(self);
        }
        let expected = format!(
            "a divisor of the width {}, with heads of an even size of which an even part is rotated (here {})",
            self.hidden, self.rotary
        );
        Err(fields.error(heads, expected, "correct the value"))
    }

    /// The rows of query, key or value (0, 1, 2) in the fused projection: a head after the other holds all three, in GGUF all heads'
    /// queries come first.
    fn third(&self, i: usize) -> Part {
        let (hidden, head) = (self.hidden as u64, (self.hidden / self.heads) as u64);
        match self.naming {
            Naming::HuggingFace => Part::Rows { first: i as u64 * head, block: head, stride: 3 * head },
            Naming::Gguf => Part::rows(i as u64 * hidden, hidden),
        }
    }

    fn build(&self, checkpoint: &Checkpoint) -> Result<Model, ImportError> {
        let mut b = Builder::new(checkpoint);
        let whole = |hf: &str| NAMES.whole(self.naming, hf);
        let head_dim = self.hidden / self.heads;
        let rope = Rope {
            theta: self.theta,
            dims: self.rotary,
            scaling: RopeScaling::None,
            pairing: RopePairing::HalfSplit,
        };

        let tokens = b.input("tokens", Input::Tokens)?;
        let positions = b.input("positions", Input::Positions)?;
        let logit_rows = b.input("logit_rows", Input::LogitRows)?;
        let table = b.weight(&whole("gpt_neox.embed_in.weight"))?;
        let angles = b.rope_table("rope".into(), positions, &rope, self.context)?;
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
            let [weight, bias] = pair("attention.query_key_value");
            let mut third = |i: usize, part: &str| {
                let name = format!("{weight}{part}");
                let w = b.part(&name, self.third(i), &[self.hidden, self.hidden], &weight)?;
                let v = b.part(&format!("{bias}{part}"), self.third(i), &[self.hidden], &bias)?;
                b.linear_of(h, w, &name, Some(v))
            };
            let (q, k, v) = (third(0, ".q")?, third(1, ".k")?, third(2, ".v")?);
            let q = b.rope(name("q.rope"), q, angles, self.heads, &rope)?;
            let k = b.rope(name("k.rope"), k, angles, self.heads, &rope)?;
            let state = b.state(layer, self.heads, head_dim)?;
            let state = b.append(name("append"), state, k, v, self.heads)?;
            states.push(state);
            let a =
                b.attention(name("attention"), q, state, Attention::plain(self.heads, self.heads, head_dim))?;
            let o = linear(&mut b, a, "attention.dense")?;
            let attended = b.binary(name("attention.residual"), BinaryKind::Add, x, o)?;
            let h = norm(&mut b, if self.parallel { x } else { attended }, "post_attention_layernorm")?;
            let up = linear(&mut b, h, "mlp.dense_h_to_4h")?;
            let h = b.unary(name("gelu"), self.gelu, up)?;
            let down = linear(&mut b, h, "mlp.dense_4h_to_h")?;
            x = b.binary(name("ffn.residual"), BinaryKind::Add, attended, down)?;
        }
        let x = b.select_rows(x, logit_rows)?;
        let [weight, bias] =
            ["weight", "bias"].map(|kind| whole(&format!("gpt_neox.final_layer_norm.{kind}")));
        let x = b.layer_norm(x, &weight, Some(&bias), self.eps)?;
        let logits = b.linear(x, &whole("embed_out.weight"), None)?;
        let facts = ModelFacts {
            vocab: self.vocab as u32,
            context: self.context as u32,
            hidden: self.hidden as u32,
            layers: self.layers as u32,
            output: Output::Logits,
            whole: false,
        };
        Ok(Model { graph: b.finish(logits, &states)?, facts, architecture: ARCHITECTURE.name })
    }
}
