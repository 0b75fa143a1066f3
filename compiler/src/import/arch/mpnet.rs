//! MPNet: BERT's blocks, and numbers that are added to scores by the distance of two tokens.

use bessemer_format::plan::{Input, ModelFacts};
use bessemer_ir::attr::{BinaryKind, UnaryKind};
use serde_json::{Map, Value as Json};

use super::Architecture;
use crate::import::build::{Builder, Model};
use crate::import::config::{Fields, HARMLESS_HF, Harmless};
use crate::import::encoder::{self, BlockNames, Blocks};
use crate::import::error::ImportError;
use crate::import::names::{Names, Naming};
use crate::import::pooling::Pooling;
use crate::import::source::{Checkpoint, Metadata};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "mpnet",
    models: "MPNet, all-mpnet-base",
    features: "encoder, relative positions in the scores of attention",
    hf: &[("mpnet", "MPNetModel"), ("mpnet", "MPNetForMaskedLM")],
    gguf: &[],
    build: |checkpoint, _| Config::read(checkpoint)?.build(checkpoint),
};

struct Config {
    /// What stands before the names of a model with a head.
    prefix: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    ffn: usize,
    vocab: usize,
    /// Rows of the table of positions.
    positions: usize,
    eps: f64,
    gelu: UnaryKind,
    pooling: Pooling,
}

/// The first rows of the table of positions stand for padding.
const FIRST_POSITION: usize = 2;
/// Classes of distances; the model's code knows no other number.
const BUCKETS: usize = 32;
const DISTANCES: &str = "encoder.relative_attention_bias.weight";

const BLOCK: BlockNames = BlockNames {
    qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    attention: ["attention.attn.o", "attention.LayerNorm"],
    ffn: ["intermediate.dense", "output.dense", "output.LayerNorm"],
};

#[rustfmt::skip]
const NAMES: Names<Config> = Names {
    blocks: "encoder.layer.",
    whole: &[
        ("embeddings.word_embeddings.weight", "", |c| vec![c.vocab, c.hidden]),
        ("embeddings.position_embeddings.weight", "", |c| vec![c.positions, c.hidden]),
        ("embeddings.LayerNorm.weight", "", |c| vec![c.hidden]),
        ("embeddings.LayerNorm.bias", "", |c| vec![c.hidden]),
        (DISTANCES, "", |c| vec![BUCKETS, c.heads]),
    ],
    block: &[
        ("attention.attn.q.weight", "", |c| vec![c.hidden, c.hidden]),
        ("attention.attn.q.bias", "", |c| vec![c.hidden]),
        ("attention.attn.k.weight", "", |c| vec![c.hidden, c.hidden]),
        ("attention.attn.k.bias", "", |c| vec![c.hidden]),
        ("attention.attn.v.weight", "", |c| vec![c.hidden, c.hidden]),
        ("attention.attn.v.bias", "", |c| vec![c.hidden]),
        ("attention.attn.o.weight", "", |c| vec![c.hidden, c.hidden]),
        ("attention.attn.o.bias", "", |c| vec![c.hidden]),
        ("attention.LayerNorm.weight", "", |c| vec![c.hidden]),
        ("attention.LayerNorm.bias", "", |c| vec![c.hidden]),
        ("intermediate.dense.weight", "", |c| vec![c.ffn, c.hidden]),
        ("intermediate.dense.bias", "", |c| vec![c.ffn]),
        ("output.dense.weight", "", |c| vec![c.hidden, c.ffn]),
        ("output.dense.bias", "", |c| vec![c.hidden]),
        ("output.LayerNorm.weight", "", |c| vec![c.hidden]),
        ("output.LayerNorm.bias", "", |c| vec![c.hidden]),
    ],
};

impl Config {
    fn read(checkpoint: &Checkpoint) -> Result<Config, ImportError> {
        let Metadata::HuggingFace(config) = checkpoint.config() else {
            return Err(ImportError::NotACheckpoint {
                path: checkpoint.path().to_owned(),
                expected: "a directory with config.json: GGUF has no name for this family",
                found: "a GGUF file".into(),
                remedy: "fetch the model's safetensors",
            });
        };
        let config = Config::from_hf(checkpoint, config)?;
        // Heads are for training, or not part of an encoder; position ids are 0, 1, 2, ...
        let harmless = |name: &str| {
            let name = name.strip_prefix(config.prefix).unwrap_or(name);
            name.starts_with("pooler.dense.")
                || name.starts_with("lm_head.")
                || name == "embeddings.position_ids"
        };
        NAMES.check(checkpoint, &config, config.layers, |_, _| true, |name| config.named(name), harmless)?;
        Ok(config)
    }

    fn named(&self, name: String) -> String {
        format!("{}{name}", self.prefix)
    }

