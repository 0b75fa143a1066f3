//! What `bench` and `run` measure, and the machine that they measure it on.

pub mod baseline;
pub mod ceilings;
pub mod clock;
pub mod devices;
pub mod first_token;
#[cfg(feature = "compile")]
pub mod graph;
#[cfg(feature = "compile")]
pub mod interpreted;
pub mod memory;
pub mod numerics;
pub mod profile;
#[cfg(feature = "compile")]
pub mod quality;
pub mod speed;
pub mod tile;
