//! The op table: every op of the IR, once. The macro makes the enum, the names, and the text form of the attributes.

use crate::attr::{Attr, BinaryKind, Computes, Epilogue, PoolKind, RopeStyle, Scalar, Segment, UnaryKind};
use crate::recipe::Recipe;
use crate::text::Cursor;
use bessemer_format::plan::{Choice, Input, Score};

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $text:literal { $($(#[$fdoc:meta])* $field:ident : $ty:ty),* $(,)? })*) => {
        /// An operation. Operands and results are stated as `name(operands) -> results` in each variant.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op { $($(#[$doc])* $name { $($(#[$fdoc])* $field: $ty),* }),* }

        impl Op {
            /// Name in the text form of every op, in table order.
            pub const NAMES: &'static [&'static str] = &[$($text),*];

            /// Name in the text form.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$name { .. } => $text),* }
            }

            /// Appends the attributes as `{a=1, b=2}` (nothing for an op without attributes).
            pub fn print_attrs(&self, out: &mut String) {
                match self {
                    $(Op::$name { $($field),* } => {
                        let fields: &[(&str, &dyn Fn(&mut String))] =
                            &[$((stringify!($field), &|out: &mut String| Attr::print($field, out))),*];
                        for (i, (name, print)) in fields.iter().enumerate() {
                            out.push_str(if i == 0 { " {" } else { ", " });
                            out.push_str(name);
                            out.push('=');
                            print(out);
                        }
                        if !fields.is_empty() {
                            out.push('}');
                        }
                    })*
                }
            }

            /// Parses the attributes of the op called `name`.
            pub fn parse_attrs(name: &str, c: &mut Cursor<'_>) -> Result<Op, String> {
                match name {
                    $($text => {
                        #[allow(unused_mut)]
                        let mut open = false;
                        $(
                            c.expect(if std::mem::replace(&mut open, true) { "," } else { "{" })?;
                            c.expect_word(stringify!($field))?;
                            c.expect("=")?;
                            let $field = <$ty as Attr>::parse(c)?;
                        )*
                        if open {
                            c.expect("}")?;
                        }
                        Ok(Op::$name { $($field),* })
                    })*
                    _ => Err(format!("`{name}` is no op; known: {}", Op::NAMES.join(", "))),
                }
            }
        }
    };
}

