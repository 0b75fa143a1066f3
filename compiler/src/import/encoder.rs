//! What encoders with norms behind each half of a block share.

use super::build::{Builder, FullAttention};
use super::config::{Fields, Harmless};
use super::error::ImportError;
use bessemer_ir::Value;
use bessemer_ir::attr::{BinaryKind, UnaryKind};

/// Names of a block's linears and norms, all with a bias, below the block and without `.weight` or `.bias`.
#[derive(Debug, Clone, Copy)]
pub struct BlockNames {
    /// Query, key and value.
    pub qkv: [&'static str; 3],
    /// The projection of what was attended to, and the norm behind it.
    pub attention: [&'static str; 2],
    /// The two linears of the network, and the norm behind it.
    pub ffn: [&'static str; 3],
}

/// Blocks of attention to the whole text and a network of two linears.
#[derive(Debug, Clone, Copy)]
pub struct Blocks {
    /// What the tensors are called.
    pub names: BlockNames,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Heads of queries, keys and values.
    pub heads: usize,
    /// Added to the variance in norms.
    pub eps: f64,
    /// The function between the two linears.
    pub gelu: UnaryKind,
    /// What is added to scores by the distance of two positions, where something is.
    pub bias: Option<Value>,
}

/// Keys of encoders that are used in training only.
pub const TRAINING: Harmless = Harmless {
    reason: "used in training only",
    keys: &[
        "attention_probs_dropout_prob",
        "hidden_dropout_prob",
        "classifier_dropout",
        "gradient_checkpointing",
    ],
};

/// Keys of a head that is left out.
pub const TOKEN_HEAD: Harmless = Harmless {
    reason: "belongs to the head that predicts tokens, which is not part of an encoder",
    keys: &["tie_word_embeddings"],
};

/// The function that `hidden_act` names.
pub fn gelu(fields: &Fields) -> Result<UnaryKind, ImportError> {
    let tanh = UnaryKind::GeluTanh;
    let kinds = [("gelu", UnaryKind::Gelu), ("gelu_new", tanh), ("gelu_pytorch_tanh", tanh)];
    Ok(fields.choice("hidden_act", &kinds)?.unwrap_or(UnaryKind::Gelu))
}

/// Heads that `key` states must divide the width into even parts.
pub fn check_heads(fields: &Fields, key: &str, hidden: usize, heads: usize) -> Result<(), ImportError> {
    if hidden.is_multiple_of(heads) && (hidden / heads).is_multiple_of(2) {
        return Ok(());
    }
    let expected = format!("a divisor of the width {hidden}, with heads of an even size");
    Err(fields.error(key, expected, "correct the value"))
}

impl Blocks {
    /// The norm behind the embeddings and `layers` blocks on `x`; `whole` and `block` give the checkpoint's names of tensors.
    pub fn stack(
        &self,
        b: &mut Builder,
        x: Value,
        layers: usize,
        whole: impl Fn(&str) -> String,
        block: impl Fn(usize, &str) -> String,
    ) -> Result<Value, ImportError> {
        let [weight, bias] = ["weight", "bias"].map(|kind| whole(&format!("embeddings.LayerNorm.{kind}")));
        let mut x = b.layer_norm(x, &weight, Some(&bias), self.eps)?;
        for layer in 0..layers {
            x = self.block(b, layer, x, |of| block(layer, of))?;
        }
        Ok(x)
    }

    /// Block `layer` on `x`; `tensor` gives the checkpoint's name of a tensor of the block.
    fn block(
        &self,
        b: &mut Builder,
        layer: usize,
        x: Value,
        tensor: impl Fn(&str) -> String,
    ) -> Result<Value, ImportError> {
        let name = |what: &str| format!("layer.{layer}.{what}");
        let pair = |of: &str| ["weight", "bias"].map(|kind| tensor(&format!("{of}.{kind}")));
        let linear = |b: &mut Builder, x: Value, of: &str| {
            let [weight, bias] = pair(of);
            b.linear(x, &weight, Some(&bias))
        };
        let norm = |b: &mut Builder, x: Value, of: &str| {
            let [weight, bias] = pair(of);
            b.layer_norm(x, &weight, Some(&bias), self.eps)
        };
        let BlockNames {
            qkv: [query, key, value],
            attention: [out, attention_norm],
            ffn: [up, down, ffn_norm],
        } = self.names;
        let head_dim = self.hidden / self.heads;
        let q = linear(b, x, query)?;
        let k = linear(b, x, key)?;
        let v = linear(b, x, value)?;
        let state = b.state(layer, self.heads, head_dim)?;
        let state = b.append(name("append"), state, k, v, self.heads)?;
        let shape = FullAttention { heads: self.heads, head_dim, reach: None, bias: self.bias };
        let a = b.full_attention(name("attention"), q, state, shape)?;
        let o = linear(b, a, out)?;
        let sum = b.binary(name("attention.residual"), BinaryKind::Add, x, o)?;
        let x = norm(b, sum, attention_norm)?;
        let up = linear(b, x, up)?;
        let h = b.unary(name("gelu"), self.gelu, up)?;
        let down = linear(b, h, down)?;
        let sum = b.binary(name("ffn.residual"), BinaryKind::Add, x, down)?;
        norm(b, sum, ffn_norm)
    }
}
