//! Integer linears by `sdot`: each 32-bit lane gains the products of four bytes, and an atom is four such operands.

use super::QUARTERS;
use super::codes::{RunBytes, SignedBytes};
use super::int8::int8_kernel;
use super::neon::{combine, load16, store16};
use crate::linear::Lane;
use bessemer_format::PanelLayout;
use bessemer_format::act::Int8Layout;
use bessemer_format::panel::K_STEP;
use std::arch::aarch64::*;
use std::arch::asm;

int8_kernel!("neon,dotprod", self::tile);

/// Adds 16 elements along k of `ROWS` rows times a panel to `isum`.
///
/// # Safety
/// The run has that step as [`RunBytes::atom`] says, and 16 codes of each row are readable from `x`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn add_step<const BITS: u32, const ROWS: usize>(
    codes: &RunBytes<BITS>,
    step: usize,
    x: *const u8,
    row_bytes: usize,
    isum: &mut [[int32x4_t; QUARTERS]; ROWS],
) {
    // SAFETY: the caller promises what is read.
    unsafe {
        let mut x_codes = [vdupq_n_s8(0); ROWS];
        for row in 0..ROWS {
            x_codes[row] = vld1q_s8(x.add(row * row_bytes).cast());
        }
        add_atom::<ROWS, 0>(codes.atom(step, 0), &x_codes, isum);
        add_atom::<ROWS, 1>(codes.atom(step, 1), &x_codes, isum);
        add_atom::<ROWS, 2>(codes.atom(step, 2), &x_codes, isum);
        add_atom::<ROWS, 3>(codes.atom(step, 3), &x_codes, isum);
    }
}

/// Adds an atom times the codes `4 * I ..` of every row.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_atom<const ROWS: usize, const I: usize>(
    w: [int8x16_t; QUARTERS],
    x: &[int8x16_t; ROWS],
    isum: &mut [[int32x4_t; QUARTERS]; ROWS],
) {
    for row in 0..ROWS {
        for q in 0..QUARTERS {
            isum[row][q] = sdot::<I>(isum[row][q], w[q], x[row]);
        }
    }
}

/// The sums are in place already.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn by_rows<const ROWS: usize>(_: &mut [[int32x4_t; QUARTERS]; ROWS]) {}

/// `sum[l] + w[4 * l ..][..4] . x[4 * LANE ..][..4]` for each of four lanes. The intrinsic is not in stable Rust yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn sdot<const LANE: usize>(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction is of the features that the function needs; it reads and writes the named registers only.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
