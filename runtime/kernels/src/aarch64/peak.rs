//! The loops of [`crate::peak`]: enough independent accumulators to hide the latency of a multiply-add, all in registers.

use super::{dotprod::sdot, i8mm::smmla};
use crate::Isa;
use crate::peak::Arithmetic;
use std::arch::aarch64::*;
use std::hint::black_box;

/// Accumulators of a loop: four pipes of up to four cycles, and room for the factors.
const SUMS: usize = 16;

/// With `isa`, one of this architecture that the caller has found; `None` where it has no instruction for `arithmetic`.
pub(crate) fn multiply_adds(isa: Isa, arithmetic: Arithmetic, rounds: u64) -> Option<u64> {
    // SAFETY: the caller has found the features.
    unsafe {
        match (arithmetic, isa) {
            (Arithmetic::F32 | Arithmetic::Bf16, _) => Some(f32(rounds)),
            (Arithmetic::Int8, Isa::I8mm) => Some(int8_i8mm(rounds)),
            (Arithmetic::Int8, Isa::Dotprod) => Some(int8_dotprod(rounds)),
            (Arithmetic::Int8, _) => None,
        }
    }
}

#[target_feature(enable = "neon")]
fn f32(rounds: u64) -> u64 {
    let (factor, addend) = (vdupq_n_f32(black_box(0.999)), vdupq_n_f32(black_box(0.001)));
    let mut sums = [vdupq_n_f32(black_box(1.0)); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = vfmaq_f32(*sum, factor, addend);
        }
    }
    black_box(sums);
    rounds * SUMS as u64 * 4
}

#[target_feature(enable = "neon,dotprod")]
fn int8_dotprod(rounds: u64) -> u64 {
    let (a, b) = (vdupq_n_s8(black_box(1)), vdupq_n_s8(black_box(-1)));
    let mut sums = [vdupq_n_s32(black_box(0)); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = sdot::<0>(*sum, a, b);
        }
    }
    black_box(sums);
    rounds * SUMS as u64 * 16
}

#[target_feature(enable = "neon,dotprod,i8mm")]
fn int8_i8mm(rounds: u64) -> u64 {
    let (a, b) = (vdupq_n_s8(black_box(1)), vdupq_n_s8(black_box(-1)));
    let mut sums = [vdupq_n_s32(black_box(0)); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = smmla(*sum, a, b);
        }
    }
    black_box(sums);
    rounds * SUMS as u64 * 32
}
