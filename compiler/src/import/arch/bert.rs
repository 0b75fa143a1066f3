//! BERT: an encoder with LayerNorm behind each half of a block, learned positions and types of tokens.
//!
//! Without a head it gives one vector a text, pooled as the checkpoint says; with the classification head, scores.

use bessemer_format::plan::{Input, ModelFacts, Output};
use bessemer_ir::attr::{BinaryKind, PoolKind, UnaryKind};
use serde_json::{Map, Value as Json};

use super::Architecture;
use crate::import::build::{Builder, Model};
use crate::import::config::{Fields, HARMLESS_HF, Harmless, gguf_fields};
use crate::import::encoder::{self, BlockNames, Blocks};
use crate::import::error::ImportError;
use crate::import::gguf::GgufMetadata;
use crate::import::names::{Names, Naming};
use crate::import::pooling::Pooling;
use crate::import::source::{Checkpoint, Metadata};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "bert",
    models: "BERT, MiniLM, cross-encoders",
    features: "encoder: vectors pooled as the checkpoint says, scores of pairs",
    hf: &[("bert", "BertModel"), ("bert", "BertForSequenceClassification")],
    gguf: &["bert"],
    build: |checkpoint, _| Config::read(checkpoint)?.build(checkpoint),
};

struct Config {
    naming: Naming,
    hidden: usize,
    layers: usize,
    heads: usize,
    ffn: usize,
    vocab: usize,
    /// Rows of the table of positions.
    positions: usize,
    types: usize,
    eps: f64,
    gelu: UnaryKind,
    head: Head,
}

/// What stands behind the last block.
enum Head {
    Pooling(Pooling),
    /// The first row through `tanh(dense)`, then a linear.
    Scores {
        labels: usize,
    },
}

const CLASSIFIER: [&str; 2] = ["classifier.weight", "classifier.bias"];
const POOLER: [&str; 2] = ["pooler.dense.weight", "pooler.dense.bias"];

const BLOCK: BlockNames = BlockNames {
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    attention: ["attention.output.dense", "attention.output.LayerNorm"],
    ffn: ["intermediate.dense", "output.dense", "output.LayerNorm"],
};

#[rustfmt::skip]
const NAMES: Names<Config> = Names {
    blocks: "encoder.layer.",
    whole: &[
        ("embeddings.word_embeddings.weight", "token_embd.weight", |c| vec![c.vocab, c.hidden]),
        ("embeddings.position_embeddings.weight", "position_embd.weight", |c| vec![c.positions, c.hidden]),
        ("embeddings.token_type_embeddings.weight", "token_types.weight", |c| vec![c.types, c.hidden]),
        ("embeddings.LayerNorm.weight", "token_embd_norm.weight", |c| vec![c.hidden]),
        ("embeddings.LayerNorm.bias", "token_embd_norm.bias", |c| vec![c.hidden]),
        (POOLER[0], "", |c| vec![c.hidden, c.hidden]),
        (POOLER[1], "", |c| vec![c.hidden]),
        (CLASSIFIER[0], "", |c| vec![c.labels(), c.hidden]),
        (CLASSIFIER[1], "", |c| vec![c.labels()]),
    ],
    block: &[
        ("attention.self.query.weight", "attn_q.weight", |c| vec![c.hidden, c.hidden]),
        ("attention.self.query.bias", "attn_q.bias", |c| vec![c.hidden]),
        ("attention.self.key.weight", "attn_k.weight", |c| vec![c.hidden, c.hidden]),
        ("attention.self.key.bias", "attn_k.bias", |c| vec![c.hidden]),
        ("attention.self.value.weight", "attn_v.weight", |c| vec![c.hidden, c.hidden]),
        ("attention.self.value.bias", "attn_v.bias", |c| vec![c.hidden]),
        ("attention.output.dense.weight", "attn_output.weight", |c| vec![c.hidden, c.hidden]),
        ("attention.output.dense.bias", "attn_output.bias", |c| vec![c.hidden]),
        ("attention.output.LayerNorm.weight", "attn_output_norm.weight", |c| vec![c.hidden]),
        ("attention.output.LayerNorm.bias", "attn_output_norm.bias", |c| vec![c.hidden]),
        ("intermediate.dense.weight", "ffn_up.weight", |c| vec![c.ffn, c.hidden]),
        ("intermediate.dense.bias", "ffn_up.bias", |c| vec![c.ffn]),
        ("output.dense.weight", "ffn_down.weight", |c| vec![c.hidden, c.ffn]),
        ("output.dense.bias", "ffn_down.bias", |c| vec![c.hidden]),
        ("output.LayerNorm.weight", "layer_output_norm.weight", |c| vec![c.hidden]),
        ("output.LayerNorm.bias", "layer_output_norm.bias", |c| vec![c.hidden]),
    ],
};

