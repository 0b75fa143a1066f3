//! Linears in bfloat16 by tiles. A panel of bfloat16 is a column of tiles as it lies: a line holds a pair along k of each of its 16 columns.
//! Any other weights are dequantised and rounded, a stretch of a panel at a time, to what such a panel would hold; many rows share that.

use super::dequant::{self, Stretch};
use super::product::{BF16, Product, TILE};
use super::tile::{self, load, multiply};
use crate::linear::Lane;
use bessemer_format::PanelLayout;
use bessemer_format::act::Bf16Layout;
use bessemer_format::panel::{COLUMNS, K_STEP, LINE};

/// Declares, for the elements of this name, a kernel of one panel and in `pair` one of two.
macro_rules! kernels {
    ($($name:ident: $kind:ident;)*) => {
        $(
            /// [`crate::linear::LinearNativeFn`] for the element of this name.
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512bf16,avx2,fma,f16c")]
            pub(crate) unsafe fn $name(layout: &PanelLayout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
                // SAFETY: the caller's promises are those of `dequantised`.
                unsafe { dequantised::<{ dequant::$kind }, 1>(layout, [panel], x, [out]) }
            }
        )*

        /// Kernels of two panels.
        pub(crate) mod pair {
            use super::*;

            /// [`crate::linear::LinearNativePairFn`] for bfloat16.
            #[target_feature(enable = "sse")]
            pub(crate) unsafe fn bf16(layout: &PanelLayout, panels: [&[u8]; 2], x: &[u8], out: [&mut [Lane]; 2]) {
                // SAFETY: the caller's promises are those of `stored`.
                unsafe { stored(layout, panels, x, out) }
            }

            $(
                /// [`crate::linear::LinearNativePairFn`] for the element of this name.
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512bf16,avx2,fma,f16c")]
                pub(crate) unsafe fn $name(layout: &PanelLayout, panels: [&[u8]; 2], x: &[u8], out: [&mut [Lane]; 2]) {
                    // SAFETY: the caller's promises are those of `dequantised`.
                    unsafe { dequantised::<{ dequant::$kind }, 2>(layout, panels, x, out) }
                }
            )*
        }
    };
}

kernels! {
    any: ANY;
    f16: F16;
    u2: U2;
    u3: U3;
    u4: U4;
    u5: U5;
    u6: U6;
    s8: S8;
    e4m3: E4M3;
    e5m2: E5M2;
}

/// [`crate::linear::LinearNativeFn`] for bfloat16.
#[target_feature(enable = "sse")]
pub(crate) unsafe fn bf16(layout: &PanelLayout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
    // SAFETY: the caller's promises are those of `stored`.
    unsafe { stored(layout, [panel], x, [out]) }
}

/// Panels of bfloat16, read where they lie.
///
/// # Safety
/// As [`crate::linear::LinearNativeFn`] for weights of bfloat16, for every panel and its output, all of which are equally long.
#[target_feature(enable = "sse")]
unsafe fn stored<const PANELS: usize>(
    layout: &PanelLayout,
    panels: [&[u8]; PANELS],
    x: &[u8],
    mut out: [&mut [Lane]; PANELS],
) {
    let whole = layout.padded_k() / tile::BF16;
    let row_bytes = Bf16Layout { k: layout.k() }.native_row_bytes();
    let mut product = Product::<PANELS, BF16, f32>::new(x, row_bytes, &mut out);
    // A step of 16 elements behind the last whole tile becomes one with zeros: behind the panel there may be nothing.
    let mut rest = [[0u8; TILE]; PANELS];
    for (rest, panel) in rest.iter_mut().zip(panels) {
        let left = &panel[whole * TILE..];
        rest[..left.len()].copy_from_slice(left);
    }
    // SAFETY: the panels have so many whole tiles, and the rows of activations are padded to whole ones.
    unsafe {
        product.add::<true>(panels.map(<[u8]>::as_ptr), 0, whole);
        if !layout.padded_k().is_multiple_of(tile::BF16) {
            product.add::<false>(rest.each_ref().map(|rest| rest.as_ptr()), whole, 1);
        }
        tile::release();
    }
}

/// Panels of any other element.
///
/// # Safety
/// As [`crate::linear::LinearNativeFn`] for weights of `KIND`, for every panel and its output, all of which are equally long.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512bf16,avx2,fma,f16c")]
unsafe fn dequantised<const KIND: u8, const PANELS: usize>(
    layout: &PanelLayout,
    panels: [&[u8]; PANELS],
    x: &[u8],
    mut out: [&mut [Lane]; PANELS],
) {
    let row_bytes = Bf16Layout { k: layout.k() }.native_row_bytes();
    let mut product = Product::<PANELS, BF16, f32>::new(x, row_bytes, &mut out);
    let mut stretches = [const { Stretch::new() }; PANELS];
    let steps = layout.padded_k() / K_STEP;
    for first in (0..steps).step_by(dequant::STEPS) {
        let some = first..steps.min(first + dequant::STEPS);
        // SAFETY: the steps exist, and the first of a stretch is the first of a tile; the rest is the caller's promise.
        unsafe {
            for (stretch, panel) in stretches.iter_mut().zip(panels) {
                dequant::fill::<KIND>(layout, panel, some.clone(), PANELS * layout.panel_bytes(), stretch);
            }
            let weights = stretches.each_ref().map(Stretch::tiles);
            let per_tile = tile::BF16 / K_STEP;
            product.add::<false>(weights, first / per_tile, some.len().div_ceil(per_tile));
        }
    }
    // SAFETY: the host runs AMX.
    unsafe { tile::release() };
}

/// Rounds of four independent products of tiles, for [`crate::peak`]. The caller has found AMX.
pub(crate) fn peak(rounds: u64) -> u64 {
    let ones = [0x3f80u16; TILE / 2];
    // SAFETY: all tiles are configured, and the operand is as large as one.
    unsafe {
        tile::configure([tile::ROWS; 8]);
        load!("tmm4", ones.as_ptr(), LINE);
        load!("tmm5", ones.as_ptr(), LINE);
        load!("tmm6", ones.as_ptr(), LINE);
        load!("tmm7", ones.as_ptr(), LINE);
        for _ in 0..rounds {
            multiply!("tdpbf16ps", "tmm0", "tmm4", "tmm6");
            multiply!("tdpbf16ps", "tmm1", "tmm4", "tmm7");
            multiply!("tdpbf16ps", "tmm2", "tmm5", "tmm6");
            multiply!("tdpbf16ps", "tmm3", "tmm5", "tmm7");
        }
        tile::release();
    }
    rounds * (4 * tile::ROWS * COLUMNS * tile::BF16) as u64
}
