//! Tests of an [`Attention`] row.

use super::data::Random;
use super::{gamma, guard::Guarded};
use crate::attention::{Attention, AttentionFn, KvBlock, KvElem, OnlineSoftmax, Queries};
use crate::attention::{round_queries, rounded};
use crate::table::{KernelSet, Row};
use bessemer_format::kv::{self, TOKENS};
use bessemer_format::scheme::round_f16;
use std::f64::consts::LN_2;

const ELEMS: [KvElem; 6] = KvElem::ALL;

/// What is done to a product of query and key.
#[derive(Clone, Copy)]
struct Scores {
    scale: f32,
    softcap: Option<f32>,
    /// Whether [`added`] is.
    biased: bool,
    rounds: bool,
}

impl Scores {
    fn scaled(scale: f32) -> Self {
        Self { scale, softcap: None, biased: false, rounds: false }
    }
}

/// What is added to the score of a token for the query that sees so many.
fn added(seen: usize, token: usize) -> f32 {
    ((seen * 7 + token * 3) % 11) as f32 * 0.25 - 1.0
}

/// A sequence of blocks in natural order (`[token][d]`) and packed.
struct Cache {
    elem: KvElem,
    d: usize,
    k: Vec<f32>,
    v: Vec<f32>,
    blocks: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Cache {
    fn new(elem: KvElem, d: usize, tokens: usize, mut next: impl FnMut() -> f32) -> Self {
        // Of each token the elements, and what stands for them: codes or their own bits, and a scale.
        let mut rows = || -> Vec<(Vec<f32>, f32)> {
            let row = |_| {
                let x: Vec<f32> = (0..d).map(|_| next()).collect();
                let scale = kv::scale(elem, &x);
                (x, scale)
            };
            (0..tokens).map(row).collect()
        };
        let [k, v] = [rows(), rows()];
        // What is not visible is no number, or an odd one.
        let head = vec![0xff; kv::head_bytes(elem, d)];
        let mut blocks = vec![(head.clone(), head); tokens.div_ceil(TOKENS)];
        let put = |out: &mut [u8], at: usize, x: f32, scale: f32| match elem {
            KvElem::F32 => out[4 * at..][..4].copy_from_slice(&x.to_le_bytes()),
            KvElem::F16 => out[2 * at..][..2].copy_from_slice(&round_f16(x).to_le_bytes()),
            KvElem::Bf16 => out[2 * at..][..2].copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
            KvElem::Int4 => {
                let (byte, shift) = (&mut out[at / 2], at % 2 * 4);
                *byte = *byte & !(15 << shift) | kv::code(elem, x, scale) << shift;
            }
            KvElem::Int8 | KvElem::Fp8 => out[at] = kv::code(elem, x, scale),
        };
        let scales_at = kv::scales_at(elem, d);
        for t in 0..tokens {
            let (keys, values) = &mut blocks[t / TOKENS];
            for (out, (x, scale), place) in
                [(keys, &k[t], kv::key as fn(usize, usize, usize) -> usize), (values, &v[t], kv::value)]
            {
                (0..d).for_each(|i| put(out, place(d, t % TOKENS, i), x[i], *scale));
                if elem.is_scaled() {
                    out[scales_at + t % TOKENS * 4..][..4].copy_from_slice(&scale.to_le_bytes());
                }
            }
        }
        let stored = |rows: Vec<(Vec<f32>, f32)>| {
            let stored = |(mut x, _): (Vec<f32>, f32)| {
                kv::stored(elem, &mut x);
                x
            };
            rows.into_iter().flat_map(stored).collect()
        };
        let [k, v] = [k, v].map(stored);
        Self { elem, d, k, v, blocks }
    }

    /// Queries that see `seen[i]` tokens from the start of the sequence.
    fn attend(&self, attention: &Attention, q: &[f32], scores: Scores, seen: &[usize]) -> Vec<f32> {
        self.attend_within(attention, q, scores, seen, usize::MAX)
    }

    /// Those of them that are the last `window` ones.
    fn attend_within(
        &self,
        attention: &Attention,
        q: &[f32],
        scores: Scores,
        seen: &[usize],
        window: usize,
    ) -> Vec<f32> {
        let Scores { scale, softcap, biased, rounds } = scores;
        let n = seen.len();
        let (mut m, mut l, mut acc) = (vec![0.0; n], vec![0.0; n], vec![0.0; n * self.d]);
        let mut state = OnlineSoftmax { m: &mut m, l: &mut l, acc: &mut acc };
        state.reset();
        for (b, (keys, values)) in self.blocks.iter().enumerate() {
            let visible: Vec<u32> =
                seen.iter().map(|&s| s.saturating_sub(b * TOKENS).min(TOKENS) as u32).collect();
            let block =
                KvBlock { elem: self.elem, head_dim: self.d, keys, values, next: Some((values, keys)) };
            let left = |s: usize| s.saturating_sub(window).saturating_sub(b * TOKENS).min(TOKENS) as u32;
            let hidden: Vec<u32> = seen.iter().map(|&s| left(s)).collect();
            let hidden = if hidden.iter().any(|&h| h > 0) { &hidden[..] } else { &[] };
            let tokens = b * TOKENS..(b + 1) * TOKENS;
            let of_query = |s: &usize| tokens.clone().map(|t| added(*s, t)).collect::<Vec<f32>>();
            let bias: Vec<f32> = if biased { seen.iter().flat_map(of_query).collect() } else { Vec::new() };
            let queries = Queries { q, scale, softcap, visible: &visible, hidden, bias: &bias, rounds };
            attention.attend_block(&block, &queries, &mut state);
        }
        let mut out = vec![f32::NAN; n * self.d];
        state.finish(&mut out);
        out
    }

    fn check(&self, got: &[f32], q: &[f32], scores: Scores, seen: &[usize]) {
        self.check_within(got, q, scores, seen, usize::MAX);
    }

    /// The scale of a value of token `t`, 1 where there is none.
    fn value_scale(&self, t: usize) -> f64 {
        let (_, values) = &self.blocks[t / TOKENS];
        let scales = self.elem.is_scaled().then(|| values[kv::scales_at(self.elem, self.d)..].as_chunks().0);
        scales.map_or(1.0, |scales| f64::from(f32::from_le_bytes(scales[t % TOKENS])))
    }

    fn check_within(&self, got: &[f32], q: &[f32], scores: Scores, seen: &[usize], window: usize) {
        let (d, Scores { scale, softcap, biased, rounds }) = (self.d, scores);
        // The kernel multiplies by a scale, and so did `self.k` and `self.v`: two more roundings.
        let scaled = if self.elem.is_scaled() { 2 } else { 0 };
        for (i, &seen) in seen.iter().enumerate() {
            if seen == 0 {
                assert!(got[i * d..][..d].iter().all(|&v| v == 0.0), "a query that sees nothing gets zeros");
                continue;
            }
            let mut scores = Vec::new();
            let mut worst = 0.0f64;
            let first = seen.saturating_sub(window);
            for t in first..seen {
                let terms = (0..d).map(|j| f64::from(q[i * d + j]) * f64::from(self.k[t * d + j]));
                let (sum, size) = terms.fold((0.0, 0.0), |(s, a), x| (s + x, a + x.abs()));
                let score = sum * f64::from(scale);
                // Capping makes distances smaller, and rounds to 1e-7 of the cap.
                scores.push(softcap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh()));
                worst = worst.max(softcap.map_or(0.0, |cap| 4e-7 * f64::from(cap)));
                let mut of_score = gamma(d + 2 + scaled) * size * f64::from(scale.abs());
                if let Some(score) = scores.last_mut().filter(|_| biased) {
                    *score += f64::from(added(seen, t));
                    of_score += gamma(1) * score.abs();
                }
                worst = worst.max(of_score);
            }
            let m = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let m = if rounds { (m / LN_2).ceil() * LN_2 } else { m };
            // Weights: scores off by `worst` and the rounding of s - m (scores are below 16 here), exp by 1 ulp;
            // then sums of `seen` terms rescaled once a block, above and below the fraction line.
            let spread = scores.iter().map(|s| (s - m).abs()).fold(0.0, f64::max).max(m.abs());
            let weight = 2.0 * worst + 2.0 * spread * f64::from(f32::EPSILON) + 8.0 * gamma(2);
            let p: Vec<f64> = scores.iter().map(|s| (s - m).exp()).collect();
            let l: f64 = p.iter().sum();
            // What meets values, and how much more it may be where an error of a weight leads to another number of bfloat16.
            let meets = |(t, p): (usize, &f64)| {
                let scale = self.value_scale(first + t);
                let near = |x: f64| f64::from(rounded((x * scale) as f32)) / scale;
                let [low, middle, high] = [1.0 - weight, 1.0, 1.0 + weight].map(|off| near(p * off));
                if rounds && *p > 0.0 && scale.is_normal() { (middle, high - low) } else { (*p, 0.0) }
            };
            let p: Vec<(f64, f64)> = p.iter().enumerate().map(meets).collect();
            for j in 0..d {
                let (mut want, mut size, mut jumps) = (0.0, 0.0, 0.0);
                for (t, (p, jump)) in p.iter().enumerate() {
                    let value = f64::from(self.v[(first + t) * d + j]);
                    want += p / l * value;
                    size += (p / l * value).abs();
                    jumps += (jump / l * value).abs();
                }
                let sums = 2.0 * weight + 2.0 * gamma(seen + 2 * self.blocks.len() + 4 + scaled);
                let bound = size * sums + jumps + 1e-37;
                let error = (f64::from(got[i * d + j]) - want).abs();
                assert!(
                    error <= bound,
                    "{:?} d={d} query {i} sees {seen}, element {j}: {} against {want}, error {error:e} > {bound:e}",
                    self.elem,
                    got[i * d + j]
                );
            }
        }
    }
}

