//! What passes may know of a target.

use crate::types::Layout;
use bessemer_format::{Compute, QuantScheme};

/// A target's taste, as far as passes ask for it. `targets` implements it, the compiler injects it.
pub trait TargetInfo {
    /// Name on the command line.
    fn name(&self) -> String;
    /// Whether weights of this scheme can be held, with the reason if not.
    fn supports(&self, scheme: &QuantScheme) -> Result<(), String>;
    /// The layout that a linear's or an embedding's `n` by `k` weight of this scheme should have.
    fn weight_layout(&self, scheme: &QuantScheme, n: u64, k: u64) -> Layout;
    /// What a linear over weights of this scheme computes in by default.
    fn default_compute(&self, scheme: &QuantScheme, k: u64) -> Compute;
    /// What it computes in instead where a pass has many rows, and from how many on.
    fn many_rows_compute(&self, _: &QuantScheme, _k: u64) -> Option<(u32, Compute)> {
        None
    }
    /// From how many rows of a pass on attention multiplies numbers of bf16, where that is faster than f32.
    fn many_rows_attention(&self) -> Option<u32> {
        None
    }
    /// How long a token waits for a weight of this scheme, in bytes that memory delivers meanwhile: its own, where nothing else is waited for.
    /// It predicts by what kernels do, so that schemes can be compared, and asks no machine.
    fn read_cost(&self, scheme: &QuantScheme, k: u64) -> f64 {
        scheme.bits_per_weight(k as usize) / 8.0
    }
}