    fn from_hf(checkpoint: &Checkpoint, config: &Map<String, Json>) -> Result<Config, ImportError> {
        let fields = Fields::new(checkpoint.config_path(), "", config);
        let prefixed = checkpoint.tensors().contains_key(&format!("mpnet.{DISTANCES}"));
        let read = Config {
            prefix: if prefixed { "mpnet." } else { "" },
            hidden: fields.required_count("hidden_size")?,
            layers: fields.required_count("num_hidden_layers")?,
            heads: fields.required_count("num_attention_heads")?,
            ffn: fields.required_count("intermediate_size")?,
            vocab: fields.required_count("vocab_size")?,
            positions: fields.required_count("max_position_embeddings")?,
            eps: fields.positive("layer_norm_eps")?.unwrap_or(1e-12),
            gelu: encoder::gelu(&fields)?,
            pooling: Pooling::from_hf(checkpoint)?,
        };
        if read.positions <= FIRST_POSITION {
            let expected = format!("more than the {FIRST_POSITION} rows of padding");
            return Err(fields.error("max_position_embeddings", expected, "correct the value"));
        }
        fields.neutral("relative_attention_num_buckets", "32", |value| *value == BUCKETS)?;
        encoder::check_heads(&fields, "num_attention_heads", read.hidden, read.heads)?;
        for key in ["is_decoder", "add_cross_attention", "is_encoder_decoder"] {
            fields.neutral(key, "false", |value| value == false)?;
        }
        fields.skip(HARMLESS_HF);
        fields.skip(&[
            Harmless { reason: "chose this family", keys: &["model_type"] },
            encoder::TRAINING,
            encoder::TOKEN_HEAD,
        ]);
        fields.finish()?;
        Ok(read)
    }

    fn build(&self, checkpoint: &Checkpoint) -> Result<Model, ImportError> {
        let mut b = Builder::new(checkpoint);
        let whole = |hf: &str| self.named(NAMES.whole(Naming::HuggingFace, hf));
        let context = self.positions - FIRST_POSITION;
        let context = context.min(self.pooling.max_tokens.unwrap_or(context));
        let tokens = b.input("tokens", Input::Tokens)?;
        let positions = b.input("positions", Input::Positions)?;
        let rows = b.input("logit_rows", Input::LogitRows)?;
        let bias = b.distances(&whole(DISTANCES), context, self.heads, bucket)?;
        let blocks = Blocks {
            names: BLOCK,
            hidden: self.hidden,
            heads: self.heads,
            eps: self.eps,
            gelu: self.gelu,
            bias: Some(bias),
        };
        let table = b.weight(&whole("embeddings.word_embeddings.weight"))?;
        let token = b.embed(tokens, table)?;
        let position =
            b.lookup_from(positions, &whole("embeddings.position_embeddings.weight"), FIRST_POSITION)?;
        let x = b.binary("embed.position".into(), BinaryKind::Add, token, position)?;
        let block = |layer, hf: &str| self.named(NAMES.block(Naming::HuggingFace, layer, hf));
        let x = blocks.stack(&mut b, x, self.layers, whole, block)?;
        let (result, output) = self.pooling.build(&mut b, x, rows, self.hidden)?;
        let facts = ModelFacts {
            vocab: self.vocab as u32,
            context: context as u32,
            hidden: self.hidden as u32,
            layers: self.layers as u32,
            output,
            whole: true,
        };
        // No state is left behind: the next pass brings other texts.
        Ok(Model { graph: b.finish(result, &[])?, facts, architecture: ARCHITECTURE.name })
    }
}

/// The class of a distance: tokens behind come first, then those ahead; near ones have a class each, farther ones share classes that
/// grow by the root of 2, up to 128.
///
/// The published formula is `8 + 8 log(n / 8) / log(16)`, cut to a whole number. That is `8 + log2(n^2 / 64)`, of which whole numbers
/// give the same on every machine.
fn bucket(distance: i64) -> u64 {
    const EACH: u64 = BUCKETS as u64 / 2;
    let n = distance.unsigned_abs();
    let ahead = if distance > 0 { EACH } else { 0 };
    let class = if n < EACH / 2 { n } else { (EACH / 2 + u64::from((n * n).ilog2()) - 6).min(EACH - 1) };
    ahead + class
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn distances_have_the_classes_that_transformers_gives_them() {
        // As computed by `MPNetEncoder.relative_position_bucket`.
        let first_of_class = [8, 12, 16, 23, 32, 46, 64, 91];
        for (class, first) in (8..).zip(first_of_class) {
            assert_eq!((bucket(-first), bucket(first)), (class, 16 + class), "{first}");
            assert_eq!(bucket(1 - first), class - 1, "{first}");
        }
        assert_eq!([0, -1, 1, -7, 7, -500, 500].map(bucket), [0, 1, 17, 7, 23, 15, 31]);
    }
}
