//! GPT-2: LayerNorm before each half of a block, learned positions, one fused projection for query, key and value.

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
use crate::import::source::{Checkpoint, Metadata};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gpt2",
    models: "GPT-2",
    features: "LayerNorm, learned positions, joint projections",
    hf: &[("gpt2", "GPT2LMHeadModel")],
    gguf: &["gpt2"],
    build: |checkpoint, _| Config::read(checkpoint)?.build(checkpoint),
};

struct Config {
    naming: Naming,
    /// Whether tensors are named as in a file of the model without its head: without `transformer.`.
    headless: bool,
    hidden: usize,
    layers: usize,
    heads: usize,
    ffn: usize,
    vocab: usize,
    context: usize,
    eps: f64,
    gelu: UnaryKind,
    tied: bool,
}

impl Config {
    /// Shape of a linear's weight: Hugging Face stores this family's (`Conv1D`) transposed.
    fn conv(&self, rows: usize, columns: usize) -> Vec<usize> {
        match self.naming {
            Naming::HuggingFace => vec![columns, rows],
            Naming::Gguf => vec![rows, columns],
        }
    }
}

const HEAD: &str = "lm_head.weight";

#[rustfmt::skip]
const NAMES: Names<Config> = Names {
    blocks: "transformer.h.",
    whole: &[
        ("transformer.wte.weight", "token_embd.weight", |c| vec![c.vocab, c.hidden]),
        ("transformer.wpe.weight", "position_embd.weight", |c| vec![c.context, c.hidden]),
        ("transformer.ln_f.weight", "output_norm.weight", |c| vec![c.hidden]),
        ("transformer.ln_f.bias", "output_norm.bias", |c| vec![c.hidden]),
        (HEAD, "output.weight", |c| vec![c.vocab, c.hidden]),
    ],
    block: &[
        ("ln_1.weight", "attn_norm.weight", |c| vec![c.hidden]),
        ("ln_1.bias", "attn_norm.bias", |c| vec![c.hidden]),
        ("attn.c_attn.weight", "attn_qkv.weight", |c| c.conv(3 * c.hidden, c.hidden)),
        ("attn.c_attn.bias", "attn_qkv.bias", |c| vec![3 * c.hidden]),
        ("attn.c_proj.weight", "attn_output.weight", |c| c.conv(c.hidden, c.hidden)),
        ("attn.c_proj.bias", "attn_output.bias", |c| vec![c.hidden]),
        ("ln_2.weight", "ffn_norm.weight", |c| vec![c.hidden]),
        ("ln_2.bias", "ffn_norm.bias", |c| vec![c.hidden]),
        ("mlp.c_fc.weight", "ffn_up.weight", |c| c.conv(c.ffn, c.hidden)),
        ("mlp.c_fc.bias", "ffn_up.bias", |c| vec![c.ffn]),
        ("mlp.c_proj.weight", "ffn_down.weight", |c| c.conv(c.hidden, c.ffn)),
        ("mlp.c_proj.bias", "ffn_down.bias", |c| vec![c.hidden]),
    ],
};

