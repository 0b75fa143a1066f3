//! The logits of an engine against the meaning of its graph.

use serde::Serialize;

/// Relative distances (‖engine − oracle‖ / ‖oracle‖) of one row of logits.
#[derive(Clone, Debug, Serialize)]
pub struct Position {
    /// Position in the sequence.
    pub position: usize,
    /// From the oracle with every rounding that the plan declares: what kernels may differ by is accumulation.
    pub declared: f64,
    /// From the oracle without rounding of activations: quality, not correctness.
    pub exact: f64,
}

/// Compares.
#[cfg(feature = "compile")]
pub fn compare(
    _: &bessemer_runtime::Engine,
    _: &std::path::Path,
) -> Result<Vec<Position>, crate::exit::Failure> {
    Err(crate::exit::Failure::new(crate::exit::Code::Internal, "not there yet"))
}
