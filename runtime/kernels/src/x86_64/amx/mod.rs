//! AMX: products of tiles of bfloat16 and of bytes, with AVX-512 for what is around them.

pub(crate) mod attention;
mod dequant;
pub(crate) mod linear_bf16;
pub(crate) mod linear_int8;
mod product;
mod tile;

use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::OnceLock;

pub(crate) use linear_bf16::peak;

/// Whether this host runs AMX with products of bfloat16 and of bytes, and lets this process do it. The process asks for it once.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| cpu_has_tiles() && system_keeps_tiles() && permitted())
}

fn cpu_has_tiles() -> bool {
    /// AMX-BF16, AMX-TILE and AMX-INT8 in EDX of leaf 7.
    const BITS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    // A leaf that does not exist gives zeros, or what the last one holds.
    __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & BITS == BITS
}

/// Whether the operating system saves tiles with the other registers.
fn system_keeps_tiles() -> bool {
    /// XTILECFG and XTILEDATA in XCR0.
    const BITS: u64 = 1 << 17 | 1 << 18;
    // SAFETY: a CPU with `xsave` whose operating system has switched it on, which is what std asks, has the instruction.
    is_x86_feature_detected!("xsave") && unsafe { _xgetbv(0) } & BITS == BITS
}

/// Linux keeps tiles for processes that have asked for them: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    let (call, request, feature) = (158_i64, 0x1023_u64, 18_u64);
    let mut result = call;
    // SAFETY: the call reads and writes no memory of this process. It changes the registers that are named.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") request,
            in("rsi") feature,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Nobody has tried how other systems are asked.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::tile::{self, load, multiply, store};
    use crate::linear::Lane;
    use crate::{Isa, testkit};

    /// The sum of one row of pairs, one column wide, that starts at `sum`: by the CPU, or by what stands in for it.
    fn row(sum: f32, a: [[u16; 2]; 3], b: [[u16; 2]; 3]) -> f32 {
        let mut lanes: [Lane; 16] = [[0.0; 16]; 16];
        lanes[0][0] = sum;
        let (mut left, mut right) = ([[0u16; 32]; 16], [[0u16; 32]; 16]);
        for (i, (a, b)) in a.into_iter().zip(b).enumerate() {
            left[0][2 * i..2 * i + 2].copy_from_slice(&a);
            right[i][..2].copy_from_slice(&b);
        }
        // SAFETY: the callers have found AMX or the emulator; every operand is as large as a tile.
        unsafe {
            tile::configure([16; 8]);
            load!("tmm0", lanes.as_ptr(), 64usize);
            load!("tmm4", left.as_ptr(), 64usize);
            load!("tmm6", right.as_ptr(), 64usize);
            multiply!("tdpbf16ps", "tmm0", "tmm4", "tmm6");
            store!("tmm0", lanes.as_mut_ptr());
            tile::release();
        }
        assert!(lanes[1..].as_flattened().iter().all(|v| *v == 0.0), "rows of zeros give zeros");
        lanes[0][0]
    }

    #[test]
    fn products_are_added_in_the_order_and_with_the_rounding_of_the_manual() {
        if !testkit::host_runs("tdpbf16ps", Isa::Amx) {
            return;
        }
        let bf16 = |v: f32| (v.to_bits() >> 16) as u16;
        let [one, two, big] = [1.0, 2.0, 4096.0].map(bf16);
        let (tiny, none) = (1, [0, 0]);
        // 2^24 + 1 is no f32 and becomes 2^24, in the even half; the odd half and the sum before come later.
        assert_eq!(row(0.0, [[big, 0], [one, 0], none], [[big, 0], [one, 0], none]), 16_777_216.0);
        assert_eq!(row(0.0, [[big, one], [0, one], none], [[big, one], [0, one], none]), 16_777_218.0);
        assert_eq!(row(-16_777_216.0, [[big, one], none, none], [[big, one], none, none]), 0.0);
        assert_eq!(row(1.0, [[two, one], [one, two], none], [[one, one], [two, two], none]), 10.0);
        // Subnormal operands and sums are zero.
        assert_eq!(row(0.0, [[tiny, 0], none, none], [[bf16(1e38), 0], none, none]), 0.0);
        let small = bf16(f32::MIN_POSITIVE);
        assert_eq!(row(0.0, [[small, 0], none, none], [[bf16(0.5), 0], none, none]), 0.0);
        assert_eq!(row(0.0, [[small, 0], none, none], [[one, 0], none, none]), f32::MIN_POSITIVE);
        assert_eq!(row(f32::from_bits(3), [none; 3], [none; 3]).to_bits(), 0);
        assert!(row(0.0, [[bf16(f32::INFINITY), 0], none, none], [[0, 0], none, none]).is_nan());
    }
}