impl Config {
    fn read(checkpoint: &Checkpoint) -> Result<Config, ImportError> {
        let config = match checkpoint.config() {
            Metadata::HuggingFace(config) => Config::from_hf(checkpoint, config)?,
            Metadata::Gguf(metadata) => Config::from_gguf(checkpoint, metadata)?,
        };
        // Masks, which old checkpoints store, follow from the context.
        let harmless = |name: &str| {
            (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"))
                && config.naming == Naming::HuggingFace
        };
        let has = |_: Option<usize>, name: &str| name != HEAD || !config.tied;
        NAMES.check(checkpoint, &config, config.layers, has, |name| config.named(name), harmless)?;
        Ok(config)
    }

    fn from_hf(checkpoint: &Checkpoint, config: &Map<String, Json>) -> Result<Config, ImportError> {
        let fields = Fields::new(checkpoint.config_path(), "", config);
        let hidden = fields.required_count("n_embd")?;
        let context = fields.required_count("n_positions")?;
        let gelu = match fields.text("activation_function")?.unwrap_or("gelu_new") {
            "gelu_new" | "gelu_pytorch_tanh" => UnaryKind::GeluTanh,
            "gelu" => UnaryKind::Gelu,
            _ => {
                let remedy = "this activation is not built; use a model without it";
                return Err(fields.error(
                    "activation_function",
                    "gelu_new, gelu_pytorch_tanh or gelu",
                    remedy,
                ));
            }
        };
        let read = Config {
            naming: Naming::HuggingFace,
            headless: checkpoint.tensors().contains_key("wte.weight"),
            hidden,
            layers: fields.required_count("n_layer")?,
            heads: fields.required_count("n_head")?,
            ffn: fields.count("n_inner")?.unwrap_or(4 * hidden),
            vocab: fields.required_count("vocab_size")?,
            context,
            eps: fields.positive("layer_norm_epsilon")?.unwrap_or(1e-5),
            gelu,
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(true),
        };
        fields.neutral("n_ctx", &format!("n_positions {context}"), |v| v.as_u64() == Some(context as u64))?;
        fields.neutral("scale_attn_weights", "true", |value| value == true)?;
        for key in ["scale_attn_by_inverse_layer_idx", "add_cross_attention", "is_encoder_decoder"] {
            fields.neutral(key, "false", |value| value == false)?;
        }
        fields.skip(HARMLESS_HF);
        fields.skip(&[Harmless { reason: "chose this family", keys: &["model_type"] }]);
        fields.skip(&[
            Harmless { reason: "used in training only", keys: &["resid_pdrop", "embd_pdrop"] },
            Harmless {
                reason: "changes the order of roundings in f16 only",
                keys: &["reorder_and_upcast_attn"],
            },
            Harmless {
                reason: "belongs to another head",
                keys: &[
                    "summary_type",
                    "summary_use_proj",
                    "summary_activation",
                    "summary_proj_to_labels",
                    "summary_first_dropout",
                ],
            },
        ]);
        let read = read.checked(&fields, "n_head")?;
        fields.finish()?;
        Ok(read)
    }

    fn from_gguf(checkpoint: &Checkpoint, metadata: &GgufMetadata) -> Result<Config, ImportError> {
        let map = gguf_fields(metadata, "gpt2");
        let fields = Fields::new(checkpoint.config_path(), "gpt2.", &map);
        let has = |name: &str| checkpoint.tensors().get(name);
        let table = has("token_embd.weight").and_then(|info| info.shape.first().copied());
        let read = Config {
            naming: Naming::Gguf,
            headless: false,
            hidden: fields.required_count("embedding_length")?,
            layers: fields.required_count("block_count")?,
            heads: fields.required_count("attention.head_count")?,
            ffn: fields.required_count("feed_forward_length")?,
            vocab: fields.count("vocab_size")?.or(table).unwrap_or(1),
            context: fields.required_count("context_length")?,
            eps: fields.required_positive("attention.layer_norm_epsilon")?,
            gelu: UnaryKind::GeluTanh,
            tied: has("output.weight").is_none(),
        };
        fields.neutral("attention.head_count_kv", "the number of heads", |v| {
            v.as_u64() == Some(read.heads as u64)
        })?;
        let read = read.checked(&fields, "attention.head_count")?;
        fields.finish()?;
        Ok(read)
    }

    fn checked(self, fields: &Fields, heads: &str) -> Result<Config, ImportError> {
        if self.hidden.is_multiple_of(self.heads) && (self.hidden / self.heads).is_multiple_of(2) {
            return Ok(self);
        }
        let expected = format!("a divisor of the width {}, with heads of an even size", self.hidden);
        Err(fields.error(heads, expected, "correct the value"))
    }

    fn named(&self, name: String) -> String {
        if self.headless { name.replace("transformer.", "") } else { name }
    }

    fn build(&self, checkpoint: &Checkpoint) -> Result<Model, ImportError> {
        let mut b = Builder::new(checkpoint);
        let whole = |hf: &str| self.named(NAMES.whole(self.naming, hf));
        let (hidden, head_dim) = (self.hidden, self.hidden / self.heads);

        let tokens = b.input("tokens", Input::Tokens)?;
        let positions = b.input("positions", Input::Positions)?;
        let logit_rows = b.input("logit_rows", Input::LogitRows)?;
        let table = b.weight(&whole("transformer.wte.weight"))?;
        let token = b.embed(tokens, table)?;
        let position = b.lookup(positions, &whole("transformer.wpe.weight"))?;
        let mut x = b.binary("embed.sum".into(), BinaryKind::Add, token, position)?;
        let mut states = Vec::new();
        for layer in 0..self.layers {
            let name = |what: &str| format!("layer.{layer}.{what}");
            let tensor = |hf: &str| self.named(NAMES.block(self.naming, layer, hf));
            let norm = |b: &mut Builder, x, hf: &str| {
                let [weight, bias] = ["weight", "bias"].map(|kind| tensor(&format!("{hf}.{kind}")));
                b.layer_norm(x, &weight, Some(&bias), self.eps)
            };
            let project = |b: &mut Builder, x, hf: &str, part: &str, rows: [usize; 3], k| {
                self.project(
                    b,
                    x,
                    [&tensor(&format!("{hf}.weight")), &tensor(&format!("{hf}.bias"))],
                    part,
                    rows,
                    k,
                )
            };
            let h = norm(&mut b, x, "ln_1")?;
            let mut qkv = |i: usize, part: &str| {
                project(&mut b, h, "attn.c_attn", part, [i * hidden, hidden, 3 * hidden], hidden)
            };
            let (q, k, v) = (qkv(0, ".q")?, qkv(1, ".k")?, qkv(2, ".v")?);
            let state = b.state(layer, self.heads, head_dim)?;
            let state = b.append(name("append"), state, k, v, self.heads)?;
            states.push(state);
            let a =
                b.attention(name("attention"), q, state, Attention::plain(self.heads, self.heads, head_dim))?;
            let o = project(&mut b, a, "attn.c_proj", "", [0, hidden, hidden], hidden)?;
            x = b.binary(name("attention.residual"), BinaryKind::Add, x, o)?;
            let h = norm(&mut b, x, "ln_2")?;
            let up = project(&mut b, h, "mlp.c_fc", "", [0, self.ffn, self.ffn], hidden)?;
            let h = b.unary(name("gelu"), self.gelu, up)?;
            let down = project(&mut b, h, "mlp.c_proj", "", [0, hidden, hidden], self.ffn)?;
            x = b.binary(name("ffn.residual"), BinaryKind::Add, x, down)?;
        }
        let x = b.select_rows(x, logit_rows)?;
        let x = b.layer_norm(
            x,
            &whole("transformer.ln_f.weight"),
            Some(&whole("transformer.ln_f.bias")),
            self.eps,
        )?;
        let head = whole(HEAD);
        let logits =
            if self.tied { b.linear_value(x, table, &head, None)? } else { b.linear(x, &head, None)? };
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

    /// A linear over `count` output rows from `first` on, of the `all` that its tensor holds, with the bias that belongs to them.
    fn project(
        &self,
        b: &mut Builder,
        x: Value,
        [weight, bias]: [&str; 2],
        part: &str,
        [first, count, all]: [usize; 3],
        k: usize,
    ) -> Result<Value, ImportError> {
        let name = format!("{weight}{part}");
        let (first, rows) = (first as u64, count as u64);
        let of_weight = match self.naming {
            Naming::HuggingFace => Part::columns(first, rows, all as u64),
            Naming::Gguf => Part::rows(first, rows),
        };
        let w = b.part(&name, of_weight, &[count, k], weight)?;
        let bias = b.part(&format!("{bias}{part}"), Part::rows(first, rows), &[count], bias)?;
        b.linear_of(x, w, &name, Some(bias))
    }
}
