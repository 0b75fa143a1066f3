//! Where this user's files lie.

use crate::exit::{Code, Failure};
use etcetera::BaseStrategy;
use std::path::{Path, PathBuf};

fn strategy() -> Result<impl BaseStrategy, Failure> {
    etcetera::choose_base_strategy().map_err(|e| Failure::new(Code::Internal, e))
}

/// Folder of compiled engines, unless `--cache-dir` names another.
pub fn cache() -> Result<PathBuf, Failure> {
    Ok(strategy()?.cache_dir().join("bessemer"))
}

/// Folder of compilers of others, by the release that this version was made for.
#[cfg(feature = "compile")]
pub fn toolchain() -> Result<PathBuf, Failure> {
    let (package, version) = bessemer_targets::cuda::NVRTC_PACKAGE;
    Ok(cache()?.join("toolchain").join(format!("{package}-{version}")))
}

/// Folder of compiled kernels.
pub fn kernels() -> Result<PathBuf, Failure> {
    Ok(kernels_in(&cache()?))
}

/// Where compiled kernels lie in a cache.
pub fn kernels_in(cache: &Path) -> PathBuf {
    cache.join("kernels")
}

/// The trust list.
pub fn trust_list() -> Result<PathBuf, Failure> {
    Ok(strategy()?.data_dir().join("bessemer").join("trusted"))
}
