//! CUDA: kernels' text ([`crate::clike`]) becomes machine code for the architectures that are asked for.
//!
//! The compiler is NVRTC, of one pinned release, so that the same text gives the same bytes everywhere. It is proprietary and no part of
//! this program: [`Nvrtc::load`] takes the folder into which it was installed.

mod nvrtc;
mod usage;

pub use nvrtc::Nvrtc;
pub use usage::Usage;

use std::path::PathBuf;

/// The package on the Python Package Index that holds NVRTC, and its release: newer ones write PTX that drivers of CUDA 13.0 do not load.
pub const NVRTC_PACKAGE: (&str, &str) = ("nvidia-cuda-nvrtc", "13.0.88");
/// The command that installs it.
pub const INSTALL: &str = "bessemer toolchain install cuda";
/// Architectures that an engine holds code for if nobody says otherwise: A100, L40S and RTX 40, H100 and H200, RTX 50.
pub const ARCHS: [&str; 4] = ["sm_80", "sm_89", "sm_90a", "sm_120"];
/// What drivers compile for any later architecture.
pub const FALLBACK: &str = "compute_80";

/// Why there is no machine code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// NVRTC is not installed.
    #[error("NVRTC, the compiler of CUDA kernels, is not in {}; `{INSTALL}` fetches it", folder.display())]
    Missing {
        /// Where it was looked for.
        folder: PathBuf,
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
