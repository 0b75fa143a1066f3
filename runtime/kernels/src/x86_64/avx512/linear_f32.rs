//! f32 linears: weights dequantised in registers, fused multiply-add with a broadcast activation.

use super::{e4m3 as e4m3_numbers, prefetch, scales};
use crate::linear::Lane;
use crate::x86_64::Side;
use bessemer_format::panel::LINE;
use bessemer_format::{Elem, PanelLayout};
use std::arch::x86_64::*;

/// Rows that share dequantised weights. Two accumulators a row, for even and odd k, hide the latency of the fused
/// multiply-add when there is one row only; more rows use the same two, so that a row's bits never depend on others.
const BLOCK: usize = 8;
/// Elements along k of a step.
const STEP: usize = 8;

const F32: u8 = 0;
pub(in crate::x86_64) const F16: u8 = 1;
const BF16: u8 = 2;
pub(in crate::x86_64) const U4: u8 = 3;
pub(in crate::x86_64) const S8: u8 = 4;
pub(in crate::x86_64) const E4M3: u8 = 5;
pub(in crate::x86_64) const E5M2: u8 = 6;

macro_rules! entry {
    ($($(#[$doc:meta])* $name:ident: $kind:ident;)*) => {
        $($(#[$doc])*
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        pub(crate) unsafe fn $name(
            layout: &PanelLayout, panel: &[u8], x: &[f32], stride: usize, out: &mut [Lane],
        ) {
            // SAFETY: the caller's promises are those of `linear`.
            unsafe { linear::<$kind>(layout, panel, x, stride, out) }
        })*
    };
}

entry! {
    /// [`crate::linear::LinearF32Fn`] for binary32.
    f32: F32;
    /// [`crate::linear::LinearF32Fn`] for binary16.
    f16: F16;
    /// [`crate::linear::LinearF32Fn`] for bfloat16.
    bf16: BF16;
    /// [`crate::linear::LinearF32Fn`] for 4-bit unsigned codes, and those of a table of 16 numbers.
    u4: U4;
    /// [`crate::linear::LinearF32Fn`] for signed bytes.
    s8: S8;
    /// [`crate::linear::LinearF32Fn`] for E4M3.
    e4m3: E4M3;
    /// [`crate::linear::LinearF32Fn`] for E5M2.
    e5m2: E5M2;
}

/// # Safety
/// As [`crate::linear::LinearF32Fn`], for elements of `KIND`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn linear<const KIND: u8>(
    layout: &PanelLayout,
    panel: &[u8],
    x: &[f32],
    stride: usize,
    out: &mut [Lane],
) {
    let mut first = 0;
    while first < out.len() {
        let rows = match out.len() - first {
            BLOCK.. => BLOCK,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let block = &mut out[first..first + rows];
        let x = &x[first * stride..];
        // SAFETY: `block` is `rows` long, and so are the rows from `x` on; the rest is the caller's promise.
        unsafe {
            match rows {
                BLOCK => tile::<KIND, BLOCK>(layout, panel, x, stride, block, first == 0),
                4 => tile::<KIND, 4>(layout, panel, x, stride, block, first == 0),
                2 => tile::<KIND, 2>(layout, panel, x, stride, block, first == 0),
                _ => tile::<KIND, 1>(layout, panel, x, stride, block, first == 0),
            }
        }
        first += rows;
    }
}

/// What turns codes into weights.
#[derive(Clone, Copy)]
pub(in crate::x86_64) struct Dequant {
    scale: __m512,
    /// Added after scaling.
    offset: __m512,
    /// The numbers of the 16 nibbles, with a constant offset subtracted.
    nibbles: __m512,
    /// Subtracted from signed bytes before scaling.
    constant: __m512,
    float: bool,
}

impl Dequant {
    /// For elements of `KIND`, without scales yet.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::x86_64) fn new<const KIND: u8>(layout: &PanelLayout) -> Self {
        let scheme = layout.scheme();
        let count = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
        let constant = _mm512_set1_ps(scheme.constant() as f32);
        Self {
            scale: _mm512_setzero_ps(),
            offset: _mm512_setzero_ps(),
            nibbles: match scheme.elem.numbers() {
                // SAFETY: a table has 256 numbers, of which these are the first 16.
                Some(table) if KIND == U4 => unsafe { _mm512_loadu_ps(table.as_ptr()) },
                _ => _mm512_sub_ps(count, constant),
            },
            constant,
            float: scheme.offset_type().is_some(),
        }
    }

    /// The scales and offsets of a run.
    #[inline]
    pub(in crate::x86_64) fn set_scale(&mut self, (scale, offset): (__m512, __m512)) {
        (self.scale, self.offset) = (scale, offset);
    }
}

/// Bytes of the codes of [`STEP`] elements along k.
#[inline]
pub(in crate::x86_64) fn step_bytes(layout: &PanelLayout) -> usize {
    STEP * LINE / 4 * layout.scheme().elem.bits() as usize / 8
}

/// # Safety
/// As [`linear`], with `out.len() == ROWS`.
///
/// `stream`: whether these rows are the first that the panel meets, and fetch it for the others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn tile<const KIND: u8, const ROWS: usize>(
    layout: &PanelLayout,
    panel: &[u8],
    x: &[f32],
    stride: usize,
    out: &mut [Lane],
    stream: bool,
) {
    let stored = Side::of(layout);
    let mut dequant = Dequant::new::<KIND>(layout);
    let step_bytes = step_bytes(layout);
    let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
    for r in 0..layout.runs() {
        // SAFETY: every run, with its codes, scales and offsets, lies inside the panel, and its codes are padded to a
        // multiple of 16 elements. Activations are read up to k only, in `ROWS` rows that are there.
        unsafe {
            let mut codes = panel.as_ptr().add(layout.run_offset(r));
            if !matches!(KIND, F32 | F16 | BF16) {
                let side = codes.add(layout.run_code_bytes(r));
                if let Some(stored) = stored {
                    dequant.set_scale(scales(stored, layout, panel.as_ptr(), side, r));
                }
                if stream {
                    prefetch(side);
                }
            }
            let len = layout.run_len(r);
            let mut x = x.as_ptr().add(r * layout.run());
            for _ in 0..len / STEP {
                if stream {
                    for line in 0..step_bytes / LINE {
                        prefetch(codes.add(line * LINE));
                    }
                }
                let weights = eight_weights::<KIND>(codes, &dequant);
                for (i, w) in weights.into_iter().enumerate() {
                    for row in 0..ROWS {
                        let x = _mm512_set1_ps(*x.add(row * stride + i));
                        acc[row][i % 2] = _mm512_fmadd_ps(w, x, acc[row][i % 2]);
                    }
                }
                codes = codes.add(step_bytes);
                x = x.add(STEP);
            }
            if !len.is_multiple_of(STEP) {
                let weights = eight_weights::<KIND>(codes, &dequant);
                for (i, w) in weights.into_iter().enumerate().take(len % STEP) {
                    for row in 0..ROWS {
                        let x = _mm512_set1_ps(*x.add(row * stride + i));
                        acc[row][i % 2] = _mm512_fmadd_ps(w, x, acc[row][i % 2]);
                    }
                }
            }
        }
    }
    for (out, [even, odd]) in out.iter_mut().zip(acc) {
        // SAFETY: a lane is 16 floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_add_ps(even, odd)) };
    }
}

/// The weights of 8 elements along k.
///
/// # Safety
/// Their codes are readable at `p`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(in crate::x86_64) unsafe fn eight_weights<const KIND: u8>(
    p: *const u8,
    dequant: &Dequant,
) -> [__m512; STEP] {
    // SAFETY: the caller promises the lines that are read.
    let line = |i: usize| unsafe { _mm512_loadu_si512(p.add(i * LINE).cast()) };
    let scaled = |code: __m512| {
        let w = _mm512_mul_ps(code, dequant.scale);
        if dequant.float { _mm512_add_ps(w, dequant.offset) } else { w }
    };
    let mut out = [_mm512_setzero_ps(); STEP];
    match KIND {
        F32 => {
            for (i, w) in out.iter_mut().enumerate() {
                *w = _mm512_castsi512_ps(line(i));
            }
        }
        BF16 => {
            let high = _mm512_set1_epi32(-65536);
            for (i, pair) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let v = line(i);
                pair[0] = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v));
                pair[1] = _mm512_castsi512_ps(_mm512_and_si512(v, high));
            }
        }
        F16 => {
            for (i, pair) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let v = line(i);
                pair[0] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
                pair[1] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(v)));
            }
        }
        U4 => {
            // A 32-bit lane holds 4 consecutive k in its low nibbles and the next 4 in its high ones. The permutation
            // looks at the low four bits of a lane only: shift, then look up.
            let v = line(0);
            let look_up = |v| scaled(_mm512_permutexvar_ps(v, dequant.nibbles));
            out = [
                look_up(v),
                look_up(_mm512_srli_epi32::<8>(v)),
                look_up(_mm512_srli_epi32::<16>(v)),
                look_up(_mm512_srli_epi32::<24>(v)),
                look_up(_mm512_srli_epi32::<4>(v)),
                look_up(_mm512_srli_epi32::<12>(v)),
                look_up(_mm512_srli_epi32::<20>(v)),
                look_up(_mm512_srli_epi32::<28>(v)),
            ];
        }
        E4M3 => {
            for (i, four) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let v = line(i);
                let weight = |v| scaled(e4m3_numbers(_mm512_and_si512(v, _mm512_set1_epi32(0xff))));
                *four = [
                    weight(v),
                    weight(_mm512_srli_epi32::<8>(v)),
                    weight(_mm512_srli_epi32::<16>(v)),
                    weight(_mm512_srli_epi32::<24>(v)),
                ];
            }
        }
        E5M2 => {
            for (i, four) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let v = line(i);
                // The upper byte of a binary16.
                let weight = |v| scaled(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)));
                let high = _mm512_set1_epi32(0xff00);
                *four = [
                    weight(_mm512_and_si512(_mm512_slli_epi32::<8>(v), high)),
                    weight(_mm512_and_si512(v, high)),
                    weight(_mm512_and_si512(_mm512_srli_epi32::<8>(v), high)),
                    weight(_mm512_and_si512(_mm512_srli_epi32::<16>(v), high)),
                ];
            }
        }
        _ => {
            for (i, four) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let v = line(i);
                let weight = |v| {
                    let code = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(v));
                    scaled(_mm512_sub_ps(code, dequant.constant))
                };
                *four = [
                    weight(_mm512_slli_epi32::<24>(v)),
                    weight(_mm512_slli_epi32::<16>(v)),
                    weight(_mm512_slli_epi32::<8>(v)),
                    weight(v),
                ];
            }
        }
    }
    out
}

const _: () = assert!(matches!(Elem::U(4).bits(), 4) && STEP * 16 * 4 / 8 == LINE);
