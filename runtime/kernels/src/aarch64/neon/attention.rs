//! Attention over one block. The layout of keys and values makes both products plain broadcasts: no transposition.

use super::super::QUARTERS;
use super::exp;
use crate::attention::{KvBlock, KvElem, OnlineSoftmax, Queries, base, base_of, rounded};
use bessemer_format::kv::{COLUMNS, TOKENS};
use std::arch::aarch64::*;

const LANES: usize = 4;

// Element types of a cache as const parameters.
const BF16: u8 = 0;
const F16: u8 = 1;
const F32: u8 = 2;

/// [`crate::attention::AttentionFn`].
#[target_feature(enable = "neon")]
pub(crate) unsafe fn attend_block(block: &KvBlock<'_>, queries: &Queries<'_>, state: &mut OnlineSoftmax<'_>) {
    // SAFETY: the caller's promises are those of `attend`.
    unsafe {
        match block.elem {
            KvElem::F16 => attend::<F16>(block, queries, state),
            KvElem::Bf16 => attend::<BF16>(block, queries, state),
            KvElem::F32 => attend::<F32>(block, queries, state),
            KvElem::Int8 | KvElem::Fp8 | KvElem::Int4 => {
                crate::attention::portable::attend_block(block, queries, state);
            }
        }
    }
}

/// Splits the queries into runs of up to four that see the same tokens and share every load.
///
/// # Safety
/// As [`crate::attention::AttentionFn`], for the element type `ELEM`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn attend<const ELEM: u8>(block: &KvBlock<'_>, queries: &Queries<'_>, state: &mut OnlineSoftmax<'_>) {
    let mut first = 0;
    for same in queries.visible.chunk_by(|a, b| a == b) {
        for some in same.chunks(4) {
            // SAFETY: the queries `first ..` are at least as many as the const parameter says.
            unsafe {
                match some.len() {
                    _ if some[0] == 0 => {}
                    4 => attend_some::<ELEM, 4>(block, queries, first, state),
                    3 => attend_some::<ELEM, 3>(block, queries, first, state),
                    2 => attend_some::<ELEM, 2>(block, queries, first, state),
                    _ => attend_some::<ELEM, 1>(block, queries, first, state),
                }
            }
            first += some.len();
        }
    }
}