ops! {
    /// `input() -> i32[R]` or `i32[L]`: an array of the forward pass.
    Input = "input" {
        /// Which one.
        input: Input,
    }
    /// `state() -> state`: the cache of a layer before this forward pass.
    State = "state" {
        /// Which layer.
        layer: u32,
        /// Key and value heads.
        kv_heads: u32,
        /// Elements of a head.
        head_dim: u32,
    }
    /// `const() -> tensor`: a constant, as a recipe.
    Const = "const" {
        /// Where its numbers come from.
        recipe: Recipe,
    }
    /// `embed(ids i32[R], table f32[V, k]) -> f32[R, k]`: a row of the table for each token (or position).
    Embed = "embed" {}
    /// `rms_norm(x f32[R, m n], w f32[n]) -> f32[R, m n]`: `x / sqrt(mean(x^2) + eps) * w` of each n elements: of a row, or of each
    /// of its heads.
    RmsNorm = "rms_norm" {
        /// Added to the mean square.
        eps: f32,
    }
    /// `layer_norm(x f32[R, n], w f32[n] [, b f32[n]]) -> f32[R, n]`: `(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * w + b`, the means
    /// taken over each part of a row.
    LayerNorm = "layer_norm" {
        /// Added to the variance.
        eps: f32,
        /// Equal parts of a row that are normed each by itself: 1, or the heads of a row.
        parts: u32,
    }
    /// `linear(x f32[R, k], (w f32[n, k] [, bias f32[n]])… [, residual f32[R, n]]) -> f32[R, sum n]`:
    /// one input, a list of segments that each keep their weight, an epilogue.
    Linear = "linear" {
        /// Segments in output order.
        segments: Vec<Segment>,
        /// What happens before the result is stored.
        epilogue: Epilogue,
        /// What it computes in.
        compute: Computes,
    }
    /// `rope_table(positions i32[R]) -> f32[R, 2 m]`: cosines, then sines, of `position * inv_freq[j]` (the product rounded to f32), each
    /// times `factor`, for m frequencies. Every kind of scaling is a list of frequencies.
    RopeTable = "rope_table" {
        /// Inverse frequencies.
        inv_freq: Vec<f32>,
        /// Factor of both (attention scaling of some rope kinds).
        factor: f32,
    }
    /// `rope(x f32[R, heads * d], table f32[R, m]) -> f32[R, heads * d]`: rotates pairs among the first m <= d elements of each head.
    Rope = "rope" {
        /// Which elements are pairs.
        style: RopeStyle,
        /// Heads of x.
        heads: u32,
    }
    /// `route(logits f32[R, E] [, bias f32[E]]) -> i32[R, top_k]`: the experts of each row, as
    /// [`plan::Route`](bessemer_format::plan::Route) chooses them.
    Route = "route" {
        /// How the choice is made.
        choice: Choice,
    }
    /// `route_weights(logits f32[R, E], chosen i32[R, k]) -> f32[R, k]`: the scores of the chosen experts, divided by their sum plus 1e-20
    /// where they are renormalised, times `scale`.
    RouteWeights = "route_weights" {
        /// What scores are.
        score: Score,
        /// Whether the weights of a row add up to `scale`.
        renormalise: bool,
        /// Factor.
        scale: f32,
    }
    /// `grouped_linear(x f32[R, k] or f32[R, slots * k] [, chosen i32[R, slots]], (w f32[groups * n, k] [, bias f32[groups * n]])…)
    /// -> f32[R, slots * sum n]`: slot s of row r is a linear of the row (or of part s of it) with weight `chosen[r, s]` (or s) of each stack.
    GroupedLinear = "grouped_linear" {
        /// Weights of a stack.
        groups: u32,
        /// Results of a row.
        slots: u32,
        /// Whether rows choose.
        routed: bool,
        /// Segments of a slot in output order; their width is that of one weight.
        segments: Vec<Segment>,
        /// What happens before the result is stored; there is no residual.
        epilogue: Epilogue,
        /// What it computes in.
        compute: Computes,
    }
    /// `combine(y f32[R, slots * n], weights f32[R, slots]) -> f32[R, n]`: the weighted sum of the slots, in ascending order.
    Combine = "combine" {}
    /// `concat_heads(a f32[R, heads * n], b f32[R, heads * m]) -> f32[R, heads * (n + m)]`: each head of a, then the same head of b.
    ConcatHeads = "concat_heads" {
        /// Heads of both.
        heads: u32,
    }
    /// `append(state, k f32[R, kv_heads * d], v f32[R, kv_heads * d]) -> state`: each row's key and value enter at its position.
    Append = "append" {
        /// Key and value heads.
        kv_heads: u32,
    }
    /// `attention(q f32[R, heads * d], state [, sinks f32[heads]]) -> f32[R, heads * d]`: causal softmax attention; row r sees
    /// positions up to its own. A head's sink is one more score in its softmax, of a token whose value is zero.
    ///
    /// What any attention computes in is f32 or bf16. In bf16 queries (turned, where the cache's keys are) are rounded to nearest even
    /// before they meet keys; so are weights before they meet values: `exp(score - b)` times the scale of the value where its type has
    /// one, for a `b` that is a multiple of ln 2, so that no weight's rounding depends on the largest score. Keys and values are what the
    /// cache holds; all sums are f32, and what a row's values are divided by is the sum of the weights before rounding.
    Attention = "attention" {
        /// Query heads.
        heads: u32,
        /// Key and value heads: query head h reads head `h / (heads / kv_heads)`.
        kv_heads: u32,
        /// Factor of the scores.
        scale: f32,
        /// How many positions a row sees, its own included; all of them where there is none.
        window: Option<u32>,
        /// A scaled score s becomes `softcap * tanh(s / softcap)`.
        softcap: Option<f32>,
        /// What it computes in.
        compute: Computes,
    }
    /// `latents() -> state`: the cache of a layer that holds one vector of each token, before this forward pass.
    Latents = "latents" {
        /// Which layer.
        layer: u32,
        /// Elements of a vector.
        width: u32,
    }
    /// `append_latent(state, x f32[R, width]) -> state`: each row's vector enters at its position.
    AppendLatent = "append_latent" {}
    /// `latent_attention(q f32[R, heads * width], state) -> f32[R, heads * value]`: causal softmax attention in which a token's vector is
    /// the key of every head, and its first `value` elements the value.
    LatentAttention = "latent_attention" {
        /// Query heads.
        heads: u32,
        /// Elements of a value.
        value: u32,
        /// Factor of the scores.
        scale: f32,
        /// What it computes in.
        compute: Computes,
    }
    /// `carried() -> state`: what a recurrent layer carries on from token to token, before this forward pass.
    Carried = "carried" {
        /// Which layer.
        layer: u32,
        /// Numbers that it carries.
        width: u32,
    }
    /// `history(x f32[R, n], state) -> f32[R, taps * n]`: each row, and behind it those of the `taps - 1` tokens before it, the latest
    /// first; zeros stand for tokens before the first one. The state carries `(taps - 1) * n` numbers, in the same order.
    History = "history" {
        /// Rows that stand side by side.
        taps: u32,
    }
    /// `carry(state, x f32[R, m]) -> state`: what is carried on from a row are its first `width` numbers.
    Carry = "carry" {
        /// Numbers that the state carries.
        width: u32,
    }
    /// `depthwise(x f32[R, taps * n], w f32[n, taps]) -> f32[R, n]`: a sum over the taps for each of the n columns. As convolutions
    /// store it, the last weight of a column is that of the first tap.
    Depthwise = "depthwise" {}
    /// `full_attention(q f32[R, heads * d], state [, bias f32[2 m - 1, heads]]) -> f32[R, heads * d]`: softmax attention of each row over its
    /// whole sequence, which this pass must hold from the first token to the last. Row `m - 1 + j - i` of the bias is added to the scaled
    /// scores of position j in row i; m is at least the context in whole blocks of the cache.
    FullAttention = "full_attention" {
        /// Query heads.
        heads: u32,
        /// Key and value heads.
        kv_heads: u32,
        /// Factor of the scores.
        scale: f32,
        /// How far from its own a row sees positions on either side; all of them where there is none.
        reach: Option<u32>,
        /// What it computes in.
        compute: Computes,
    }
    /// `unary(a) -> same`: a scalar function of each element.
    Unary = "unary" {
        /// Which function.
        kind: UnaryKind,
    }
    /// `binary(a, b) -> same`: a scalar function of each pair of elements.
    Binary = "binary" {
        /// Which function.
        kind: BinaryKind,
    }
    /// `select_rows(x f32[R, n], rows i32[L]) -> f32[L, n]`: the rows whose logits are wanted.
    SelectRows = "select_rows" {}
    /// `pool(x f32[R, n], rows i32[L]) -> f32[L, n]`: for each wanted row, its sequence's rows of this pass up to it become one.
    Pool = "pool" {
        /// How.
        kind: PoolKind,
    }
    /// `output(logits f32[L, V], state…) -> ()`: what a forward pass leaves behind.
    Output = "output" {}
    /// `add_rms_norm(a f32[R, n], b f32[R, n], w f32[n]) -> (f32[R, n], f32[R, n])`: `s = a + b` and its RMS norm.
    AddRmsNorm = "add_rms_norm" {
        /// Added to the mean square.
        eps: f32,
    }
    /// `rope_append(qkv f32[R, (heads + 2 kv_heads) * d], table f32[R, m], state) -> (f32[R, heads * d], state)`:
    /// rotates queries and keys, appends keys and values.
    RopeAppend = "rope_append" {
        /// Which elements are pairs.
        style: RopeStyle,
        /// Query heads.
        heads: u32,
        /// Key and value heads.
        kv_heads: u32,
    }
    /// `pointwise(operands…) -> same`: a cluster of scalar functions in one pass; the last instruction is the result.
    Pointwise = "pointwise" {
        /// Instructions in order.
        body: Vec<Scalar>,
    }
}

