//! Ahead-of-time compiler for language models: checkpoint in, engine file out.
//!
//! [`compile::compile`] is the whole way; [`compile::prepare`] and [`compile::plan`] stop on it. The command line is a thin
//! layer over this crate and has no option that is not here.

pub mod cache;
pub mod calibrate;
pub mod code;
pub mod compile;
mod device;
pub mod emit;
pub mod error;
pub mod import;
pub mod options;
mod scratch;
pub mod tuning;
pub mod weights;

pub use bessemer_calibrate::Method;
pub use compile::{Amount, Compiled, Progress, Silent, compile};
pub use error::CompileError;
pub use options::{CompileOptions, Emit, RunOptions};
