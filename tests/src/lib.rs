//! Rings of tests that cross crates: filetests, numerics, format compatibility, end to end, tidy.

pub mod checkpoints;
pub mod gpu;
pub mod hub;
pub mod models;
pub mod mutate;

pub use bessemer_skip::{HOST, skip};
