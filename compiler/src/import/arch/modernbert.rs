//! ModernBERT: an encoder with norms before each half of a block, rotary positions, a gated network, and in most layers attention to
//! the neighbourhood only.

use bessemer_format::plan::{Input, ModelFacts};
use bessemer_ir::attr::{BinaryKind, UnaryKind};
use bessemer_ir::recipe::Part;
use serde_json::{Map, Value as Json};

use super::Architecture;
use crate::import::build::{Builder, FullAttention, Model};
use crate::import::config::{Fields, HARMLESS_HF, Harmless, gguf_fields};
use crate::import::error::ImportError;
use crate::import::gguf::GgufMetadata;
use crate::import::names::{Names, Naming};
use crate::import::pooling::Pooling;
use crate::import::rope::{Rope, RopePairing, RopeScaling};
use crate::import::source::{Checkpoint, Metadata};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "modernbert",
    models: "ModernBERT",
    features: "encoder, GeGLU, local and global attention",
    hf: &[("modernbert", "ModernBertModel")],
    gguf: &["modern-bert"],
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
    /// Every so many layers, from the first on, a row attends to the whole text.
    global_every: usize,
    /// In the other layers, how far on either side.
    reach: usize,
    global_theta: f64,
    local_theta: f64,
    pooling: Pooling,
}

/// The first block's norm is that of the embedding.
const FIRST_NORM: &str = "attn_norm.weight";

#[rustfmt::skip]
const NAMES: Names<Config> = Names {
    blocks: "layers.",
    whole: &[
        ("embeddings.tok_embeddings.weight", "token_embd.weight", |c| vec![c.vocab, c.hidden]),
        ("embeddings.norm.weight", "token_embd_norm.weight", |c| vec![c.hidden]),
        ("final_norm.weight", "output_norm.weight", |c| vec![c.hidden]),
    ],
    block: &[
        (FIRST_NORM, "attn_norm.weight", |c| vec![c.hidden]),
        ("attn.Wqkv.weight", "attn_qkv.weight", |c| vec![3 * c.hidden, c.hidden]),
        ("attn.Wo.weight", "attn_output.weight", |c| vec![c.hidden, c.hidden]),
        ("mlp_norm.weight", "ffn_norm.weight", |c| vec![c.hidden]),
        ("mlp.Wi.weight", "ffn_up.weight", |c| vec![2 * c.ffn, c.hidden]),
        ("mlp.Wo.weight", "ffn_down.weight", |c| vec![c.hidden, c.ffn]),
    ],
};

impl Config {
    fn read(checkpoint: &Checkpoint) -> Result<Config, ImportError> {
        let config = match checkpoint.config() {
            Metadata::HuggingFace(config) => Config::from_hf(checkpoint, config)?,
            Metadata::Gguf(metadata) => Config::from_gguf(checkpoint, metadata)?,
        };
        NAMES.check(
            checkpoint,
            &config,
            config.layers,
            |layer, name| layer != Some(0) || name != FIRST_NORM,
            |name| name,
            |_| false,
        )?;
        Ok(config)
    }

