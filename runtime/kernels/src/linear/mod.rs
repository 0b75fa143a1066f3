//! Matrix products of activations with packed weights.
//!
//! `out[row][n] = sum over k of x[row][k] * W[n][k]`, by tiles of up to [`TILE_ROWS`] rows by the 16 output columns of
//! one panel. [`LinearF32`] dequantises weights in registers and accumulates in f32; [`LinearInt8`] multiplies
//! integer codes with activations that [`Quantise`] has rounded to signed bytes; [`LinearBf16`] multiplies in bfloat16.
//!
//! What happens to a finished tile (bias, residual, SwiGLU, storing) is the caller's: every `for_each` method hands
//! tiles to a closure. A tile always has 16 columns; those beyond n are exact zeros only if the activations are
//! finite, and are to be ignored.

mod bf16;
pub(crate) mod gate;
pub(crate) mod portable;
mod product;
pub(crate) mod store;

pub use bf16::{Bf16Form, LinearBf16, LinearNative, RoundBf16};
pub(crate) use bf16::{LinearNativeFn, LinearNativePairFn, RoundBf16Fn};
pub use gate::Gated;
pub(crate) use gate::GatedFn;
pub use product::Product;
pub(crate) use store::StoreFn;
pub use store::{Places, Store};

use crate::Isa;
use bessemer_format::act::Int8Layout;
use bessemer_format::panel::{COLUMNS, PanelLayout};
use std::ops::Range;

/// Rows of the largest tile that one kernel call computes. A multiple of every kernel's register block, and small
/// enough for the activations of a tile to stay in the L2 cache while the panels stream by.
pub const TILE_ROWS: usize = 120;

/// Rows of the largest tile of any kernel: see [`LinearNative::tile_rows`].
pub const MAX_TILE_ROWS: usize = 256;

/// So few rows have room for tiles of their own, since they do not wait until that for [`TILE_ROWS`] is cleared.
const FEW_ROWS: usize = 8;

/// From how many rows on two panels are multiplied in one call.
const PAIR_ROWS: usize = 4;

/// The 16 outputs of one row in one panel.
pub type Lane = [f32; COLUMNS];

/// Arguments: layout, panel (exactly `panel_bytes`), activations, row stride in elements, one output a row.
///
/// # Safety
/// The host runs the kernel's instruction set, the kernel's family covers the layout's scheme,
/// `panel.len() == layout.panel_bytes()`, and `x.len() >= (out.len() - 1) * stride + layout.k()`.
pub(crate) type LinearF32Fn = unsafe fn(&PanelLayout, &[u8], &[f32], usize, &mut [Lane]);

/// Arguments: layout, activation layout, panel (exactly `panel_bytes`), activation rows, one output a row.
///
/// # Safety
/// The host runs the kernel's instruction set, the kernel's family covers the layout's scheme, the activation layout
/// was made for the weight layout, `panel.len() == layout.panel_bytes()`, and
/// `x.len() == out.len() * act.row_bytes()`.
pub(crate) type LinearInt8Fn = unsafe fn(&PanelLayout, &Int8Layout, &[u8], &[u8], &mut [Lane]);

/// As [`LinearInt8Fn`] for two panels of one layout and the same activations.
///
/// # Safety
/// That of [`LinearInt8Fn`] for either panel; both outputs are equally long.
pub(crate) type LinearInt8PairFn = unsafe fn(&PanelLayout, &Int8Layout, [&[u8]; 2], &[u8], [&mut [Lane]; 2]);

/// Arguments: layout, one row of floats, one row of the layout.
///
/// # Safety
/// The host runs the kernel's instruction set, `x.len() == layout.k`, `out.len() == layout.row_bytes()`,
/// `layout.k <= layout.padded_k`, and the group and `padded_k` are multiples of 16 above 0.
pub(crate) type QuantiseFn = unsafe fn(&Int8Layout, &[f32], &mut [u8]);

/// A linear with f32 activations: [`Compute::F32`](bessemer_format::Compute::F32).
///
/// Weights are dequantised by [`QuantScheme::dequant`](bessemer_format::QuantScheme::dequant) and accumulated in f32;
/// the order of additions and whether they are fused with the multiplications is the kernel's, so results of
/// different instruction sets differ within the rounding bound. The result of a row never depends on other rows.
#[derive(Clone, Debug)]
pub struct LinearF32 {
    pub(crate) layout: PanelLayout,
    pub(crate) isa: Isa,
    pub(crate) kernel: LinearF32Fn,
}

/// Activations in f32: `rows` rows of k elements, `stride` elements from one to the next.
#[derive(Clone, Copy, Debug)]
pub struct RowsF32<'a> {
    /// The elements; the last row may end the slice at its k-th element.
    pub data: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Elements from one row to the next, at least k.
    pub stride: usize,
}

impl LinearF32 {
    /// The layout of the weights.
    pub fn layout(&self) -> &PanelLayout {
        &self.layout
    }

