//! Integer linears by `vpmaddubsw`: unsigned weight codes times a broadcast of four signed activation codes, whose sums
//! of two products are collected in 16 bits for as long as they fit.
//!
//! For signed bytes the sign of the weight moves to the activation (128 * 127 * 2 fits, 255 * 127 * 2 would not).

use super::{load16, prefetch};
use crate::linear::Lane;
use crate::x86_64::OffsetProducts;
use bessemer_format::PanelLayout;
use bessemer_format::act::Int8Layout;
use bessemer_format::panel::{K_STEP, LINE};
use bessemer_format::scheme::Offset;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows that share the unpacked weights: their 16-bit sums fill half of the registers.
const BLOCK: usize = 4;
/// Atoms of a step along k.
const STEP_ATOMS: usize = K_STEP / 4;

/// Declares the kernels, each for the codes of so many bits (8: signed bytes; fewer: unsigned).
macro_rules! kernels {
    ($($name:ident: $bits:literal;)*) => {$(
        /// [`crate::linear::LinearInt8Fn`] for the element of this name.
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(crate) unsafe fn $name(l: &PanelLayout, act: &Int8Layout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
            // SAFETY: the caller's promises are those of `linear`.
            unsafe { linear::<$bits>(l, act, panel, x, out) }
        }
    )*};
}
kernels! {
    u2: 2;
    u3: 3;
    u4: 4;
    u5: 5;
    u6: 6;
    s8: 8;
}

/// How many atoms' sums of two products fit 16 bits: the largest code times 127, twice.
const fn atoms_in_16_bits(bits: usize) -> usize {
    let largest = if bits == 8 { 128 } else { (1 << bits) - 1 };
    i16::MAX as usize / (2 * 127 * largest)
}

/// # Safety
/// As [`crate::linear::LinearInt8Fn`], for codes of `BITS`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn linear<const BITS: usize>(
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
            2.. => 2,
            _ => 1,
        };
        let (block, rest) = out.split_at_mut(rows);
        // SAFETY: `block` and the rows of `x` before its end are `rows` long; the rest is the caller's promise.
        unsafe {
            match rows {
                BLOCK if first => tile::<BITS, BLOCK, true>(layout, act, panel, x, block),
                BLOCK => tile::<BITS, BLOCK, false>(layout, act, panel, x, block),
                2 => tile::<BITS, 2, true>(layout, act, panel, x, block),
                _ => tile::<BITS, 1, true>(layout, act, panel, x, block),
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
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const BITS: usize, const ROWS: usize, const PREFETCH: bool>(
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
    let mut offset_products = OffsetProducts::<ROWS>::new(act, x, constant);
    let row_bytes = act.row_bytes();
    let mut scales_x = x.as_ptr().wrapping_add(act.scales_at());
    let mut products_x = x.as_ptr().wrapping_add(act.products_at());
    let mut x = x.as_ptr();
    let mut codes = panel.as_ptr();
    let mut acc = [[_mm256_setzero_ps(); 2]; ROWS];
    let broadcast_f32 = |p: *const u8, row: usize| {
        // SAFETY: called for a scale or product of a row only.
        unsafe { _mm256_set1_ps(p.add(row * row_bytes).cast::<f32>().read_unaligned()) }
    };
    for r in 0..layout.runs() {
        // SAFETY: every run, with its codes, scales and offsets, lies inside the panel. A group lies inside a row of
        // `x`, and so do its scale and product; `ROWS` rows are there.
        unsafe {
            let side = codes.add(layout.run_code_bytes(r));
            let scale = load16(levels.inner.ty, side);
            let offset = match float {
                Some(ty) => load16(ty, side.add(layout.scale_bytes())),
                None => [_mm256_setzero_ps(); 2],
            };
            if PREFETCH {
                prefetch(side);
            }
            let steps = layout.run_len(r).div_ceil(K_STEP);
            let mut step = 0;
            while step < steps {
                let group_steps = (steps - step).min(act.group / K_STEP);
                let mut isum =
                    group::<BITS, ROWS, PREFETCH>(codes, steps, step..step + group_steps, x, row_bytes);
                if constant != 0 {
                    let products = offset_products.next();
                    for row in 0..ROWS {
                        let product = _mm256_set1_epi32(products[row]);
                        isum[row] = isum[row].map(|sum| _mm256_add_epi32(sum, product));
                    }
                }
                for row in 0..ROWS {
                    let scale_x = broadcast_f32(scales_x, row);
                    for half in 0..2 {
                        let t = _mm256_mul_ps(scale[half], scale_x);
                        acc[row][half] =
                            _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum[row][half]), t, acc[row][half]);
                    }
                }
                if float.is_some() {
                    for row in 0..ROWS {
                        let product = broadcast_f32(products_x, row);
                        for half in 0..2 {
                            acc[row][half] = _mm256_fmadd_ps(offset[half], product, acc[row][half]);
                        }
                    }
                }
                step += group_steps;
                x = x.add(group_steps * K_STEP);
                scales_x = scales_x.wrapping_add(4);
                products_x = products_x.wrapping_add(4);
            }
            codes = side.add(layout.scale_bytes() + layout.offset_bytes());
        }
    }
    for (out, acc) in out.iter_mut().zip(acc) {
        // SAFETY: a lane is two times 8 floats.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), acc[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), acc[1]);
        }
    }
}

