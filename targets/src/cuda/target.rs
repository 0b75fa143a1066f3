//! The target: which architectures an engine holds machine code for.

use super::{ARCHS, FALLBACK};
use crate::error::TargetError;
use bessemer_format::variant::CudaArch;
use bessemer_format::{Compute, QuantScheme};
use bessemer_ir::{Layout, TargetInfo};

/// Architectures that the pinned NVRTC compiles for.
const KNOWN: [&str; 23] = [
    "sm_75", "sm_80", "sm_86", "sm_87", "sm_88", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_100a", "sm_100f",
    "sm_103", "sm_103a", "sm_103f", "sm_110", "sm_110a", "sm_110f", "sm_120", "sm_120a", "sm_120f", "sm_121",
    "sm_121a", "sm_121f",
];

/// GPUs of NVIDIA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaTarget {
    /// Ascending, each once.
    archs: Vec<CudaArch>,
}

impl CudaTarget {
    /// The target that a user names: `cuda` for the usual architectures, `cuda:sm_80,sm_90a` for some.
    pub fn parse(name: &str) -> Result<Self, TargetError> {
        let unknown = || TargetError::UnknownTarget { found: name.into(), known: Self::names() };
        let names: Vec<&str> = match name.split_once(':') {
            None if name == "cuda" => ARCHS.to_vec(),
            Some(("cuda", archs)) => archs.split(',').collect(),
            _ => return Err(unknown()),
        };
        let known = |name: &&str| KNOWN.contains(name).then(|| name.parse().ok()).flatten();
        let archs: Option<Vec<CudaArch>> = names.iter().map(known).collect();
        let mut target = Self { archs: Vec::new() };
        target.merge(Self { archs: archs.ok_or_else(unknown)? });
        Ok(target)
    }

    /// Every name that there is.
    pub fn names() -> String {
        format!("cuda, {}", KNOWN.map(|arch| format!("cuda:{arch}")).join(", "))
    }

    /// What binaries are made for, in the order in which an engine lists them: machine code, then PTX for later devices.
    pub fn binaries(&self) -> Vec<CudaArch> {
        let fallback = FALLBACK.parse().ok();
        self.archs.iter().copied().chain(fallback).collect()
    }

    /// Adds another target's architectures.
    pub(crate) fn merge(&mut self, other: Self) {
        self.archs.extend(other.archs);
        self.archs.sort_unstable();
        self.archs.dedup();
    }
}

impl TargetInfo for CudaTarget {
    fn name(&self) -> String {
        let archs: Vec<String> = self.archs.iter().map(ToString::to_string).collect();
        format!("cuda:{}", archs.join(","))
    }

    fn supports(&self, scheme: &QuantScheme) -> Result<(), String> {
        scheme.check()
    }

    /// As the CPU's: the panels' lines are loads of 16 bytes for neighbouring threads.
    fn weight_layout(&self, _: &QuantScheme, _: u64, _: u64) -> Layout {
        Layout::Panel
    }

    /// The generated kernels multiply in f32.
    fn default_compute(&self, _: &QuantScheme, _: u64) -> Compute {
        Compute::F32
    }
}
