//! Fusion: fewer steps, fewer trips through memory, the same numbers.
//!
//! Every pattern looks for values that one reader consumes, and leaves alone what others read.

pub mod add_rms_norm;
pub mod gate_up;
pub mod pointwise;
pub mod qkv;
pub mod residual;