impl Config {
    fn read(checkpoint: &Checkpoint) -> Result<Config, ImportError> {
        let config = match checkpoint.config() {
            Metadata::HuggingFace(config) => Config::from_hf(checkpoint, config)?,
            Metadata::Gguf(metadata) => Config::from_gguf(checkpoint, metadata)?,
        };
        let scores = matches!(config.head, Head::Scores { .. });
        let has =
            |_: Option<usize>, name: &str| scores || !(POOLER.contains(&name) || CLASSIFIER.contains(&name));
        // The pooler is for a head; position ids are 0, 1, 2, ...
        let harmless = |name: &str| POOLER.contains(&name) || name.ends_with("embeddings.position_ids");
        NAMES.check(checkpoint, &config, config.layers, has, |name| config.named(name), harmless)?;
        Ok(config)
    }

    fn labels(&self) -> usize {
        if let Head::Scores { labels } = self.head { labels } else { 0 }
    }

    /// A model with a head keeps its own tensors under `bert.`.
    fn named(&self, name: String) -> String {
        match self.head {
            Head::Scores { .. } if !name.starts_with("classifier.") => format!("bert.{name}"),
            _ => name,
        }
    }

    fn from_hf(checkpoint: &Checkpoint, config: &Map<String, Json>) -> Result<Config, ImportError> {
        let fields = Fields::new(checkpoint.config_path(), "", config);
        let classifies = config
            .get("architectures")
            .and_then(|list| list.get(0))
            .is_some_and(|class| class == "BertForSequenceClassification");
        let head = if classifies {
            let labels = config.get("id2label").and_then(Json::as_object).map(Map::len);
            // transformers writes no labels where there are two, its default.
            Head::Scores { labels: fields.count("num_labels")?.or(labels).unwrap_or(2) }
        } else {
            Head::Pooling(Pooling::from_hf(checkpoint)?)
        };
        let gelu = encoder::gelu(&fields)?;
        let read = Config {
            naming: Naming::HuggingFace,
            hidden: fields.required_count("hidden_size")?,
            layers: fields.required_count("num_hidden_layers")?,
            heads: fields.required_count("num_attention_heads")?,
            ffn: fields.required_count("intermediate_size")?,
            vocab: fields.required_count("vocab_size")?,
            positions: fields.required_count("max_position_embeddings")?,
            types: fields.count("type_vocab_size")?.unwrap_or(2),
            eps: fields.positive("layer_norm_eps")?.unwrap_or(1e-12),
            gelu,
            head,
        };
        fields.neutral("position_embedding_type", "absolute", |value| value == "absolute")?;
        for key in ["is_decoder", "add_cross_attention", "is_encoder_decoder", "tie_encoder_decoder"] {
            fields.neutral(key, "false", |value| value == false)?;
        }
        fields.neutral("pruned_heads", "{}", |value| value.as_object().is_some_and(Map::is_empty))?;
        fields.skip(HARMLESS_HF);
        fields.skip(&[Harmless { reason: "chose this family", keys: &["model_type"] }]);
        fields.skip(&[
            encoder::TRAINING,
            encoder::TOKEN_HEAD,
            Harmless {
                reason: "scores are given before any activation",
                keys: &["sbert_ce_default_activation_function", "sentence_transformers"],
            },
        ]);
        encoder::check_heads(&fields, "num_attention_heads", read.hidden, read.heads)?;
        fields.finish()?;
        Ok(read)
    }

