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
//! fp8    scale = max |x| / 448 * 2^(i/16) code = the nearest E4M3 number of x / scale
//! int4   scale = -(x of largest |x|) / 8  code = 8 + x / scale, rounded to even, at most 15
//! ```
//!
//! The error of a float is a share of it, so no scale is best for all: `i`, from 0 to 15, is the one that loses least.
//!
//! A few channels are most of a key, and of the queries that meet it: all others would share what steps they leave, and their own errors
//! would count most. So keys are coded *turned*: multiplied by a Hadamard matrix, which spreads every channel over all elements
//! (Ashkboos et al. 2024, "QuaRot"). A score stays what it was when the query is turned back by as much ([`turn`], [`turn_back`]). On
//! SmolLM2 that divides the divergence of int4 by 3.6, that of int8 by 3.9 and that of fp8, whose steps follow the size, by 1.3. Vectors
//! that are keys and values at once stay as they are.

use crate::manifest::KvElem;
use crate::scheme::{E4M3_NUMBERS, round_f16};

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
        KvElem::F16 | KvElem::Bf16 | KvElem::F32 => 1.0,
        KvElem::Int8 => extreme.abs() / 127.0,
        KvElem::Fp8 => fp8_scale(extreme.abs(), x),
        KvElem::Int4 => extreme / -8.0,
    }
}

/// The code of an element of a scaled type.
pub fn code(elem: KvElem, x: f32, scale: f32) -> u8 {
    let x = if scale == 0.0 { 0.0 } else { x / scale };
    match elem {
        KvElem::Fp8 => e4m3(x),
        KvElem::Int4 => (x.round_ties_even() + 8.0).clamp(0.0, 15.0) as u8,
        _ => (x.round_ties_even().clamp(-127.0, 127.0) as i8).cast_unsigned(),
    }
}

/// The scale of E4M3 numbers that loses least of `x`, whose largest size is `extreme`.
fn fp8_scale(extreme: f32, x: &[f32]) -> f32 {
    /// `2^(i/16)`.
    const STEPS: [f32; 16] = [
        1.0000000,
        1.0442738,
        1.0905077,
        1.1387886,
        1.1892071,
        1.2418578,
        1.2968396,
        1.3542555,
        std::f32::consts::SQRT_2,
        1.4768261,
        1.5422108,
        1.6104903,
        1.6817928,
        1.7562522,
        1.8340081,
        1.9152066,
    ];
    const LANES: usize = 16;
    let largest = extreme / 448.0;
    let lost = |scale: f32| {
        let inverse = 1.0 / scale;
        // Sums in lanes, so that a compiler makes vectors of the loop; their order is fixed.
        let mut sums = [0.0f32; LANES];
        let mut add = |lane: usize, x: f32| {
            let x = x * inverse;
            let error = x - three_bits(x);
            sums[lane] += error * error;
        };
        let (whole, rest) = x.as_chunks::<LANES>();
        whole.iter().for_each(|x| (0..LANES).for_each(|i| add(i, x[i])));
        rest.iter().enumerate().for_each(|(i, x)| add(i, *x));
        sums.iter().sum::<f32>() * scale * scale
    };
    let mut best = (f32::INFINITY, largest);
    for step in STEPS {
        let lost = lost(largest * step);
        if lost < best.0 {
            best = (lost, largest * step);
        }
    }
    best.1
}

/// A number of the normal range with three bits of mantissa, rounded to even.
#[inline(always)]
fn three_bits(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits.wrapping_add(0x7_ffff + (bits >> 20 & 1))) & !0xf_ffff)
}

/// The code of the E4M3 number nearest to `x`, of two equally near ones the even one; that of no number for none.
fn e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    if x.is_nan() {
        return 0x7f;
    }
    let x = x.abs().min(448.0);
    let magnitude = match x < 0.015625 {
        // Multiples of 2^-9; the eighth is the first normal number.
        true => (x * 512.0).round_ties_even() as u32,
        false => (three_bits(x).to_bits() >> 20) - (120 << 3),
    };
    sign | magnitude as u8
}

/// Elements that are turned together: as many as the largest power of two that heads are made of.
const fn turned(head_dim: usize) -> usize {
    head_dim & head_dim.wrapping_neg()
}