impl Op {
    /// What it computes in, where that is declared.
    pub fn computes(&self) -> Option<Computes> {
        match self {
            Op::Linear { compute, .. }
            | Op::GroupedLinear { compute, .. }
            | Op::Attention { compute, .. }
            | Op::FullAttention { compute, .. }
            | Op::LatentAttention { compute, .. } => Some(*compute),
            _ => None,
        }
    }

    /// The attribute that declares it.
    pub fn computes_mut(&mut self) -> Option<&mut Computes> {
        match self {
            Op::Linear { compute, .. }
            | Op::GroupedLinear { compute, .. }
            | Op::Attention { compute, .. }
            | Op::FullAttention { compute, .. }
            | Op::LatentAttention { compute, .. } => Some(compute),
            _ => None,
        }
    }

    /// The layer whose state this is, before the forward pass.
    pub fn state_of(&self) -> Option<u32> {
        match self {
            Op::State { layer, .. } | Op::Latents { layer, .. } | Op::Carried { layer, .. } => Some(*layer),
            _ => None,
        }
    }

    /// Whether it gives the next version of a state.
    pub fn advances_state(&self) -> bool {
        matches!(self, Op::Append { .. } | Op::RopeAppend { .. } | Op::AppendLatent {} | Op::Carry { .. })
    }
}