/// The integer sums of the products of one activation group: `group` of the `steps` steps of a run of codes times `ROWS`
/// rows from `x` on.
///
/// # Safety
/// The run's codes are readable at `run`, `group` lies within `steps`, and 16 codes a step of it lie in each row of `x`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn group<const BITS: usize, const ROWS: usize, const PREFETCH: bool>(
    run: *const u8,
    steps: usize,
    group: Range<usize>,
    mut x: *const u8,
    row_bytes: usize,
) -> [[__m256i; 2]; ROWS] {
    let zero = [[_mm256_setzero_si256(); 2]; ROWS];
    let (mut isum, mut short) = (zero, zero);
    let widen = |isum: &mut [[__m256i; 2]; ROWS], short: &mut [[__m256i; 2]; ROWS]| {
        for row in 0..ROWS {
            for half in 0..2 {
                let sums = _mm256_madd_epi16(short[row][half], _mm256_set1_epi16(1));
                isum[row][half] = _mm256_add_epi32(isum[row][half], sums);
            }
        }
        *short = zero;
    };
    let atoms_in_short = const { atoms_in_16_bits(BITS) };
    let steps_in_short = const { atoms_in_16_bits(BITS) / STEP_ATOMS };
    let mut room = steps_in_short;
    for step in group {
        // SAFETY: the caller promises what is read.
        unsafe {
            if PREFETCH {
                for line in 0..BITS.div_ceil(2) {
                    prefetch(run.add(step * BITS * LINE / 2 + line * LINE));
                }
            }
            let halves = [0, 1].map(|half| four_atoms::<BITS>(run.add(half * LINE / 2), steps, step));
            for i in 0..STEP_ATOMS {
                for row in 0..ROWS {
                    let q = _mm256_set1_epi32(x.add(row * row_bytes + 4 * i).cast::<i32>().read_unaligned());
                    for half in 0..2 {
                        let w = halves[half][i];
                        let pairs = if BITS == 8 {
                            _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w))
                        } else {
                            _mm256_maddubs_epi16(w, q)
                        };
                        short[row][half] = _mm256_add_epi16(short[row][half], pairs);
                    }
                }
                if steps_in_short == 0 && (i + 1) % atoms_in_short == 0 {
                    widen(&mut isum, &mut short);
                }
            }
            x = x.add(K_STEP);
        }
        if steps_in_short > 0 {
            room -= 1;
            if room == 0 {
                widen(&mut isum, &mut short);
                room = steps_in_short;
            }
        }
    }
    if steps_in_short > 0 {
        widen(&mut isum, &mut short);
    }
    isum
}

/// Half of step `step` along k of a run of `steps` steps: 8 columns of four atoms, put together from the bit planes.
///
/// # Safety
/// The run's codes are readable around `run`, which is the run's start or half a line after it, and `step < steps`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four_atoms<const BITS: usize>(run: *const u8, steps: usize, step: usize) -> [__m256i; 4] {
    // SAFETY: the caller promises the lines of every plane.
    let line = |i: usize| unsafe { _mm256_loadu_si256(run.add(i * LINE).cast()) };
    if BITS == 8 {
        return [0, 1, 2, 3].map(|i| line(4 * step + i));
    }
    let mut atoms = [_mm256_setzero_si256(); 4];
    // Bits of the code below those put together so far, and lines of the planes before.
    let (mut low, mut base) = (BITS, 0);
    if BITS & 4 != 0 {
        low -= 4;
        let lines = [line(2 * step), line(2 * step + 1)];
        for j in 0..4 {
            atoms[j] = moved::<4>(lines[j / 2], j % 2 * 4, low);
        }
        base += 2 * steps;
    }
    if BITS & 2 != 0 {
        low -= 2;
        let line = line(base + step);
        for j in 0..4 {
            atoms[j] = _mm256_or_si256(atoms[j], moved::<2>(line, j * 2, low));
        }
        base += steps;
    }
    if BITS & 1 != 0 {
        // A line holds two steps.
        let line = _mm256_srl_epi16(line(base + step / 2), _mm_cvtsi32_si128((step % 2 * 4) as i32));
        for j in 0..4 {
            atoms[j] = _mm256_or_si256(atoms[j], moved::<1>(line, j, 0));
        }
    }
    atoms
}

/// `BITS` bits of every byte, moved from position `from` to position `to`, alone. Constant positions become immediate ones.
#[inline]
#[target_feature(enable = "avx2")]
fn moved<const BITS: u32>(v: __m256i, from: usize, to: usize) -> __m256i {
    let count = |n: usize| _mm_cvtsi32_si128(n as i32);
    // Words are shifted; the mask drops what crosses into the other byte.
    let v =
        if from > to { _mm256_srl_epi16(v, count(from - to)) } else { _mm256_sll_epi16(v, count(to - from)) };
    _mm256_and_si256(v, _mm256_set1_epi8((((1 << BITS) - 1) << to) as i8))
}
