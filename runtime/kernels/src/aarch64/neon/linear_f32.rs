//! f32 linears: a chunk of weights is dequantised once into L1, then multiplied with every row of the tile.

use super::super::codes::{RunBytes, SignedBytes};
use super::super::{QUARTERS, for_bits};
use super::{combine, load16, store16};
use crate::codes::ATOM_K;
use crate::linear::{Lane, portable};
use bessemer_format::panel::{COLUMNS, K_STEP, LINE};
use bessemer_format::{Elem, PanelLayout, ScaleType};
use std::arch::aarch64::*;

/// Rows that share loaded weights. Each has accumulators for the quarters of the columns and for even and odd k (to hide
/// latency when there is one row only), so that a row's bits never depend on others.
const BLOCK: usize = 3;
/// Elements along k of a chunk.
const CHUNK: usize = 64;

// Kinds of weights: 1 to 8 for integer codes of so many bits, or one of these.
const F32: u32 = 32;
const F16: u32 = 16;
const BF16: u32 = 17;

/// [`crate::linear::LinearF32Fn`] for every scheme.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn linear_f32(
    layout: &PanelLayout,
    panel: &[u8],
    x: &[f32],
    stride: usize,
    out: &mut [Lane],
) {
    // SAFETY: the caller's promises are those of `linear`.
    unsafe {
        match layout.scheme().elem {
            Elem::F32 => linear::<F32>(layout, panel, x, stride, out),
            Elem::F16 => linear::<F16>(layout, panel, x, stride, out),
            Elem::Bf16 => linear::<BF16>(layout, panel, x, stride, out),
            elem if elem.numbers().is_some() => portable::linear_f32(layout, panel, x, stride, out),
            elem => for_bits!(elem, linear(layout, panel, x, stride, out)),
        }
    }
}

/// What turns signed bytes into weights, for every quarter of the columns.
struct Dequant {
    constant: float32x4_t,
    scale: [float32x4_t; QUARTERS],
    offset: [float32x4_t; QUARTERS],
    float: bool,
}

/// # Safety
/// As [`crate::linear::LinearF32Fn`], for elements of `KIND`.
#[target_feature(enable = "neon")]
unsafe fn linear<const KIND: u32>(
    layout: &PanelLayout,
    panel: &[u8],
    x: &[f32],
    stride: usize,
    out: &mut [Lane],
) {
    let scheme = layout.scheme();
    let (constant, float) = (scheme.constant(), scheme.offset_type());
    let scale_ty = scheme.scale.map_or(ScaleType::F32, |s| s.inner.ty);
    let mut dequant = Dequant {
        // A byte less the bias is the code; both differences are exact.
        constant: vdupq_n_f32((constant + SignedBytes::of(scheme.elem).bias) as f32),
        scale: [vdupq_n_f32(0.0); QUARTERS],
        offset: [vdupq_n_f32(0.0); QUARTERS],
        float: float.is_some(),
    };
    let mut buffer = [[0.0f32; COLUMNS]; CHUNK];
    out.fill([0.0; COLUMNS]);
    for r in 0..layout.runs() {
        // SAFETY: every run, with its codes, scales and offsets, lies inside the panel, and its codes are padded to a
        // multiple of 16 elements. Activations are read up to k only, in rows that are there.
        unsafe {
            let codes = panel.as_ptr().add(layout.run_offset(r));
            if KIND <= 8 {
                let side = codes.add(layout.run_code_bytes(r));
                dequant.scale = load16(scale_ty, side);
                if let Some(ty) = float {
                    dequant.offset = load16(ty, side.add(layout.scale_bytes()));
                }
                if scheme.combines() {
                    (dequant.scale, dequant.offset) =
                        combine(layout, panel.as_ptr(), r, dequant.scale, dequant.offset);
                }
            }
            for k in (0..layout.run_len(r)).step_by(CHUNK) {
                let len = CHUNK.min(layout.run_len(r) - k);
                let steps = buffer.as_chunks_mut::<K_STEP>().0[..len.div_ceil(K_STEP)].iter_mut();
                // A panel of binary32 is such a chunk already.
                let weights = if KIND == F32 {
                    codes.add(k * COLUMNS * 4).cast()
                } else if KIND == F16 || KIND == BF16 {
                    for (i, step) in steps.enumerate() {
                        halves::<KIND>(codes.add((k + i * K_STEP) * COLUMNS * 2), step);
                    }
                    buffer.as_ptr().cast()
                } else {
                    let codes = RunBytes::<KIND>::new(layout, panel, r);
                    for (i, step) in steps.enumerate() {
                        integers::<KIND>(&codes, k / K_STEP + i, &dequant, step);
                    }
                    buffer.as_ptr().cast()
                };
                let mut x = x.as_ptr().add(r * layout.run() + k);
                for block in out.chunks_mut(BLOCK) {
                    match block.len() {
                        BLOCK => multiply::<BLOCK>(weights, len, x, stride, block),
                        2 => multiply::<2>(weights, len, x, stride, block),
                        _ => multiply::<1>(weights, len, x, stride, block),
                    }
                    x = x.wrapping_add(BLOCK * stride);
                }
            }
        }
    }
}

