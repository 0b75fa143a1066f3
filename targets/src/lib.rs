//! From a packed graph to a plan: kernel selection, schedule, memory, loop nests, code. One folder a device.
//!
//! ```text
//! graph (phase Packed) -> schedule: steps and virtual buffers -> memory: arena offsets -> plan
//!                              \-> lower: a nest for whatever has no hand-written kernel -> codegen: machine code
//! ```

pub mod clike;
pub mod codegen;
pub mod cpu;
pub mod cuda;
mod cuts;
pub mod error;
pub mod lower;
pub mod memory;
pub mod metal;
pub mod schedule;
pub mod states;
pub mod tactics;
pub mod target;

pub use cpu::CpuTarget;
pub use cuda::CudaTarget;
pub use error::TargetError;
pub use metal::MetalTarget;
pub use tactics::{Setting, Tactic, Tactics};
pub use target::{Target, Targets};
