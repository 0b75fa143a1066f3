//! Where this user's files lie.

use crate::exit::{Code, Failure};
use etcetera::BaseStrategy;
use std::path::PathBuf;

fn strategy() -> Result<impl BaseStrategy, Failure> {
    etcetera::choose_base_strategy().map_err(|e| Failure::new(Code::Internal, e))
}

/// Folder of compiled engines, unless `--cache-dir` names another.
#[cfg(feature = "compile")]
pub fn cache() -> Result<PathBuf, Failure> {
    Ok(strategy()?.cache_dir().join("bessemer"))
}

/// The trust list.
pub fn trust_list() -> Result<PathBuf, Failure> {
    Ok(strategy()?.data_dir().join("bessemer").join("trusted"))
}
