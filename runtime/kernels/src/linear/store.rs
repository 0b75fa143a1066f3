//! Finished tiles on their way to the rows of a buffer.

use super::Lane;
use crate::Isa;
use bessemer_format::panel::COLUMNS;

/// Arguments: tile, bias, residual, the place of each row, how many columns there are, and where columns begin in place 0.
///
/// # Safety
/// The host runs the kernel's instruction set; from each place on, `out` can be written and the residual (which may be the same memory)
/// be read for as many floats as there are columns, of which there are at most [`COLUMNS`]; there is a place for every row.
pub(crate) type StoreFn = unsafe fn(&[Lane], Option<&Lane>, Option<*const f32>, Places<'_>, usize, *mut f32);

/// Where the rows of a product begin in a buffer of floats, counted in elements.
#[derive(Clone, Copy, Debug)]
pub enum Places<'a> {
    /// One behind the other.
    Every {
        /// Where the first one begins.
        first: usize,
        /// Elements from one to the next.
        stride: usize,
    },
    /// Rows of a buffer of rows that are `width` wide.
    Listed {
        /// Which ones.
        rows: &'a [u32],
        /// Elements of each.
        width: usize,
    },
}

impl Places<'_> {
    /// Where a row begins.
    #[inline(always)]
    pub fn at(&self, row: usize) -> usize {
        match self {
            Self::Every { first, stride } => first + row * stride,
            Self::Listed { rows, width } => rows[row] as usize * width,
        }
    }

    /// The places of the rows from `row` on.
    #[inline]
    pub fn from(self, row: usize) -> Self {
        match self {
            Self::Every { first, stride } => Self::Every { first: first + row * stride, stride },
            Self::Listed { rows, width } => Self::Listed { rows: &rows[row..], width },
        }
    }
}

/// Stores tiles: `out = residual + (tile + bias)`, each of which may be missing. Bit-identical on every instruction set.
#[derive(Clone, Copy, Debug)]
pub struct Store {
    pub(crate) isa: Isa,
    pub(crate) kernel: StoreFn,
}

impl Store {
    /// The instruction set of the kernel.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Stores one tile of `columns` columns: row i from `places.at(i)` floats behind `out` on, after adding what lies there behind
    /// `residual`, which may be `out`.
    ///
    /// # Safety
    /// From each of the tile's places on, `columns` floats can be read behind `residual` and written behind `out`.
    ///
    /// # Panics
    /// If there are more columns than a tile has, or not a place for every row.
    #[inline]
    pub unsafe fn tile(
        &self,
        tile: &[Lane],
        bias: Option<&Lane>,
        residual: Option<*const f32>,
        places: Places<'_>,
        columns: usize,
        out: *mut f32,
    ) {
        assert!(columns <= COLUMNS, "{columns} columns of a tile");
        if let Places::Listed { rows, .. } = places {
            assert!(tile.len() <= rows.len(), "a place for every row");
        }
        // SAFETY: the kernel comes from a `KernelSet`, which exists only for what the host runs; columns and places were checked, the
        // memory is the caller's promise.
        unsafe { (self.kernel)(tile, bias, residual, places, columns, out) }
    }
}

/// [`StoreFn`] without vectors of any CPU.
///
/// # Safety
/// As there.
pub(crate) unsafe fn portable(
    tile: &[Lane],
    bias: Option<&Lane>,
    residual: Option<*const f32>,
    places: Places<'_>,
    columns: usize,
    out: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe { store(tile, bias, residual, places, columns, out, |_| {}) }
}

/// The body of every instruction set: each compiles it with its own vectors. `soon` is told what is stored soon, which need
/// not exist: the same rows of the panels that are multiplied next, whose lines are on their way while that is done.
///
/// # Safety
/// As [`StoreFn`].
#[inline(always)]
pub(crate) unsafe fn store(
    tile: &[Lane],
    bias: Option<&Lane>,
    residual: Option<*const f32>,
    places: Places<'_>,
    columns: usize,
    out: *mut f32,
    soon: impl Fn(*const f32),
) {
    let bias = bias.copied();
    for (i, lane) in tile.iter().enumerate() {
        let at = places.at(i);
        let mut sum = *lane;
        if let Some(bias) = bias {
            sum = std::array::from_fn(|i| sum[i] + bias[i]);
        }
        // SAFETY: the places can be read and written for so many columns, as the caller promises. All of a row is read before any of it
        // is written, as it may be the same memory.
        unsafe {
            if columns == COLUMNS {
                if let Some(residual) = residual {
                    let added = residual.add(at).cast::<Lane>().read_unaligned();
                    sum = std::array::from_fn(|i| sum[i] + added[i]);
                    soon(residual.wrapping_add(at + 2 * COLUMNS));
                }
                out.add(at).cast::<Lane>().write_unaligned(sum);
                soon(out.wrapping_add(at + 2 * COLUMNS));
            } else {
                for (i, sum) in sum.iter().enumerate().take(columns) {
                    let residual = residual.map(|residual| residual.add(at + i).read());
                    out.add(at + i).write(residual.map_or(*sum, |residual| sum + residual));
                }
            }
        }
    }
}
