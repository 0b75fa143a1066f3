//! The contract between the compiler and the runtime.
//!
//! Everything that is written into an engine file, and nothing else, is defined here: the file's frame
//! ([`header`], [`mod@file`], [`mod@write`]), what a weight's codes mean ([`scheme`]), how packed bytes lie
//! ([`panel`], [`kv`]), the loop nests ([`nest`]), the plan of steps that the runtime executes ([`plan`]), and what there is for each kind
//! of device ([`variant`], [`gpu`]).
//!
//! The IR of the compiler is never serialised. Both sides share this crate, so a change that one side does not
//! understand does not compile on the other.

pub mod act;
pub mod codec;
pub mod error;
pub mod file;
pub mod gpu;
pub mod header;
pub mod kv;
pub mod manifest;
pub mod nest;
pub mod panel;
pub mod plan;
pub mod rows;
pub mod scheme;
pub mod validate;
pub mod variant;
pub mod write;

pub use error::FormatError;
pub use panel::PanelLayout;
pub use scheme::{Compute, Elem, Level, Levels, Offset, QuantScheme, ScaleType};

/// Version of the compiler that is being built, written into every manifest.
pub const PRODUCER: &str = concat!("bessemer ", env!("CARGO_PKG_VERSION"));
