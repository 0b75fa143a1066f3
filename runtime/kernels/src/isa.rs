//! Instruction sets that kernels are written for, oldest to newest.

use std::fmt;

/// An instruction set, as a bundle of extensions that kernels may use together.
///
/// Ordered: a newer set implies that the host also runs the older ones of its architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// What the compiler's baseline target offers: every host.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, VNNI and VBMI (and all of [`Isa::Avx2`]).
    Avx512,
}

impl Isa {
    /// Every set, oldest first.
    pub const ALL: &[Isa] = &[Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// The name that reports print.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    /// Whether this host runs the set (asks the CPU and the operating system; the answer is cached by std).
    pub fn available(self) -> bool {
        match self {
            Isa::Portable => true,
            Isa::Avx2 => avx2(),
            Isa::Avx512 => avx512(),
        }
    }

    /// The newest set that this host runs.
    pub fn host() -> Isa {
        Self::ALL.iter().rev().copied().find(|isa| isa.available()).unwrap_or(Isa::Portable)
    }
}

#[cfg(target_arch = "x86_64")]
fn avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn avx512() -> bool {
    avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512vbmi")
}

#[cfg(not(target_arch = "x86_64"))]
fn avx2() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn avx512() -> bool {
    false
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_set_implies_the_older_ones() {
        let host = Isa::host();
        for &isa in Isa::ALL {
            assert_eq!(isa.available(), isa <= host, "{isa}");
        }
    }
}
