//! Kernels for GPUs on a machine that has none: their text is compiled with the system's C++ compiler against a shim (`tests/shim`) on which
//! every thread is a fiber, and a plan's launches run on it.

mod model;
mod shim;

pub use model::GpuModel;
pub use shim::{Shim, ShimError, compile, has_compiler};
