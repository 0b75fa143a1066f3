//! Activations to signed bytes.

use bessemer_format::act::Int8Layout;
use std::arch::aarch64::*;

const LANES: usize = 16;

/// [`crate::linear::QuantiseFn`].
#[target_feature(enable = "neon")]
pub(crate) unsafe fn quantise(layout: &Int8Layout, x: &[f32], out: &mut [u8]) {
    for (g, group) in x.chunks(layout.group).enumerate() {
        // The bits of a magnitude are ordered as the magnitude is, with infinities and NaNs on top.
        let mut max = vdupq_n_u32(0);
        for x in group.chunks(LANES) {
            for v in load(x) {
                max = vmaxq_u32(max, vreinterpretq_u32_f32(vabsq_f32(v)));
            }
        }
        let amax = f32::from_bits(vmaxvq_u32(max));
        let finite = amax.is_finite();
        let scale = if finite { amax / 127.0 } else { f32::NAN };
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        let mut sum = 0;
        for (i, x) in group.chunks(LANES).enumerate() {
            let mut words = [vdupq_n_s32(0); 4];
            if finite {
                // The conversion rounds to nearest even; a finite group's products are at most 127 after rounding.
                for (word, v) in words.iter_mut().zip(load(x)) {
                    *word = vcvtnq_s32_f32(vmulq_n_f32(v, inverse));
                }
            }
            let low = vcombine_s16(vqmovn_s32(words[0]), vqmovn_s32(words[1]));
            let high = vcombine_s16(vqmovn_s32(words[2]), vqmovn_s32(words[3]));
            let codes = vcombine_s8(vqmovn_s16(low), vqmovn_s16(high));
            sum += i32::from(vaddlvq_s8(codes));
            let out = &mut out[g * layout.group + i * LANES..][..LANES];
            // SAFETY: `out` is 16 bytes long.
            unsafe { vst1q_s8(out.as_mut_ptr().cast(), codes) };
        }
        out[layout.scales_at() + 4 * g..][..4].copy_from_slice(&scale.to_le_bytes());
        out[layout.sums_at() + 4 * g..][..4].copy_from_slice(&sum.to_le_bytes());
    }
    out[layout.sums_at() + 4 * layout.groups()..].fill(0);
}

/// Up to 16 floats, the rest zero.
#[inline]
#[target_feature(enable = "neon")]
fn load(x: &[f32]) -> [float32x4_t; 4] {
    let mut padded = [0.0; LANES];
    let x = match x.first_chunk::<LANES>() {
        Some(x) => x,
        None => {
            padded[..x.len()].copy_from_slice(x);
            &padded
        }
    };
    // SAFETY: `x` is 16 floats long.
    unsafe { [0, 4, 8, 12].map(|at| vld1q_f32(x.as_ptr().add(at))) }
}
