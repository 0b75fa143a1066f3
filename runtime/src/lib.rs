//! Maps a Bessemer engine file and runs it.

pub mod sample;
#[cfg(feature = "text")]
pub mod text;