/// # Safety
/// As [`attend`]; the `N` queries from `first` exist and see the same tokens, at least one.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn attend_some<const ELEM: u8, const N: usize>(
    block: &KvBlock<'_>,
    queries: &Queries<'_>,
    first: usize,
    state: &mut OnlineSoftmax<'_>,
) {
    let d = block.head_dim;
    let bytes = block.elem.bits() / 8;
    let visible = queries.visible[first] as usize;
    let q = queries.q[first * d..][..N * d].as_ptr();

    let mut weights = [[f32::NEG_INFINITY; TOKENS]; N];
    // Panels of keys that hold a visible token; within one, four vectors of tokens.
    for panel in 0..visible.div_ceil(COLUMNS) {
        let mut scores = [[vdupq_n_f32(0.0); QUARTERS]; N];
        // SAFETY: a key panel holds d / 2 lines of 32 elements, and there are two of them; a query has d elements. The
        // weights of a query are 32 floats.
        unsafe {
            for pair in 0..d / 2 {
                let line = block.keys.as_ptr().add((panel * d / 2 + pair) * 2 * COLUMNS * bytes);
                for part in 0..QUARTERS {
                    let (even, odd) = load_pairs::<ELEM>(line.add(part * 2 * LANES * bytes));
                    for i in 0..N {
                        let q = q.add(i * d + 2 * pair);
                        let s = vfmaq_n_f32(scores[i][part], even, *q);
                        scores[i][part] = vfmaq_n_f32(s, odd, *q.add(1));
                    }
                }
            }
            for i in 0..N {
                for part in 0..QUARTERS {
                    let s = vmulq_n_f32(scores[i][part], queries.scale);
                    vst1q_f32(weights[i].as_mut_ptr().add(panel * COLUMNS + part * LANES), s);
                }
            }
        }
    }

    let mut corrections = [0.0; N];
    for i in 0..N {
        let w = &mut weights[i];
        // What is not visible may be NaN: it is replaced, not multiplied.
        w[visible..].fill(f32::NEG_INFINITY);
        let old = state.m[first + i];
        let mut max = vdupq_n_f32(f32::NEG_INFINITY);
        let mut sum = vdupq_n_f32(0.0);
        // SAFETY: the weights of a query are 8 times 4 floats.
        unsafe {
            for part in w.as_chunks::<LANES>().0 {
                max = vmaxnmq_f32(vld1q_f32(part.as_ptr()), max);
            }
            let m = old.max(base_of(vmaxnmvq_f32(max), queries.rounds));
            for part in w.as_chunks_mut::<LANES>().0 {
                let p = exp(vsubq_f32(vld1q_f32(part.as_ptr()), vdupq_n_f32(base(m))));
                vst1q_f32(part.as_mut_ptr(), p);
                sum = vaddq_f32(sum, p);
            }
            if queries.rounds {
                w.iter_mut().for_each(|w| *w = rounded(*w));
            }
            let c = crate::math::exp(old - base(m));
            state.m[first + i] = m;
            state.l[first + i] = state.l[first + i] * c + vaddvq_f32(sum);
            corrections[i] = c;
        }
    }

    let acc = state.acc[first * d..][..N * d].as_mut_ptr();
    // Pairs of elements, as d is even: whole vectors and, if d is no multiple of 4, a half.
    for at in (0..d).step_by(LANES) {
        let half = d - at < LANES;
        // SAFETY: elements `at .. at + 4` (`at + 2` of the half) of each accumulator and of each of the 16 token pairs,
        // which are d pairs of elements long, are there.
        unsafe {
            let mut sums = [vdupq_n_f32(0.0); N];
            for i in 0..N {
                let a = acc.add(i * d + at);
                let a = if half { vcombine_f32(vld1_f32(a), vdup_n_f32(0.0)) } else { vld1q_f32(a) };
                sums[i] = vmulq_n_f32(a, corrections[i]);
            }
            for pair in 0..visible.div_ceil(2) {
                let line = block.values.as_ptr().add((pair * d + at) * 2 * bytes);
                let (even, odd) = if half { load_two_pairs::<ELEM>(line) } else { load_pairs::<ELEM>(line) };
                for i in 0..N {
                    sums[i] = vfmaq_n_f32(sums[i], even, weights[i][2 * pair]);
                    // The other token of the last pair may be invisible, and any bytes.
                    if 2 * pair + 1 < visible {
                        sums[i] = vfmaq_n_f32(sums[i], odd, weights[i][2 * pair + 1]);
                    }
                }
            }
            for i in 0..N {
                let a = acc.add(i * d + at);
                if half { vst1_f32(a, vget_low_f32(sums[i])) } else { vst1q_f32(a, sums[i]) }
            }
        }
    }
}

/// The even and the odd elements of four pairs.
///
/// # Safety
/// 8 elements are readable at `p`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_pairs<const ELEM: u8>(p: *const u8) -> (float32x4_t, float32x4_t) {
    // SAFETY: the caller promises what is read.
    unsafe {
        match ELEM {
            BF16 => widen(vld1q_u32(p.cast())),
            F16 => {
                let uint16x4x2_t(even, odd) = vld2_u16(p.cast());
                (widen_f16(even), widen_f16(odd))
            }
            _ => {
                let float32x4x2_t(even, odd) = vld2q_f32(p.cast());
                (even, odd)
            }
        }
    }
}

/// The even and the odd elements of two pairs, and zeros.
///
/// # Safety
/// 4 elements are readable at `p`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_two_pairs<const ELEM: u8>(p: *const u8) -> (float32x4_t, float32x4_t) {
    // SAFETY: the caller promises what is read.
    unsafe {
        match ELEM {
            BF16 => widen(vcombine_u32(vld1_u32(p.cast()), vdup_n_u32(0))),
            F16 => {
                let (two, zero) = (vld1_u16(p.cast()), vdup_n_u16(0));
                (widen_f16(vuzp1_u16(two, zero)), widen_f16(vuzp2_u16(two, zero)))
            }
            _ => {
                let float32x2x2_t(even, odd) = vld2_f32(p.cast());
                let zero = vdup_n_f32(0.0);
                (vcombine_f32(even, zero), vcombine_f32(odd, zero))
            }
        }
    }
}

/// The lower and the upper bfloat16 of each lane.
#[inline]
#[target_feature(enable = "neon")]
fn widen(pairs: uint32x4_t) -> (float32x4_t, float32x4_t) {
    let odd = vandq_u32(pairs, vdupq_n_u32(0xffff_0000));
    (vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs)), vreinterpretq_f32_u32(odd))
}

/// Four halves of binary16.
#[inline]
#[target_feature(enable = "neon")]
fn widen_f16(halves: uint16x4_t) -> float32x4_t {
    vcvt_f32_f16(vreinterpret_f16_u16(halves))
}
