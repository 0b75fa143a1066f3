//! Integer linears by `vpmaddubsw`: unsigned weight codes times a broadcast of four signed activation codes, whose sums
//! of two products are collected in 16 bits for as long as they fit.
//!
//! For signed bytes, and the integers of a table, the sign of the weight moves to the activation (128 * 127 * 2 fits, 255 * 127 * 2 would not).

use super::{prefetch, scales};
use crate::linear::Lane;
use crate::x86_64::{EVEN_STEPS, Side, TABLE, code_bits, even_groups};
use bessemer_format::PanelLayout;
use bessemer_format::act::Int8Layout;
use bessemer_format::panel::{K_STEP, LINE};
use std::arch::x86_64::*;

/// Rows that share the unpacked weights, which fill half of the registers; the rows' sums lie in the L1 cache.
const BLOCK: usize = 16;
/// Atoms of a step along k.
const STEP_ATOMS: usize = K_STEP / 4;

/// Declares the kernels, each for the codes of so many bits (8: signed bytes; fewer: unsigned).
macro_rules! kernels {
    ($($name:ident: $bits:expr;)*) => {$(
        /// [`crate::linear::LinearInt8Fn`] for the element of this name.
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(crate) unsafe fn $name(l: &PanelLayout, act: &Int8Layout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
            // SAFETY: the caller's promises are those of `linear`.
            unsafe {
                if even_groups(act) {
                    linear::<{ $bits }, EVEN_STEPS>(l, act, panel, x, out)
                } else {
                    linear::<{ $bits }, 1>(l, act, panel, x, out)
                }
            }
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
    table: TABLE;
}

/// # Safety
/// As [`crate::linear::LinearInt8Fn`], for codes of `BITS`, whose activation groups are unpacked `STEPS` steps along k at a
/// time: 1, or all the steps of every group.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn linear<const BITS: usize, const STEPS: usize>(
    layout: &PanelLayout,
    act: &Int8Layout,
    panel: &[u8],
    x: &[u8],
    out: &mut [Lane],
) {
    for (i, (x, out)) in x.chunks(BLOCK * act.row_bytes()).zip(out.chunks_mut(BLOCK)).enumerate() {
        // SAFETY: at most `BLOCK` rows; the rest is the caller's promise.
        unsafe {
            // The first block brings the panel into the cache.
            match (out.len(), i) {
                (1, _) => tile::<BITS, STEPS, 1, true>(layout, act, panel, x, out),
                (_, 0) => tile::<BITS, STEPS, BLOCK, true>(layout, act, panel, x, out),
                _ => tile::<BITS, STEPS, BLOCK, false>(layout, act, panel, x, out),
            }
        }
    }
}

/// # Safety
/// As [`linear`], with at most `ROWS` rows. The sums of a single one stay in registers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const BITS: usize, const STEPS: usize, const ROWS: usize, const PREFETCH: bool>(
    layout: &PanelLayout,
    act: &Int8Layout,
    panel: &[u8],
    x: &[u8],
    out: &mut [Lane],
) {
    let Some(stored) = Side::of(layout) else { return };
    let (constant, float) = (layout.scheme().constant(), layout.scheme().offset_type());
    let minus_constant = _mm256_set1_epi32(-constant);
    let (table, unit) = integers(layout);
    let (row_bytes, group_steps) = (act.row_bytes(), act.group / K_STEP);
    let (scales_at, sums_at, products_at) = (act.scales_at(), act.sums_at(), act.products_at());
    let (mut k, mut g) = (0, 0);
    let mut codes = panel.as_ptr();
    let rows = if ROWS == 1 { 1 } else { out.len() };
    let mut isums = [_mm256_setzero_si256(); ROWS];
    let mut acc = [[_mm256_setzero_ps(); 2]; ROWS];
    for r in 0..layout.runs() {
        let steps = layout.run_len(r).div_ceil(K_STEP);
        // SAFETY: every run, with its codes, scales and offsets, lies inside the panel. A group lies inside a row of
        // `x`, and so do its scale, sum and product; there are `rows` of them.
        unsafe {
            let side = codes.add(layout.run_code_bytes(r));
            let (mut scale, offset) = scales(stored, layout, panel.as_ptr(), side, r);
            if BITS == TABLE {
                scale = scale.map(|scale| _mm256_mul_ps(scale, unit));
            }
            if PREFETCH {
                prefetch(side);
            }
            let mut start = 0;
            while start < steps {
                let end = if STEPS > 1 { start + STEPS } else { steps.min(start + group_steps) };
                if PREFETCH {
                    for line in 0..((end - start) * code_bits(BITS)).div_ceil(2) {
                        prefetch(codes.add(start * code_bits(BITS) * LINE / 2 + line * LINE));
                    }
                }
                for half in 0..2 {
                    for step in (start..end).step_by(STEPS) {
                        let mut atoms = [[_mm256_setzero_si256(); STEP_ATOMS]; STEPS];
                        for i in 0..STEPS {
                            atoms[i] = four_atoms::<BITS>(table, codes.add(half * LINE / 2), steps, step + i);
                        }
                        let mut row_x = x.as_ptr();
                        for row in 0..rows {
                            let mut isum =
                                dot::<BITS>(atoms.as_flattened(), row_x.add(k + (step - start) * K_STEP));
                            if step > start {
                                isum = _mm256_add_epi32(isum, isums[row]);
                            }
                            if step + STEPS < end {
                                isums[row] = isum;
                            } else {
                                if constant != 0 {
                                    let sum = broadcast_i32(row_x.add(sums_at + 4 * g));
                                    isum = _mm256_add_epi32(isum, _mm256_mullo_epi32(sum, minus_constant));
                                }
                                let t = _mm256_mul_ps(_mm256_cvtepi32_ps(isum), scale[half]);
                                let scale_x = broadcast_f32(row_x.add(scales_at + 4 * g));
                                let mut sum = _mm256_fmadd_ps(t, scale_x, acc[row][half]);
                                if float.is_some() {
                                    let product = broadcast_f32(row_x.add(products_at + 4 * g));
                                    sum = _mm256_fmadd_ps(offset[half], product, sum);
                                }
                                acc[row][half] = sum;
                            }
                            row_x = row_x.wrapping_add(row_bytes);
                        }
                    }
                }
                k += (end - start) * K_STEP;
                g += 1;
                start = end;
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

/// The sums of the products of `atoms` with four codes each from `x` on.
///
/// # Safety
/// `4 * atoms.len()` bytes are readable at `x`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot<const BITS: usize>(atoms: &[__m256i], x: *const u8) -> __m256i {
    // How many sums of two products fit 16 bits: each at most the largest code times 127, twice.
    let signed = matches!(BITS, 8 | TABLE);
    let largest = if signed { 128 } else { (1 << code_bits(BITS)) - 1 };
    let fit = i16::MAX as usize / (2 * 127 * largest);
    let mut isum = _mm256_setzero_si256();
    let mut short = isum;
    for (i, &w) in atoms.iter().enumerate() {
        // SAFETY: the caller promises the codes.
        let q = unsafe { broadcast_i32(x.add(4 * i)) };
        let pairs = if signed {
            _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w))
        } else {
            _mm256_maddubs_epi16(w, q)
        };
        short = if i % fit == 0 { pairs } else { _mm256_add_epi16(short, pairs) };
        if i % fit == fit - 1 || i == atoms.len() - 1 {
            isum = _mm256_add_epi32(isum, _mm256_madd_epi16(short, _mm256_set1_epi16(1)));
        }
    }
    isum
}

/// The four bytes at `p` in every lane.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn broadcast_i32(p: *const u8) -> __m256i {
    // SAFETY: the caller promises the bytes.
    unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
}

/// The float at `p` in every lane.
///
/// # Safety
/// Its bytes are readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn broadcast_f32(p: *const u8) -> __m256 {
    // SAFETY: the caller promises the bytes.
    unsafe { _mm256_set1_ps(p.cast::<f32>().read_unaligned()) }
}

