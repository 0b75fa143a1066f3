//! Linears in bfloat16 by tiles. A panel of bfloat16 is a column of tiles as it lies: a line holds a pair along k of each of its 16 columns.
//! Any other weights are dequantised and rounded, a stretch of a panel at a time, to what such a panel would hold; many rows share that.
//!
//! A block is up to 32 rows by one panel or two. Two tiles of activations and two of weights, each loaded once, make four products: so the
//! loads, which come from the L2 cache, keep up with the products.

use super::dequant::{self, Stretch};
use super::tile::{self, load, multiply, store};
use crate::linear::Lane;
use crate::x86_64::prefetch;
use bessemer_format::PanelLayout;
use bessemer_format::act::Bf16Layout;
use bessemer_format::panel::{COLUMNS, K_STEP, LINE};

/// Bytes of a tile of weights.
const TILE: usize = tile::ROWS * LINE;

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
    let mut product = Product::new(layout, x, &mut out);
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
    let mut product = Product::new(layout, x, &mut out);
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

/// Sums of products that are being added up.
struct Product<'a, 'b, const PANELS: usize> {
    x: &'a [u8],
    row_bytes: usize,
    out: &'a mut [&'b mut [Lane]; PANELS],
    /// Rows of the tiles of a block, as they are configured.
    configured: [usize; 2],
}

impl<'a, 'b, const PANELS: usize> Product<'a, 'b, PANELS> {
    /// Of all rows of `x`, with sums of zero.
    fn new(layout: &PanelLayout, x: &'a [u8], out: &'a mut [&'b mut [Lane]; PANELS]) -> Self {
        out.iter_mut().for_each(|out| out.fill([0.0; COLUMNS]));
        let row_bytes = Bf16Layout { k: layout.k() }.native_row_bytes();
        Self { x, row_bytes, out, configured: [0; 2] }
    }

    /// Adds the products with `tiles` tiles of every panel, which are those from tile `first` on along k. `STREAMED` says that they
    /// come from memory.
    ///
    /// # Safety
    /// The host runs AMX. So many tiles are readable at `weights`, and tiles `first..first + tiles` of every row of activations exist.
    #[inline]
    #[target_feature(enable = "sse")]
    unsafe fn add<const STREAMED: bool>(&mut self, weights: [*const u8; PANELS], first: usize, tiles: usize) {
        let rows = self.out[0].len();
        for row in (0..rows).step_by(2 * tile::ROWS) {
            let upper = tile::ROWS.min(rows - row);
            let lower = tile::ROWS.min(rows - row - upper);
            // SAFETY: the tiles are configured for the rows of this block, which are there, as their outputs are.
            unsafe {
                if self.configured != [upper, lower] {
                    let weights = tile::ROWS;
                    tile::configure([upper, upper, lower, lower, upper, lower, weights, weights]);
                    self.configured = [upper, lower];
                }
                let x = self.x.as_ptr().add(row * self.row_bytes + first * LINE);
                let out = self.out.each_mut().map(|out| out.as_mut_ptr().add(row));
                match lower {
                    0 => block::<PANELS, STREAMED, false>(weights, tiles, x, self.row_bytes, out),
                    _ => block::<PANELS, STREAMED, true>(weights, tiles, x, self.row_bytes, out),
                }
            }
        }
    }
}

/// Adds the products of `tiles` tiles along k of some rows of activations with one panel or two to what `out` holds.
///
/// Sums are in tiles 0 and 1 (the upper rows) and 2 and 3 (the lower ones), activations in 4 and 5, weights in 6 and 7.
///
/// # Safety
/// The tiles are configured: 0, 1 and 4 for the upper rows, and if `LOWER` 2, 3 and 5 for those from the sixteenth on. The rows are
/// readable at `x`, `tiles` tiles at every one of `weights`, and the rows' outputs are at `out`.
#[inline(never)]
#[target_feature(enable = "sse")]
unsafe fn block<const PANELS: usize, const STREAMED: bool, const LOWER: bool>(
    mut weights: [*const u8; PANELS],
    tiles: usize,
    mut x: *const u8,
    row_bytes: usize,
    out: [*mut Lane; PANELS],
) {
    let lower = |out: *mut Lane| out.wrapping_add(tile::ROWS);
    // SAFETY: the caller's promises.
    unsafe {
        load!("tmm0", out[0], LINE);
        if PANELS == 2 {
            load!("tmm1", out[1], LINE);
        }
        if LOWER {
            load!("tmm2", lower(out[0]), LINE);
            if PANELS == 2 {
                load!("tmm3", lower(out[1]), LINE);
            }
        }
        for _ in 0..tiles {
            // Few rows wait for memory.
            if STREAMED && !LOWER {
                for panel in weights {
                    for line in 0..tile::ROWS {
                        prefetch(panel.wrapping_add(line * LINE));
                    }
                }
            }
            load!("tmm6", weights[0], LINE);
            load!("tmm4", x, row_bytes);
            multiply!("tmm0", "tmm4", "tmm6");
            if PANELS == 2 {
                load!("tmm7", weights[1], LINE);
                multiply!("tmm1", "tmm4", "tmm7");
            }
            if LOWER {
                load!("tmm5", x.wrapping_add(tile::ROWS * row_bytes), row_bytes);
                multiply!("tmm2", "tmm5", "tmm6");
                if PANELS == 2 {
                    multiply!("tmm3", "tmm5", "tmm7");
                }
            }
            weights = weights.map(|panel| panel.wrapping_add(TILE));
            x = x.wrapping_add(LINE);
        }
        store!("tmm0", out[0]);
        if PANELS == 2 {
            store!("tmm1", out[1]);
        }
        if LOWER {
            store!("tmm2", lower(out[0]));
            if PANELS == 2 {
                store!("tmm3", lower(out[1]));
            }
        }
    }
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
            multiply!("tmm0", "tmm4", "tmm6");
            multiply!("tmm1", "tmm4", "tmm7");
            multiply!("tmm2", "tmm5", "tmm6");
            multiply!("tmm3", "tmm5", "tmm7");
        }
        tile::release();
    }
    rounds * (4 * tile::ROWS * COLUMNS * tile::BF16) as u64
}
