//! Kernels for x86-64.
//!
//! Functions of these modules carry `#[target_feature]`: safe among themselves, unsafe to call from anywhere else. The
//! contracts of the entry points are those of the function types in [`crate::linear`] and [`crate::attention`].

pub(crate) mod avx512;
