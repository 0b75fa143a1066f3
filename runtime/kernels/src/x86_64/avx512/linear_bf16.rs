//! Linears in bfloat16, and what is rounded for them: by `vdpbf16ps` on pairs along k, or widened to f32 on hosts without it.

use super::prefetch;
use crate::linear::{Lane, portable};
use bessemer_format::PanelLayout;
use bessemer_format::act::Bf16Layout;
use bessemer_format::panel::LINE;
use std::arch::x86_64::*;

/// Rows that share a weight. Two accumulators a row and panel, for even and odd atoms, hide the latency when there is one row only;
/// more rows use the same two, so that a row's bits never depend on others.
const BLOCK: usize = 12;
/// As [`BLOCK`] for two panels, which share the broadcast activations: a load a product would be as many as there are ports.
const PAIR_BLOCK: usize = BLOCK / 2;

/// [`crate::linear::LinearBf16::Widened`] for every scheme: the portable kernel with newer vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(crate) fn any_widened(layout: &PanelLayout, panel: &[u8], x: &[f32], stride: usize, out: &mut [Lane]) {
    portable::linear_widened(layout, panel, x, stride, out);
}

/// [`crate::linear::RoundBf16Fn`] to f32: the portable loop with newer vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(crate) fn round_widened(x: &[f32], out: &mut [u8]) {
    portable::round_widened(x, out);
}

/// [`crate::linear::LinearNativeFn`] for every scheme: the portable kernel with newer vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(crate) fn any_native(layout: &PanelLayout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
    portable::linear_native(layout, panel, x, out);
}

/// [`crate::linear::RoundBf16Fn`] to bfloat16: the portable loop with newer vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(crate) fn round_native(x: &[f32], out: &mut [u8]) {
    portable::round_native(x, out);
}

/// [`crate::linear::LinearNativeFn`] for bfloat16: a line of weights is an operand as it lies.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn native(layout: &PanelLayout, panel: &[u8], mut x: &[u8], mut out: &mut [Lane]) {
    let row_bytes = Bf16Layout { k: layout.k() }.native_row_bytes();
    let mut stream = true;
    while !out.is_empty() {
        let rows = match out.len() {
            BLOCK.. => BLOCK,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let (block, rest) = out.split_at_mut(rows);
        // SAFETY: `block` is `rows` long, and so are the rows from `x` on; the rest is the caller's promise.
        unsafe {
            match rows {
                BLOCK => tile::<BLOCK, 1>(layout, [panel], x, [block], stream),
                4 => tile::<4, 1>(layout, [panel], x, [block], stream),
                2 => tile::<2, 1>(layout, [panel], x, [block], stream),
                _ => tile::<1, 1>(layout, [panel], x, [block], stream),
            }
        }
        x = &x[rows * row_bytes..];
        (out, stream) = (rest, false);
    }
}

/// [`crate::linear::LinearNativePairFn`] for bfloat16, with the bits of [`native`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn native_pair(
    layout: &PanelLayout,
    panels: [&[u8]; 2],
    mut x: &[u8],
    mut out: [&mut [Lane]; 2],
) {
    let row_bytes = Bf16Layout { k: layout.k() }.native_row_bytes();
    let mut stream = true;
    while !out[0].is_empty() {
        let rows = match out[0].len() {
            PAIR_BLOCK.. => PAIR_BLOCK,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let [(a, rest_a), (b, rest_b)] = out.map(|out| out.split_at_mut(rows));
        // SAFETY: the blocks are `rows` long, and so are the rows from `x` on; the rest is the caller's promise.
        unsafe {
            match rows {
                PAIR_BLOCK => tile::<PAIR_BLOCK, 2>(layout, panels, x, [a, b], stream),
                4 => tile::<4, 2>(layout, panels, x, [a, b], stream),
                2 => tile::<2, 2>(layout, panels, x, [a, b], stream),
                _ => tile::<1, 2>(layout, panels, x, [a, b], stream),
            }
        }
        x = &x[rows * row_bytes..];
        (out, stream) = ([rest_a, rest_b], false);
    }
}

/// # Safety
/// As [`crate::linear::LinearNativeFn`] for weights of bfloat16 and for every panel, with `ROWS` outputs each and at least as many rows
/// in `x`.
///
/// `stream`: whether these rows are the first that the panels meet, and fetch them for the others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile<const ROWS: usize, const PANELS: usize>(
    layout: &PanelLayout,
    panels: [&[u8]; PANELS],
    x: &[u8],
    out: [&mut [Lane]; PANELS],
    stream: bool,
) {
    let row_bytes = Bf16Layout { k: layout.k() }.native_row_bytes();
    let mut acc = [[[_mm512_setzero_ps(); 2]; PANELS]; ROWS];
    let mut weights = panels.map(<[u8]>::as_ptr);
    let mut x = x.as_ptr();
    // An atom is a line of 2 k by 16 columns. Steps of 16 k make their number even.
    for _ in 0..layout.padded_k() / 4 {
        for i in 0..2 {
            // SAFETY: panels and rows are padded to `padded_k` elements.
            unsafe {
                let w = weights.map(|panel| {
                    if stream {
                        prefetch(panel.add(i * LINE));
                    }
                    _mm512_loadu_si512(panel.add(i * LINE).cast())
                });
                for row in 0..ROWS {
                    let two = x.add(row * row_bytes + 4 * i).cast::<i32>().read_unaligned();
                    for panel in 0..PANELS {
                        acc[row][panel][i] =
                            add_products(acc[row][panel][i], w[panel], _mm512_set1_epi32(two));
                    }
                }
            }
        }
        weights = weights.map(|panel| panel.wrapping_add(2 * LINE));
        x = x.wrapping_add(8);
    }
    for (panel, out) in out.into_iter().enumerate() {
        for (out, acc) in out.iter_mut().zip(&acc) {
            let [even, odd] = acc[panel];
            // SAFETY: a lane is 16 floats.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_add_ps(even, odd)) };
        }
    }
}

/// Adds the products of two elements along k with two bfloat16 activations, of which every lane holds the same.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn add_products(acc: __m512, weights: __m512i, x: __m512i) -> __m512 {
    // SAFETY: both are 64 bytes without a structure.
    let [weights, x] = [weights, x].map(|v| unsafe { std::mem::transmute::<__m512i, __m512bh>(v) });
    _mm512_dpbf16_ps(acc, weights, x)
}
