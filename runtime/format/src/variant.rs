//! What an engine holds for each kind of device.
//!
//! An engine has a [`Variant`] for each kind of device that it was compiled for, in the order of [`DeviceKind`]: MANIFEST says what the
//! device must have and where its code lies, PLAN has a [`VariantPlan`] for each, in the same order. All variants are of one model and
//! have one list of weights, so a weight's number, its bytes in WEIGHTS and its hash are the same for all: what variants read alike
//! stands once.
//!
//! ```text
//!            MANIFEST              PLAN                       code
//! CPU        CPU features          plan                       CODE: machine code of nests, an entry each in MANIFEST
//! CUDA       driver, binaries      plan, kernels, launches    DEVICE: a cubin for each architecture, PTX for later ones
//! Metal      family, text          plan, kernels, launches    DEVICE: text, which the device's own compiler takes
//! ```
//!
//! # What a runtime of a GPU does
//!
//! 1. Takes its variant ([`EngineFile::variant`](crate::file::EngineFile::variant)) and for CUDA the binary that [`best_binary`] names.
//!    Kernels are code: they are run only where the user trusts the engine.
//! 2. Puts the weights where the device reads them: the bytes of each slice of the plan as they lie in WEIGHTS.
//! 3. Makes an arena of the largest program's `arena_bytes`; memory for `PASS_NUMBERS` numbers, the fault, the inputs and the results; and
//!    for each state its blocks in [`GpuCode::kv`] elements, in the layout of [`crate::kv`].
//! 4. For a pass takes the first program whose regime holds its rows, fills inputs and numbers, sets the fault to 0 and runs the program's
//!    launches in order, each with its grid ([`Groups::count`](crate::gpu::Groups::count)) and the addresses of its arguments.
//!    Arguments depend on the program alone, so a recorded sequence of launches serves all passes of one grid.
//! 5. Reads the results, and the fault: another number than 0 means that a kernel met an index out of bounds.
//!
//! Everything static about launches was checked when the file was opened: numbers of kernels, buffers, weights and states, how many
//! arguments a kernel takes, threads and grids within what devices have ([`crate::validate`]).

use crate::gpu::GpuCode;
use crate::plan::Plan;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What one kind of device needs to run the model: an element of MANIFEST's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// The target as it is named on the command line: `cpu`, `cuda:sm_80,sm_90a`, `metal:apple7`.
    pub target: String,
    /// The device.
    pub device: DeviceCode,
}

/// A device: what it must have, and the code for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceCode {
    /// The host's processor.
    Cpu {
        /// Features without which no kernel of the plan runs; empty for the ISA-neutral `cpu`.
        features: Vec<String>,
    },
    /// A GPU of NVIDIA.
    Cuda {
        /// Oldest driver that loads the binaries, as `cuDriverGetVersion` counts: 13000 for CUDA 13.0.
        driver: u32,
        /// By architecture, ascending.
        binaries: Vec<CudaBinary>,
    },
    /// A GPU of Apple.
    Metal {
        /// Oldest family that the text is for: 7 for Apple 7.
        family: u32,
        /// UTF-8 text in the Metal Shading Language.
        text: CodeSlice,
    },
}

/// Kinds of devices, in the order in which an engine lists its variants; it has at most one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceKind {
    /// The host's processor.
    Cpu,
    /// GPUs of NVIDIA.
    Cuda,
    /// GPUs of Apple.
    Metal,
}

impl DeviceKind {
    /// All kinds in order.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Cuda, Self::Metal];

    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }
}

impl DeviceCode {
    /// Its kind.
    pub const fn kind(&self) -> DeviceKind {
        match self {
            DeviceCode::Cpu { .. } => DeviceKind::Cpu,
            DeviceCode::Cuda { .. } => DeviceKind::Cuda,
            DeviceCode::Metal { .. } => DeviceKind::Metal,
        }
    }

    /// Its parts of the DEVICE section, in the order in which they lie there.
    pub fn code(&self) -> Vec<CodeSlice> {
        match self {
            DeviceCode::Cpu { .. } => Vec::new(),
            DeviceCode::Cuda { binaries, .. } => binaries.iter().map(|b| b.code).collect(),
            DeviceCode::Metal { text, .. } => vec![*text],
        }
    }
}

/// A part of the DEVICE section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeSlice {
    /// Offset in the section, a multiple of 64.
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub len: u64,
}

/// Kernels of a variant, compiled for one architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CudaBinary {
    /// The architecture.
    pub arch: CudaArch,
    /// A cubin, or PTX as text without a NUL.
    pub code: CodeSlice,
    /// For each kernel of [`GpuCode::kernels`], what it takes of a multiprocessor. Empty for PTX, of which only the driver knows.
    pub usage: Vec<KernelUsage>,
}

/// What a kernel takes of a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelUsage {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's stack: arrays that did not fit into registers.
    pub stack: u32,
    /// Bytes that spilled registers store and load.
    pub spilled: u32,
}

/// An architecture that code is compiled for: `sm_80`, `sm_90a` (machine code), `compute_80` (PTX).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CudaArch {
    /// Whether it is PTX, which the driver compiles when it is loaded.
    pub ptx: bool,
    /// Major compute capability.
    pub major: u32,
    /// Minor compute capability.
    pub minor: u32,
    /// Which instructions it may use beyond those that later devices keep.
    pub features: ArchFeatures,
}

