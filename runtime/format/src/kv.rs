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
//! The element type is the user's choice at run time; indices below count elements, so they hold for all. Two elements of
//! four bits share a byte, the even one in its low half.
//!
//! Codes of a scaled type are followed, for each head, by the scales of the [`TOKENS`] tokens in f32. A scale belongs to a token
//! and head, so a token is stored once and never again touched by those that follow. With `x` the elements of a head:
//!
//! ```text
//! int8   scale = max |x| / 127            code = x / scale, rounded to even
//! fp8    scale = max |x| / 448            code = the nearest E4M3 number of x / scale
//! int4   scale = -(x of largest |x|) / 8  code = 8 + x / scale, rounded to even, at most 15
//! ```

use crate::manifest::KvElem;
use crate::scheme::{E4M3_NUMBERS, Elem};

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

/// Bytes of one head's keys (or values) in a block, their scales included.
pub const fn head_bytes(elem: KvElem, head_dim: usize) -> usize {
    let scales = if elem.is_scaled() { TOKENS * 4 } else { 0 };
    scales_at(elem, head_dim) + scales
}

/// Where the scales of a head's keys (or values) start: behind their codes.
pub const fn scales_at(elem: KvElem, head_dim: usize) -> usize {
    head_elems(head_dim) * elem.bits() / 8
}

/// The scale of a head's elements of one token; 1 where the type has none. NaN if one of them is.
pub fn scale(elem: KvElem, x: &[f32]) -> f32 {
    let mut extreme = 0.0f32;
    for &x in x {
        if x.is_nan() {
            return f32::NAN;
        }
        if x.abs() > extreme.abs() {
            extreme = x;
        }
    }
    match elem {
        KvElem::Bf16 | KvElem::F32 => 1.0,
        KvElem::Int8 => extreme.abs() / 127.0,
        KvElem::Fp8 => extreme.abs() / 448.0,
        KvElem::Int4 => extreme / -8.0,
    }
}

/// The code of an element of a scaled type.
pub fn code(elem: KvElem, x: f32, scale: f32) -> u8 {
    let x = if scale == 0.0 { 0.0 } else { x / scale };
    match elem {
        KvElem::Fp8 => Elem::E4M3.code(Elem::E4M3.nearest(x)).map_or(0x7f, |code| code as u8),
        KvElem::Int4 => (x.round_ties_even() + 8.0).clamp(0.0, 15.0) as u8,
        _ => (x.round_ties_even().clamp(-127.0, 127.0) as i8).cast_unsigned(),
    }
}

/// What a code of a scaled type is worth, before the scale.
pub fn number(elem: KvElem, code: u8) -> f32 {
    match elem {
        KvElem::Fp8 => E4M3_NUMBERS[usize::from(code)],
        KvElem::Int4 => f32::from(code) - 8.0,
        _ => f32::from(code.cast_signed()),
    }
}

/// Elements of a head of one token as a cache of `elem` holds them.
pub fn stored(elem: KvElem, x: &mut [f32]) {
    match elem {
        KvElem::F32 => {}
        KvElem::Bf16 => x.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32()),
        KvElem::Int8 | KvElem::Fp8 | KvElem::Int4 => {
            let scale = scale(elem, x);
            x.iter_mut().for_each(|x| *x = number(elem, code(elem, *x, scale)) * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_elements_are_as_near_as_their_type_allows() {
        let x: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 31.5) * 0.173).collect();
        let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        // Half a step of the grid; for E4M3, half a step of the largest binade.
        for (elem, bound) in
            [(KvElem::Int8, 0.5 / 127.0), (KvElem::Fp8, 16.0 / 448.0), (KvElem::Int4, 1.0 / 8.0)]
        {
            let mut y = x.clone();
            stored(elem, &mut y);
            for (x, y) in x.iter().zip(&y) {
                assert!((x - y).abs() <= bound * largest * 1.0001, "{elem:?}: {x} became {y}");
            }
            let mut again = y.clone();
            stored(elem, &mut again);
            let moved = y.iter().zip(&again).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(moved <= 1e-5 * largest, "{elem:?} is not stable: {moved}");
        }
    }

    #[test]
    fn zeros_stay_and_what_is_no_number_shows() {
        for elem in [KvElem::Int8, KvElem::Fp8, KvElem::Int4] {
            let mut zeros = [0.0; 8];
            stored(elem, &mut zeros);
            assert_eq!(zeros, [0.0; 8], "{elem:?}");
            for odd in [f32::NAN, f32::INFINITY] {
                let mut x = [1.0, odd, 2.0, 3.0];
                stored(elem, &mut x);
                assert!(!x[1].is_finite(), "{elem:?}: {x:?}");
            }
        }
    }
}
