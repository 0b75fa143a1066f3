//! Linears in bfloat16.

use super::prefetch;
use crate::linear::{Lane, portable};
use bessemer_format::PanelLayout;
use bessemer_format::act::Bf16Layout;
use bessemer_format::panel::LINE;
use std::arch::x86_64::*;

/// Rows that share a weight. Two accumulators a row, for even and odd atoms, hide the latency when there is one row only; more
/// rows use the same two, so that a row's bits never depend on others.
const PAIRS_BLOCK: usize = 12;
/// As [`PAIRS_BLOCK`], with registers left for halves of operands.
const WIDENED_BLOCK: usize = 8;

/// [`crate::linear::LinearBf16Fn`] for every scheme: the portable kernel with newer vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(crate) fn any(layout: &PanelLayout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
    portable::linear_bf16(layout, panel, x, out);
}

/// [`crate::linear::RoundBf16Fn`]: the portable loop with newer vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(crate) fn round(x: &[f32], out: &mut [[u8; 2]]) {
    portable::round(x, out);
}

/// Adds the products of two elements along k with two bfloat16 activations, of which every lane holds the same.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn add_pairs(acc: __m512, weights: __m512i, x: __m512i) -> __m512 {
    // SAFETY: both are 64 bytes without a structure.
    let [weights, x] = [weights, x].map(|v| unsafe { std::mem::transmute::<__m512i, __m512bh>(v) });
    _mm512_dpbf16_ps(acc, weights, x)
}

/// As [`add_pairs`] on hosts without products of bfloat16: a number's bits are the high half of the same number in binary32.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_widened(acc: __m512, weights: __m512i, x: __m512i) -> __m512 {
    let even = |v| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v));
    let odd = |v| _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(-65536)));
    _mm512_fmadd_ps(odd(weights), odd(x), _mm512_fmadd_ps(even(weights), even(x), acc))
}

macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $tile:ident, $features:literal, $add:ident, $block:ident) => {
        $(#[$doc])*
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $name(layout: &PanelLayout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
            let row_bytes = Bf16Layout { k: layout.k() }.row_bytes();
            let mut first = 0;
            while first < out.len() {
                let rows = match out.len() - first {
                    $block.. => $block,
                    4.. => 4,
                    2.. => 2,
                    _ => 1,
                };
                let block = &mut out[first..first + rows];
                let x = &x[first * row_bytes..];
                // SAFETY: `block` is `rows` long, and so are the rows from `x` on; the rest is the caller's promise.
                unsafe {
                    match rows {
                        $block => $tile::<$block>(layout, panel, x, row_bytes, block),
                        4 => $tile::<4>(layout, panel, x, row_bytes, block),
                        2 => $tile::<2>(layout, panel, x, row_bytes, block),
                        _ => $tile::<1>(layout, panel, x, row_bytes, block),
                    }
                }
                first += rows;
            }
        }

        /// # Safety
        /// As [`crate::linear::LinearBf16Fn`] for weights of bfloat16, with `out.len() == ROWS` and rows of `row_bytes`.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $tile<const ROWS: usize>(
            layout: &PanelLayout,
            panel: &[u8],
            x: &[u8],
            row_bytes: usize,
            out: &mut [Lane],
        ) {
            let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
            let (mut weights, mut x) = (panel.as_ptr(), x.as_ptr());
            // An atom is a line of 2 k by 16 columns. Steps of 16 k make their number even.
            for _ in 0..layout.padded_k() / 4 {
                for i in 0..2 {
                    // SAFETY: panel and rows are padded to `padded_k` elements.
                    unsafe {
                        if ROWS == 1 {
                            prefetch(weights.add(i * LINE));
                        }
                        let w = _mm512_loadu_si512(weights.add(i * LINE).cast());
                        for row in 0..ROWS {
                            let pair = x.add(row * row_bytes + 4 * i).cast::<i32>().read_unaligned();
                            acc[row][i] = $add(acc[row][i], w, _mm512_set1_epi32(pair));
                        }
                    }
                }
                weights = weights.wrapping_add(2 * LINE);
                x = x.wrapping_add(8);
            }
            for (out, [even, odd]) in out.iter_mut().zip(acc) {
                // SAFETY: a lane is 16 floats.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_add_ps(even, odd)) };
            }
        }
    };
}

kernel! {
    /// [`crate::linear::LinearBf16Fn`] for bfloat16 with AVX-512 BF16: a line of weights is an operand as it lies.
    pairs, pairs_tile, "avx512f,avx512bw,avx512vl,avx512bf16", add_pairs, PAIRS_BLOCK
}
kernel! {
    /// [`crate::linear::LinearBf16Fn`] for bfloat16 without AVX-512 BF16.
    widened, widened_tile, "avx512f,avx512bw,avx512vl", add_widened, WIDENED_BLOCK
}