    fn from_hf(checkpoint: &Checkpoint, config: &Map<String, Json>) -> Result<Config, ImportError> {
        let fields = Fields::new(checkpoint.config_path(), "", config);
        let (mut global_theta, mut local_theta) =
            (fields.positive("global_rope_theta")?, fields.positive("local_rope_theta")?);
        // transformers 5 keeps the bases in `rope_parameters`, by the kind of layer.
        if let Some(rope) = fields.object("rope_parameters")? {
            for (kind, theta) in
                [("full_attention", &mut global_theta), ("sliding_attention", &mut local_theta)]
            {
                if let Some(inner) = rope.object(kind)? {
                    *theta = inner.positive("rope_theta")?.or(*theta);
                    inner.neutral("rope_type", "default", |value| value == "default")?;
                    inner.finish()?;
                }
            }
            rope.finish()?;
        }
        let read = Config {
            naming: Naming::HuggingFace,
            hidden: fields.required_count("hidden_size")?,
            layers: fields.required_count("num_hidden_layers")?,
            heads: fields.required_count("num_attention_heads")?,
            ffn: fields.required_count("intermediate_size")?,
            vocab: fields.required_count("vocab_size")?,
            context: fields.required_count("max_position_embeddings")?,
            eps: fields.positive("norm_eps")?.unwrap_or(1e-5),
            global_every: fields.count("global_attn_every_n_layers")?.unwrap_or(3),
            reach: fields.count("local_attention")?.unwrap_or(128) / 2,
            global_theta: global_theta.unwrap_or(160_000.0),
            local_theta: local_theta.unwrap_or(10_000.0),
            pooling: Pooling::from_hf(checkpoint)?,
        };
        let kind = |layer: usize| if read.is_global(layer) { "full_attention" } else { "sliding_attention" };
        fields.neutral("layer_types", "those that follow from global_attn_every_n_layers", |value| {
            value.as_array().is_some_and(|types| {
                types.len() == read.layers && types.iter().enumerate().all(|(i, ty)| ty == kind(i))
            })
        })?;
        fields.neutral("hidden_activation", "gelu", |value| value == "gelu")?;
        for key in [
            "norm_bias",
            "attention_bias",
            "mlp_bias",
            "is_encoder_decoder",
            "add_cross_attention",
            "is_decoder",
        ] {
            fields.neutral(key, "false", |value| value == false)?;
        }
        fields.skip(HARMLESS_HF);
        fields.skip(&[Harmless { reason: "chose this family", keys: &["model_type"] }]);
        fields.skip(&[
            Harmless {
                reason: "used in training only",
                keys: &[
                    "embedding_dropout",
                    "mlp_dropout",
                    "initializer_cutoff_factor",
                    "sparse_prediction",
                    "sparse_pred_ignore_index",
                    "gradient_checkpointing",
                ],
            },
            Harmless {
                reason: "belongs to another head",
                keys: &[
                    "classifier_pooling",
                    "classifier_dropout",
                    "classifier_bias",
                    "classifier_activation",
                    "decoder_bias",
                    "tie_word_embeddings",
                    "cls_token_id",
                    "sep_token_id",
                    "mask_token_id",
                ],
            },
            Harmless {
                reason: "chooses how transformers executes, at equal results",
                keys: &["deterministic_flash_attn", "reference_compile", "repad_logits_with_grad"],
            },
            Harmless { reason: "positions are rotary whatever it says", keys: &["position_embedding_type"] },
            Harmless { reason: "an older name of norm_eps, which decides", keys: &["layer_norm_eps"] },
        ]);
        fields.shared_heads("num_attention_heads", read.hidden, read.heads, read.heads)?;
        fields.finish()?;
        Ok(read)
    }

    fn from_gguf(checkpoint: &Checkpoint, metadata: &GgufMetadata) -> Result<Config, ImportError> {
        let map = gguf_fields(metadata, "modern-bert");
        let fields = Fields::new(checkpoint.config_path(), "modern-bert.", &map);
        let table =
            checkpoint.tensors().get("token_embd.weight").and_then(|info| info.shape.first().copied());
        let window = fields.whole("attention.sliding_window")?.filter(|window| *window > 0);
        let every = fields.count("attention.sliding_window_pattern")?.unwrap_or(3);
        let read = Config {
            naming: Naming::Gguf,
            hidden: fields.required_count("embedding_length")?,
            layers: fields.required_count("block_count")?,
            heads: fields.required_count("attention.head_count")?,
            ffn: fields.required_count("feed_forward_length")?,
            vocab: fields.count("vocab_size")?.or(table).unwrap_or(1),
            context: fields.required_count("context_length")?,
            // Converters write it under the name of another norm.
            eps: match fields.positive("attention.layer_norm_rms_epsilon")? {
                Some(eps) => eps,
                None => fields.required_positive("attention.layer_norm_epsilon")?,
            },
            global_every: if window.is_some() { every } else { 1 },
            reach: window.unwrap_or(0) / 2,
            global_theta: fields.positive_or("rope.freq_base", 10_000.0)?,
            local_theta: fields.positive_or("rope.freq_base_swa", 10_000.0)?,
            pooling: Pooling::from_gguf(&fields)?,
        };
        let heads = read.heads as u64;
        fields.neutral("attention.head_count_kv", "the number of heads", |v| v.as_u64() == Some(heads))?;
        fields.neutral("attention.causal", "false", |value| value == false)?;
        fields.neutral("rope.scaling.type", "none", |value| value == "none")?;
        for key in ["hidden_act", "hidden_activation"] {
            fields.neutral(key, "gelu", |value| value == "gelu")?;
        }
        fields.skip(&[Harmless { reason: "belongs to another head", keys: &["classifier.pooling_type"] }]);
        fields.shared_heads("attention.head_count", read.hidden, read.heads, read.heads)?;
        fields.finish()?;
        Ok(read)
    }

