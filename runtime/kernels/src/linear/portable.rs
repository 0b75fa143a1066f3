//! Linear kernels in plain Rust: the reference for every other, and what runs schemes that have no kernel of their
//! own. The bodies are inlined into wrappers with newer target features, which changes their speed and no bit.

use super::{Lane, TILE_ROWS};
use crate::codes::{ATOM_K, RunCodes, float_step, run_integer_scales, run_scales};
use bessemer_format::Elem;
use bessemer_format::PanelLayout;
use bessemer_format::act::Bf16Layout;
use bessemer_format::act::Int8Layout;
use bessemer_format::panel::{COLUMNS, K_STEP};
use bessemer_format::scheme::{Offset, int8_code, int8_scale, round_bf16, widen_bf16};
use std::ops::Range;

/// [`super::LinearF32`] for every scheme: multiplications and additions in ascending k, never fused.
#[inline(always)]
pub(crate) fn linear_f32(layout: &PanelLayout, panel: &[u8], x: &[f32], stride: usize, out: &mut [Lane]) {
    linear_by(layout, panel, x, stride, out, |_| {});
}

/// [`super::LinearBf16::Widened`] for every scheme: as [`linear_f32`], where products are exact.
#[inline(always)]
pub(crate) fn linear_widened(layout: &PanelLayout, panel: &[u8], x: &[f32], stride: usize, out: &mut [Lane]) {
    linear_by(layout, panel, x, stride, out, rounding(layout));
}

/// What `Compute::Bf16` does to the weights of a step.
#[inline(always)]
fn rounding(layout: &PanelLayout) -> impl Fn(&mut [Lane; K_STEP]) {
    let exact = layout.scheme().elem == Elem::Bf16;
    move |weights| {
        if !exact {
            weights.as_flattened_mut().iter_mut().for_each(|w| *w = widen_bf16(round_bf16(*w)));
        }
    }
}

#[inline(always)]
fn linear_by(
    layout: &PanelLayout,
    panel: &[u8],
    x: &[f32],
    stride: usize,
    out: &mut [Lane],
    change: impl Fn(&mut [Lane; K_STEP]),
) {
    out.fill([0.0; COLUMNS]);
    each_step(layout, panel, |at, len, weights| {
        change(weights);
        for (row, out) in out.iter_mut().enumerate() {
            let x = &x[row * stride + at..][..len];
            // A constant trip count keeps the sums in registers.
            match x.first_chunk::<K_STEP>() {
                Some(x) => multiply(weights, x, out),
                None => multiply(weights, x, out),
            }
        }
    });
}

/// [`super::LinearNative`] for every scheme: exact products, added in ascending k.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only tests round to bf16 there"))]
pub(crate) fn linear_native(layout: &PanelLayout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
    out.fill([0.0; COLUMNS]);
    let row_bytes = Bf16Layout { k: layout.k() }.native_row_bytes();
    let round = rounding(layout);
    each_step(layout, panel, |at, _, weights| {
        round(weights);
        for (x, out) in x.chunks_exact(row_bytes).zip(out.iter_mut()) {
            // Rows are padded with zeros to whole steps, as weights are.
            let mut wide = [0.0; K_STEP];
            for (wide, x) in wide.iter_mut().zip(x[2 * at..].as_chunks::<2>().0) {
                *wide = widen_bf16(u16::from_le_bytes(*x));
            }
            multiply(weights, &wide, out);
        }
    });
}

/// [`super::RoundBf16`] to bf16.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only tests round to bf16 there"))]
pub(crate) fn round_native(x: &[f32], out: &mut [u8]) {
    for (out, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
        *out = round_bf16(*x).to_le_bytes();
    }
}

/// [`super::RoundBf16`] to f32 that bf16 holds.
#[inline(always)]
pub(crate) fn round_widened(x: &[f32], out: &mut [u8]) {
    for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
        *out = widen_bf16(round_bf16(*x)).to_le_bytes();
    }
}

/// Hands out the weights of a panel by steps of up to 16 elements along k, with where a step starts and how many are real.
#[inline(always)]
fn each_step(layout: &PanelLayout, panel: &[u8], mut step: impl FnMut(usize, usize, &mut [Lane; K_STEP])) {
    for r in 0..layout.runs() {
        let run_len = layout.run_len(r);
        run_steps(layout, panel, r, 0..run_len.div_ceil(K_STEP), |i, weights| {
            let k = i * K_STEP;
            step(r * layout.run() + k, K_STEP.min(run_len - k), weights);
        });
    }
}

/// The weights of `steps` of run `r`, rounded to bfloat16.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
pub(crate) fn rounded_steps(
    layout: &PanelLayout,
    panel: &[u8],
    r: usize,
    steps: Range<usize>,
    mut step: impl FnMut(&[Lane; K_STEP]),
) {
    let round = rounding(layout);
    run_steps(layout, panel, r, steps, |_, weights| {
        round(weights);
        step(weights);
    });
}

