//! CUDA: kernels' text ([`crate::clike`]) becomes machine code for the architectures that are asked for.
//!
//! The compiler is NVRTC, of one pinned release, so that the same text gives the same bytes everywhere. It is proprietary and no part of
//! this program: [`Nvrtc::load`] takes the folder into which it was installed.

mod nvrtc;
mod target;
mod usage;

pub use nvrtc::Nvrtc;
pub use target::CudaTarget;
pub use usage::Usage;

use bessemer_format::codec;
use std::path::PathBuf;

/// The package on the Python Package Index that holds NVRTC, and its release: newer ones write PTX that drivers of CUDA 13.0 do not load.
pub const NVRTC_PACKAGE: (&str, &str) = ("nvidia-cuda-nvrtc", "13.0.88");
/// The command that installs it.
pub const INSTALL: &str = "bessemer toolchain install cuda";
/// Architectures that an engine holds code for if nobody says otherwise: A100, L40S and RTX 40, H100 and H200, RTX 50.
pub const ARCHS: [&str; 4] = ["sm_80", "sm_89", "sm_90a", "sm_120"];
/// What drivers compile for any later architecture.
pub const FALLBACK: &str = "compute_80";
/// Oldest driver that loads what this NVRTC makes, as `cuDriverGetVersion` counts.
pub const DRIVER: u32 = 13000;
/// Options of the compiler beside the architecture. Multiplications and additions are not fused unless the text does so: kernels do the
/// operations of the nest language.
pub const OPTIONS: [&str; 4] = ["--std=c++17", "--fmad=false", "--diag-suppress=177", "--ptxas-options=-v"];

/// Why there is no machine code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// NVRTC is not installed.
    #[error("NVRTC, the compiler of CUDA kernels, is not installed{}; `{INSTALL}` fetches it", place(folder))]
    Missing {
        /// Where it was looked for.
        folder: Option<PathBuf>,
    },
    /// NVRTC does not load.
    #[error("NVRTC in {} does not load ({why}); `{INSTALL}` fetches it again", folder.display())]
    Load {
        /// Where it lies.
        folder: PathBuf,
        /// What the loader says.
        why: String,
    },
    /// A text does not compile.
    #[error("kernels do not compile for {arch}: {why}\n{log}")]
    Compile {
        /// The architecture.
        arch: String,
        /// NVRTC's word for it.
        why: String,
        /// What it says.
        log: String,
    },
}

fn place(folder: &Option<PathBuf>) -> String {
    folder.as_ref().map_or_else(String::new, |folder| format!(" in {}", folder.display()))
}

/// Machine code of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binary {
    /// `sm_80` and the like for machine code, `compute_80` and the like for PTX.
    pub arch: String,
    /// A cubin, or PTX without a NUL at its end.
    pub bytes: Vec<u8>,
    /// What each kernel takes; empty for PTX.
    pub usage: Vec<Usage>,
}

impl Binary {
    /// As bytes, to be kept.
    pub fn encode(&self) -> Vec<u8> {
        let usage: Vec<_> =
            self.usage.iter().map(|u| (&u.kernel, [u.registers, u.stack, u.spilled])).collect();
        // Text and numbers always have an encoding.
        let usage = codec::encode(&usage).unwrap_or_default();
        [&(usage.len() as u64).to_le_bytes(), &usage[..], &self.bytes].concat()
    }

    /// What [`Binary::encode`] gave, or nothing if it did not.
    pub fn decode(arch: &str, bytes: &[u8]) -> Option<Self> {
        let (len, rest) = bytes.split_first_chunk()?;
        let (usage, code) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        let usage: Vec<(String, [u32; 3])> = codec::decode("usage of kernels", usage).ok()?;
        let usage = usage.into_iter().map(|(kernel, [registers, stack, spilled])| Usage {
            kernel,
            registers,
            stack,
            spilled,
        });
        Some(Self { arch: arch.into(), bytes: code.to_vec(), usage: usage.collect() })
    }
}