/// The kernel of a row, which serves as both where it is one that rounds alone.
fn of(row: &Row<AttentionFn>) -> Attention {
    let set = KernelSet::for_tests(row.isa).unwrap();
    Attention { kernel: row.kernel, rounding: row.kernel, ..set.attention() }
}

/// Random queries, rounded where they have to be.
fn queries(random: &mut Random, elems: usize, rounds: bool) -> Vec<f32> {
    let mut q = random.floats(elems);
    if rounds {
        round_queries(&mut q);
    }
    q
}

/// Declares, for each of these, the test with products of f32 and that with products of bfloat16.
macro_rules! tests {
    ($($plain:ident, $rounds:ident: $test:ident;)*) => {
        $(pub(crate) fn $plain(row: &Row<AttentionFn>) {
            $test(row, false);
        }

        pub(crate) fn $rounds(row: &Row<AttentionFn>) {
            $test(row, true);
        })*
    };
}

tests! {
    bounded, rounds_bounded: bounded_in;
    odd_shapes, rounds_odd_shapes: odd_shapes_in;
    windows_and_caps, rounds_windows_and_caps: windows_and_caps_in;
    guarded, rounds_guarded: guarded_in;
}

/// Scores of zero and far below: weights are 1 or 0, and no base rounds. The portable bits.
pub(crate) fn rounds_exactly(row: &Row<AttentionFn>) {
    let (attention, mut random) = (of(row), Random::new(46));
    let portable = KernelSet::for_isa(crate::Isa::Portable).unwrap().attention();
    for elem in ELEMS {
        // The first element makes a scale 1, the second one makes scores.
        let extreme = match elem {
            KvElem::Int8 => 127.0,
            KvElem::Fp8 => 448.0,
            _ => -8.0,
        };
        for (d, queries) in [(16, 1), (64, 3), (128, 4), (80, 19), (64, 33)] {
            let mut at = 0;
            let cache = Cache::new(elem, d, 80, || {
                at += 1;
                match (at - 1) % d {
                    0 => extreme,
                    1 => random.int(-1, 0) as f32,
                    _ => random.int(-3, 3) as f32,
                }
            });
            let q: Vec<f32> = (0..queries * d).map(|i| if i % d == 1 { 1000.0 } else { 0.0 }).collect();
            let seen: Vec<usize> = (0..queries).map(|i| 80 - 7 * (i % 5)).collect();
            let scores = Scores { rounds: true, ..Scores::scaled(0.5) };
            let got = cache.attend(&attention, &q, scores, &seen);
            assert_eq!(got, cache.attend(&portable, &q, scores, &seen), "{elem:?} d={d}");
            assert!(got.iter().all(|v| v.is_finite()) && got.iter().any(|v| *v != 0.0));
        }
    }
}

