//! Linears in bfloat16.

use super::{FEW_ROWS, Lane, LinearF32, MAX_TILE_ROWS, PAIR_ROWS, TILE_ROWS, panel_of};
use crate::Isa;
use bessemer_format::PanelLayout;
use bessemer_format::act::Bf16Layout;
use bessemer_format::panel::COLUMNS;
use std::ops::Range;

/// Arguments: layout, panel (exactly `panel_bytes`), activation rows, one output a row.
///
/// # Safety
/// The host runs the kernel's instruction set, the kernel's family covers the layout's scheme,
/// `panel.len() == layout.panel_bytes()`, and `x.len() == out.len() * native_row_bytes` of the [`Bf16Layout`] for the layout's k.
pub(crate) type LinearNativeFn = unsafe fn(&PanelLayout, &[u8], &[u8], &mut [Lane]);

/// As [`LinearNativeFn`] for two panels of one layout and the same activations.
///
/// # Safety
/// That of [`LinearNativeFn`] for either panel; both outputs are equally long.
pub(crate) type LinearNativePairFn = unsafe fn(&PanelLayout, [&[u8]; 2], &[u8], [&mut [Lane]; 2]);

/// Arguments: one row of floats, as many numbers of the kernel's form.
///
/// # Safety
/// The host runs the kernel's instruction set, and the slices hold equally many numbers.
pub(crate) type RoundBf16Fn = unsafe fn(&[f32], &mut [u8]);

/// A linear with activations rounded to bfloat16: [`Compute::Bf16`](bessemer_format::Compute::Bf16).
///
/// What weights dequantise to is rounded too, which changes nothing for weights that are bfloat16. Products are accumulated
/// in f32; the order of additions is the kernel's, so results of different instruction sets differ within the rounding bound.
/// The result of a row never depends on other rows. [`RoundBf16`] of the same set fills the rows that it reads.
#[derive(Clone, Debug)]
pub enum LinearBf16 {
    /// By an instruction that multiplies pairs of bfloat16.
    Native(LinearNative),
    /// By products of f32, of numbers that bfloat16 holds. For weights that are bfloat16 this is the kernel of f32 linears.
    Widened(LinearF32),
}

/// A linear that reads rows of bfloat16.
#[derive(Clone, Debug)]
pub struct LinearNative {
    pub(crate) layout: PanelLayout,
    pub(crate) isa: Isa,
    pub(crate) kernel: LinearNativeFn,
    /// The kernel of two panels, where it is faster than two calls.
    pub(crate) pair: Option<LinearNativePairFn>,
}

impl LinearBf16 {
    /// The layout of the weights.
    pub fn layout(&self) -> &PanelLayout {
        match self {
            Self::Native(linear) => linear.layout(),
            Self::Widened(linear) => linear.layout(),
        }
    }

    /// The instruction set of the kernel (older than its set's where the scheme has no newer one).
    pub fn isa(&self) -> Isa {
        match self {
            Self::Native(linear) => linear.isa(),
            Self::Widened(linear) => linear.isa(),
        }
    }
}

impl LinearNative {
    /// The layout of the weights.
    pub fn layout(&self) -> &PanelLayout {
        &self.layout
    }

    /// Bytes from one row of activations to the next.
    pub fn row_bytes(&self) -> usize {
        Bf16Layout { k: self.layout.k() }.native_row_bytes()
    }

    /// The instruction set of the kernel.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Rows of the largest tile, at most [`MAX_TILE_ROWS`]. AMX multiplies so fast that many rows have to share what it costs to
    /// dequantise a panel.
    pub fn tile_rows(&self) -> usize {
        if self.isa == Isa::Amx { MAX_TILE_ROWS } else { TILE_ROWS }
    }

    /// One tile: `out[i]` becomes row `i` of `x` times panel `panel` of `weight` (a whole packed matrix). `x` holds
    /// exactly the tile's rows, as [`RoundBf16::row`] fills them.
    ///
    /// # Panics
    /// If `weight` or `x` has another length than the shapes say, or `panel` is out of range.
    #[inline]
    pub fn tile(&self, weight: &[u8], panel: usize, x: &[u8], out: &mut [Lane]) {
        self.check(x, out);
        let panel = panel_of(&self.layout, weight, panel);
        // SAFETY: a kernel is only handed out by a `KernelSet`, which exists only for what the host runs and picks by family;
        // the lengths were checked above.
        unsafe { (self.kernel)(&self.layout, panel, x, out) }
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
                unsafe { pair(&self.layout, panels, x, [a, b]) }
            }
            _ => {
                self.tile(of[0].0, of[0].1, x, a);
                self.tile(of[1].0, of[1].1, x, b);
            }
        }
    }

    fn check(&self, x: &[u8], out: &[Lane]) {
        let needed = out.len().checked_mul(self.row_bytes());
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
        match x.len() / self.row_bytes() {
            ..=FEW_ROWS => self.each_tile::<FEW_ROWS>(weight, panels, x, finished),
            rows if rows > TILE_ROWS && self.tile_rows() > TILE_ROWS => {
                self.each_tile::<MAX_TILE_ROWS>(weight, panels, x, finished);
            }
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
        let row_bytes = self.row_bytes();
        let mut tiles = [[[0.0; COLUMNS]; ROWS]; 2];
        for (i, x) in x.chunks(ROWS * row_bytes).enumerate() {
            let [a, b] = tiles.each_mut().map(|tile| &mut tile[..x.len() / row_bytes]);
            let first = i * ROWS;
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

/// How a [`KernelSet`](crate::KernelSet) reads activations that were rounded to bfloat16: one of the forms of [`Bf16Layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bf16Form {
    /// bfloat16, for [`LinearBf16::Native`].
    Native,
    /// f32, for [`LinearBf16::Widened`].
    Widened,
}

/// Rounds activations to bfloat16 for [`LinearBf16`], by [`round_bf16`](bessemer_format::scheme::round_bf16). The numbers are the
/// same on every instruction set.
#[derive(Clone, Copy, Debug)]
pub struct RoundBf16 {
    pub(crate) isa: Isa,
    pub(crate) form: Bf16Form,
    pub(crate) kernel: RoundBf16Fn,
}

impl RoundBf16 {
    /// The instruction set of the kernel.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The form of the rows.
    pub fn form(&self) -> Bf16Form {
        self.form
    }

    /// Bytes from one row to the next, at most [`Bf16Layout::row_bytes`].
    pub fn row_bytes(&self, layout: &Bf16Layout) -> usize {
        match self.form {
            Bf16Form::Native => layout.native_row_bytes(),
            Bf16Form::Widened => layout.widened_row_bytes(),
        }
    }

    /// Fills one row of `layout` from the k floats of `x`. Every byte of `out` is written: those beyond k are zero.
    ///
    /// # Panics
    /// If `x` is not k elements or `out` not [`RoundBf16::row_bytes`] long.
    #[inline]
    pub fn row(&self, layout: &Bf16Layout, x: &[f32], out: &mut [u8]) {
        assert_eq!(x.len(), layout.k, "a row has k elements");
        assert_eq!(out.len(), self.row_bytes(layout), "an output row has row_bytes bytes");
        let bytes = match self.form {
            Bf16Form::Native => 2,
            Bf16Form::Widened => 4,
        };
        let (values, padding) = out.split_at_mut(bytes * x.len());
        // SAFETY: the kernel comes from a `KernelSet`, which exists only for what the host runs; `values` holds as many numbers
        // as `x`.
        unsafe { (self.kernel)(x, values) }
        padding.fill(0);
    }
}
