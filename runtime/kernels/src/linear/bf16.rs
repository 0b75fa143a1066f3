//! Linears in bfloat16.

use super::{Lane, TILE_ROWS, panel_of};
use crate::Isa;
use bessemer_format::PanelLayout;
use bessemer_format::act::Bf16Layout;
use bessemer_format::panel::COLUMNS;
use std::ops::Range;

/// Arguments: layout, panel (exactly `panel_bytes`), activation rows, one output a row.
///
/// # Safety
/// The host runs the kernel's instruction set, the kernel's family covers the layout's scheme,
/// `panel.len() == layout.panel_bytes()`, and `x.len() == out.len() * row_bytes` of the [`Bf16Layout`] for the layout's k.
pub(crate) type LinearBf16Fn = unsafe fn(&PanelLayout, &[u8], &[u8], &mut [Lane]);

/// Arguments: one row of floats, as many numbers.
///
/// # Safety
/// The host runs the kernel's instruction set, and the slices are equally long.
pub(crate) type RoundBf16Fn = unsafe fn(&[f32], &mut [[u8; 2]]);

/// A linear with activations rounded to bfloat16: [`Compute::Bf16`](bessemer_format::Compute::Bf16).
///
/// What weights dequantise to is rounded too, which changes nothing for weights that are bfloat16. Products are accumulated
/// in f32; the order of additions is the kernel's, so results of different instruction sets differ within the rounding bound.
/// The result of a row never depends on other rows.
#[derive(Clone, Debug)]
pub struct LinearBf16 {
    pub(crate) layout: PanelLayout,
    pub(crate) isa: Isa,
    pub(crate) kernel: LinearBf16Fn,
}

impl LinearBf16 {
    /// The layout of the weights.
    pub fn layout(&self) -> &PanelLayout {
        &self.layout
    }

    /// The layout of the activations.
    pub fn act(&self) -> Bf16Layout {
        Bf16Layout { k: self.layout.k() }
    }

    /// The instruction set of the kernel (older than its set's where the scheme has no newer one).
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// One tile: `out[i]` becomes row `i` of `x` times panel `panel` of `weight` (a whole packed matrix). `x` holds
    /// exactly the tile's rows, each [`Bf16Layout::row_bytes`] long, as [`RoundBf16::row`] fills them.
    ///
    /// # Panics
    /// If `weight` or `x` has another length than the shapes say, or `panel` is out of range.
    #[inline]
    pub fn tile(&self, weight: &[u8], panel: usize, x: &[u8], out: &mut [Lane]) {
        let needed = out.len().checked_mul(self.act().row_bytes());
        assert_eq!(Some(x.len()), needed, "activation bytes do not match the rows");
        let panel = panel_of(&self.layout, weight, panel);
        // SAFETY: a kernel is only handed out by a `KernelSet`, which exists only for what the host runs and picks by family;
        // the lengths were checked above.
        unsafe { (self.kernel)(&self.layout, panel, x, out) }
    }

    /// All rows of `x` by a range of panels, in an order that keeps activations in cache while weights stream:
    /// `finished(panel, first_row, tile)` is called once for every tile.
    pub fn for_each_tile(
        &self,
        weight: &[u8],
        panels: Range<usize>,
        x: &[u8],
        mut finished: impl FnMut(usize, usize, &mut [Lane]),
    ) {
        let row_bytes = self.act().row_bytes();
        let mut out = [[0.0; COLUMNS]; TILE_ROWS];
        for (i, x) in x.chunks(TILE_ROWS * row_bytes).enumerate() {
            let out = &mut out[..x.len() / row_bytes];
            for panel in panels.clone() {
                self.tile(weight, panel, x, out);
                finished(panel, i * TILE_ROWS, out);
            }
        }
    }
}

/// Rounds activations to bfloat16 for [`LinearBf16`], by [`round_bf16`](bessemer_format::scheme::round_bf16). Bit-identical on
/// every instruction set.
#[derive(Clone, Copy, Debug)]
pub struct RoundBf16 {
    pub(crate) isa: Isa,
    pub(crate) kernel: RoundBf16Fn,
}

impl RoundBf16 {
    /// The instruction set of the kernel.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Fills one row of `layout` from the k floats of `x`. Every byte of `out` is written: those beyond k are zero.
    ///
    /// # Panics
    /// If `x` is not k elements or `out` not [`Bf16Layout::row_bytes`] long.
    #[inline]
    pub fn row(&self, layout: &Bf16Layout, x: &[f32], out: &mut [u8]) {
        assert_eq!(x.len(), layout.k, "a row has k elements");
        assert_eq!(out.len(), layout.row_bytes(), "an output row has row_bytes bytes");
        let (values, padding) = out.as_chunks_mut::<2>().0.split_at_mut(x.len());
        // SAFETY: the kernel comes from a `KernelSet`, which exists only for what the host runs; `values` is as long as `x`.
        unsafe { (self.kernel)(x, values) }
        padding.fill([0; 2]);
    }
}
