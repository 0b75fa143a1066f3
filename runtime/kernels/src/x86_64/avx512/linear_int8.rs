//! Integer linears by `vpdpbusd`: unsigned weight codes times a broadcast of four signed activation codes.

use super::{load16, prefetch};
use crate::linear::Lane;
use bessemer_format::PanelLayout;
use bessemer_format::act::Int8Layout;
use bessemer_format::panel::{K_STEP, LINE};
use bessemer_format::scheme::Offset;
use std::arch::x86_64::*;

/// Rows that share the unpacked weights: their i32 and f32 accumulators, an unpacked pair of atoms and the scales fill the
/// registers. As many independent sums hide the latency of `vpdpbusd`.
const BLOCK: usize = 12;
/// Largest activation group whose code sums fit 16 bits.
const MAX_SHORT_SUM: usize = 256;

/// [`crate::linear::LinearInt8Fn`] for 4-bit unsigned codes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) unsafe fn u4(l: &PanelLayout, act: &Int8Layout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
    // SAFETY: the caller's promises are those of `linear`.
    unsafe { linear::<false>(l, act, panel, x, out) }
}

/// [`crate::linear::LinearInt8Fn`] for signed bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) unsafe fn s8(l: &PanelLayout, act: &Int8Layout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
    // SAFETY: the caller's promises are those of `linear`.
    unsafe { linear::<true>(l, act, panel, x, out) }
}

