//! The gate of a gated feed-forward network, on finished tiles.

use super::Lane;
use crate::Isa;
use crate::math::{gelu, gelu_tanh, silu};
use bessemer_format::plan::Gate;

/// Arguments: function, gates, which become the result, and ups.
///
/// # Safety
/// The host runs the kernel's instruction set; both are equally long.
pub(crate) type GatedFn = unsafe fn(Gate, &mut [Lane], &[Lane]);

/// `function(gate) * up`, element by element. Bit-identical on every instruction set, as the functions of [`crate::math`] are.
#[derive(Clone, Copy, Debug)]
pub struct Gated {
    pub(crate) function: Gate,
    pub(crate) isa: Isa,
    pub(crate) kernel: GatedFn,
}

impl Gated {
    /// The instruction set of the kernel.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Every gate of a tile becomes the gated up.
    ///
    /// # Panics
    /// If there are not as many ups as gates.
    #[inline]
    pub fn tile(&self, gates: &mut [Lane], ups: &[Lane]) {
        assert_eq!(gates.len(), ups.len(), "a gate for every up");
        // SAFETY: the kernel comes from a `KernelSet`, which exists only for what the host runs; the lengths are equal.
        unsafe { (self.kernel)(self.function, gates, ups) }
    }
}

/// [`GatedFn`]. The body of every instruction set: each compiles it with its own vectors.
#[inline(always)]
pub(crate) fn gated(function: Gate, gates: &mut [Lane], ups: &[Lane]) {
    match function {
        Gate::Silu => lanes(gates, ups, silu),
        Gate::Gelu => lanes(gates, ups, gelu),
        Gate::GeluTanh => lanes(gates, ups, gelu_tanh),
    }
}

#[inline(always)]
fn lanes(gates: &mut [Lane], ups: &[Lane], function: impl Fn(f32) -> f32) {
    for (gate, up) in gates.iter_mut().zip(ups) {
        // All lanes, so that the loop has a fixed length and no branch.
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = function(*gate) * up;
        }
    }
}
