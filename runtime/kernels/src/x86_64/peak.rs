//! The loops of [`crate::peak`]: enough independent accumulators to hide the latency of a multiply-add, all in registers.

use crate::peak::Arithmetic;
use std::arch::x86_64::*;
use std::hint::black_box;

/// Asks memory for a line as kernels do that read weights once: see [`super::prefetch`].
#[inline(always)]
pub(crate) fn ask(line: *const u8) {
    // SAFETY: every x86-64 has SSE.
    unsafe { super::prefetch(line) }
}

/// With AVX-512 and VNNI. The caller has found both.
pub(crate) fn avx512(arithmetic: Arithmetic, rounds: u64) -> u64 {
    // SAFETY: the caller has found the features.
    unsafe {
        match arithmetic {
            Arithmetic::F32 | Arithmetic::Bf16 => avx512_f32(rounds),
            Arithmetic::Int8 => avx512_int8(rounds),
        }
    }
}

/// With AVX2 and FMA. The caller has found both.
pub(crate) fn avx2(arithmetic: Arithmetic, rounds: u64) -> u64 {
    // SAFETY: the caller has found the features.
    unsafe {
        match arithmetic {
            Arithmetic::F32 | Arithmetic::Bf16 => avx2_f32(rounds),
            Arithmetic::Int8 => avx2_int8(rounds),
        }
    }
}

/// Products of bfloat16. The caller has found AVX-512 with them.
pub(crate) fn avx512_bf16(rounds: u64) -> u64 {
    // SAFETY: the caller has found the features.
    unsafe { avx512_pairs(rounds) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn avx512_pairs(rounds: u64) -> u64 {
    let bf16 = |v: i16| {
        // SAFETY: both are 64 bytes without a structure.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi16(black_box(v))) }
    };
    // 1 and 2^-7.
    let (a, b) = (bf16(0x3f80), bf16(0x3c00));
    let mut sums = [_mm512_set1_ps(black_box(1.0)); 16];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, a, b);
        }
    }
    black_box(sums);
    rounds * 16 * 32
}

#[target_feature(enable = "avx512f")]
fn avx512_f32(rounds: u64) -> u64 {
    let (factor, addend) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
    let mut sums = [_mm512_set1_ps(black_box(1.0)); 16];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, addend);
        }
    }
    black_box(sums);
    rounds * 16 * 16
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn avx512_int8(rounds: u64) -> u64 {
    let (a, b) = (_mm512_set1_epi8(black_box(1)), _mm512_set1_epi8(black_box(-1)));
    let mut sums = [_mm512_set1_epi32(black_box(0)); 16];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    black_box(sums);
    rounds * 16 * 64
}

#[target_feature(enable = "avx2,fma")]
fn avx2_f32(rounds: u64) -> u64 {
    let (factor, addend) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
    let mut sums = [_mm256_set1_ps(black_box(1.0)); 12];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, addend);
        }
    }
    black_box(sums);
    rounds * 12 * 8
}

#[target_feature(enable = "avx2")]
fn avx2_int8(rounds: u64) -> u64 {
    let (b, ones) = (_mm256_set1_epi8(black_box(-1)), _mm256_set1_epi16(1));
    let mut sums = [_mm256_set1_epi32(black_box(1)); 8];
    for _ in 0..rounds {
        for sum in &mut sums {
            // The sum itself is one factor, so that the products cannot be moved out of the loop.
            let products = _mm256_madd_epi16(_mm256_maddubs_epi16(*sum, b), ones);
            *sum = _mm256_add_epi32(*sum, products);
        }
    }
    black_box(sums);
    rounds * 8 * 32
}
