//! Kernels for GPUs on a machine that has none: their text is compiled with the system's C++ compiler against a shim (`tests/shim`) on which
//! every thread is a fiber, and a plan's launches run on it.

mod case;
mod clang;
mod fake;
mod model;
mod shim;

pub use case::{Built, Case, Emitted, agree, check, emit, families, schemes};
pub use clang::Clang;
pub use fake::FakeCuda;
pub use model::{GpuModel, Weights};
pub use shim::{Shim, ShimError, compile, compile_together, has_compiler};
