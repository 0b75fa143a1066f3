//! NEON, with the fused multiply-add and conversions that come with it.

use super::QUARTERS;
use crate::linear::Lane;
use bessemer_format::ScaleType;
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
            }
        }
    })
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
