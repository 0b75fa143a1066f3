//! Products of rows of activations with tiles of weights, in blocks of up to 32 rows by one panel or two. Two tiles of activations and
//! two of weights, each loaded once, make four products: so the loads, which come from the L2 cache, keep up with the products.

use super::tile::{self, load, multiply, store};
use crate::x86_64::prefetch;
use bessemer_format::panel::{COLUMNS, LINE};

/// Bytes of a tile of weights.
pub(super) const TILE: usize = tile::ROWS * LINE;

/// What is multiplied: bfloat16, summed in f32.
pub(super) const BF16: u8 = 0;
/// Signed bytes of activations and unsigned ones of weights, summed in i32.
pub(super) const BYTES: u8 = 1;

/// Sums of products that are being added up. `T` is a sum: of 32 bits, whose zero has none.
pub(super) struct Product<'a, 'b, const PANELS: usize, const OF: u8, T> {
    x: &'a [u8],
    row_bytes: usize,
    out: &'a mut [&'b mut [[T; COLUMNS]]; PANELS],
    /// Rows of the tiles of a block, as they are configured.
    configured: [usize; 2],
}

impl<'a, 'b, const PANELS: usize, const OF: u8, T: Default + Copy> Product<'a, 'b, PANELS, OF, T> {
    /// Of all rows of `x`, with sums of zero.
    pub(super) fn new(x: &'a [u8], row_bytes: usize, out: &'a mut [&'b mut [[T; COLUMNS]]; PANELS]) -> Self {
        const { assert!(size_of::<[T; COLUMNS]>() == LINE) };
        out.iter_mut().for_each(|out| out.fill([T::default(); COLUMNS]));
        Self { x, row_bytes, out, configured: [0; 2] }
    }

    /// Adds the products with `tiles` tiles of every panel, which are those from tile `first` on along k. `STREAMED` says that they
    /// come from memory.
    ///
    /// # Safety
    /// The host runs AMX. So many tiles are readable at `weights`, and tiles `first..first + tiles` of every row of activations exist.
    /// Sums are of the type that `OF` says.
    #[inline]
    #[target_feature(enable = "sse")]
    pub(super) unsafe fn add<const STREAMED: bool>(
        &mut self,
        weights: [*const u8; PANELS],
        first: usize,
        tiles: usize,
    ) {
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
                let out = self.out.each_mut().map(|out| out.as_mut_ptr().add(row).cast());
                match lower {
                    0 => block::<PANELS, OF, STREAMED, false>(weights, tiles, x, self.row_bytes, out),
                    _ => block::<PANELS, OF, STREAMED, true>(weights, tiles, x, self.row_bytes, out),
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
unsafe fn block<const PANELS: usize, const OF: u8, const STREAMED: bool, const LOWER: bool>(
    mut weights: [*const u8; PANELS],
    tiles: usize,
    mut x: *const u8,
    row_bytes: usize,
    out: [*mut [u8; LINE]; PANELS],
) {
    let lower = |out: *mut [u8; LINE]| out.wrapping_add(tile::ROWS);
    macro_rules! add {
        ($sum:tt, $x:tt, $weights:tt) => {
            match OF {
                BF16 => multiply!("tdpbf16ps", $sum, $x, $weights),
                _ => multiply!("tdpbsud", $sum, $x, $weights),
            }
        };
    }
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
            add!("tmm0", "tmm4", "tmm6");
            if PANELS == 2 {
                load!("tmm7", weights[1], LINE);
                add!("tmm1", "tmm4", "tmm7");
            }
            if LOWER {
                load!("tmm5", x.wrapping_add(tile::ROWS * row_bytes), row_bytes);
                add!("tmm2", "tmm5", "tmm6");
                if PANELS == 2 {
                    add!("tmm3", "tmm5", "tmm7");
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
