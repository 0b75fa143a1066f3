//! The interpreted side of a comparison: the graph as imported, node by node.

use super::speed::{Load, Speed};
use crate::exit::{Code, Failure};
use bessemer_runtime::Engine;
use std::path::Path;

/// The eager executor under load.
pub struct Interpreter {}

impl Interpreter {
    /// Puts `load` on the graph of `source`, of which `engine` must have been compiled.
    pub fn new(_: &Engine, _: &Path, _: usize, _: Load) -> Result<Self, Failure> {
        Err(Failure::new(Code::Internal, "the eager executor is not there yet"))
    }

    /// Measures once.
    pub fn measure(&mut self) -> Result<Speed, Failure> {
        Err(Failure::new(Code::Internal, "the eager executor is not there yet"))
    }
}
