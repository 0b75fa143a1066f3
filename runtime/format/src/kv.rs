//! Where keys and values lie inside a block of the KV cache.
//!
//! A block holds [`TOKENS`] tokens of every layer. For one layer: all keys, then all values, each a sequence of heads.
//! Within a head both are stored as panels of the matrix product that attention is, so that no kernel shuffles:
//!
//! ```text
//! keys    [token / 16][d / 2][token % 16][d % 2]      a panel with tokens as columns and d as k
//! values  [token / 2][d][token % 2]                   panels with d as columns and tokens as k
//! ```
//!
//! The element type (bf16 or f32) is the user's choice at run time; indices below count elements, so they hold for both.

/// Tokens of a block.
pub const TOKENS: usize = 32;
/// Token columns of a key panel.
pub const COLUMNS: usize = 16;

/// Element index of key `(token, d)` from the start of its head.
pub const fn key(head_dim: usize, token: usize, d: usize) -> usize {
    (token / COLUMNS) * COLUMNS * head_dim + (d / 2) * COLUMNS * 2 + (token % COLUMNS) * 2 + d % 2
}

/// Element index of value `(token, d)` from the start of its head.
pub const fn value(head_dim: usize, token: usize, d: usize) -> usize {
    (token / 2) * head_dim * 2 + d * 2 + token % 2
}

/// Elements of one head's keys (or values) in a block.
pub const fn head_elems(head_dim: usize) -> usize {
    TOKENS * head_dim
}

/// Elements of a layer in a block that holds one vector of each token ([`crate::plan::Attention::latent`]): as the keys of one head.
pub const fn latent_elems(width: usize) -> usize {
    head_elems(width)
}

/// Elements of one layer in a block: keys of all heads, then values of all heads.
pub const fn layer_elems(kv_heads: usize, head_dim: usize) -> usize {
    2 * kv_heads * head_elems(head_dim)
}
