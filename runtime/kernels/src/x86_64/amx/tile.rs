//! The instructions of AMX, one each. Their intrinsics are not in stable Rust yet.
//!
//! The eight tile registers keep their content from one instruction to the next although Rust knows nothing of them: they are
//! volatile across calls by the ABI, and a compiler gives them to functions with the feature `amx-tile` only, of which there are none.
//! Every function that configures tiles releases them before it returns.

use bessemer_format::panel::LINE;
use std::arch::asm;

/// Most rows of a tile; each has [`LINE`] bytes.
pub(super) const ROWS: usize = 16;
/// Elements of bfloat16 in a row of a tile.
pub(super) const BF16: usize = LINE / 2;

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Gives tile `i` so many rows of [`LINE`] bytes, and zeros in them.
///
/// # Safety
/// The host runs AMX, and no tile has more than [`ROWS`] rows.
pub(super) unsafe fn configure(tiles: [usize; 8]) {
    let mut config =
        Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    for (i, rows) in tiles.into_iter().enumerate().filter(|(_, rows)| *rows > 0) {
        config.rows[i] = rows as u8;
        config.row_bytes[i] = LINE as u16;
    }
    // SAFETY: 64 bytes of a valid configuration are read.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, preserves_flags, readonly)) };
}

/// Leaves the tiles as they were before the first [`configure`]: a thread that holds none is cheaper to switch to.
///
/// # Safety
/// The host runs AMX.
pub(super) unsafe fn release() {
    // SAFETY: only tiles change.
    unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
}

/// Loads a tile, `stride` bytes from row to row. For blocks of `unsafe`: the tile is configured and its rows are readable.
macro_rules! load {
    ($tile:tt, $from:expr, $stride:expr) => {
        std::arch::asm!(
            concat!("tileloadd ", $tile, ", [{from} + {stride}]"),
            from = in(reg) $from,
            stride = in(reg) $stride,
            out($tile) _,
            options(nostack, preserves_flags, readonly),
        )
    };
}
pub(super) use load;

/// Adds the products of two tiles to a tile of sums by the instruction of this name: row r and column c of `$sum` gets those of row r of
/// `$a` with what lies at column c of `$b`, in whose row i are elements 2i and 2i + 1 along k of bfloat16, or 4i to 4i + 3 of bytes. For
/// blocks of `unsafe`: all are configured, and fit.
macro_rules! multiply {
    ($name:literal, $sum:tt, $a:tt, $b:tt) => {
        std::arch::asm!(
            concat!($name, " ", $sum, ", ", $a, ", ", $b),
            out($sum) _,
            options(nostack, preserves_flags, nomem),
        )
    };
}
pub(super) use multiply;

/// Stores a tile to as many lines as it has rows, one behind the other or `stride` bytes from row to row. For blocks of `unsafe`: the tile
/// is configured and its lines are writable.
macro_rules! store {
    ($tile:tt, $to:expr) => {
        store!($tile, $to, bessemer_format::panel::LINE)
    };
    ($tile:tt, $to:expr, $stride:expr) => {
        std::arch::asm!(
            concat!("tilestored [{to} + {stride}], ", $tile),
            to = in(reg) $to,
            stride = in(reg) $stride,
            options(nostack, preserves_flags),
        )
    };
}
pub(super) use store;

/// Makes a tile zeros. For blocks of `unsafe`: it is configured.
macro_rules! zero {
    ($tile:tt) => {
        std::arch::asm!(concat!("tilezero ", $tile), out($tile) _, options(nostack, preserves_flags, nomem))
    };
}
pub(super) use zero;

const _: () = assert!(size_of::<Config>() == 64);