    /// The instruction set of the kernel (older than its set's where the scheme has no newer one).
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// One tile: `out[i]` becomes row `first_row + i` of `x` times panel `panel` of `weight` (a whole packed matrix).
    ///
    /// # Panics
    /// If `weight` or `x` is shorter than the shapes say, or `panel` or the rows are out of range.
    #[inline]
    pub fn tile(&self, weight: &[u8], panel: usize, x: RowsF32<'_>, first_row: usize, out: &mut [Lane]) {
        if out.is_empty() {
            return;
        }
        let (k, rows) = (self.layout.k(), out.len());
        assert!(rows <= x.rows && first_row <= x.rows - rows, "rows out of range");
        assert!(x.rows == 1 || x.stride >= k, "rows overlap");
        let x_tile = &x.data[first_row.saturating_mul(x.stride)..];
        let needed = (rows - 1).checked_mul(x.stride).and_then(|n| n.checked_add(k));
        assert!(needed.is_some_and(|n| n <= x_tile.len()), "activations shorter than their shape");
        let panel = panel_of(&self.layout, weight, panel);
        // SAFETY: a kernel is only handed out by a `KernelSet`, which exists only for what the host runs and picks
        // by family; the lengths were checked above.
        unsafe { (self.kernel)(&self.layout, panel, x_tile, x.stride, out) }
    }

    /// All rows by a range of panels, in an order that keeps activations in cache while weights stream:
    /// `finished(panel, first_row, tile)` is called once for every tile.
    pub fn for_each_tile(
        &self,
        weight: &[u8],
        panels: Range<usize>,
        x: RowsF32<'_>,
        finished: impl FnMut(usize, usize, &mut [Lane]),
    ) {
        match x.rows {
            ..=FEW_ROWS => self.each_tile::<FEW_ROWS>(weight, panels, x, finished),
            _ => self.each_tile::<TILE_ROWS>(weight, panels, x, finished),
        }
    }

    fn each_tile<const ROWS: usize>(
        &self,
        weight: &[u8],
        panels: Range<usize>,
        x: RowsF32<'_>,
        mut finished: impl FnMut(usize, usize, &mut [Lane]),
    ) {
        let mut out = [[0.0; COLUMNS]; ROWS];
        for first in (0..x.rows).step_by(ROWS) {
            let out = &mut out[..ROWS.min(x.rows - first)];
            for panel in panels.clone() {
                self.tile(weight, panel, x, first, out);
                finished(panel, first, out);
            }
        }
    }
}

/// A linear with activations rounded to signed bytes: [`Compute::Int8`](bessemer_format::Compute::Int8).
///
/// Bit-identical on every instruction set and for every number of rows. For each activation group `g` in ascending k,
/// with `w` the numbers of the weight codes in multiples of [`Elem::unit`](bessemer_format::Elem::unit), `scale_w` their scale
/// times that unit, `c` the constant offset (0 if none) and `q` the activation codes:
///
/// ```text
/// isum = sum of w * q - c * sums[g]                (i32, exact; wraps only for groups above 32768)
/// acc  = fma(isum as f32 * scale_w, scale_x[g], acc)
/// acc  = fma(offset_w, scale_x[g] * (sums[g] as f32), acc)      only with a floating-point offset or zero points
/// ```
#[derive(Clone, Debug)]
pub struct LinearInt8 {
    pub(crate) layout: PanelLayout,
    pub(crate) act: Int8Layout,
    pub(crate) isa: Isa,
    pub(crate) kernel: LinearInt8Fn,
    /// The kernel of two panels, where it is faster than two calls.
    pub(crate) pair: Option<LinearInt8PairFn>,
}

impl LinearInt8 {
    /// The layout of the weights.
    pub fn layout(&self) -> &PanelLayout {
        &self.layout
    }

    /// The layout of the activations.
    pub fn act(&self) -> &Int8Layout {
        &self.act
    }

    /// The instruction set of the kernel (older than its set's where the scheme has no newer one).
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// One tile: `out[i]` becomes row `i` of `x` times panel `panel` of `weight` (a whole packed matrix). `x` holds
    /// exactly the tile's rows, each [`Int8Layout::row_bytes`] long, as [`Quantise::row`] fills them.
    ///
    /// # Panics
    /// If `weight` or `x` has another length than the shapes say, or `panel` is out of range.
    #[inline]
    pub fn tile(&self, weight: &[u8], panel: usize, x: &[u8], out: &mut [Lane]) {
        self.check(x, out);
        let panel = panel_of(&self.layout, weight, panel);
        // SAFETY: a kernel is only handed out by a `KernelSet`, which exists only for what the host runs, picks by
        // family and makes the activation layout itself; the lengths were checked above.
        unsafe { (self.kernel)(&self.layout, &self.act, panel, x, out) }
    }