/// With every score alike or far below the maximum, weights are 1 or 0 and nothing rounds: the portable bits.
pub(crate) fn exact(row: &Row<AttentionFn>) {
    let attention = of(row);
    let portable = KernelSet::for_isa(crate::Isa::Portable).unwrap().attention();
    let mut random = Random::new(41);
    for elem in ELEMS {
        for (d, queries) in [(16, 1), (64, 3), (128, 4), (64, 13)] {
            // The first element makes the scale of a token a power of two.
            let extreme = match elem {
                KvElem::Int8 => 127.0,
                KvElem::Fp8 => 448.0,
                _ => -8.0,
            };
            let mut at = 0;
            let cache = Cache::new(elem, d, 80, || {
                at += 1;
                let small = random.int(-3, 3) as f32;
                if elem.is_scaled() && (at - 1) % d == 0 { extreme } else { small }
            });
            let q: Vec<f32> = (0..queries * d).map(|i| if i % d == 0 { 1000.0 } else { 0.0 }).collect();
            let seen: Vec<usize> = (0..queries).map(|i| 80 - 7 * (i % 5)).collect();
            let got = cache.attend(&attention, &q, Scores::scaled(0.5), &seen);
            assert_eq!(got, cache.attend(&portable, &q, Scores::scaled(0.5), &seen), "{elem:?} d={d}");
            assert!(got.iter().all(|v| v.is_finite()) && got.iter().any(|v| *v != 0.0));
        }
    }
}

