//! What this CPU gives at most, for benchmarks to compare with: multiply-adds that touch no memory, and reads that compute nothing.

use crate::isa::Isa;
use std::hint::black_box;

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Binary32, fused where the CPU does that.
    F32,
    /// Pairs of bfloat16 into binary32 where the CPU has such products; else what stands in for them, which is [`Arithmetic::F32`].
    Bf16,
    /// Bytes into 32-bit sums, by vectors: tiles multiply bytes only where groups of activations are long, which is no default.
    Int8,
}

/// Runs `rounds` rounds of independent multiply-adds with the newest instruction set of this host, on this thread. Gives how many
/// multiply-adds that were: divide them by the time that it took.
pub fn multiply_adds(arithmetic: Arithmetic, rounds: u64) -> u64 {
    match Isa::host() {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx if arithmetic == Arithmetic::Bf16 => crate::x86_64::amx::peak(rounds),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if arithmetic == Arithmetic::Bf16 => crate::x86_64::peak::avx512_bf16(rounds),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => crate::x86_64::peak::avx512(arithmetic, rounds),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => crate::x86_64::peak::avx2(arithmetic, rounds),
        #[cfg(target_arch = "aarch64")]
        isa @ (Isa::Neon | Isa::Dotprod | Isa::I8mm) => {
            crate::aarch64::peak::multiply_adds(isa, arithmetic, rounds)
                .unwrap_or_else(|| portable(arithmetic, rounds))
        }
        _ => portable(arithmetic, rounds),
    }
}

/// Reads all of `part` as kernels do that wait for memory: lines are asked for ahead. Gives a sum, in lanes that do not depend on each
/// other, so that loads are all that takes time.
pub fn read(part: &[u64]) -> u64 {
    const LINE: usize = 8;
    let (chunks, rest) = part.as_chunks::<{ 4 * LINE }>();
    let mut lanes = [0_u64; 4 * LINE];
    for chunk in chunks {
        #[cfg(target_arch = "x86_64")]
        for line in chunk.chunks_exact(LINE) {
            crate::x86_64::peak::ask(line.as_ptr().cast());
        }
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane = lane.wrapping_add(*x));
    }
    lanes.iter().chain(rest).fold(0, |a, b| a.wrapping_add(*b))
}

fn portable(arithmetic: Arithmetic, rounds: u64) -> u64 {
    const LANES: usize = 64;
    match arithmetic {
        Arithmetic::F32 | Arithmetic::Bf16 => {
            let (factor, addend) = (black_box(0.999_f32), black_box(0.001_f32));
            let mut sums = black_box([1.0_f32; LANES]);
            for _ in 0..rounds {
                sums.iter_mut().for_each(|s| *s = *s * factor + addend);
            }
            black_box(sums);
        }
        Arithmetic::Int8 => {
            let factor = black_box(3_i8);
            let mut sums = black_box([1_i32; LANES]);
            for round in 0..rounds {
                sums.iter_mut().for_each(|s| *s = s.wrapping_add(i32::from(factor) * i32::from(round as u8)));
            }
            black_box(sums);
        }
    }
    rounds * LANES as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_read() {
        let numbers: Vec<u64> = (0..1000).collect();
        for len in [0, 1, 31, 32, 33, 1000] {
            assert_eq!(read(&numbers[..len]), (0..len as u64).sum());
        }
    }

    #[test]
    fn the_count_grows_with_the_rounds() {
        for arithmetic in [Arithmetic::F32, Arithmetic::Bf16, Arithmetic::Int8] {
            assert_eq!(multiply_adds(arithmetic, 0), 0);
            let one = multiply_adds(arithmetic, 1);
            assert!(one > 0);
            assert_eq!(multiply_adds(arithmetic, 1000), 1000 * one);
        }
    }
}
