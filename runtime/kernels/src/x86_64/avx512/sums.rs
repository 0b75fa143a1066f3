//! The sums of a group of activations where many rows are multiplied: what they start with, and how they become floats.

use crate::x86_64::TABLE;
use bessemer_format::{PanelLayout, ScaleType};
use std::arch::asm;
use std::arch::x86_64::*;

/// Numbers of a vector.
pub(super) const LANES: usize = 16;

/// The float to whose bits an integer sum is added so as to become a float: where that is below 2^22 in size, the bits are those of the
/// sum of both. `fma(BIAS + isum, scale, -BIAS * scale)` is `isum * scale` rounded once, as long as `BIAS * scale` is exact; so a group
/// takes no conversion of its sum, and the scale of the activations one fma more.
pub(super) const BIAS: f32 = 12_582_912.0;

/// What the integer sums of up to 16 groups start with, of which `left` are there: what every code is too large by times the sum of
/// the activations; and [`BIAS`] if they are `biased`. Made for many groups at once, since a group has no time left on the ports of
/// vectors.
///
/// # Safety
/// So many numbers are readable at `sums`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn starts_of(sums: *const i32, left: usize, constant: i32, biased: bool) -> __m512i {
    let mask = (0xffff_u32 >> (LANES - LANES.min(left))) as u16;
    // SAFETY: the mask selects no more than are left.
    let sums = unsafe { _mm512_maskz_loadu_epi32(mask, sums) };
    let bias = if biased { BIAS.to_bits().cast_signed() } else { 0 };
    _mm512_add_epi32(_mm512_mullo_epi32(sums, _mm512_set1_epi32(-constant)), _mm512_set1_epi32(bias))
}

/// `acc += a * b`, in the register of `acc`: a compiler that chooses takes that of `a`, and copies the sums back at the end of each group.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn add_product(acc: &mut __m512, a: __m512, b: __m512) {
    // SAFETY: arithmetic of registers alone.
    unsafe {
        asm!(
            "vfmadd231ps {acc}, {a}, {b}",
            acc = inout(zmm_reg) *acc,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

/// A group's sum times its scale; with [`BIAS`] in it if `BIASED`, where `bias` is that times the scale.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn scaled<const BIASED: bool>(isum: __m512i, scale: __m512, bias: __m512) -> __m512 {
    match BIASED {
        true => _mm512_fmsub_ps(_mm512_castsi512_ps(isum), scale, bias),
        false => _mm512_mul_ps(_mm512_cvtepi32_ps(isum), scale),
    }
}

/// Whether [`BIAS`] times any scale is exact and finite: it has two bits, so a scale may have 22. Groups of 32 codes never sum to 2^22.
pub(super) fn bias_is_exact<const BITS: usize>(layout: &PanelLayout) -> bool {
    let bits = |ty| match ty {
        ScaleType::F16 => Some(11),
        ScaleType::U8 | ScaleType::S8 => Some(8),
        ScaleType::E4M3 => Some(4),
        // Too many bits, or exponents as large as those of a float.
        ScaleType::F32 | ScaleType::Bf16 | ScaleType::E8M0 => None,
    };
    let levels =
        layout.scheme().scale.map(|levels| [Some(levels.inner.ty), levels.outer.map(|outer| outer.ty)]);
    let sum = |types: [Option<ScaleType>; 2]| types.into_iter().flatten().map(bits).sum::<Option<u32>>();
    BITS != TABLE && levels.and_then(sum).is_some_and(|bits| bits <= 22)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::EVEN_STEPS;
    use bessemer_format::panel::K_STEP;

    fn biased(scheme: &str) -> bool {
        bias_is_exact::<4>(&PanelLayout::new(&scheme.parse().unwrap(), 16, 256).unwrap())
    }

    #[test]
    fn scales_that_sums_are_biased_for_have_exact_products_with_the_bias() {
        let numbers = |ty: ScaleType| {
            let codes = 0..1_u32 << (8 * ty.bytes());
            codes.map(move |code| ty.read(&code.to_le_bytes())).filter(|x| x.is_finite())
        };
        let exact = |scale: f32| assert_eq!(f64::from(scale * BIAS), f64::from(scale) * f64::from(BIAS));
        assert!(biased("u4:f16x32-8") && biased("u4:u8x32*f16x0+u8*f16"));
        for outer in numbers(ScaleType::F16) {
            exact(outer);
            numbers(ScaleType::U8).for_each(|inner| exact(inner * outer));
        }
        // Scales that it would not hold for.
        assert!(!biased("u4:f32x32-8") && !biased("u4:bf16x32-8"));
    }

    #[test]
    fn sums_of_groups_stay_below_the_step_of_the_bias() {
        let largest = (EVEN_STEPS * K_STEP) as i32 * 255 * 128;
        assert!(largest < 1 << 22);
        for sum in [0, 1, -1, largest, -largest] {
            let bits = BIAS.to_bits().cast_signed() + sum;
            assert_eq!(f32::from_bits(bits.cast_unsigned()), BIAS + sum as f32);
        }
    }
}