    fn is_global(&self, layer: usize) -> bool {
        layer.is_multiple_of(self.global_every)
    }

    fn build(&self, checkpoint: &Checkpoint) -> Result<Model, ImportError> {
        let mut b = Builder::new(checkpoint);
        let whole = |hf: &str| NAMES.whole(self.naming, hf);
        let (hidden, head_dim) = (self.hidden, self.hidden / self.heads);
        let rope = |theta| Rope {
            theta,
            dims: head_dim,
            scaling: RopeScaling::None,
            pairing: RopePairing::HalfSplit,
        };
        let (global, local) = (rope(self.global_theta), rope(self.local_theta));

        let tokens = b.input("tokens", Input::Tokens)?;
        let positions = b.input("positions", Input::Positions)?;
        let rows = b.input("logit_rows", Input::LogitRows)?;
        let table = b.weight(&whole("embeddings.tok_embeddings.weight"))?;
        let global_angles = b.rope_table("rope.global".into(), positions, &global, self.context)?;
        let local_angles = b.rope_table("rope.local".into(), positions, &local, self.context)?;
        let x = b.embed(tokens, table)?;
        let mut x = b.layer_norm(x, &whole("embeddings.norm.weight"), None, self.eps)?;
        for layer in 0..self.layers {
            let name = |what: &str| format!("layer.{layer}.{what}");
            let tensor = |hf: &str| NAMES.block(self.naming, layer, hf);
            // Rows of a fused projection.
            let part = |b: &mut Builder, x, hf: &str, what: &str, i: usize, rows: usize| {
                let name = format!("{}.{what}", tensor(hf));
                let w =
                    b.part(&name, Part::rows((i * rows) as u64, rows as u64), &[rows, hidden], &tensor(hf))?;
                b.linear_of(x, w, &name, None)
            };
            let h = if layer == 0 { x } else { b.layer_norm(x, &tensor(FIRST_NORM), None, self.eps)? };
            let q = part(&mut b, h, "attn.Wqkv.weight", "q", 0, hidden)?;
            let k = part(&mut b, h, "attn.Wqkv.weight", "k", 1, hidden)?;
            let v = part(&mut b, h, "attn.Wqkv.weight", "v", 2, hidden)?;
            let (rope, angles, reach) = match self.is_global(layer) {
                true => (&global, global_angles, None),
                false => (&local, local_angles, Some(self.reach)),
            };
            let q = b.rope(name("q.rope"), q, angles, self.heads, rope)?;
            let k = b.rope(name("k.rope"), k, angles, self.heads, rope)?;
            let state = b.state(layer, self.heads, head_dim)?;
            let state = b.append(name("append"), state, k, v, self.heads)?;
            let shape = FullAttention { heads: self.heads, head_dim, reach, bias: None };
            let a = b.full_attention(name("attention"), q, state, shape)?;
            let o = b.linear(a, &tensor("attn.Wo.weight"), None)?;
            x = b.binary(name("attention.residual"), BinaryKind::Add, x, o)?;
            let h = b.layer_norm(x, &tensor("mlp_norm.weight"), None, self.eps)?;
            let gate = part(&mut b, h, "mlp.Wi.weight", "gate", 0, self.ffn)?;
            let up = part(&mut b, h, "mlp.Wi.weight", "up", 1, self.ffn)?;
            let gate = b.unary(name("gelu"), UnaryKind::Gelu, gate)?;
            let h = b.binary(name("geglu"), BinaryKind::Mul, gate, up)?;
            let down = b.linear(h, &tensor("mlp.Wo.weight"), None)?;
            x = b.binary(name("ffn.residual"), BinaryKind::Add, x, down)?;
        }
        let x = b.layer_norm(x, &whole("final_norm.weight"), None, self.eps)?;
        let (result, output) = self.pooling.build(&mut b, x, rows, self.hidden)?;
        let facts = ModelFacts {
            vocab: self.vocab as u32,
            context: self.context.min(self.pooling.max_tokens.unwrap_or(self.context)) as u32,
            hidden: self.hidden as u32,
            layers: self.layers as u32,
            output,
            whole: true,
        };
        Ok(Model { graph: b.finish(result, &[])?, facts, architecture: ARCHITECTURE.name })
    }
}