    /// Two tiles of the same rows, each `(weight, panel)` of this layout.
    ///
    /// # Panics
    /// If a weight or `x` has another length than the shapes say, or a panel is out of range.
    pub fn tiles(&self, of: [(&[u8], usize); 2], x: &[u8], [a, b]: [&mut [Lane]; 2]) {
        match self.pair {
            Some(pair) if a.len() >= PAIR_ROWS => {
                assert_eq!(a.len(), b.len(), "two tiles of the same rows");
                self.check(x, a);
                self.check(x, b);
                let panels = of.map(|(weight, panel)| panel_of(&self.layout, weight, panel));
                // SAFETY: as in `tile`.
                unsafe { pair(&self.layout, &self.act, panels, x, [a, b]) }
            }
            _ => {
                self.tile(of[0].0, of[0].1, x, a);
                self.tile(of[1].0, of[1].1, x, b);
            }
        }
    }

    fn check(&self, x: &[u8], out: &[Lane]) {
        let needed = out.len().checked_mul(self.act.row_bytes());
        assert_eq!(Some(x.len()), needed, "activation bytes do not match the rows");
    }

    /// All rows of `x` by a range of panels, in an order that keeps activations in cache while weights stream:
    /// `finished(panel, first_row, tile)` is called once for every tile.
    pub fn for_each_tile(
        &self,
        weight: &[u8],
        panels: Range<usize>,
        x: &[u8],
        finished: impl FnMut(usize, usize, &mut [Lane]),
    ) {
        match x.len() / self.act.row_bytes() {
            ..=FEW_ROWS => self.each_tile::<FEW_ROWS>(weight, panels, x, finished),
            _ => self.each_tile::<TILE_ROWS>(weight, panels, x, finished),
        }
    }

    fn each_tile<const ROWS: usize>(
        &self,
        weight: &[u8],
        panels: Range<usize>,
        x: &[u8],
        mut finished: impl FnMut(usize, usize, &mut [Lane]),
    ) {
        let mut tiles = [[[0.0; COLUMNS]; ROWS]; 2];
        for (i, x) in x.chunks(ROWS * self.act.row_bytes()).enumerate() {
            let rows = x.len() / self.act.row_bytes();
            let first = i * ROWS;
            let [a, b] = tiles.each_mut().map(|tile| &mut tile[..rows]);
            let mut panels = panels.clone();
            while let Some(panel) = panels.next() {
                match panels.next() {
                    Some(next) => {
                        self.tiles([(weight, panel), (weight, next)], x, [&mut *a, &mut *b]);
                        finished(panel, first, a);
                        finished(next, first, b);
                    }
                    None => {
                        self.tile(weight, panel, x, a);
                        finished(panel, first, a);
                    }
                }
            }
        }
    }
}

/// Rounds activations to signed bytes for [`LinearInt8`], by
/// [`quantise_int8`](bessemer_format::scheme::quantise_int8) group by group. Bit-identical on every instruction set.
#[derive(Clone, Copy, Debug)]
pub struct Quantise {
    pub(crate) isa: Isa,
    pub(crate) kernel: QuantiseFn,
}

impl Quantise {
    /// The instruction set of the kernel.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Fills one row of `layout` from the k floats of `x`. Every byte of `out` is written: codes and padding beyond k
    /// are zero. A group with a non-finite element gets a NaN scale and zero codes.
    ///
    /// # Panics
    /// If `x` is not k elements or `out` not [`Int8Layout::row_bytes`] long, or the layout is none that
    /// [`Int8Layout::new`] makes.
    #[inline]
    pub fn row(&self, layout: &Int8Layout, x: &[f32], out: &mut [u8]) {
        let ok = |n: usize| n > 0 && n.is_multiple_of(16);
        assert!(layout.k <= layout.padded_k && ok(layout.padded_k) && ok(layout.group), "{layout:?}");
        assert!(layout.groups() == layout.padded_k.div_ceil(layout.group), "{layout:?}");
        assert_eq!(x.len(), layout.k, "a row has k elements");
        assert_eq!(out.len(), layout.row_bytes(), "an output row has row_bytes bytes");
        // SAFETY: the kernel comes from a `KernelSet`, which exists only for what the host runs; the lengths and the
        // layout were checked above.
        unsafe { (self.kernel)(layout, x, out) }
        // Every instruction set multiplies alike, so that no kernel need know of the products.
        let (rows, products) = out.split_at_mut(layout.products_at());
        let numbers = |at: usize| rows[at..].chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
        let both = numbers(layout.scales_at()).zip(numbers(layout.sums_at()));
        for ((scale, sum), product) in both.zip(products.chunks_exact_mut(4).take(layout.groups())) {
            let value = f32::from_le_bytes(scale) * i32::from_le_bytes(sum) as f32;
            product.copy_from_slice(&value.to_le_bytes());
        }
    }
}

#[inline]
fn panel_of<'a>(layout: &PanelLayout, weight: &'a [u8], panel: usize) -> &'a [u8] {
    assert!(panel < layout.panels(), "panel {panel} of {}", layout.panels());
    &weight[panel * layout.panel_bytes()..][..layout.panel_bytes()]
}
