//! Attention over one block in plain Rust.

use super::{KvBlock, KvElem, OnlineSoftmax, Queries, base};
use crate::math::{exp, tanh};
use bessemer_format::kv::{COLUMNS, TOKENS};

/// Tokens by pairs of elements: what one line of a key panel holds.
const PAIRS: usize = 2 * COLUMNS;

/// [`super::Attention`] for every element type.
#[inline(always)]
pub(crate) fn attend_block(block: &KvBlock<'_>, queries: &Queries<'_>, state: &mut OnlineSoftmax<'_>) {
    let d = block.head_dim;
    for (i, &visible) in queries.visible.iter().enumerate() {
        let q = &queries.q[i * d..][..d];
        let acc = &mut state.acc[i * d..][..d];
        let (hidden, visible) = (queries.hidden.get(i).map_or(0, |&h| h as usize), visible as usize);
        if visible <= hidden {
            continue;
        }
        let mut p = match block.elem {
            KvElem::F32 => scores(block.keys, q, |b: &[u8; 4]| f32::from_le_bytes(*b)),
            KvElem::Bf16 => scores(block.keys, q, bf16),
        };
        let p = &mut p[hidden..visible];
        p.iter_mut().for_each(|s| *s *= queries.scale);
        if let Some(cap) = queries.softcap {
            p.iter_mut().for_each(|s| *s = cap * tanh(*s / cap));
        }
        let m = p.iter().fold(state.m[i], |m, &s| m.max(s));
        let c = exp(state.m[i] - base(m));
        p.iter_mut().for_each(|s| *s = exp(*s - base(m)));
        state.m[i] = m;
        state.l[i] = state.l[i] * c + p.iter().sum::<f32>();
        acc.iter_mut().for_each(|a| *a *= c);
        match block.elem {
            KvElem::F32 => weigh(block.values, hidden, p, acc, |b: &[u8; 4]| f32::from_le_bytes(*b)),
            KvElem::Bf16 => weigh(block.values, hidden, p, acc, bf16),
        }
    }
}

#[inline(always)]
fn bf16(b: &[u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)
}

/// The unscaled scores of all tokens, visible or not (each is alone in its lane).
#[inline(always)]
fn scores<const B: usize>(keys: &[u8], q: &[f32], read: impl Fn(&[u8; B]) -> f32) -> [f32; TOKENS] {
    let mut s = [0.0; TOKENS];
    let panel = COLUMNS * q.len();
    for (s, keys) in s.as_chunks_mut::<COLUMNS>().0.iter_mut().zip(keys.as_chunks::<B>().0.chunks(panel)) {
        for (q, line) in q.as_chunks::<2>().0.iter().zip(keys.as_chunks::<PAIRS>().0) {
            for i in 0..2 {
                for (t, s) in s.iter_mut().enumerate() {
                    *s += q[i] * read(&line[2 * t + i]);
                }
            }
        }
    }
    s
}

/// Adds the values of `p.len()` tokens from `first` on, weighted by `p`.
#[inline(always)]
fn weigh<const B: usize>(
    values: &[u8],
    first: usize,
    p: &[f32],
    acc: &mut [f32],
    read: impl Fn(&[u8; B]) -> f32,
) {
    let pairs = 2 * acc.len();
    for (token, p) in (first..).zip(p) {
        let line = &values.as_chunks::<B>().0[token / 2 * pairs..][..pairs];
        for (a, v) in acc.iter_mut().zip(line.as_chunks::<2>().0) {
            *a += p * read(&v[token % 2]);
        }
    }
}