/// Random data stays within the rounding bound of the f64 definition.
fn bounded_in(row: &Row<AttentionFn>, rounds: bool) {
    let attention = of(row);
    let mut random = Random::new(42);
    for elem in ELEMS {
        for d in [64, 128] {
            let cache = Cache::new(elem, d, 150, || random.float());
            let q = queries(&mut random, 9 * d, rounds);
            let seen = [150, 150, 150, 150, 150, 150, 150, 149, 33];
            let scores = Scores { rounds, ..Scores::scaled(8.0 / (d as f32).sqrt()) };
            cache.check(&cache.attend(&attention, &q, scores, &seen), &q, scores, &seen);
        }
    }
}

/// Head sizes that fill no vector, every number of visible tokens (none included), queries alone and together; and
/// NaN from visible tokens is not lost.
fn odd_shapes_in(row: &Row<AttentionFn>, rounds: bool) {
    let attention = of(row);
    let mut random = Random::new(43);
    let scores = Scores { rounds, ..Scores::scaled(0.3) };
    for elem in ELEMS {
        for d in [2, 6, 16, 30, 48, 64, 80, 96, 128, 130] {
            let cache = Cache::new(elem, d, 65, || random.float());
            let seen: Vec<usize> = (0..=65).collect();
            let q = queries(&mut random, seen.len() * d, rounds);
            let got = cache.attend(&attention, &q, scores, &seen);
            cache.check(&got, &q, scores, &seen);
            for (i, &s) in seen.iter().enumerate() {
                let alone = cache.attend(&attention, &q[i * d..][..d], scores, &[s]);
                assert_eq!(alone, got[i * d..][..d], "{elem:?} d={d}: query {i} depends on others");
            }
            // Token 40 is NaN; a query that sees it must show it, one that does not must not.
            let mut at = 0;
            let cache = Cache::new(elem, d, 65, || {
                at += 1;
                if at == 40 * d + 1 { f32::NAN } else { random.float() }
            });
            let got = cache.attend(&attention, &q[..2 * d], scores, &[41, 40]);
            assert!(got[..d].iter().all(|v| v.is_nan()) && got[d..].iter().all(|v| v.is_finite()));
        }
    }
}