/// Adds `len` elements along k of `ROWS` rows times `weights` to `out`.
///
/// # Safety
/// `16 * len` floats are readable at `weights`, `len` at each `x + row * stride`, and `out.len() == ROWS`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn multiply<const ROWS: usize>(
    weights: *const f32,
    len: usize,
    x: *const f32,
    stride: usize,
    out: &mut [Lane],
) {
    let mut even = [[vdupq_n_f32(0.0); QUARTERS]; ROWS];
    let mut odd = even;
    // SAFETY: the caller promises what is read and that there are `ROWS` outputs.
    unsafe {
        for row in 0..ROWS {
            even[row] = load16(ScaleType::F32, out.as_ptr().add(row).cast());
        }
        for k in 0..len / 2 {
            add_element(&mut even, weights.add(2 * k * COLUMNS), x.add(2 * k), stride);
            add_element(&mut odd, weights.add((2 * k + 1) * COLUMNS), x.add(2 * k + 1), stride);
        }
        if !len.is_multiple_of(2) {
            add_element(&mut even, weights.add((len - 1) * COLUMNS), x.add(len - 1), stride);
        }
    }
    for row in 0..ROWS {
        for q in 0..QUARTERS {
            even[row][q] = vaddq_f32(even[row][q], odd[row][q]);
        }
        store16(&mut out[row], even[row]);
    }
}

/// Adds one element of `ROWS` rows times its 16 weights.
///
/// # Safety
/// 16 floats are readable at `weights`, and one at each `x + row * stride`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_element<const ROWS: usize>(
    acc: &mut [[float32x4_t; QUARTERS]; ROWS],
    weights: *const f32,
    x: *const f32,
    stride: usize,
) {
    // SAFETY: the caller promises what is read.
    unsafe {
        let w = load16(ScaleType::F32, weights.cast());
        for row in 0..ROWS {
            let x = vdupq_n_f32(*x.add(row * stride));
            for q in 0..QUARTERS {
                acc[row][q] = vfmaq_f32(acc[row][q], w[q], x);
            }
        }
    }
}

/// The weights of 16 elements along k of 16 bits.
///
/// # Safety
/// They are readable at `p`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn halves<const KIND: u32>(p: *const u8, out: &mut [Lane; K_STEP]) {
    for (pair, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        for q in 0..QUARTERS {
            // SAFETY: the caller promises a line for each pair of elements; a quarter of a lane is 4 floats.
            unsafe {
                let v = vld1q_u32(p.add(pair * LINE + 16 * q).cast());
                let (even, odd) = if KIND == BF16 {
                    let high = vandq_u32(v, vdupq_n_u32(0xffff_0000));
                    (vreinterpretq_f32_u32(vshlq_n_u32::<16>(v)), vreinterpretq_f32_u32(high))
                } else {
                    let half = |v| vcvt_f32_f16(vreinterpret_f16_u16(v));
                    (half(vmovn_u32(v)), half(vshrn_n_u32::<16>(v)))
                };
                vst1q_f32(out[0].as_mut_ptr().add(4 * q), even);
                vst1q_f32(out[1].as_mut_ptr().add(4 * q), odd);
            }
        }
    }
}

/// The weights of 16 elements along k of `BITS` bits.
///
/// # Safety
/// The run has that step, as [`RunBytes::atom`] says.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn integers<const BITS: u32>(
    codes: &RunBytes<BITS>,
    step: usize,
    dequant: &Dequant,
    out: &mut [Lane; K_STEP],
) {
    for (i, out) in out.as_chunks_mut::<ATOM_K>().0.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let atom = unsafe { codes.atom(step, i) };
        for q in 0..QUARTERS {
            // Four columns of four elements: element e of each lies in byte e of a lane.
            let v = vreinterpretq_s32_s8(atom[q]);
            let bytes = [vshlq_n_s32::<24>(v), vshlq_n_s32::<16>(v), vshlq_n_s32::<8>(v), v];
            for (out, byte) in out.iter_mut().zip(bytes) {
                let code = vsubq_f32(vcvtq_f32_s32(vshrq_n_s32::<24>(byte)), dequant.constant);
                let w = vmulq_f32(code, dequant.scale[q]);
                let w = if dequant.float { vaddq_f32(w, dequant.offset[q]) } else { w };
                // SAFETY: a quarter of a lane is 4 floats.
                unsafe { vst1q_f32(out.as_mut_ptr().add(4 * q), w) };
            }
        }
    }
}
