//! `bessemer eval`

use crate::exit::{Code, Failure};

/// Measure quality
#[derive(clap::Args, Debug)]
pub struct Args {}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        Err(Failure::new(Code::Internal, "not there yet"))
    }
}
