//! Hand-written CPU kernels and the table that registers and tests them.
//!
//! A [`KernelSet`] stands for one instruction set that this host is known to run. From it come the kernels:
//! [`LinearF32`], [`LinearBf16`] and [`LinearInt8`] for matrix products with packed weights, [`RoundBf16`] and [`Quantise`]
//! for the activations of the latter two, [`Attention`] over blocks of the KV cache, and [`embed::gather_row`] for table look-ups. All of them are
//! safe to call: the set is the proof that the host has the instructions, and lengths are checked once a call.
//!
//! A kernel never allocates, never detects the CPU, keeps no state and never computes in less than its
//! [`Compute`](bessemer_format::Compute) declares. Weights are read in the one packed form of
//! [`bessemer_format::panel`], whatever the instruction set and the number of rows.
//!
//! ```
//! use bessemer_format::{PanelLayout, QuantScheme};
//! use bessemer_kernels::{KernelSet, linear::RowsF32};
//!
//! // The 2 x 3 matrix [[1, 2, 3], [4, 5, 6]], packed: 16 columns, of which two are used.
//! let layout = PanelLayout::new(&QuantScheme::F32, 2, 3)?;
//! let mut weight = vec![0; layout.total_bytes()];
//! for (row, values) in [[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]].iter().enumerate() {
//!     for (k, value) in values.iter().enumerate() {
//!         weight[layout.float_place(row, k)..][..4].copy_from_slice(&value.to_le_bytes());
//!     }
//! }
//!
//! let linear = KernelSet::host().linear_f32(&layout);
//! let x = RowsF32 { data: &[1.0, 0.0, -1.0], rows: 1, stride: 3 };
//! linear.for_each_tile(&weight, 0..layout.panels(), x, |panel, first_row, tile| {
//!     assert_eq!((panel, first_row, &tile[0][..2]), (0, 0, &[-2.0, -2.0][..]));
//! });
//! # Ok::<(), String>(())
//! ```
//!
//! Little-endian hosts only, as engine files are.

#[cfg(not(target_endian = "little"))]
compile_error!("packed weights are read in place and are little-endian");

#[cfg(target_arch = "aarch64")]
mod aarch64;
pub mod attention;
mod codes;
pub mod embed;
mod isa;
pub mod linear;
pub mod math;
#[cfg(any(test, feature = "pack"))]
pub mod pack;
pub mod peak;
pub mod route;
mod table;
#[cfg(test)]
mod testkit;
pub mod trig;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use attention::{Attention, KvElem, OnlineSoftmax};
pub use isa::Isa;
pub use linear::{Gated, LinearBf16, LinearF32, LinearInt8, Quantise, RoundBf16, Store};
pub use table::KernelSet;