/// Multiplies the elements of a head by a Hadamard matrix of ones and minus ones.
pub fn turn(x: &mut [f32]) {
    let whole = turned(x.len());
    let mut half = 1;
    while half < whole {
        for pair in x.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            a.iter_mut().zip(b).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
        }
        half *= 2;
    }
}

/// The inverse of [`turn`], which is its own transpose too: of a query it makes the one that scores turned keys as the query scores keys.
pub fn turn_back(x: &mut [f32]) {
    turn(x);
    // A power of two: exact.
    let by = 1.0 / turned(x.len()).max(1) as f32;
    x.iter_mut().for_each(|x| *x *= by);
}

/// What a code of a scaled type is worth, before the scale.
pub fn number(elem: KvElem, code: u8) -> f32 {
    match elem {
        KvElem::Fp8 => E4M3_NUMBERS[usize::from(code)],
        KvElem::Int4 => f32::from(code) - 8.0,
        _ => f32::from(code.cast_signed()),
    }
}

/// A key of one token and head as a cache of `elem` holds it.
pub fn stored_key(elem: KvElem, x: &mut [f32]) {
    if elem.is_scaled() {
        turn(x);
        stored(elem, x);
        turn_back(x);
    } else {
        stored(elem, x);
    }
}

/// A value, or a vector that is key and value, of one token and head as a cache of `elem` holds it.
pub fn stored(elem: KvElem, x: &mut [f32]) {
    match elem {
        KvElem::F32 => {}
        KvElem::F16 => x.iter_mut().for_each(|x| *x = half::f16::from_bits(round_f16(*x)).to_f32()),
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
    use crate::scheme::Elem;

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
        }
    }

    #[test]
    fn turned_queries_score_turned_keys_alike() {
        let numbers = |seed: usize, n: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 37 + seed * 11) % 64) as f32 - 31.5).collect()
        };
        for d in [2, 64, 80, 96] {
            let (mut q, mut k) = (numbers(1, d), numbers(2, d));
            let dot = |q: &[f32], k: &[f32]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>();
            let (straight, before) = (dot(&q, &k), k.clone());
            turn_back(&mut q);
            turn(&mut k);
            assert!((dot(&q, &k) - straight).abs() < 1e-4 * straight.abs().max(1e3), "{d}");
            turn_back(&mut k);
            assert_eq!(k, before, "{d}");
        }
    }

    #[test]
    fn a_channel_that_stands_out_takes_no_steps_from_the_others() {
        let mut x: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 31.5) * 0.01).collect();
        x[5] = 4.0;
        let lost = |store: fn(KvElem, &mut [f32]), elem| {
            let mut y = x.clone();
            store(elem, &mut y);
            // Of the others: what a query sees that does not look at the one.
            let errors = x.iter().zip(&y).enumerate().filter(|(i, _)| *i != 5);
            errors.map(|(_, (x, y))| (x - y) * (x - y)).sum::<f32>()
        };
        for (elem, share) in [(KvElem::Int4, 0.5), (KvElem::Int8, 0.5)] {
            let (plain, turned) = (lost(stored, elem), lost(stored_key, elem));
            assert!(turned < share * plain, "{elem:?}: {turned} beside {plain}");
        }
    }

    #[test]
    fn codes_of_eight_bit_floats_are_the_nearest() {
        // Every number, what lies half way to the next, and beside it.
        for code in 0..0x7f_u8 {
            let next = E4M3_NUMBERS[usize::from(code) + 1];
            let number = E4M3_NUMBERS[usize::from(code)];
            let half = if next.is_nan() { number } else { (number + next) / 2.0 };
            for x in [number, half, half.next_up(), half.next_down()].into_iter().flat_map(|x| [x, -x]) {
                assert_eq!(E4M3_NUMBERS[usize::from(e4m3(x))], Elem::E4M3.nearest(x), "{x}");
            }
        }
        assert!(E4M3_NUMBERS[usize::from(e4m3(f32::NAN))].is_nan());
        assert_eq!(E4M3_NUMBERS[usize::from(e4m3(-1e9))], -448.0);
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
