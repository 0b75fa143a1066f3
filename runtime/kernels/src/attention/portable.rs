//! Attention over one block in plain Rust.

use super::{KvBlock, KvElem, OnlineSoftmax, Queries, base, base_of, rounded};
use crate::math::{exp, tanh};
use bessemer_format::kv::{COLUMNS, TOKENS, number};

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
        let (keys, values) = (block.keys, block.values);
        let mut p = match block.elem {
            KvElem::F32 => scores(keys, q, |k: &[u8; 8]| f32_pair(k)),
            KvElem::F16 => scores(keys, q, f16_pair),
            KvElem::Bf16 => scores(keys, q, bf16_pair),
            elem @ (KvElem::Int8 | KvElem::Fp8) => scores(keys, q, |k: &[u8; 2]| k.map(|k| number(elem, k))),
            KvElem::Int4 => scores(keys, q, nibbles),
        };
        let scales = block.scales();
        if let Some([keys, _]) = scales {
            p.iter_mut().zip(keys).for_each(|(p, scale)| *p *= f32::from_le_bytes(*scale));
        }
        let p = &mut p[hidden..visible];
        p.iter_mut().for_each(|s| *s *= queries.scale);
        if let Some(cap) = queries.softcap {
            p.iter_mut().for_each(|s| *s = cap * tanh(*s / cap));
        }
        if let Some(bias) = queries.bias.get(i * TOKENS..(i + 1) * TOKENS) {
            p.iter_mut().zip(&bias[hidden..]).for_each(|(s, bias)| *s += bias);
        }
        let largest = p.iter().fold(f32::NEG_INFINITY, |m, &s| m.max(s));
        let m = state.m[i].max(base_of(largest, queries.rounds));
        let c = exp(state.m[i] - base(m));
        p.iter_mut().for_each(|s| *s = exp(*s - base(m)));
        state.m[i] = m;
        state.l[i] = state.l[i] * c + p.iter().sum::<f32>();
        acc.iter_mut().for_each(|a| *a *= c);
        if let Some([_, values]) = scales {
            p.iter_mut().zip(&values[hidden..]).for_each(|(p, scale)| *p *= f32::from_le_bytes(*scale));
        }
        if queries.rounds {
            p.iter_mut().for_each(|p| *p = rounded(*p));
        }
        match block.elem {
            KvElem::F32 => weigh(values, hidden, p, acc, |v: &[u8; 8]| f32_pair(v)),
            KvElem::F16 => weigh(values, hidden, p, acc, f16_pair),
            KvElem::Bf16 => weigh(values, hidden, p, acc, bf16_pair),
            elem @ (KvElem::Int8 | KvElem::Fp8) => {
                weigh(values, hidden, p, acc, |v: &[u8; 2]| v.map(|v| number(elem, v)));
            }
            KvElem::Int4 => weigh(values, hidden, p, acc, nibbles),
        }
    }
}

#[inline(always)]
fn f32_pair(b: &[u8; 8]) -> [f32; 2] {
    [[b[0], b[1], b[2], b[3]], [b[4], b[5], b[6], b[7]]].map(f32::from_le_bytes)
}

#[inline(always)]
fn f16_pair(b: &[u8; 4]) -> [f32; 2] {
    [[b[0], b[1]], [b[2], b[3]]].map(|b| half::f16::from_le_bytes(b).to_f32_const())
}

#[inline(always)]
fn bf16_pair(b: &[u8; 4]) -> [f32; 2] {
    [[b[0], b[1]], [b[2], b[3]]].map(|b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
}

#[inline(always)]
fn nibbles(b: &[u8; 1]) -> [f32; 2] {
    [b[0] & 15, b[0] >> 4].map(|code| f32::from(code) - 8.0)
}

/// The unscaled scores of all tokens, visible or not (each is alone in its lane). `read` gives two neighbours from their `B`
/// bytes.
#[inline(always)]
fn scores<const B: usize>(keys: &[u8], q: &[f32], read: impl Fn(&[u8; B]) -> [f32; 2]) -> [f32; TOKENS] {
    let mut s = [0.0; TOKENS];
    let panel = COLUMNS * q.len() / 2;
    for (s, keys) in s.as_chunks_mut::<COLUMNS>().0.iter_mut().zip(keys.as_chunks::<B>().0.chunks(panel)) {
        for (q, line) in q.as_chunks::<2>().0.iter().zip(keys.as_chunks::<COLUMNS>().0) {
            for (i, q) in q.iter().enumerate() {
                for (s, pair) in s.iter_mut().zip(line) {
                    *s += q * read(pair)[i];
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
    read: impl Fn(&[u8; B]) -> [f32; 2],
) {
    let d = acc.len();
    for (token, p) in (first..).zip(p) {
        let line = &values.as_chunks::<B>().0[token / 2 * d..][..d];
        for (a, v) in acc.iter_mut().zip(line) {
            *a += p * read(v)[token % 2];
        }
    }
}
