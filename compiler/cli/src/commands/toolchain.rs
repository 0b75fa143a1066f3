//! `bessemer toolchain`

use crate::exit::{Code, Failure};
use crate::paths;
use bessemer_targets::cuda::{NVRTC_PACKAGE, Nvrtc};
use clap::{Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::Command;

/// Compilers of others that kernels for devices need
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Fetch one with pip, in a release that this version was made for
    Install {
        /// Which
        name: Name,

        /// Where to; the cache folder by default
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// NVRTC, which compiles kernels for NVIDIA's GPUs (a proprietary library of NVIDIA, 90 MB)
    Cuda,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        let What::Install { name: Name::Cuda, folder } = self.what;
        let folder = match folder {
            Some(folder) => folder,
            None => paths::toolchain()?,
        };
        if Nvrtc::is_installed(&folder) {
            eprintln!("NVRTC is in {} already", folder.display());
            return Ok(());
        }
        let (package, version) = NVRTC_PACKAGE;
        let status = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary", ":all:", "--target"])
            .arg(&folder)
            .arg(format!("{package}=={version}"))
            .status();
        let failed = |why: String| {
            let what = format!("pip did not install {package}=={version} into {}: {why}", folder.display());
            Failure::new(Code::Internal, what)
        };
        match status {
            Err(e) => Err(failed(format!("python3 cannot be run ({e})"))),
            Ok(status) if !status.success() => Err(failed(status.to_string())),
            Ok(_) => {
                Nvrtc::load(&folder).map_err(|e| failed(e.to_string()))?;
                eprintln!("NVRTC {version} is in {}", folder.display());
                Ok(())
            }
        }
    }
}
