//! f32 linears: a chunk of weights is dequantised once into L1, then multiplied with every row of the tile.

use super::{e4m3 as e4m3_numbers, prefetch, scales};
use crate::linear::Lane;
use crate::x86_64::Side;
use bessemer_format::PanelLayout;
use bessemer_format::panel::{COLUMNS, LINE};
use std::arch::x86_64::*;

/// Rows that share loaded weights. Each has accumulators for two halves of the columns and for even and odd k (to
/// hide latency when there is one row only), so that a row's bits never depend on others.
const BLOCK: usize = 3;
/// Elements along k of a chunk.
const CHUNK: usize = 64;
/// Elements along k that are dequantised at once.
const STEP: usize = 8;

const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;
const U4: u8 = 3;
const S8: u8 = 4;
const E4M3: u8 = 5;
const E5M2: u8 = 6;
const TABLE: u8 = 7;

macro_rules! entry {
    ($($(#[$doc:meta])* $name:ident: $kind:ident;)*) => {
        $($(#[$doc])*
        #[target_feature(enable = "avx2,fma,f16c")]
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
    /// [`crate::linear::LinearF32Fn`] for 4-bit unsigned codes.
    u4: U4;
    /// [`crate::linear::LinearF32Fn`] for signed bytes.
    s8: S8;
    /// [`crate::linear::LinearF32Fn`] for E4M3.
    e4m3: E4M3;
    /// [`crate::linear::LinearF32Fn`] for E5M2.
    e5m2: E5M2;
    /// [`crate::linear::LinearF32Fn`] for 4-bit codes of a table of 16 numbers.
    table: TABLE;
}

/// What turns codes into weights, for either half of the columns.
struct Dequant {
    constant: __m256,
    /// The 16 numbers of a table.
    table: [__m256; 2],
    scale: [__m256; 2],
    offset: [__m256; 2],
    float: bool,
}

/// # Safety
/// As [`crate::linear::LinearF32Fn`], for elements of `KIND`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn linear<const KIND: u8>(
    layout: &PanelLayout,
    panel: &[u8],
    x: &[f32],
    stride: usize,
    out: &mut [Lane],
) {
    let scheme = layout.scheme();
    let (constant, float) = (scheme.constant() as f32, scheme.offset_type());
    let stored = Side::of(layout);
    let mut dequant = Dequant {
        constant: _mm256_set1_ps(constant),
        table: match scheme.elem.numbers() {
            // SAFETY: a table has 256 numbers, of which these are the first 16.
            Some(table) => [0, 8].map(|half| unsafe { _mm256_loadu_ps(table.as_ptr().add(half)) }),
            None => [_mm256_setzero_ps(); 2],
        },
        scale: [_mm256_setzero_ps(); 2],
        offset: [_mm256_setzero_ps(); 2],
        float: float.is_some(),
    };
    let step_bytes = STEP * LINE / 4 * scheme.elem.bits() as usize / 8;
    let mut buffer = [[0.0f32; COLUMNS]; CHUNK];
    out.fill([0.0; COLUMNS]);
    for r in 0..layout.runs() {
        // SAFETY: every run, with its codes, scales and offsets, lies inside the panel, and its codes are padded to a
        // multiple of 16 elements. Activations are read up to k only, in rows that are there.
        unsafe {
            let codes = panel.as_ptr().add(layout.run_offset(r));
            if !matches!(KIND, F32 | F16 | BF16) {
                let side = codes.add(layout.run_code_bytes(r));
                if let Some(stored) = stored {
                    (dequant.scale, dequant.offset) = scales(stored, layout, panel.as_ptr(), side, r);
                }
            }
            for k in (0..layout.run_len(r)).step_by(CHUNK) {
                let len = CHUNK.min(layout.run_len(r) - k);
                let codes = codes.add(k / STEP * step_bytes);
                // A panel of binary32 is such a chunk already.
                let weights = if KIND == F32 {
                    codes.cast()
                } else {
                    for (i, eight) in
                        buffer.as_chunks_mut::<STEP>().0[..len.div_ceil(STEP)].iter_mut().enumerate()
                    {
                        for line in 0..step_bytes / LINE {
                            prefetch(codes.add(i * step_bytes + line * LINE));
                        }
                        eight_weights::<KIND>(codes.add(i * step_bytes), &dequant, eight);
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
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply<const ROWS: usize>(
    weights: *const f32,
    len: usize,
    x: *const f32,
    stride: usize,
    out: &mut [Lane],
) {
    let mut acc = [[[_mm256_setzero_ps(); 2]; 2]; ROWS];
    // SAFETY: the caller promises what is read; a lane is two times 8 floats.
    unsafe {
        for row in 0..ROWS {
            acc[row][0] = [0, 8].map(|c| _mm256_loadu_ps(out[row].as_ptr().add(c)));
        }
        let step = |acc: &mut [[[__m256; 2]; 2]; ROWS], k: usize, parity: usize| {
            let w = [0, 8].map(|c| _mm256_loadu_ps(weights.add(k * COLUMNS + c)));
            for row in 0..ROWS {
                let x = _mm256_set1_ps(*x.add(row * stride + k));
                for half in 0..2 {
                    acc[row][parity][half] = _mm256_fmadd_ps(w[half], x, acc[row][parity][half]);
                }
            }
        };
        for k in 0..len / 2 {
            step(&mut acc, 2 * k, 0);
            step(&mut acc, 2 * k + 1, 1);
        }
        if !len.is_multiple_of(2) {
            step(&mut acc, len - 1, 0);
        }
        for row in 0..ROWS {
            for half in 0..2 {
                let sum = _mm256_add_ps(acc[row][0][half], acc[row][1][half]);
                _mm256_storeu_ps(out[row].as_mut_ptr().add(8 * half), sum);
            }
        }
    }
}

/// The weights of 8 elements along k.
///
/// # Safety
/// Their codes are readable at `p`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn eight_weights<const KIND: u8>(p: *const u8, dequant: &Dequant, out: &mut [Lane; STEP]) {
    for half in 0..2 {
        // SAFETY: the caller promises the lines that are read, of which this is a half.
        let line = |i: usize| unsafe { _mm256_loadu_si256(p.add(i * LINE + half * LINE / 2).cast()) };
        let mut store = |k: usize, w: __m256| {
            // SAFETY: a half of a lane is 8 floats.
            unsafe { _mm256_storeu_ps(out[k].as_mut_ptr().add(8 * half), w) }
        };
        let scaled = |code: __m256i| {
            let code = _mm256_sub_ps(_mm256_cvtepi32_ps(code), dequant.constant);
            let w = _mm256_mul_ps(code, dequant.scale[half]);
            if dequant.float { _mm256_add_ps(w, dequant.offset[half]) } else { w }
        };
        // Tables have no offsets.
        let number = |number: __m256| _mm256_mul_ps(number, dequant.scale[half]);
        match KIND {
            BF16 => {
                for pair in 0..STEP / 2 {
                    let v = line(pair);
                    store(2 * pair, _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v)));
                    let high = _mm256_and_si256(v, _mm256_set1_epi32(-65536));
                    store(2 * pair + 1, _mm256_castsi256_ps(high));
                }
            }
            F16 => {
                for pair in 0..STEP / 2 {
                    let v = line(pair);
                    let even = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
                    // Packs within 128-bit halves, whose middle quarters then trade places.
                    let packed = _mm256_packus_epi32(even, _mm256_srli_epi32::<16>(v));
                    let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
                    store(2 * pair, _mm256_cvtph_ps(_mm256_castsi256_si128(packed)));
                    store(2 * pair + 1, _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(packed)));
                }
            }
            U4 => {
                let v = line(0);
                let nibble = |v| scaled(_mm256_and_si256(v, _mm256_set1_epi32(15)));
                store(0, nibble(v));
                store(1, nibble(_mm256_srli_epi32::<8>(v)));
                store(2, nibble(_mm256_srli_epi32::<16>(v)));
                store(3, nibble(_mm256_srli_epi32::<24>(v)));
                store(4, nibble(_mm256_srli_epi32::<4>(v)));
                store(5, nibble(_mm256_srli_epi32::<12>(v)));
                store(6, nibble(_mm256_srli_epi32::<20>(v)));
                store(7, nibble(_mm256_srli_epi32::<28>(v)));
            }
            TABLE => {
                let v = line(0);
                // The permutation looks at the low three bits of a lane, the choice at its sign: bit 3 of the nibble, moved there.
                let look_up = |v, fourth| {
                    let [low, high] = dequant.table.map(|half| _mm256_permutevar8x32_ps(half, v));
                    number(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(fourth)))
                };
                store(0, look_up(v, _mm256_slli_epi32::<28>(v)));
                store(1, look_up(_mm256_srli_epi32::<8>(v), _mm256_slli_epi32::<20>(v)));
                store(2, look_up(_mm256_srli_epi32::<16>(v), _mm256_slli_epi32::<12>(v)));
                store(3, look_up(_mm256_srli_epi32::<24>(v), _mm256_slli_epi32::<4>(v)));
                store(4, look_up(_mm256_srli_epi32::<4>(v), _mm256_slli_epi32::<24>(v)));
                store(5, look_up(_mm256_srli_epi32::<12>(v), _mm256_slli_epi32::<16>(v)));
                store(6, look_up(_mm256_srli_epi32::<20>(v), _mm256_slli_epi32::<8>(v)));
                store(7, look_up(_mm256_srli_epi32::<28>(v), v));
            }
            E4M3 => {
                for atom in 0..STEP / 4 {
                    let v = line(atom);
                    let byte = |v| number(e4m3_numbers(_mm256_and_si256(v, _mm256_set1_epi32(0xff))));
                    store(4 * atom, byte(v));
                    store(4 * atom + 1, byte(_mm256_srli_epi32::<8>(v)));
                    store(4 * atom + 2, byte(_mm256_srli_epi32::<16>(v)));
                    store(4 * atom + 3, byte(_mm256_srli_epi32::<24>(v)));
                }
            }
            E5M2 => {
                for atom in 0..STEP / 4 {
                    let v = line(atom);
                    let high = _mm256_set1_epi32(0xff00);
                    // The upper bytes of binary16s, which are packed within 128-bit halves.
                    let pair = |even: __m256i, odd: __m256i| {
                        let packed =
                            _mm256_packus_epi32(_mm256_and_si256(even, high), _mm256_and_si256(odd, high));
                        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
                        let odd = _mm256_extracti128_si256::<1>(packed);
                        [_mm256_castsi256_si128(packed), odd].map(|half| number(_mm256_cvtph_ps(half)))
                    };
                    let [first, second] = pair(_mm256_slli_epi32::<8>(v), v);
                    store(4 * atom, first);
                    store(4 * atom + 1, second);
                    let [third, fourth] = pair(_mm256_srli_epi32::<8>(v), _mm256_srli_epi32::<16>(v));
                    store(4 * atom + 2, third);
                    store(4 * atom + 3, fourth);
                }
            }
            _ => {
                for atom in 0..STEP / 4 {
                    let v = line(atom);
                    let byte = |v| scaled(_mm256_srai_epi32::<24>(v));
                    store(4 * atom, byte(_mm256_slli_epi32::<24>(v)));
                    store(4 * atom + 1, byte(_mm256_slli_epi32::<16>(v)));
                    store(4 * atom + 2, byte(_mm256_slli_epi32::<8>(v)));
                    store(4 * atom + 3, byte(v));
                }
            }
        }
    }
}
