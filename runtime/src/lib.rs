//! Maps a Bessemer engine file and runs it.
//!
//! * [`Engine`]: an opened engine file, immutable and shared.
//! * [`Worker`]: threads, activations and the KV cache; runs one [`Batch`] at a time.
//! * [`Sequence`]: the state of one text; can be forked, truncated, saved and loaded.
//!
//! The crate never prints, never ends the process and installs no handlers; events go to the `log` facade.

mod batch;
mod bind;
mod code;
mod engine;
mod error;
mod exec;
mod host;
mod nest;
mod pool;
pub mod sample;
mod state;
#[cfg(feature = "text")]
pub mod text;
mod worker;

pub use batch::{Batch, CancelHandle, Logits, Rows, Want};
pub use bessemer_format::manifest::{Hash, KvElem, Manifest};
pub use bessemer_format::plan::Plan;
pub use bessemer_kernels::Isa;
pub use engine::{Engine, MemoryEstimate, NestPath};
pub use error::{EngineError, RunError, SnapshotError};
pub use pool::{JobPanicked, allowed_cores};
pub use state::Sequence;
pub use worker::{Nests, Worker, WorkerOptions};