/// Hands out the weights of `steps` of run `r`, each with its number.
#[inline(always)]
fn run_steps(
    layout: &PanelLayout,
    panel: &[u8],
    r: usize,
    steps: Range<usize>,
    mut step: impl FnMut(usize, &mut [Lane; K_STEP]),
) {
    let scheme = *layout.scheme();
    let mut weights = [[0.0; COLUMNS]; K_STEP];
    let integer =
        (!scheme.elem.is_float()).then(|| (RunCodes::new(layout, panel, r), run_scales(layout, panel, r)));
    for i in steps {
        match &integer {
            None => float_step(layout, panel, r * layout.run() + i * K_STEP, &mut weights),
            Some((codes, (scale, offset))) => {
                for (j, four) in weights.as_chunks_mut::<ATOM_K>().0.iter_mut().enumerate() {
                    let atom = codes.atom(i * K_STEP / ATOM_K + j);
                    for (i, w) in four.iter_mut().enumerate() {
                        for c in 0..COLUMNS {
                            w[c] = scheme.dequant(atom[ATOM_K * c + i], scale[c], offset[c]);
                        }
                    }
                }
            }
        }
        step(i, &mut weights);
    }
}

#[inline(always)]
fn multiply(weights: &[Lane; K_STEP], x: &[f32], out: &mut Lane) {
    let mut acc = *out;
    for (w, &x) in weights.iter().zip(x) {
        for (acc, w) in acc.iter_mut().zip(w) {
            *acc += x * w;
        }
    }
    *out = acc;
}

/// [`super::LinearInt8`] for every scheme whose numbers are multiples of a unit.
#[inline(always)]
pub(crate) fn linear_int8(layout: &PanelLayout, act: &Int8Layout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
    for (x, out) in x.chunks(TILE_ROWS * act.row_bytes()).zip(out.chunks_mut(TILE_ROWS)) {
        int8_tile(layout, act, panel, x, out);
    }
}

#[inline(always)]
fn int8_tile(layout: &PanelLayout, act: &Int8Layout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
    out.fill([0.0; COLUMNS]);
    let constant = if let Offset::Const(c) = layout.scheme().offset { c } else { 0 };
    let float = layout.scheme().offset_type().is_some();
    let mut sums = [[0i32; COLUMNS]; TILE_ROWS];
    for g in 0..act.groups() {
        let (start, end) = (g * act.group, act.padded_k.min((g + 1) * act.group));
        let r = if layout.runs() == 1 { 0 } else { start / layout.run() };
        let codes = RunCodes::new(layout, panel, r);
        let (scale, offset) = run_integer_scales(layout, panel, r);
        let sums = &mut sums[..out.len()];
        sums.fill([0; COLUMNS]);
        for k in (start..end).step_by(ATOM_K) {
            let atom = codes.integers((k - r * layout.run()) / ATOM_K);
            for (row, sums) in x.chunks_exact(act.row_bytes()).zip(sums.iter_mut()) {
                let q = [row[k], row[k + 1], row[k + 2], row[k + 3]].map(|q| i32::from(q as i8));
                for c in 0..COLUMNS {
                    for i in 0..ATOM_K {
                        sums[c] = sums[c].wrapping_add(i32::from(atom[ATOM_K * c + i]) * q[i]);
                    }
                }
            }
        }
        for (row, (sums, acc)) in x.chunks_exact(act.row_bytes()).zip(sums.iter().zip(out.iter_mut())) {
            let word = |at: usize| [row[at], row[at + 1], row[at + 2], row[at + 3]];
            let scale_x = f32::from_le_bytes(word(act.scales_at() + 4 * g));
            let sum_x = i32::from_le_bytes(word(act.sums_at() + 4 * g));
            for c in 0..COLUMNS {
                let isum = sums[c].wrapping_sub(constant.wrapping_mul(sum_x));
                acc[c] = (isum as f32 * scale[c]).mul_add(scale_x, acc[c]);
                if float {
                    acc[c] = offset[c].mul_add(scale_x * sum_x as f32, acc[c]);
                }
            }
        }
    }
}

/// [`super::Quantise`].
#[inline(always)]
pub(crate) fn quantise(layout: &Int8Layout, x: &[f32], out: &mut [u8]) {
    out.fill(0);
    for (g, x) in x.chunks(layout.group).enumerate() {
        let (scale, inverse) = int8_scale(x);
        let mut sum = 0;
        for (out, &v) in out[g * layout.group..].iter_mut().zip(x) {
            let code = int8_code(v, inverse);
            *out = code as u8;
            sum += i32::from(code);
        }
        out[layout.scales_at() + 4 * g..][..4].copy_from_slice(&scale.to_le_bytes());
        out[layout.sums_at() + 4 * g..][..4].copy_from_slice(&sum.to_le_bytes());
    }
}
