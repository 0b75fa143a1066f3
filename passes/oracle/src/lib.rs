//! The meaning of every IR op, in obvious f64 code.
//!
//! What an op computes is what this crate computes: one small function an op, a file a family ([`ops`]). Sums are accumulated in f64 in
//! ascending order. A fused op is defined by its parts. There are two readings ([`Reading`]): `Exact` is the real arithmetic of the
//! dequantised weights and measures quality; `Declared` applies each rounding that the graph declares, at its place, so that a kernel may
//! differ from it by its accumulation alone.

mod error;
mod kv;
mod lockstep;
pub mod ops;
mod oracle;
mod value;

pub use bessemer_ir::exec::{Batch, BatchError, Logits, SequenceRows, Wanted};
pub use error::OracleError;
pub use kv::{Caches, Layer};
pub use lockstep::{StepError, TracedStep};
pub use oracle::{Oracle, Reading};
pub use value::{Tensor, Val, Weight};
