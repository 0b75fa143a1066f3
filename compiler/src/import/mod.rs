//! From a path to a checked model: checkpoints, their configuration, their architecture.
//!
//! Nothing here holds weights in memory. A [`Checkpoint`] maps its files and knows where each tensor lies;
//! everything that the files claim is checked once, when the checkpoint is opened.

pub mod arch;
pub mod build;
pub mod config;
pub mod decoder;
mod encoder;
mod error;
pub mod gguf;
#[cfg(feature = "hub")]
pub mod hub;
mod map;
pub mod names;
pub mod pooling;
mod quantised;
pub mod rope;
mod safetensors;
mod source;
pub mod tensors;
pub mod text;

pub use error::ImportError;
pub use source::{Checkpoint, Metadata, StoredType, TensorInfo};
