//! The table of kernels: one line a kernel, which registers it and tests it.

use crate::Isa;
use crate::attention::{self, Attention, AttentionFn};
use crate::linear::{self, Bf16Form, LinearBf16, LinearF32, LinearF32Fn, LinearInt8, LinearInt8Fn};
use crate::linear::{Gated, GatedFn, LinearInt8PairFn, LinearNative, LinearNativeFn, LinearNativePairFn};
use crate::linear::{Quantise, QuantiseFn, RoundBf16, RoundBf16Fn, Store, StoreFn};
use bessemer_format::act::Int8Layout;
use bessemer_format::plan::Gate;
use bessemer_format::{Elem, PanelLayout};

/// The weight elements that a kernel reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Every element (for a kernel of integers: every integer).
    Any,
    /// One element, with any scale type, group size and offset.
    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), expect(dead_code))]
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

/// The families that have kernels of their own.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[cfg_attr(target_arch = "aarch64", expect(dead_code))]
mod family {
    use super::{Elem, Family};
    pub(super) const F32: Family = Family::Elem(Elem::F32);
    pub(super) const F16: Family = Family::Elem(Elem::F16);
    pub(super) const BF16: Family = Family::Elem(Elem::Bf16);
    pub(super) const U2: Family = Family::Elem(Elem::U(2));
    pub(super) const U3: Family = Family::Elem(Elem::U(3));
    pub(super) const U4: Family = Family::Elem(Elem::U(4));
    pub(super) const U5: Family = Family::Elem(Elem::U(5));
    pub(super) const U6: Family = Family::Elem(Elem::U(6));
    pub(super) const S8: Family = Family::Elem(Elem::S(8));
    pub(super) const E4M3: Family = Family::Elem(Elem::E4M3);
    pub(super) const E5M2: Family = Family::Elem(Elem::E5M2);
    pub(super) const E2M1: Family = Family::Elem(Elem::E2M1);
    pub(super) const IQ4: Family = Family::Elem(Elem::Iq4);
}
const ANY: Family = Family::Any;