/// Sliding windows and capped scores: within the bound, alone and together alike, and blind to what is hidden.
fn windows_and_caps_in(row: &Row<AttentionFn>, rounds: bool) {
    let attention = of(row);
    let mut random = Random::new(45);
    for elem in ELEMS {
        for (d, window) in [(16, 1), (64, 7), (30, 32), (64, 33), (128, 50)] {
            let cache = Cache::new(elem, d, 97, || random.float());
            let seen: Vec<usize> = (0..=97).collect();
            let q = queries(&mut random, seen.len() * d, rounds);
            for (softcap, biased) in [(None, false), (Some(1.5), false), (None, true), (Some(1.5), true)] {
                let scores = Scores { softcap, biased, rounds, ..Scores::scaled(0.4) };
                let got = cache.attend_within(&attention, &q, scores, &seen, window);
                cache.check_within(&got, &q, scores, &seen, window);
                for (i, &s) in seen.iter().enumerate() {
                    let alone = cache.attend_within(&attention, &q[i * d..][..d], scores, &[s], window);
                    assert_eq!(alone, got[i * d..][..d], "{elem:?} d={d}: query {i} depends on others");
                }
            }
            // Token 10 is NaN: hidden from the query that sees 10 + window + 1 tokens, not from the one before.
            let mut at = 0;
            let cache = Cache::new(elem, d, 97, || {
                at += 1;
                if (10 * d + 1..=11 * d).contains(&at) { f32::NAN } else { random.float() }
            });
            let scores = Scores { rounds, ..Scores::scaled(0.4) };
            let seen = [10 + window, 11 + window];
            let got = cache.attend_within(&attention, &q[..2 * d], scores, &seen, window);
            assert!(got[..d].iter().all(|v| v.is_nan()) && got[d..].iter().all(|v| v.is_finite()));
        }
    }
}

/// No access outside of any buffer.
fn guarded_in(row: &Row<AttentionFn>, rounds: bool) {
    let attention = of(row);
    let mut random = Random::new(44);
    for elem in ELEMS {
        for d in [2, 16, 30, 64, 80] {
            let cache = Cache::new(elem, d, 32, || random.float());
            for queries in [1, 2, 3, 4, 5, 9, 17] {
                let q = self::queries(&mut random, queries * d, rounds);
                let visible: Vec<u32> = (0..queries).map(|i| 32 - (i as u32 / 4) * 5).collect();
                let (keys, values) = &cache.blocks[0];
                let mut results = Vec::new();
                for end in [true, false] {
                    let bytes = |b: &[u8]| if end { Guarded::at_end(b) } else { Guarded::at_start(b) };
                    let floats = |f: &[f32]| if end { Guarded::at_end(f) } else { Guarded::at_start(f) };
                    let (keys, values, q) = (bytes(keys), bytes(values), floats(&q));
                    let mut parts = [1, 1, d].map(|w| floats(&vec![0.0; queries * w]));
                    let [m, l, acc] = &mut parts;
                    let mut state = OnlineSoftmax { m, l, acc };
                    state.reset();
                    let block = KvBlock {
                        elem,
                        head_dim: d,
                        keys: &keys,
                        values: &values,
                        next: Some((&keys, &values)),
                    };
                    let queries = Queries {
                        q: &q,
                        scale: 0.2,
                        softcap: None,
                        visible: &visible,
                        hidden: &[],
                        bias: &[],
                        rounds,
                    };
                    attention.attend_block(&block, &queries, &mut state);
                    results.push(state.acc.to_vec());
                }
                assert_eq!(results[0], results[1]);
            }
        }
    }
}
