//! Integer linears by `smmla`: two rows times two columns, eight elements along k at once. Two atoms zipped by 32 bits
//! are its operands for pairs of columns. A row that is alone would waste half of it and takes `sdot`; the bits are the
//! same.

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

int8_kernel!("neon,dotprod,i8mm", super::dotprod::tile);

/// Adds 16 elements along k of `ROWS` rows times a panel to `isum`, in which rows `2 * p` and `2 * p + 1` hold the 2 x 2
/// blocks of the pair `p` of rows: at `q` of the first those of columns `4 * q` and `4 * q + 1`, of the second the next
/// two.
///
/// # Safety
/// The run has that step as [`RunBytes::atom`] says, 16 codes of each row are readable from `x`, and `ROWS` is even.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn add_step<const BITS: u32, const ROWS: usize>(
    codes: &RunBytes<BITS>,
    step: usize,
    x: *const u8,
    row_bytes: usize,
    isum: &mut [[int32x4_t; QUARTERS]; ROWS],
) {
    // SAFETY: the caller promises what is read.
    unsafe {
        add_pair::<ROWS>(codes.atom(step, 0), codes.atom(step, 1), x, row_bytes, isum);
        add_pair::<ROWS>(codes.atom(step, 2), codes.atom(step, 3), x.add(8), row_bytes, isum);
    }
}

/// Adds two consecutive atoms times the 8 codes at `x` of every row.
///
/// # Safety
/// 8 codes of each of `ROWS` rows, an even number, are readable from `x`.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn add_pair<const ROWS: usize>(
    even: [int8x16_t; QUARTERS],
    odd: [int8x16_t; QUARTERS],
    x: *const u8,
    row_bytes: usize,
    isum: &mut [[int32x4_t; QUARTERS]; ROWS],
) {
    let mut w = [[vdupq_n_s8(0); 2]; QUARTERS];
    for q in 0..QUARTERS {
        let (even, odd) = (vreinterpretq_s32_s8(even[q]), vreinterpretq_s32_s8(odd[q]));
        w[q][0] = vreinterpretq_s8_s32(vzip1q_s32(even, odd));
        w[q][1] = vreinterpretq_s8_s32(vzip2q_s32(even, odd));
    }
    for p in 0..ROWS / 2 {
        // SAFETY: the caller promises what is read.
        let x = unsafe {
            let x = x.add(2 * p * row_bytes);
            vcombine_s8(vld1_s8(x.cast()), vld1_s8(x.add(row_bytes).cast()))
        };
        for q in 0..QUARTERS {
            isum[2 * p][q] = smmla(isum[2 * p][q], x, w[q][0]);
            isum[2 * p + 1][q] = smmla(isum[2 * p + 1][q], x, w[q][1]);
        }
    }
}

/// Turns 2 x 2 blocks into rows: the upper halves of two blocks, and the lower ones.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn by_rows<const ROWS: usize>(isum: &mut [[int32x4_t; QUARTERS]; ROWS]) {
    for p in 0..ROWS / 2 {
        for q in 0..QUARTERS {
            let (a, b) = (vreinterpretq_s64_s32(isum[2 * p][q]), vreinterpretq_s64_s32(isum[2 * p + 1][q]));
            isum[2 * p][q] = vreinterpretq_s32_s64(vzip1q_s64(a, b));
            isum[2 * p + 1][q] = vreinterpretq_s32_s64(vzip2q_s64(a, b));
        }
    }
}

/// `sum[2 * i + j] + x[8 * i ..][..8] . w[8 * j ..][..8]` for i and j of 0 and 1. The intrinsic is not in stable Rust yet.
#[inline]
#[target_feature(enable = "neon,i8mm")]
pub(super) fn smmla(mut sum: int32x4_t, x: int8x16_t, w: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction is of the features that the function needs; it reads and writes the named registers only.
    unsafe {
        asm!(
            "smmla {sum:v}.4s, {x:v}.16b, {w:v}.16b",
            sum = inout(vreg) sum,
            x = in(vreg) x,
            w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