/// Declares the rows of every op, oldest instruction set first, and the tests of every row.
///
/// A line is `name: Isa, family, path;`, under the architecture that it needs. `tests` names the module of `testkit`
/// and its functions, each of which takes a row: a kernel that is not tested cannot be registered.
macro_rules! kernels {
    ($($(#[$op_meta:meta])* $op:ident: $fn:ty, tests $tests:tt {
        everywhere {
            $($name:ident: $isa:ident, $family:ident, $kernel:path;)*
        }
        x86_64 {
            $($x86_name:ident: $x86_isa:ident, $x86_family:ident, $x86_kernel:path;)*
        }
        aarch64 {
            $($arm_name:ident: $arm_isa:ident, $arm_family:ident, $arm_kernel:path;)*
        }
    })*) => {
        $($(#[$op_meta])* pub(crate) static $op: &[Row<$fn>] = &[
            $(Row { isa: Isa::$isa, family: $family, kernel: $kernel },)*
            $(#[cfg(target_arch = "x86_64")]
            Row { isa: Isa::$x86_isa, family: $x86_family, kernel: $x86_kernel },)*
            $(#[cfg(target_arch = "aarch64")]
            Row { isa: Isa::$arm_isa, family: $arm_family, kernel: $arm_kernel },)*
        ];)*

        #[cfg(test)]
        mod tests {
            use super::*;
            $($(mod $name {
                use super::*;
                const ROW: Row<$fn> = Row { isa: Isa::$isa, family: $family, kernel: $kernel };
                kernels!(@tests $name $tests);
            })*
            $(#[cfg(target_arch = "x86_64")]
            mod $x86_name {
                use super::*;
                const ROW: Row<$fn> = Row { isa: Isa::$x86_isa, family: $x86_family, kernel: $x86_kernel };
                kernels!(@tests $x86_name $tests);
            })*
            $(#[cfg(target_arch = "aarch64")]
            mod $arm_name {
                use super::*;
                const ROW: Row<$fn> = Row { isa: Isa::$arm_isa, family: $arm_family, kernel: $arm_kernel };
                kernels!(@tests $arm_name $tests);
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

#[cfg(target_arch = "aarch64")]
use crate::aarch64::{dotprod, i8mm, neon};
#[cfg(target_arch = "x86_64")]
use crate::x86_64::{amx, avx2, avx512};
#[cfg(target_arch = "aarch64")]
use family::BF16;
#[cfg(target_arch = "x86_64")]
use family::*;

kernels! {
    /// [`LinearF32`].
    LINEAR_F32: LinearF32Fn, tests (linear_f32: exact, bounded, guarded, odd_shapes) {
        everywhere {
            linear_f32_portable: Portable, ANY, linear::portable::linear_f32;
        }
        x86_64 {
            linear_f32_any_avx2: Avx2, ANY, avx2::any::linear_f32;
            linear_f32_f32_avx2: Avx2, F32, avx2::linear_f32::f32;
            linear_f32_f16_avx2: Avx2, F16, avx2::linear_f32::f16;
            linear_f32_bf16_avx2: Avx2, BF16, avx2::linear_f32::bf16;
            linear_f32_u4_avx2: Avx2, U4, avx2::linear_f32::u4;
            linear_f32_s8_avx2: Avx2, S8, avx2::linear_f32::s8;
            linear_f32_e4m3_avx2: Avx2, E4M3, avx2::linear_f32::e4m3;
            linear_f32_e5m2_avx2: Avx2, E5M2, avx2::linear_f32::e5m2;
            linear_f32_e2m1_avx2: Avx2, E2M1, avx2::linear_f32::table;
            linear_f32_iq4_avx2: Avx2, IQ4, avx2::linear_f32::table;
            linear_f32_any_avx512: Avx512, ANY, avx512::any::linear_f32;
            linear_f32_f32_avx512: Avx512, F32, avx512::linear_f32::f32;
            linear_f32_f16_avx512: Avx512, F16, avx512::linear_f32::f16;
            linear_f32_bf16_avx512: Avx512, BF16, avx512::linear_f32::bf16;
            linear_f32_u4_avx512: Avx512, U4, avx512::linear_f32::u4;
            linear_f32_s8_avx512: Avx512, S8, avx512::linear_f32::s8;
            linear_f32_e4m3_avx512: Avx512, E4M3, avx512::linear_f32::e4m3;
            linear_f32_e5m2_avx512: Avx512, E5M2, avx512::linear_f32::e5m2;
            linear_f32_e2m1_avx512: Avx512, E2M1, avx512::linear_f32::u4;
            linear_f32_iq4_avx512: Avx512, IQ4, avx512::linear_f32::u4;
        }
        aarch64 {
            linear_f32_neon: Neon, ANY, neon::linear_f32::linear_f32;
        }
    }
    /// [`LinearBf16::Widened`]. Where weights are bfloat16 and activations rounded, products of f32 are the declared ones.
    LINEAR_WIDENED: LinearF32Fn, tests (linear_bf16: exact, bounded, guarded, odd_shapes) {
        everywhere {
            linear_widened_portable: Portable, ANY, linear::portable::linear_widened;
        }
        x86_64 {
            linear_widened_any_avx2: Avx2, ANY, avx2::linear_bf16::any;
            linear_widened_bf16_avx2: Avx2, BF16, avx2::linear_f32::bf16;
            linear_widened_any_avx512: Avx512, ANY, avx512::linear_bf16::any_widened;
            linear_widened_bf16_avx512: Avx512, BF16, avx512::linear_f32::bf16;
        }
        aarch64 {
            linear_widened_bf16_neon: Neon, BF16, neon::linear_f32::linear_f32;
        }
    }
    /// [`LinearBf16::Native`], from the first instruction set on that has such products.
    LINEAR_NATIVE: LinearNativeFn, tests (linear_bf16: exact, bounded, guarded, odd_shapes) {
        everywhere {}
        x86_64 {
            linear_native_any_avx512bf16: Avx512Bf16, ANY, avx512::linear_bf16::any_native;
            linear_native_bf16_avx512bf16: Avx512Bf16, BF16, avx512::linear_bf16::native;
            linear_native_bf16_amx: Amx, BF16, amx::linear_bf16::bf16;
            linear_native_any_amx: Amx, ANY, amx::linear_bf16::any;
            linear_native_f16_amx: Amx, F16, amx::linear_bf16::f16;
            linear_native_u2_amx: Amx, U2, amx::linear_bf16::u2;
            linear_native_u3_amx: Amx, U3, amx::linear_bf16::u3;
            linear_native_u4_amx: Amx, U4, amx::linear_bf16::u4;
            linear_native_u5_amx: Amx, U5, amx::linear_bf16::u5;
            linear_native_u6_amx: Amx, U6, amx::linear_bf16::u6;
            linear_native_s8_amx: Amx, S8, amx::linear_bf16::s8;
            linear_native_e4m3_amx: Amx, E4M3, amx::linear_bf16::e4m3;
            linear_native_e5m2_amx: Amx, E5M2, amx::linear_bf16::e5m2;
            linear_native_e2m1_amx: Amx, E2M1, amx::linear_bf16::u4;
            linear_native_iq4_amx: Amx, IQ4, amx::linear_bf16::u4;
        }
        aarch64 {}
    }
    /// [`LinearBf16::Native`] with two panels at once.
    LINEAR_NATIVE_PAIR: LinearNativePairFn, tests (linear_bf16: pair_is_two, pair_guarded) {
        everywhere {}
        x86_64 {
            linear_native_pair_bf16_avx512bf16: Avx512Bf16, BF16, avx512::linear_bf16::native_pair;
            linear_native_pair_bf16_amx: Amx, BF16, amx::linear_bf16::pair::bf16;
            linear_native_pair_any_amx: Amx, ANY, amx::linear_bf16::pair::any;
            linear_native_pair_f16_amx: Amx, F16, amx::linear_bf16::pair::f16;
            linear_native_pair_u2_amx: Amx, U2, amx::linear_bf16::pair::u2;
            linear_native_pair_u3_amx: Amx, U3, amx::linear_bf16::pair::u3;
            linear_native_pair_u4_amx: Amx, U4, amx::linear_bf16::pair::u4;
            linear_native_pair_u5_amx: Amx, U5, amx::linear_bf16::pair::u5;
            linear_native_pair_u6_amx: Amx, U6, amx::linear_bf16::pair::u6;
            linear_native_pair_s8_amx: Amx, S8, amx::linear_bf16::pair::s8;
            linear_native_pair_e4m3_amx: Amx, E4M3, amx::linear_bf16::pair::e4m3;
            linear_native_pair_e5m2_amx: Amx, E5M2, amx::linear_bf16::pair::e5m2;
            linear_native_pair_e2m1_amx: Amx, E2M1, amx::linear_bf16::pair::u4;
            linear_native_pair_iq4_amx: Amx, IQ4, amx::linear_bf16::pair::u4;
        }
        aarch64 {}
    }
    /// [`RoundBf16`] for [`LINEAR_WIDENED`].
    ROUND_WIDENED: RoundBf16Fn, tests (linear_bf16: rounds_widened) {
        everywhere {
            round_widened_portable: Portable, ANY, linear::portable::round_widened;
        }
        x86_64 {
            round_widened_avx2: Avx2, ANY, avx2::linear_bf16::round;
            round_widened_avx512: Avx512, ANY, avx512::linear_bf16::round_widened;
        }
        aarch64 {}
    }
    /// [`RoundBf16`] for [`LINEAR_NATIVE`].
    ROUND_NATIVE: RoundBf16Fn, tests (linear_bf16: rounds_native) {
        everywhere {}
        x86_64 {
            round_native_avx512bf16: Avx512Bf16, ANY, avx512::linear_bf16::round_native;
        }
        aarch64 {}
    }
    /// [`LinearInt8`].
    LINEAR_INT8: LinearInt8Fn, tests (linear_int8: exact, extremes, bounded, guarded, odd_shapes) {
        everywhere {
            linear_int8_portable: Portable, ANY, linear::portable::linear_int8;
        }
        x86_64 {
            linear_int8_any_avx2: Avx2, ANY, avx2::any::linear_int8;
            linear_int8_u2_avx2: Avx2, U2, avx2::linear_int8::u2;
            linear_int8_u3_avx2: Avx2, U3, avx2::linear_int8::u3;
            linear_int8_u4_avx2: Avx2, U4, avx2::linear_int8::u4;
            linear_int8_u5_avx2: Avx2, U5, avx2::linear_int8::u5;
            linear_int8_u6_avx2: Avx2, U6, avx2::linear_int8::u6;
            linear_int8_s8_avx2: Avx2, S8, avx2::linear_int8::s8;
            linear_int8_e2m1_avx2: Avx2, E2M1, avx2::linear_int8::table;
            linear_int8_iq4_avx2: Avx2, IQ4, avx2::linear_int8::table;
            linear_int8_any_avx512: Avx512, ANY, avx512::any::linear_int8;
            linear_int8_u2_avx512: Avx512, U2, avx512::linear_int8::u2;
            linear_int8_u3_avx512: Avx512, U3, avx512::linear_int8::u3;
            linear_int8_u4_avx512: Avx512, U4, avx512::linear_int8::u4;
            linear_int8_u5_avx512: Avx512, U5, avx512::linear_int8::u5;
            linear_int8_u6_avx512: Avx512, U6, avx512::linear_int8::u6;
            linear_int8_s8_avx512: Avx512, S8, avx512::linear_int8::s8;
            linear_int8_e2m1_avx512: Avx512, E2M1, avx512::linear_int8::table;
            linear_int8_iq4_avx512: Avx512, IQ4, avx512::linear_int8::table;
            linear_int8_u2_avx512bf16: Avx512Bf16, U2, avx512::linear_int8::u2;
            linear_int8_u4_avx512bf16: Avx512Bf16, U4, avx512::linear_int8::u4;
            linear_int8_u2_amx: Amx, U2, amx::linear_int8::u2;
            linear_int8_u3_amx: Amx, U3, amx::linear_int8::u3;
            linear_int8_u4_amx: Amx, U4, amx::linear_int8::u4;
            linear_int8_u5_amx: Amx, U5, amx::linear_int8::u5;
            linear_int8_u6_amx: Amx, U6, amx::linear_int8::u6;
            linear_int8_s8_amx: Amx, S8, amx::linear_int8::s8;
            linear_int8_e2m1_amx: Amx, E2M1, amx::linear_int8::table;
            linear_int8_iq4_amx: Amx, IQ4, amx::linear_int8::table;
        }
        aarch64 {
            linear_int8_dotprod: Dotprod, ANY, dotprod::linear_int8;
            linear_int8_i8mm: I8mm, ANY, i8mm::linear_int8;
        }
    }
    /// [`LinearInt8`] with two panels at once.
    LINEAR_INT8_PAIR: LinearInt8PairFn, tests (linear_int8: pair_is_two, pair_guarded) {
        everywhere {}
        x86_64 {
            linear_int8_pair_u2_avx512: Avx512, U2, avx512::linear_int8::pair::u2;
            linear_int8_pair_u3_avx512: Avx512, U3, avx512::linear_int8::pair::u3;
            linear_int8_pair_u4_avx512: Avx512, U4, avx512::linear_int8::pair::u4;
            linear_int8_pair_u5_avx512: Avx512, U5, avx512::linear_int8::pair::u5;
            linear_int8_pair_u6_avx512: Avx512, U6, avx512::linear_int8::pair::u6;
            linear_int8_pair_s8_avx512: Avx512, S8, avx512::linear_int8::pair::s8;
            linear_int8_pair_e2m1_avx512: Avx512, E2M1, avx512::linear_int8::pair::table;
            linear_int8_pair_iq4_avx512: Avx512, IQ4, avx512::linear_int8::pair::table;
            linear_int8_pair_u2_avx512bf16: Avx512Bf16, U2, avx512::linear_int8::beside::u2;
            linear_int8_pair_u4_avx512bf16: Avx512Bf16, U4, avx512::linear_int8::beside::u4;
            linear_int8_pair_u2_amx: Amx, U2, amx::linear_int8::pair::u2;
            linear_int8_pair_u3_amx: Amx, U3, amx::linear_int8::pair::u3;
            linear_int8_pair_u4_amx: Amx, U4, amx::linear_int8::pair::u4;
            linear_int8_pair_u5_amx: Amx, U5, amx::linear_int8::pair::u5;
            linear_int8_pair_u6_amx: Amx, U6, amx::linear_int8::pair::u6;
            linear_int8_pair_s8_amx: Amx, S8, amx::linear_int8::pair::s8;
            linear_int8_pair_e2m1_amx: Amx, E2M1, amx::linear_int8::pair::table;
            linear_int8_pair_iq4_amx: Amx, IQ4, amx::linear_int8::pair::table;
        }
        aarch64 {}
    }
    /// [`Quantise`].
    QUANTISE: QuantiseFn, tests (quantise: exact, guarded) {
        everywhere {
            quantise_portable: Portable, ANY, linear::portable::quantise;
        }
        x86_64 {
            quantise_avx2: Avx2, ANY, avx2::quantise::quantise;
            quantise_avx512: Avx512, ANY, avx512::quantise::quantise;
        }
        aarch64 {
            quantise_neon: Neon, ANY, neon::quantise::quantise;
        }
    }
    /// [`Gated`].
    GATED: GatedFn, tests (gated: exact, guarded) {
        everywhere {
            gated_portable: Portable, ANY, linear::gate::gated;
        }
        x86_64 {
            gated_avx2: Avx2, ANY, avx2::any::gated;
            gated_avx512: Avx512, ANY, avx512::any::gated;
        }
        aarch64 {}
    }
    /// [`Store`].
    STORE: StoreFn, tests (store: exact, guarded) {
        everywhere {
            store_portable: Portable, ANY, linear::store::portable;
        }
        x86_64 {
            store_avx2: Avx2, ANY, avx2::any::store;
            store_avx512: Avx512, ANY, avx512::any::store;
        }
        aarch64 {}
    }
    /// [`Attention`].
    ATTENTION: AttentionFn, tests (attention: exact, bounded, guarded, odd_shapes, windows_and_caps, rounds_exactly,
        rounds_bounded, rounds_guarded, rounds_odd_shapes, rounds_windows_and_caps) {
        everywhere {
            attention_portable: Portable, ANY, attention::portable::attend_block;
        }
        x86_64 {
            attention_avx2: Avx2, ANY, avx2::attention::attend_block;
            attention_avx512: Avx512, ANY, avx512::attention::attend_block;
        }
        aarch64 {
            attention_neon: Neon, ANY, neon::attention::attend_block;
        }
    }
    /// [`Attention`] for queries that round, from the first instruction set on that multiplies such numbers.
    ATTENTION_ROUNDS: AttentionFn, tests (attention: rounds_exactly, rounds_bounded, rounds_guarded,
        rounds_odd_shapes, rounds_windows_and_caps) {
        everywhere {}
        x86_64 {
            attention_rounds_avx512bf16: Avx512Bf16, ANY, avx512::attention_bf16::attend_block;
            attention_rounds_amx: Amx, ANY, amx::attention::attend_block;
        }
        aarch64 {}
    }
}

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
static AVX512_BF16: KernelSet = KernelSet { isa: Isa::Avx512Bf16 };
static AMX: KernelSet = KernelSet { isa: Isa::Amx };
static NEON: KernelSet = KernelSet { isa: Isa::Neon };
static DOTPROD: KernelSet = KernelSet { isa: Isa::Dotprod };
static I8MM: KernelSet = KernelSet { isa: Isa::I8mm };

impl KernelSet {
    /// The kernels for `isa`, if this host runs it.
    pub fn for_isa(isa: Isa) -> Option<&'static KernelSet> {
        isa.available().then_some(match isa {
            Isa::Portable => &PORTABLE,
            Isa::Avx2 => &AVX2,
            Isa::Avx512 => &AVX512,
            Isa::Avx512Bf16 => &AVX512_BF16,
            Isa::Amx => &AMX,
            Isa::Neon => &NEON,
            Isa::Dotprod => &DOTPROD,
            Isa::I8mm => &I8MM,
        })
    }

    /// The kernels for `isa`, which this host runs or the [emulator](crate::testkit::emulator) stands in for.
    #[cfg(test)]
    pub(crate) fn for_tests(isa: Isa) -> Option<&'static KernelSet> {
        match isa {
            Isa::Amx if crate::testkit::emulator::stands_in() => Some(&AMX),
            _ => Self::for_isa(isa),
        }
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

    /// The kernel that multiplies activations rounded to bfloat16 with weights in `layout`.
    pub fn linear_bf16(&self, layout: &PanelLayout) -> LinearBf16 {
        let (layout, elem) = (layout.clone(), layout.scheme().elem);
        match self.bf16_form() {
            Bf16Form::Native => {
                let row = self.newest(LINEAR_NATIVE, elem);
                let pair = LINEAR_NATIVE_PAIR.iter().find(|p| p.isa == row.isa && p.family == row.family);
                let pair = pair.map(|row| row.kernel);
                LinearBf16::Native(LinearNative { layout, isa: row.isa, kernel: row.kernel, pair })
            }
            Bf16Form::Widened => {
                let row = self.newest(LINEAR_WIDENED, elem);
                LinearBf16::Widened(LinearF32 { layout, isa: row.isa, kernel: row.kernel })
            }
        }
    }

    /// The kernel that rounds activations to bfloat16.
    pub fn round_bf16(&self) -> RoundBf16 {
        let form = self.bf16_form();
        let rows = match form {
            Bf16Form::Native => ROUND_NATIVE,
            Bf16Form::Widened => ROUND_WIDENED,
        };
        let row = self.newest(rows, Elem::F32);
        RoundBf16 { isa: row.isa, form, kernel: row.kernel }
    }

    /// The form of activations rounded to bfloat16: one for all linears, since several may read the same.
    fn bf16_form(&self) -> Bf16Form {
        if ROUND_NATIVE.iter().any(|row| row.isa <= self.isa) { Bf16Form::Native } else { Bf16Form::Widened }
    }

    /// The kernel that multiplies signed-byte activations, in groups of `group`, with weights in `layout`; or why
    /// there is none.
    pub fn linear_int8(&self, layout: &PanelLayout, group: usize) -> Result<LinearInt8, String> {
        let elem = layout.scheme().elem;
        if elem.unit().is_none() {
            return Err(format!("8-bit activations need weights that are multiples of a unit, not {elem}"));
        }
        let act = Int8Layout::new(layout, group)?;
        let row = self.newest(LINEAR_INT8, elem);
        // A pair of an older set may be slower than this set's kernel twice.
        let pair = LINEAR_INT8_PAIR.iter().find(|pair| pair.isa == row.isa && pair.family.covers(elem));
        Ok(LinearInt8 {
            layout: layout.clone(),
            act,
            isa: row.isa,
            kernel: row.kernel,
            pair: pair.map(|pair| pair.kernel),
        })
    }

    /// The kernel that rounds activations to signed bytes.
    pub fn quantise(&self) -> Quantise {
        let row = self.newest(QUANTISE, Elem::F32);
        Quantise { isa: row.isa, kernel: row.kernel }
    }

    /// The kernel that applies the gates of a SwiGLU.
    pub fn gated(&self, function: Gate) -> Gated {
        let row = self.newest(GATED, Elem::F32);
        Gated { function, isa: row.isa, kernel: row.kernel }
    }

    /// The kernel that stores finished tiles.
    pub fn store(&self) -> Store {
        let row = self.newest(STORE, Elem::F32);
        Store { isa: row.isa, kernel: row.kernel }
    }

    /// The kernel that attends to a block of the KV cache, for every element type.
    pub fn attention(&self) -> Attention {
        let row = self.newest(ATTENTION, Elem::F32);
        let rounds = ATTENTION_ROUNDS.iter().rev().find(|rounds| rounds.isa <= self.isa);
        Attention { isa: row.isa, kernel: row.kernel, rounding: rounds.unwrap_or(row).kernel }
    }

    fn newest<F>(&self, rows: &'static [Row<F>], elem: Elem) -> &'static Row<F> {
        rows.iter()
            .filter(|row| row.isa <= self.isa && row.family.covers(elem))
            .max_by_key(|row| (row.isa, row.family != Family::Any))
            .expect("a portable kernel covers every element")
    }
}
