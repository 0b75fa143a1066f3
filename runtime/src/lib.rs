//! Maps a Bessemer engine file and runs it.
//!
//! * [`Engine`]: an opened engine file, immutable and shared.
//! * [`Worker`]: threads, activations and the KV cache; runs one [`Batch`] at a time.
//! * [`Sequence`]: the state of one text; can be forked, truncated, saved and loaded.
//! * [`Embedder`]: vectors and scores of texts.
//! * [`Session`]: one text on a shared worker, and [generation](Session::generate) as an iterator.
//!
//! Whatever the number of threads and however tokens are cut into batches, the logits of a sequence are the same bit
//! for bit (as long as the engine's programs compute in the same types, which its plan says).
//!
//! The crate never prints, never ends the process and installs no handlers; events go to the `log` facade. Without the
//! feature `text` (on by default) it takes and gives token ids and holds no tokeniser.

mod batch;
mod bind;
mod code;
mod device;
mod embed;
mod engine;
mod error;
mod exec;
mod generate;
mod host;
mod nest;
mod pool;
pub mod sample;
mod session;
mod state;
#[cfg(feature = "text")]
pub mod text;
mod worker;

pub use batch::{Batch, CancelHandle, Logits, Rows, Want};
pub use bessemer_format::file::VariantRef;
pub use bessemer_format::manifest::{Hash, KvElem, Manifest};
pub use bessemer_format::plan::{Output, Plan};
pub use bessemer_format::variant::{DeviceCode, DeviceKind};
pub use bessemer_kernels::{Isa, KernelSet};
pub use device::{DeviceChoice, DeviceError, MetalGpu};
pub use embed::{EmbedError, EmbedInput, Embedder};
pub use engine::{Engine, MemoryEstimate, NestPath};
pub use error::{EngineError, RunError, SnapshotError};
pub use exec::{Profile, StepResult, StepTime};
#[cfg(feature = "text")]
pub use generate::TextGeneration;
pub use generate::{Finish, Generate, GenerateError, Generation, Timings};
pub use pool::{JobPanicked, allowed_cores};
pub use session::Session;
pub use state::Sequence;
pub use worker::{Nests, Worker, WorkerOptions};
