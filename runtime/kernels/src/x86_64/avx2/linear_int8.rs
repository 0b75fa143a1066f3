//! Integer linears by `vpmaddubsw`, whose sums of two products saturate at 16 bits: safe for nibbles (15 * 127 * 2);
//! for signed bytes the sign of the weight moves to the activation (128 * 127 * 2 fits, 255 * 127 * 2 would not).

use super::load16;
use crate::linear::Lane;
use bessemer_format::PanelLayout;
use bessemer_format::act::Int8Layout;
use bessemer_format::panel::{K_STEP, LINE};
use bessemer_format::scheme::Offset;
use std::arch::x86_64::*;

/// Rows that share unpacked weights.
const BLOCK: usize = 2;

/// [`crate::linear::LinearInt8Fn`] for 4-bit unsigned codes.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn u4(l: &PanelLayout, act: &Int8Layout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
    // SAFETY: the caller's promises are those of `linear`.
    unsafe { linear::<false>(l, act, panel, x, out) }
}

/// [`crate::linear::LinearInt8Fn`] for signed bytes.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn s8(l: &PanelLayout, act: &Int8Layout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
    // SAFETY: the caller's promises are those of `linear`.
    unsafe { linear::<true>(l, act, panel, x, out) }
}

/// # Safety
/// As [`crate::linear::LinearInt8Fn`], for codes of `s8` (`S8`) or `u4`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn linear<const S8: bool>(
    layout: &PanelLayout,
    act: &Int8Layout,
    panel: &[u8],
    x: &[u8],
    out: &mut [Lane],
) {
    for (x, out) in x.chunks(BLOCK * act.row_bytes()).zip(out.chunks_mut(BLOCK)) {
        // SAFETY: `out` and the rows of `x` are as many as the const parameter says; the rest is the caller's promise.
        unsafe {
            match out.len() {
                BLOCK => tile::<S8, BLOCK>(layout, act, panel, x, out),
                _ => tile::<S8, 1>(layout, act, panel, x, out),
            }
        }
    }
}

/// # Safety
/// As [`linear`], with `ROWS` rows in `x` and `out`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const S8: bool, const ROWS: usize>(
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
    let row_bytes = act.row_bytes();
    let step_bytes = if S8 { 4 * LINE } else { 2 * LINE };
    let mut acc = [[_mm256_setzero_ps(); 2]; ROWS];
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
                None => [_mm256_setzero_ps(); 2],
            };
            let mut k = r * layout.run();
            let end = k + layout.run_len(r).next_multiple_of(K_STEP);
            while k < end {
                let scale_x = |row: usize| {
                    x.as_ptr().add(row * row_bytes + act.scales_at() + 4 * g).cast::<f32>().read_unaligned()
                };
                let sum_x = |row: usize| {
                    x.as_ptr().add(row * row_bytes + act.sums_at() + 4 * g).cast::<i32>().read_unaligned()
                };
                let mut isum = [[_mm256_setzero_si256(); 2]; ROWS];
                if constant != 0 {
                    for row in 0..ROWS {
                        isum[row] = [_mm256_set1_epi32(sum_x(row).wrapping_mul(-constant)); 2];
                    }
                }
                let group_end = end.min(k + act.group);
                while k < group_end {
                    for half in 0..2 {
                        add_step::<S8, ROWS>(
                            codes.add(half * LINE / 2),
                            x.as_ptr().add(k),
                            row_bytes,
                            std::array::from_fn(|row| isum[row][half]),
                        )
                        .into_iter()
                        .enumerate()
                        .for_each(|(row, sum)| isum[row][half] = sum);
                    }
                    codes = codes.add(step_bytes);
                    k += K_STEP;
                }
                for row in 0..ROWS {
                    let scale_x = scale_x(row);
                    for half in 0..2 {
                        let t = _mm256_mul_ps(scale[half], _mm256_set1_ps(scale_x));
                        acc[row][half] =
                            _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum[row][half]), t, acc[row][half]);
                        if float.is_some() {
                            let t = _mm256_set1_ps(scale_x * sum_x(row) as f32);
                            acc[row][half] = _mm256_fmadd_ps(offset[half], t, acc[row][half]);
                        }
                    }
                }
                g += 1;
            }
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

/// Adds 16 elements along k of `ROWS` rows times half a panel to `isum`.
///
/// # Safety
/// Half lines of four atoms are readable from `codes` at distances of a line, and 16 codes of each row from `x`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_step<const S8: bool, const ROWS: usize>(
    codes: *const u8,
    x: *const u8,
    row_bytes: usize,
    mut isum: [__m256i; ROWS],
) -> [__m256i; ROWS] {
    let ones = _mm256_set1_epi16(1);
    // SAFETY: the caller promises what is read.
    unsafe {
        let line = |i: usize| _mm256_loadu_si256(codes.add(i * LINE).cast());
        let four = |row: usize, i: usize| {
            _mm256_set1_epi32(x.add(row * row_bytes + 4 * i).cast::<i32>().read_unaligned())
        };
        if S8 {
            for i in 0..4 {
                let w = line(i);
                let magnitude = _mm256_abs_epi8(w);
                for row in 0..ROWS {
                    let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(four(row, i), w));
                    isum[row] = _mm256_add_epi32(isum[row], _mm256_madd_epi16(pairs, ones));
                }
            }
        } else {
            let mask = _mm256_set1_epi8(15);
            let low = |v| _mm256_and_si256(v, mask);
            let high = |v| _mm256_and_si256(_mm256_srli_epi16::<4>(v), mask);
            let (a, b) = (line(0), line(1));
            let atoms = [low(a), high(a), low(b), high(b)];
            for row in 0..ROWS {
                // Four pairs of at most 3810 fit 16 bits.
                let p = [0, 1, 2, 3].map(|i| _mm256_maddubs_epi16(atoms[i], four(row, i)));
                let pairs = _mm256_add_epi16(_mm256_add_epi16(p[0], p[1]), _mm256_add_epi16(p[2], p[3]));
                isum[row] = _mm256_add_epi32(isum[row], _mm256_madd_epi16(pairs, ones));
            }
        }
    }
    isum
}