/// Half of step `step` along k of a run of `steps` steps: 8 columns of four atoms, put together from the bit planes; where codes stand
/// for the integers of a `table`, those.
///
/// # Safety
/// The run's codes are readable around `run`, which is the run's start or half a line after it, and `step < steps`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four_atoms<const BITS: usize>(
    table: __m256i,
    run: *const u8,
    steps: usize,
    step: usize,
) -> [__m256i; 4] {
    // SAFETY: the caller promises the lines of every plane.
    let line = |i: usize| unsafe { _mm256_loadu_si256(run.add(i * LINE).cast()) };
    let mut atoms = [_mm256_setzero_si256(); 4];
    if BITS == 8 {
        for i in 0..4 {
            atoms[i] = line(4 * step + i);
        }
        return atoms;
    }
    // Bits of the code below those put together so far, and lines of the planes before.
    let (mut low, mut base) = (code_bits(BITS), 0);
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
    if BITS == TABLE {
        atoms = atoms.map(|codes| _mm256_shuffle_epi8(table, codes));
    }
    atoms
}

/// The integers of codes, and in every lane the unit of which they are multiples.
#[inline]
#[target_feature(enable = "avx2")]
fn integers(layout: &PanelLayout) -> (__m256i, __m256) {
    let (integers, unit) = crate::x86_64::integers(layout);
    // SAFETY: sixteen bytes.
    let integers = unsafe { _mm_loadu_si128(integers.as_ptr().cast()) };
    (_mm256_broadcastsi128_si256(integers), _mm256_set1_ps(unit))
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
