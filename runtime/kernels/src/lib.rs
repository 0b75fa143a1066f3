//! Hand-written CPU kernels and the table that registers and tests them.
//!
//! A [`KernelSet`] stands for one instruction set that this host is known to run. From it come the kernels:
//! [`LinearF32`] and [`LinearInt8`] for matrix products with packed weights, [`Quantise`] for the activations of the
//! latter, [`Attention`] over blocks of the KV cache, and [`embed::gather_row`] for table look-ups. All of them are
//! safe to call: the set is the proof that the host has the instructions, and lengths are checked once a call.
//!
//! A kernel never allocates, never detects the CPU, keeps no state and never computes in less than its
//! [`Compute`](bessemer_format::Compute) declares. Weights are read in the one packed form of
//! [`bessemer_format::panel`], whatever the instruction set and the number of rows.
//!
//! Little-endian hosts only, as engine files are.

#[cfg(not(target_endian = "little"))]
compile_error!("packed weights are read in place and are little-endian");

pub mod attention;
mod codes;
pub mod embed;
mod isa;
pub mod linear;
pub mod math;
#[cfg(any(test, feature = "pack"))]
pub mod pack;
pub mod peak;
mod table;
#[cfg(test)]
mod testkit;
pub mod trig;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use attention::{Attention, KvElem, OnlineSoftmax};
pub use isa::Isa;
pub use linear::{LinearF32, LinearInt8, Quantise};
pub use table::KernelSet;
