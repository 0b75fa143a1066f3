//! Attention over compressed keys and values (multi-head latent attention).
//!
//! A token leaves one vector in the cache: the compressed keys and values of all heads and, behind them, a key of its own for
//! the rotation. The projections that would decompress it are absorbed instead: that of keys into the queries, that of values
//! behind the attention. With `c` the compressed vector, `K` and `V` the projections of a head,
//!
//! ```text
//! q . (K c) = (K^T q) . c            sum of p (V c) = V (sum of p c)
//! ```

use super::{Blocks, Decoder, Naming};
use crate::import::error::ImportError;
use bessemer_ir::Value;
use bessemer_ir::recipe::{Part, Piece};

/// The sizes of such an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latent {
    /// Elements that queries are compressed to; none where they are not.
    pub q_rank: Option<usize>,
    /// Elements that the keys and values of a token are compressed to.
    pub kv_rank: usize,
    /// Elements of a head's query and key that do not turn.
    pub plain: usize,
    /// Elements of them that do.
    pub turning: usize,
    /// Elements of a head's value.
    pub value: usize,
    /// Whether the projections of keys and of values are tensors of their own, that of keys transposed.
    pub split: bool,
}

/// Added to the mean square in the norms of compressed vectors: families have no key for it.
const EPS: f64 = 1e-6;

/// What a tensor is called in Hugging Face and in GGUF.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tensor {
    Query,
    QueryDown,
    QueryNorm,
    QueryUp,
    Down,
    Norm,
    Up,
    KeyUp,
    ValueUp,
}

use Tensor::*;

const TENSORS: [Tensor; 9] = [Query, QueryDown, QueryNorm, QueryUp, Down, Norm, Up, KeyUp, ValueUp];

impl Tensor {
    fn name(self, naming: Naming, layer: usize) -> String {
        let (hf, gguf) = match self {
            Query => ("q_proj", "attn_q"),
            QueryDown => ("q_a_proj", "attn_q_a"),
            QueryNorm => ("q_a_layernorm", "attn_q_a_norm"),
            QueryUp => ("q_b_proj", "attn_q_b"),
            Down => ("kv_a_proj_with_mqa", "attn_kv_a_mqa"),
            Norm => ("kv_a_layernorm", "attn_kv_a_norm"),
            Up => ("kv_b_proj", "attn_kv_b"),
            KeyUp => ("k_b_proj", "attn_k_b"),
            ValueUp => ("v_b_proj", "attn_v_b"),
        };
        match naming {
            Naming::HuggingFace => format!("model.layers.{layer}.self_attn.{hf}.weight"),
            Naming::Gguf => format!("blk.{layer}.{gguf}.weight"),
        }
    }
}

impl Latent {
    /// The GGUF tensor of a block whose presence says that keys and values are decompressed apart.
    pub const SPLIT: &str = "blk.0.attn_k_b.weight";

    /// Elements of a head's query and key.
    pub fn head_dim(&self) -> usize {
        self.plain + self.turning
    }

    /// Elements that a token leaves in the cache.
    pub fn width(&self) -> usize {
        self.kv_rank + self.turning
    }

    fn shape(&self, tensor: Tensor, hidden: usize, heads: usize) -> Option<Vec<usize>> {
        let Self { q_rank, kv_rank, plain, value, split, .. } = *self;
        let q_rows = heads * self.head_dim();
        match tensor {
            Query => q_rank.is_none().then(|| vec![q_rows, hidden]),
            QueryDown => q_rank.map(|rank| vec![rank, hidden]),
            QueryNorm => q_rank.map(|rank| vec![rank]),
            QueryUp => q_rank.map(|rank| vec![q_rows, rank]),
            Down => Some(vec![self.width(), hidden]),
            Norm => Some(vec![kv_rank]),
            Up => (!split).then(|| vec![heads * (plain + value), kv_rank]),
            KeyUp => split.then(|| vec![heads, kv_rank, plain]),
            ValueUp => split.then(|| vec![heads, value, kv_rank]),
        }
    }

    /// The tensors of a block with their shapes, but for the projection of what was attended to.
    pub(super) fn tensors(&self, d: &Decoder, layer: usize) -> impl Iterator<Item = (String, Vec<usize>)> {
        let (hidden, heads, naming) = (d.hidden, d.heads, d.naming);
        TENSORS
            .iter()
            .filter_map(move |tensor| Some((tensor.name(naming, layer), self.shape(*tensor, hidden, heads)?)))
    }
}

