//! The table of kernels: one line a kernel, which registers it and tests it.

use crate::Isa;
use crate::attention::{self, Attention, AttentionFn};
use crate::linear::{self, LinearF32, LinearF32Fn, LinearInt8, LinearInt8Fn, Quantise, QuantiseFn};
use bessemer_format::act::Int8Layout;
use bessemer_format::{Elem, PanelLayout};

/// The weight elements that a kernel reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Every element.
    Any,
    /// One element, with any scale type, group size and offset.
    Elem(Elem),
}

impl Family {
    pub(crate) fn covers(self, elem: Elem) -> bool {
        match self {
            Family::Any => true,
            Family::Elem(e) => e == elem,
        }
    }
}

/// One kernel of an op whose functions are of type `F`.
#[derive(Clone, Copy)]
pub(crate) struct Row<F> {
    pub(crate) isa: Isa,
    pub(crate) family: Family,
    pub(crate) kernel: F,
}

/// Declares the rows of every op, oldest instruction set first within an op, and the tests of every row.
///
/// A line is `name: Isa, family, path;`. The tests of an op are the functions of `testkit::<op>`, each of which takes
/// a row; `each_test!` names them.
macro_rules! kernels {
    ($($(#[$op_meta:meta])* $op:ident: $fn:ty, tests $tests:tt {
        $($(#[cfg($cfg:meta)])? $name:ident: $isa:ident, $family:expr, $kernel:path;)*
    })*) => {
        $($(#[$op_meta])* pub(crate) static $op: &[Row<$fn>] = &[
            $($(#[cfg($cfg)])? Row { isa: Isa::$isa, family: $family, kernel: $kernel }),*
        ];)*

        #[cfg(test)]
        mod tests {
            use super::*;
            $($($(#[cfg($cfg)])? mod $name {
                #[allow(unused_imports)]
                use super::*;
                const ROW: Row<$fn> = Row { isa: Isa::$isa, family: $family, kernel: $kernel };
                kernels!(@tests $name $tests);
            })*)*
        }
    };
    (@tests $name:ident ($kit:ident: $($test:ident),*)) => {
        $(#[test]
        fn $test() {
            if crate::testkit::host_runs(stringify!($name), ROW.isa) {
                crate::testkit::$kit::$test(&ROW);
            }
        })*
    };
}

kernels! {
    /// [`LinearF32`].
    LINEAR_F32: LinearF32Fn, tests (linear_f32: exact, bounded, guarded, odd_shapes) {
        linear_f32_portable: Portable, Family::Any, linear::portable::linear_f32;
        #[cfg(target_arch = "x86_64")] linear_f32_f32_avx512: Avx512, F32, avx512::linear_f32::f32;
        #[cfg(target_arch = "x86_64")] linear_f32_f16_avx512: Avx512, F16, avx512::linear_f32::f16;
        #[cfg(target_arch = "x86_64")] linear_f32_bf16_avx512: Avx512, BF16, avx512::linear_f32::bf16;
        #[cfg(target_arch = "x86_64")] linear_f32_u4_avx512: Avx512, U4, avx512::linear_f32::u4;
        #[cfg(target_arch = "x86_64")] linear_f32_s8_avx512: Avx512, S8, avx512::linear_f32::s8;
    }
    /// [`LinearInt8`].
    LINEAR_INT8: LinearInt8Fn, tests (linear_int8: exact, bounded, guarded, odd_shapes) {
        linear_int8_portable: Portable, Family::Any, linear::portable::linear_int8;
        #[cfg(target_arch = "x86_64")] linear_int8_u4_avx512: Avx512, U4, avx512::linear_int8::u4;
        #[cfg(target_arch = "x86_64")] linear_int8_s8_avx512: Avx512, S8, avx512::linear_int8::s8;
    }
    /// [`Quantise`].
    QUANTISE: QuantiseFn, tests (quantise: exact, guarded) {
        quantise_portable: Portable, Family::Any, linear::portable::quantise;
        #[cfg(target_arch = "x86_64")] quantise_avx512: Avx512, Family::Any, avx512::quantise::quantise;
    }
    /// [`Attention`].
    ATTENTION: AttentionFn, tests (attention: exact, bounded, guarded, odd_shapes) {
        attention_portable: Portable, Family::Any, attention::portable::attend_block;
        #[cfg(target_arch = "x86_64")] attention_avx512: Avx512, Family::Any, avx512::attention::attend_block;
    }
}

#[cfg(target_arch = "x86_64")]
use crate::x86_64::avx512;

/// The families that have kernels of their own.
#[cfg(target_arch = "x86_64")]
mod family {
    use super::{Elem, Family};
    pub(super) const F32: Family = Family::Elem(Elem::F32);
    pub(super) const F16: Family = Family::Elem(Elem::F16);
    pub(super) const BF16: Family = Family::Elem(Elem::Bf16);
    pub(super) const U4: Family = Family::Elem(Elem::U(4));
    pub(super) const S8: Family = Family::Elem(Elem::S(8));
}
#[cfg(target_arch = "x86_64")]
use family::*;

/// The kernels of one instruction set, which this host is known to run.
///
/// Where the set has no kernel for an op or a scheme, the newest older one is taken, down to portable ones, which
/// cover everything.
#[derive(Debug, PartialEq, Eq)]
pub struct KernelSet {
    /// Private, so that a set cannot be made without asking the host.
    isa: Isa,
}

static PORTABLE: KernelSet = KernelSet { isa: Isa::Portable };
static AVX2: KernelSet = KernelSet { isa: Isa::Avx2 };
static AVX512: KernelSet = KernelSet { isa: Isa::Avx512 };

impl KernelSet {
    /// The kernels for `isa`, if this host runs it.
    pub fn for_isa(isa: Isa) -> Option<&'static KernelSet> {
        isa.available().then_some(match isa {
            Isa::Portable => &PORTABLE,
            Isa::Avx2 => &AVX2,
            Isa::Avx512 => &AVX512,
        })
    }

    /// The kernels for the newest instruction set that this host runs.
    pub fn host() -> &'static KernelSet {
        Self::for_isa(Isa::host()).unwrap_or(&PORTABLE)
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The kernel that multiplies f32 activations with weights in `layout`.
    pub fn linear_f32(&self, layout: &PanelLayout) -> LinearF32 {
        let row = self.newest(LINEAR_F32, layout.scheme().elem);
        LinearF32 { layout: layout.clone(), isa: row.isa, kernel: row.kernel }
    }

    /// The kernel that multiplies signed-byte activations, in groups of `group`, with weights in `layout`; or why
    /// there is none.
    pub fn linear_int8(&self, layout: &PanelLayout, group: usize) -> Result<LinearInt8, String> {
        let elem = layout.scheme().elem;
        if elem.is_float() {
            return Err(format!("8-bit activations need integer weights, not {elem}"));
        }
        let act = Int8Layout::new(layout, group)?;
        let row = self.newest(LINEAR_INT8, elem);
        Ok(LinearInt8 { layout: layout.clone(), act, isa: row.isa, kernel: row.kernel })
    }

    /// The kernel that rounds activations to signed bytes.
    pub fn quantise(&self) -> Quantise {
        let row = self.newest(QUANTISE, Elem::F32);
        Quantise { isa: row.isa, kernel: row.kernel }
    }

    /// The kernel that attends to a block of the KV cache, for either element type.
    pub fn attention(&self) -> Attention {
        let row = self.newest(ATTENTION, Elem::F32);
        Attention { isa: row.isa, kernel: row.kernel }
    }

    fn newest<F>(&self, rows: &'static [Row<F>], elem: Elem) -> &'static Row<F> {
        rows.iter()
            .filter(|row| row.isa <= self.isa && row.family.covers(elem))
            .max_by_key(|row| (row.isa, row.family != Family::Any))
            .expect("a portable kernel covers every element")
    }
}