/// # Safety
/// As [`crate::linear::LinearInt8Fn`], for codes of `s8` (`S8`) or `u4`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn linear<const S8: bool>(
    layout: &PanelLayout,
    act: &Int8Layout,
    panel: &[u8],
    mut x: &[u8],
    mut out: &mut [Lane],
) {
    // The first block brings the panel into the cache.
    let mut first = true;
    while !out.is_empty() {
        let rows = match out.len() {
            BLOCK.. => BLOCK,
            8.. => 8,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let (block, rest) = out.split_at_mut(rows);
        // SAFETY: `block` and the rows of `x` before its end are `rows` long; the rest is the caller's promise.
        unsafe {
            match rows {
                BLOCK if first => tile::<S8, BLOCK, true>(layout, act, panel, x, block),
                BLOCK => tile::<S8, BLOCK, false>(layout, act, panel, x, block),
                8 => tile::<S8, 8, true>(layout, act, panel, x, block),
                4 => tile::<S8, 4, true>(layout, act, panel, x, block),
                2 => tile::<S8, 2, true>(layout, act, panel, x, block),
                _ => tile::<S8, 1, true>(layout, act, panel, x, block),
            }
        }
        first = false;
        x = &x[rows * act.row_bytes()..];
        out = rest;
    }
}

/// # Safety
/// As [`linear`], with `out.len() == ROWS` and at least as many rows in `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<const S8: bool, const ROWS: usize, const PREFETCH: bool>(
    layout: &PanelLayout,
    act: &Int8Layout,
    panel: &[u8],
    x: &[u8],
    out: &mut [Lane],
) {
    let Some(levels) = layout.scheme().scale else { return };
    let (constant, float) = match layout.scheme().offset {
        Offset::None => (0, None),
        Offset::Const(c) => (c, None),
        Offset::Float(o) => (0, Some(o.inner.ty)),
    };
    // Signed codes are biased to unsigned ones; the bias is subtracted as the offset is, exactly.
    let constant = if S8 { constant + 128 } else { constant };
    let minus_constant = _mm512_set1_epi32(-constant);
    let minus_constant_low = _mm512_set1_epi32(i32::from(-constant as u16));
    let short_sums = act.group <= MAX_SHORT_SUM;
    let row_bytes = act.row_bytes();
    let step_bytes = if S8 { 4 * LINE } else { 2 * LINE };
    let mut acc = [_mm512_setzero_ps(); ROWS];
    let mut g = 0;
    for r in 0..layout.runs() {
        // SAFETY: every run, with its codes, scales and offsets, lies inside the panel. A group lies inside a row of
        // `x`, and so do its scale and sum; `ROWS` rows are there.
        unsafe {
            let mut codes = panel.as_ptr().add(layout.run_offset(r));
            let side = codes.add(layout.run_code_bytes(r));
            let scale = load16(levels.inner.ty, side);
            let offset = match float {
                Some(ty) => load16(ty, side.add(layout.scale_bytes())),
                None => _mm512_setzero_ps(),
            };
            if PREFETCH {
                prefetch(side);
            }
            let start = r * layout.run();
            let end = start + layout.run_len(r).next_multiple_of(K_STEP);
            let mut k = start;
            while k < end {
                let scale_x = x.as_ptr().add(act.scales_at() + 4 * g);
                let sum_x = x.as_ptr().add(act.sums_at() + 4 * g);
                let product_x = x.as_ptr().add(act.products_at() + 4 * g);
                let broadcast_i32 = |p: *const u8, row: usize| {
                    _mm512_set1_epi32(p.add(row * row_bytes).cast::<i32>().read_unaligned())
                };
                let broadcast_f32 = |p: *const u8, row: usize| {
                    _mm512_set1_ps(p.add(row * row_bytes).cast::<f32>().read_unaligned())
                };
                let mut isum = [_mm512_setzero_si512(); ROWS];
                if constant != 0 {
                    for row in 0..ROWS {
                        let sum = broadcast_i32(sum_x, row);
                        isum[row] = if short_sums {
                            // The low half of each lane times -constant; the high half times zero.
                            _mm512_dpwssd_epi32(isum[row], minus_constant_low, sum)
                        } else {
                            _mm512_mullo_epi32(minus_constant, sum)
                        };
                    }
                }
                let group_end = end.min(k + act.group);
                while k < group_end {
                    if PREFETCH {
                        for line in 0..step_bytes / LINE {
                            prefetch(codes.add(line * LINE));
                        }
                    }
                    let atoms = four_atoms::<S8>(codes);
                    let q = x.as_ptr().add(k);
                    for (i, atom) in atoms.into_iter().enumerate() {
                        for row in 0..ROWS {
                            isum[row] =
                                _mm512_dpbusd_epi32(isum[row], atom, broadcast_i32(q.add(4 * i), row));
                        }
                    }
                    codes = codes.add(step_bytes);
                    k += K_STEP;
                }
                for row in 0..ROWS {
                    let scale_x = broadcast_f32(scale_x, row);
                    let t = _mm512_mul_ps(scale, scale_x);
                    acc[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[row]), t, acc[row]);
                }
                if float.is_some() {
                    for row in 0..ROWS {
                        acc[row] = _mm512_fmadd_ps(offset, broadcast_f32(product_x, row), acc[row]);
                    }
                }
                g += 1;
            }
        }
    }
    for (out, acc) in out.iter_mut().zip(acc) {
        // SAFETY: a lane is 16 floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), acc) };
    }
}

/// The next 16 elements along k: four atoms of unsigned codes (signed ones plus 128).
///
/// # Safety
/// Four lines of signed bytes, or two of nibbles, are readable at `p`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn four_atoms<const S8: bool>(p: *const u8) -> [__m512i; 4] {
    // SAFETY: the caller promises the lines that are read.
    let line = |i: usize| unsafe { _mm512_loadu_si512(p.add(i * LINE).cast()) };
    if S8 {
        let bias = _mm512_set1_epi8(-128);
        [0, 1, 2, 3].map(|i| _mm512_xor_si512(line(i), bias))
    } else {
        let mask = _mm512_set1_epi8(15);
        let low = |v| _mm512_and_si512(v, mask);
        let high = |v| _mm512_and_si512(_mm512_srli_epi16::<4>(v), mask);
        let (a, b) = (line(0), line(1));
        [low(a), high(a), low(b), high(b)]
    }
}
