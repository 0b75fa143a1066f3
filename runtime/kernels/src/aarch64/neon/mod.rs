//! NEON, with the fused multiply-add and conversions that come with it.

pub(crate) mod attention;
pub(crate) mod linear_f32;
pub(crate) mod quantise;

use super::QUARTERS;
use crate::linear::Lane;
use crate::math::{EXP_MAX, EXP_MIN, LN2_HI, LN2_LO, LOG2_E, POLY, ROUND};
use bessemer_format::{Offset, PanelLayout, ScaleType};
use std::arch::aarch64::*;

/// Sixteen scales or offsets, as four vectors.
///
/// # Safety
/// `16 * ty.bytes()` bytes are readable at `p`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn load16(ty: ScaleType, p: *const u8) -> [float32x4_t; QUARTERS] {
    [0, 1, 2, 3].map(|q| {
        // SAFETY: each quarter reads exactly 4 numbers of the type.
        unsafe {
            let p = p.add(q * 4 * ty.bytes());
            match ty {
                ScaleType::F32 => vld1q_f32(p.cast()),
                ScaleType::F16 => vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p.cast()))),
                ScaleType::Bf16 => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast()))),
                _ => {
                    let number = |i: usize| ty.read(&[*p.add(i)]);
                    vld1q_f32([number(0), number(1), number(2), number(3)].as_ptr())
                }
            }
        }
    })
}

/// The scales and offsets of run `r` from the stored ones, by [`bessemer_format::QuantScheme::combine`].
///
/// # Safety
/// `panel` is a panel of `layout`, and `r` one of its runs.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn combine(
    layout: &PanelLayout,
    panel: *const u8,
    r: usize,
    mut scale: [float32x4_t; QUARTERS],
    mut offset: [float32x4_t; QUARTERS],
) -> ([float32x4_t; QUARTERS], [float32x4_t; QUARTERS]) {
    // SAFETY: the outer level lies inside the panel.
    let load = |(ty, at): (ScaleType, usize)| unsafe { load16(ty, panel.add(at)) };
    let times =
        |a: [float32x4_t; QUARTERS], b: [float32x4_t; QUARTERS]| [0, 1, 2, 3].map(|q| vmulq_f32(a[q], b[q]));
    let outer = layout.outer(r);
    if let Some(outer) = outer {
        scale = times(scale, load(outer.scale));
    }
    if let Offset::Zero(_) = layout.scheme().offset {
        offset = times(offset, scale).map(|o| vnegq_f32(o));
    } else if let Some(outer) = outer.and_then(|o| o.offset) {
        offset = times(offset, load(outer));
    }
    (scale, offset)
}

/// Writes the 16 outputs of a row.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store16(out: &mut Lane, values: [float32x4_t; QUARTERS]) {
    for q in 0..QUARTERS {
        // SAFETY: a lane is four times 4 floats.
        unsafe { vst1q_f32(out.as_mut_ptr().add(4 * q), values[q]) };
    }
}

/// [`crate::math::exp`] of 4 lanes, with the same bits.
#[inline]
#[target_feature(enable = "neon")]
fn exp(x: float32x4_t) -> float32x4_t {
    let set = |v: f32| vdupq_n_f32(v);
    let round = set(ROUND);
    let t = vaddq_f32(vmulq_f32(x, set(LOG2_E)), round);
    let n = vsubq_f32(t, round);
    let r = vsubq_f32(x, vmulq_f32(n, set(LN2_HI)));
    let r = vsubq_f32(r, vmulq_f32(n, set(LN2_LO)));
    let mut p = set(POLY[0]);
    for &c in &POLY[1..] {
        p = vaddq_f32(vmulq_f32(p, r), set(c));
    }
    let y = vaddq_f32(vmulq_f32(p, vmulq_f32(r, r)), r);
    let y = vaddq_f32(y, set(1.0));
    let i = vsubq_s32(vreinterpretq_s32_f32(t), vreinterpretq_s32_f32(round));
    let h = vshrq_n_s32::<1>(i);
    let power = |e| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(e, vdupq_n_s32(127))));
    let y = vmulq_f32(vmulq_f32(y, power(h)), power(vsubq_s32(i, h)));
    let y = vbslq_f32(vcltq_f32(x, set(EXP_MIN)), set(0.0), y);
    vbslq_f32(vcgtq_f32(x, set(EXP_MAX)), set(f32::INFINITY), y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[target_feature(enable = "neon")]
    fn check(x: [f32; 4]) {
        let mut got = [0.0; 4];
        // SAFETY: the arrays are 4 floats long.
        unsafe { vst1q_f32(got.as_mut_ptr(), exp(vld1q_f32(x.as_ptr()))) };
        for (x, got) in x.into_iter().zip(got) {
            let want = crate::math::exp(x);
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{x}: {got} or {want}");
        }
    }

    #[test]
    fn exp_has_the_scalar_bits() {
        if !crate::testkit::host_runs("neon exp", crate::Isa::Neon) {
            return;
        }
        for bits in (0..u32::MAX - 4 * 997).step_by(4 * 997) {
            // SAFETY: the host was asked above.
            unsafe { check(std::array::from_fn(|i| f32::from_bits(bits + 997 * i as u32))) };
        }
    }
}
