//! The blocks of GGUF, as `ggml-common.h` lays them out and `dequantize_row_*` of `ggml-quants.c` read them.
//!
//! Every block goes into [`Rows`] as the numbers that it stores. Minima of K-quants are subtracted there and added here, so the
//! sign goes to their outer scale.

use super::Stored;
use bessemer_format::ScaleType;
use bessemer_format::rows::Rows;
use bessemer_format::scheme::{E2M1_HALVES, IQ4_CODEBOOK};

/// Appends one block, whose length is that of its encoding.
pub(super) fn decode(stored: Stored, b: &[u8], out: &mut Rows) {
    match stored {
        Stored::F32 | Stored::F16 | Stored::Bf16 => {}
        Stored::Q4_0 => {
            out.scales.push(half(b));
            nibbles(&b[2..], &mut out.codes, f32::from);
        }
        Stored::Q4_1 => {
            out.scales.push(half(b));
            out.offsets.push(half(&b[2..]));
            nibbles(&b[4..], &mut out.codes, f32::from);
        }
        Stored::Q5_0 => {
            out.scales.push(half(b));
            five_bits(&b[2..6], &b[6..], &mut out.codes);
        }
        Stored::Q5_1 => {
            out.scales.push(half(b));
            out.offsets.push(half(&b[2..]));
            five_bits(&b[4..8], &b[8..], &mut out.codes);
        }
        Stored::Q8_0 => {
            out.scales.push(half(b));
            out.codes.extend(b[2..].iter().map(|c| f32::from(*c as i8)));
        }
        Stored::Q2K => {
            let (scales, rest) = b.split_at(16);
            out.scales.extend(scales.iter().map(|s| f32::from(s & 15)));
            out.offsets.extend(scales.iter().map(|s| f32::from(s >> 4)));
            outer(&rest[64..], out);
            out.codes.extend((0..256).map(|e| f32::from(pair(rest, e))));
        }
        Stored::Q3K => {
            let (high, rest) = b.split_at(32);
            let (codes, rest) = rest.split_at(64);
            out.scales.extend((0..16).map(|i| f32::from(six_bits(rest, i)) - 32.0));
            out.outer_scales.push(half(&rest[12..]));
            out.codes.extend((0..256).map(|e| {
                let high = high[e % 32] >> (e / 32) & 1;
                f32::from(pair(codes, e) | high << 2)
            }));
        }
        Stored::Q4K => {
            outer(b, out);
            scales_and_minima(&b[4..16], out);
            b[16..].chunks_exact(32).for_each(|codes| nibbles(codes, &mut out.codes, f32::from));
        }
        Stored::Q5K => {
            outer(b, out);
            scales_and_minima(&b[4..16], out);
            let (high, codes) = b[16..].split_at(32);
            out.codes.extend((0..256).map(|e| {
                let low = codes[e / 64 * 32 + e % 32] >> (e / 32 % 2 * 4) & 15;
                f32::from(low | (high[e % 32] >> (e / 32) & 1) << 4)
            }));
        }
        Stored::Q6K => {
            let (low, rest) = b.split_at(128);
            let (high, rest) = rest.split_at(64);
            out.scales.extend(rest[..16].iter().map(|s| f32::from(*s as i8)));
            out.outer_scales.push(half(&rest[16..]));
            out.codes.extend((0..256).map(|e| {
                // Of each half the first 64 codes have their low bits in low nibbles, the next 64 in high ones.
                let (h, e) = (e / 128, e % 128);
                let low = low[h * 64 + e % 64] >> (e / 64 * 4) & 15;
                f32::from(low | (high[h * 32 + e % 32] >> (e / 32 * 2) & 3) << 4)
            }));
        }
        Stored::Iq4Nl => {
            out.scales.push(half(b));
            nibbles(&b[2..], &mut out.codes, |c| f32::from(IQ4_CODEBOOK[usize::from(c)]));
        }
        Stored::Iq4Xs => {
            out.outer_scales.push(half(b));
            let high = u16::from_le_bytes([b[2], b[3]]);
            out.scales.extend((0..8).map(|i| {
                let low = u16::from(b[4 + i / 2] >> (i % 2 * 4) & 15);
                f32::from(low | (high >> (2 * i) & 3) << 4) - 32.0
            }));
            for codes in b[8..].chunks_exact(16) {
                nibbles(codes, &mut out.codes, |c| f32::from(IQ4_CODEBOOK[usize::from(c)]));
            }
        }
        Stored::Mxfp4 => {
            out.scales.push(ScaleType::E8M0.read(b));
            // ggml's table is of integers: it has no minus zero.
            nibbles(&b[1..], &mut out.codes, |c| f32::from(E2M1_HALVES[usize::from(c)]) * 0.5);
        }
    }
}

fn half(b: &[u8]) -> f32 {
    ScaleType::F16.read(b)
}

/// The low nibbles of all bytes, then the high ones.
fn nibbles(bytes: &[u8], out: &mut Vec<f32>, number: impl Fn(u8) -> f32) {
    out.extend(bytes.iter().map(|b| number(b & 15)));
    out.extend(bytes.iter().map(|b| number(b >> 4)));
}

/// 32 codes whose highest bits lie in four bytes, in the order of the codes.
fn five_bits(high: &[u8], low: &[u8], out: &mut Vec<f32>) {
    out.extend((0..32).map(|e| {
        let low = low[e % 16] >> (e / 16 * 4) & 15;
        f32::from(low | (high[e / 8] >> (e % 8) & 1) << 4)
    }));
}

/// The two bits of element `e` of 256: of each half, 32 bytes hold four runs of 32 elements, the first in the lowest bits.
fn pair(codes: &[u8], e: usize) -> u8 {
    codes[e / 128 * 32 + e % 32] >> (e / 32 % 4 * 2) & 3
}

/// The outer scale of scales and that of minima.
fn outer(b: &[u8], out: &mut Rows) {
    out.outer_scales.push(half(b));
    out.outer_offsets.push(-half(&b[2..]));
}

/// Eight scales and eight minima of 6 bits: the first four of each in the low bits of bytes 0..4 and 4..8, the low nibbles of the others
/// in bytes 8..12, their high bits in the top of bytes 0..4 and 4..8.
fn scales_and_minima(b: &[u8], out: &mut Rows) {
    for i in 0..4 {
        out.scales.push(f32::from(b[i] & 63));
        out.offsets.push(f32::from(b[i + 4] & 63));
    }
    for i in 0..4 {
        out.scales.push(f32::from(b[i + 8] & 15 | b[i] >> 6 << 4));
        out.offsets.push(f32::from(b[i + 8] >> 4 | b[i + 4] >> 6 << 4));
    }
}

/// Scale `i` of 16 of 6 bits: low nibbles in bytes 0..8, of the last eight the high ones there; two high bits in bytes 8..12.
fn six_bits(b: &[u8], i: usize) -> u8 {
    b[i % 8] >> (i / 8 * 4) & 15 | (b[8 + i % 4] >> (i / 4 * 2) & 3) << 4
}