    fn from_gguf(checkpoint: &Checkpoint, metadata: &GgufMetadata) -> Result<Config, ImportError> {
        let map = gguf_fields(metadata, "bert");
        let fields = Fields::new(checkpoint.config_path(), "bert.", &map);
        let rows = |name: &str| {
            checkpoint.tensors().get(name).and_then(|info| info.shape.first().copied()).unwrap_or(1)
        };
        let read = Config {
            naming: Naming::Gguf,
            hidden: fields.required_count("embedding_length")?,
            layers: fields.required_count("block_count")?,
            heads: fields.required_count("attention.head_count")?,
            ffn: fields.required_count("feed_forward_length")?,
            vocab: fields.count("vocab_size")?.unwrap_or(rows("token_embd.weight")),
            positions: fields.required_count("context_length")?,
            types: rows("token_types.weight"),
            eps: fields.required_positive("attention.layer_norm_epsilon")?,
            gelu: UnaryKind::Gelu,
            head: Head::Pooling(Pooling::from_gguf(&fields)?),
        };
        fields.neutral("attention.causal", "false", |value| value == false)?;
        fields.neutral("attention.head_count_kv", "the number of heads", |v| {
            v.as_u64() == Some(read.heads as u64)
        })?;
        encoder::check_heads(&fields, "attention.head_count", read.hidden, read.heads)?;
        fields.finish()?;
        Ok(read)
    }

    fn build(&self, checkpoint: &Checkpoint) -> Result<Model, ImportError> {
        let mut b = Builder::new(checkpoint);
        let whole = |hf: &str| self.named(NAMES.whole(self.naming, hf));
        let blocks = Blocks {
            names: BLOCK,
            hidden: self.hidden,
            heads: self.heads,
            eps: self.eps,
            gelu: self.gelu,
            bias: None,
        };
        let tokens = b.input("tokens", Input::Tokens)?;
        let positions = b.input("positions", Input::Positions)?;
        let types = b.input("token_types", Input::TokenTypes)?;
        let rows = b.input("logit_rows", Input::LogitRows)?;
        let table = b.weight(&whole("embeddings.word_embeddings.weight"))?;
        let token = b.embed(tokens, table)?;
        let position = b.lookup(positions, &whole("embeddings.position_embeddings.weight"))?;
        let ty = b.lookup(types, &whole("embeddings.token_type_embeddings.weight"))?;
        let x = b.binary("embed.type".into(), BinaryKind::Add, token, ty)?;
        let x = b.binary("embed.position".into(), BinaryKind::Add, x, position)?;
        let block = |layer, hf: &str| self.named(NAMES.block(self.naming, layer, hf));
        let x = blocks.stack(&mut b, x, self.layers, whole, block)?;
        let (result, output) = match &self.head {
            Head::Pooling(pooling) => pooling.build(&mut b, x, rows, self.hidden)?,
            Head::Scores { labels } => {
                let first = b.pool(x, rows, PoolKind::First)?;
                let [weight, bias] = POOLER.map(whole);
                let h = b.linear(first, &weight, Some(&bias))?;
                let h = b.unary("pooler.tanh".into(), UnaryKind::Tanh, h)?;
                let [weight, bias] = CLASSIFIER.map(whole);
                (b.linear(h, &weight, Some(&bias))?, Output::Scores { labels: *labels as u32 })
            }
        };
        let limit = match &self.head {
            Head::Pooling(pooling) => pooling.max_tokens,
            Head::Scores { .. } => None,
        };
        let facts = ModelFacts {
            vocab: self.vocab as u32,
            context: self.positions.min(limit.unwrap_or(self.positions)) as u32,
            hidden: self.hidden as u32,
            layers: self.layers as u32,
            output,
            whole: true,
        };
        // No state is left behind: the next pass brings other texts.
        Ok(Model { graph: b.finish(result, &[])?, facts, architecture: ARCHITECTURE.name })
    }
}
