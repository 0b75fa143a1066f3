//! The fast node-by-node executor of the unfused graph: the interpreted side of every comparison.
//!
//! It is what a competent framework does without compiling: one op after the other over all threads, weights in f32 or bf16, arithmetic in
//! f32 (a declared `Compute` is an engine's matter and does not apply here), products of many rows by a GEMM crate, products of a few rows
//! at the speed of memory. What the ops mean is said by `bessemer-oracle`, against which the tests hold it.

mod attention;
pub mod defined;
mod error;
mod executor;
mod experts;
mod kv;
mod linear;
mod ops;
mod recurrent;
mod streamed;
mod vector;
mod weights;

pub use bessemer_ir::exec::{Logits, SequenceRows, Wanted};
pub use error::EagerError;
pub use executor::{Eager, EagerOptions, WeightFormat};
pub use streamed::{Observer, Streamed};
pub use vector::vectorised;
