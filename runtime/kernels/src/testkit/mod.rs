//! The tests that every row of the kernel table undergoes.

// Some tables have rows for one architecture only; elsewhere nothing asks for their tests.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kernels of two panels are for x86-64"))]

pub(crate) mod attention;
pub(crate) mod data;
pub(crate) mod emulator;
pub(crate) mod gated;
pub(crate) mod guard;
pub(crate) mod linear_bf16;
pub(crate) mod linear_f32;
pub(crate) mod linear_int8;
pub(crate) mod quantise;
pub(crate) mod store;

use crate::{Isa, KernelSet};

/// Whether this host runs `isa`, itself or by the [`emulator`]; says what is skipped if not.
pub(crate) fn host_runs(name: &str, isa: Isa) -> bool {
    let available = KernelSet::for_tests(isa).is_some();
    if !available {
        bessemer_skip::skip(bessemer_skip::HOST, format_args!("kernel `{name}` needs {isa}"));
    }
    available
}

/// The bound of a sum of `terms` rounded products in f32, in any order, fused or not: Higham's gamma.
pub(crate) fn gamma(terms: usize) -> f64 {
    let nu = terms as f64 * f64::from(f32::EPSILON) / 2.0;
    nu / (1.0 - nu)
}