/// Instructions that not every later device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ArchFeatures {
    /// None.
    Common,
    /// Those of the family of the same major capability: a final `f`.
    Family,
    /// Those of this very capability: a final `a`.
    Exact,
}

/// Compute capabilities of systems on a chip, to which machine code for cards is no use, nor the other way round.
const ON_CHIP: [(u32, u32); 7] = [(5, 3), (6, 2), (7, 2), (8, 7), (8, 8), (10, 1), (11, 0)];

impl CudaArch {
    /// Whether a device of this compute capability runs it.
    pub fn runs_on(&self, capability: (u32, u32)) -> bool {
        let own = (self.major, self.minor);
        match self.features {
            ArchFeatures::Exact => capability == own,
            ArchFeatures::Family => capability.0 == own.0 && capability >= own,
            ArchFeatures::Common if self.ptx => capability >= own,
            ArchFeatures::Common if ON_CHIP.contains(&capability) || ON_CHIP.contains(&own) => {
                capability == own
            }
            ArchFeatures::Common => capability.0 == own.0 && capability >= own,
        }
    }
}

/// The binary that suits a device of this compute capability best: machine code before PTX, then the latest architecture.
pub fn best_binary(binaries: &[CudaBinary], capability: (u32, u32)) -> Option<usize> {
    let suits = binaries.iter().enumerate().filter(|(_, b)| b.arch.runs_on(capability));
    let best = suits.max_by_key(|(_, b)| (!b.arch.ptx, b.arch.major, b.arch.minor, b.arch.features));
    best.map(|(at, _)| at)
}

impl fmt::Display for CudaArch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.ptx { "compute" } else { "sm" };
        let features = match self.features {
            ArchFeatures::Common => "",
            ArchFeatures::Family => "f",
            ArchFeatures::Exact => "a",
        };
        write!(f, "{kind}_{}{}{features}", self.major, self.minor)
    }
}

impl FromStr for CudaArch {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("`{s}` is no architecture such as sm_80, sm_90a or compute_80");
        let (kind, number) = s.split_once('_').ok_or_else(bad)?;
        let ptx = match kind {
            "sm" => false,
            "compute" => true,
            _ => return Err(bad()),
        };
        let (number, features) = match number.strip_suffix(['a', 'f']) {
            Some(rest) if number.ends_with('a') => (rest, ArchFeatures::Exact),
            Some(rest) => (rest, ArchFeatures::Family),
            None => (number, ArchFeatures::Common),
        };
        if !(2..=3).contains(&number.len()) || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let number: u32 = number.parse().map_err(|_| bad())?;
        Ok(Self { ptx, major: number / 10, minor: number % 10, features })
    }
}

/// What a variant executes: an element of PLAN's list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VariantPlan {
    /// The steps. Model and weights are those of all variants.
    pub plan: Plan,
    /// For a GPU, what it does for them.
    pub gpu: Option<GpuCode>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arch(name: &str) -> CudaArch {
        name.parse().unwrap()
    }

    #[test]
    fn architectures_have_names() {
        for name in ["sm_80", "sm_90a", "sm_100f", "sm_120", "compute_80", "compute_90a"] {
            assert_eq!(arch(name).to_string(), name);
        }
        for name in ["", "sm_", "sm_8", "sm_8000", "sm_9a0", "sm_90b", "gfx_90", "sm90", "sm_+80"] {
            let error = name.parse::<CudaArch>().unwrap_err();
            assert!(error.contains("sm_90a"), "{error}");
        }
        assert!(arch("sm_89") < arch("sm_90a") && arch("sm_90") < arch("sm_90a"));
        assert!(arch("sm_120") < arch("compute_80"));
    }

    #[test]
    fn binaries_run_where_they_can() {
        for (name, runs, not) in [
            ("sm_80", &[(8, 0), (8, 6), (8, 9)][..], &[(7, 5), (8, 7), (9, 0)][..]),
            ("sm_86", &[(8, 6), (8, 9)], &[(8, 0)]),
            ("sm_87", &[(8, 7)], &[(8, 9)]),
            ("sm_90a", &[(9, 0)], &[(10, 0)]),
            ("sm_100f", &[(10, 0), (10, 3)], &[(12, 0)]),
            ("compute_80", &[(8, 0), (8, 7), (9, 0), (12, 1)], &[(7, 5)]),
        ] {
            runs.iter().for_each(|c| assert!(arch(name).runs_on(*c), "{name} on {c:?}"));
            not.iter().for_each(|c| assert!(!arch(name).runs_on(*c), "{name} on {c:?}"));
        }
    }

    #[test]
    fn the_best_binary_is_the_closest() {
        let binary =
            |name| CudaBinary { arch: arch(name), code: CodeSlice { offset: 0, len: 1 }, usage: Vec::new() };
        let binaries = ["sm_80", "sm_89", "sm_90", "sm_90a", "sm_120", "compute_80"].map(binary);
        let best = |capability| best_binary(&binaries, capability).map(|at| binaries[at].arch.to_string());
        for (capability, expected) in [
            ((8, 0), "sm_80"),
            ((8, 6), "sm_80"),
            ((8, 9), "sm_89"),
            ((8, 7), "compute_80"),
            ((9, 0), "sm_90a"),
            ((10, 0), "compute_80"),
            ((12, 1), "sm_120"),
        ] {
            assert_eq!(best(capability).as_deref(), Some(expected), "{capability:?}");
        }
        assert_eq!(best((7, 5)), None);
    }
}