impl Blocks<'_> {
    /// What the heads of a block attend to, for normed rows `h`.
    pub(super) fn latent_attention(
        &mut self,
        l: &Latent,
        layer: usize,
        rope: usize,
        h: Value,
    ) -> Result<Value, ImportError> {
        let d = self.decoder;
        let name = |what: &str| format!("layer.{layer}.{what}");
        let tensor = |tensor: Tensor| tensor.name(d.naming, layer);
        let (x, queries) = match l.q_rank {
            None => (h, tensor(Query)),
            Some(_) => {
                let compressed = self.b.linear(h, &tensor(QueryDown), None)?;
                (self.b.rms_norm(compressed, &tensor(QueryNorm), EPS, 0.0)?, tensor(QueryUp))
            }
        };
        // Of each head first the elements that do not turn, then those that do.
        let stride = l.head_dim() as u64;
        let of_heads =
            |first: usize, block: usize| Part::Rows { first: first as u64, block: block as u64, stride };
        let plain = (of_heads(0, l.plain), d.heads * l.plain);
        let turning = (of_heads(l.plain, l.turning), d.heads * l.turning);
        let plain = self.b.linear_part(x, &queries, "plain", plain)?;
        let turning = self.b.linear_part(x, &queries, "turning", turning)?;
        let latent = self.b.linear_rows(h, &tensor(Down), None, "latent", 0..l.kv_rank)?;
        let latent = self.b.rms_norm(latent, &tensor(Norm), EPS, 0.0)?;
        let key = self.b.linear_rows(h, &tensor(Down), None, "turning", l.kv_rank..l.width())?;
        let angles = self.angles(rope)?;
        let turning = self.b.rope(name("q.rope"), turning, angles, d.heads, &d.ropes[rope])?;
        let key = self.b.rope(name("k.rope"), key, angles, 1, &d.ropes[rope])?;

        let up = self.key_projection(l, layer)?;
        let absorbed = self.b.heads_linear(name("q.absorbed"), plain, up, d.heads)?;
        let q = self.b.concat_heads(name("q"), absorbed, turning, d.heads)?;
        let entry = self.b.concat_heads(name("latent"), latent, key, 1)?;
        let state = self.b.latents(layer, l.width())?;
        let state = self.b.append_latent(name("append"), state, entry)?;
        self.states.push(state);
        let (value, scale) = (l.kv_rank, d.attention_scale);
        let mixed = self.b.latent_attention(name("attention"), q, state, (d.heads, value, scale))?;
        let up = self.value_projection(l, layer)?;
        self.b.heads_linear(name("values"), mixed, up, d.heads)
    }

    /// The projection of keys, of each head transposed.
    fn key_projection(&mut self, l: &Latent, layer: usize) -> Result<Value, ImportError> {
        let d = self.decoder;
        let (rank, rows) = (l.kv_rank as u64, (l.plain + l.value) as u64);
        if l.split {
            let of = KeyUp.name(d.naming, layer);
            return self.b.part(&of, Part::Whole, &[d.heads * l.kv_rank, l.plain], &of);
        }
        let of = Up.name(d.naming, layer);
        let piece = |h: u64| Piece { name: of.clone(), part: Part::columns(h * rows * rank, rank, rank) };
        let pieces = (0..d.heads as u64).map(piece).collect();
        self.b.pieces(&format!("{of}[keys]"), pieces, [d.heads as u64 * rank, l.plain as u64])
    }

    fn value_projection(&mut self, l: &Latent, layer: usize) -> Result<Value, ImportError> {
        let d = self.decoder;
        let shape = [d.heads * l.value, l.kv_rank];
        if l.split {
            let of = ValueUp.name(d.naming, layer);
            return self.b.part(&of, Part::Whole, &shape, &of);
        }
        let of = Up.name(d.naming, layer);
        let (first, block, stride) = (l.plain as u64, l.value as u64, (l.plain + l.value) as u64);
        self.b.part(&format!("{of}[values]"), Part::Rows { first, block, stride }, &shape, &of)
    }
}
