//! Attention of some queries over one block of the KV cache, with an online softmax.
//!
//! Blocks are laid out by [`bessemer_format::kv`]. A caller walks the blocks of a sequence in order, keeps an
//! [`OnlineSoftmax`] state across them and ends with [`OnlineSoftmax::finish`]; states of disjoint ranges of blocks
//! can be computed apart (by other threads) and joined with [`OnlineSoftmax::merge`].

pub mod latent;
pub(crate) mod portable;

use crate::Isa;
use crate::math::LOG2_E;
use bessemer_format::kv;
use bessemer_format::scheme::{round_bf16, widen_bf16};
use std::f32::consts::LN_2;

/// Largest head that attention takes.
pub const MAX_HEAD_DIM: usize = 1 << 16;

pub use bessemer_format::manifest::KvElem;

/// One head of one block: keys and values in the order of [`bessemer_format::kv`].
#[derive(Clone, Copy, Debug)]
pub struct KvBlock<'a> {
    /// How elements are stored.
    pub elem: KvElem,
    /// Elements of a head; even.
    pub head_dim: usize,
    /// [`kv::head_elems`] keys, and their scales if the type has any.
    pub keys: &'a [u8],
    /// [`kv::head_elems`] values, and their scales.
    pub values: &'a [u8],
    /// Keys and values that the caller will ask for next: a kernel may fetch them meanwhile. They never change a result.
    pub next: Option<(&'a [u8], &'a [u8])>,
}

/// The queries that attend to a block: of every token and query head that shares the block's KV head.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[queries][head_dim]`.
    pub q: &'a [f32],
    /// Factor of the scores, usually 1 / sqrt(head_dim).
    pub scale: f32,
    /// A scaled score s becomes `softcap * tanh(s / softcap)`.
    pub softcap: Option<f32>,
    /// For each query, how many tokens of the block it sees (0 to 32, from the block's start). Tokens beyond may
    /// hold any bytes.
    pub visible: &'a [u32],
    /// For each query, how many of those it does not see though they are before its own token: a sliding window has left
    /// them behind. Empty where no query has any. They may hold any bytes, too.
    pub hidden: &'a [u32],
    /// For each query 32 numbers that are added to its scores of the block's tokens, scaled and capped; empty where nothing is.
    pub bias: &'a [f32],
    /// Whether products are of bfloat16: the queries are such numbers already ([`round_queries`]), and weights, times the scale of a
    /// value where it has one, are rounded to such before they meet values.
    pub rounds: bool,
}

/// Rounds queries to bfloat16, as [`Queries::rounds`] needs them.
#[inline]
pub fn round_queries(q: &mut [f32]) {
    q.iter_mut().for_each(|q| *q = rounded(*q));
}

/// The nearest number of bfloat16.
#[inline(always)]
pub(crate) fn rounded(x: f32) -> f32 {
    widen_bf16(round_bf16(x))
}

impl KvBlock<'_> {
    /// The scales of the tokens' keys and values; `None` for a type without.
    pub(crate) fn scales(&self) -> Option<[&[[u8; 4]]; 2]> {
        let at = kv::scales_at(self.elem, self.head_dim);
        self.elem.is_scaled().then(|| [self.keys, self.values].map(|head| head[at..].as_chunks().0))
    }
}

impl<'a> Queries<'a> {
    /// Some of the queries, each of `head_dim` elements.
    fn part(&self, head_dim: usize, some: std::ops::Range<usize>) -> Queries<'a> {
        Queries {
            q: &self.q[some.start * head_dim..some.end * head_dim],
            visible: &self.visible[some.clone()],
            bias: self.bias.get(some.start * kv::TOKENS..some.end * kv::TOKENS).unwrap_or_default(),
            hidden: if self.hidden.is_empty() { &[] } else { &self.hidden[some] },
            ..*self
        }
    }
}

/// The running state of a softmax-weighted sum, for some queries.
///
/// After tokens with scores `s[t]` and values `v[t]`: `m = max s`, `l = sum of exp(s[t] - m)`,
/// `acc = sum of exp(s[t] - m) * v[t]`. Where weights are rounded, `m` is the least multiple of ln 2 that is no smaller.
#[derive(Debug)]
pub struct OnlineSoftmax<'a> {
    /// `[queries]`: the largest score so far, or what stands for it.
    pub m: &'a mut [f32],
    /// `[queries]`: the sum of weights so far.
    pub l: &'a mut [f32],
    /// `[queries][head_dim]`: the weighted sum of values so far.
    pub acc: &'a mut [f32],
}

/// What scores are compared with so that nothing is `inf - inf`: the maximum, or 0 while there is none.
#[inline(always)]
pub(crate) fn base(m: f32) -> f32 {
    if m == f32::NEG_INFINITY { 0.0 } else { m }
}

/// What weights are relative to where the largest score is `largest`: that; or, if they are rounded, the least multiple of ln 2 that is
/// no smaller. So bases differ by powers of two, and which number a weight is rounded to depends neither on the tokens beside it nor on
/// how many of them are a block or a chunk.
#[inline(always)]
pub(crate) fn base_of(largest: f32, rounds: bool) -> f32 {
    if rounds { (largest * LOG2_E).ceil() * LN_2 } else { largest }
}

impl OnlineSoftmax<'_> {
    /// The state before any token.
    pub fn reset(&mut self) {
        self.m.fill(f32::NEG_INFINITY);
        self.l.fill(0.0);
        self.acc.fill(0.0);
    }

    /// Joins the state of later tokens into this one.
    ///
    /// With `m' = max(m, other.m)`, `a = exp(m - m')` and `b = exp(other.m - m')` (0 for a state without tokens):
    /// `l = l * a + other.l * b` and `acc = acc * a + other.acc * b`, products rounded before the addition.
    /// The result depends on the order of merging only through rounding; callers keep a fixed order.
    ///
    /// # Panics
    /// If the states are of different shapes.
    #[inline(always)]
    pub fn merge(&mut self, other: &OnlineSoftmax<'_>) {
        let queries = self.m.len();
        assert!(self.l.len() == queries && other.m.len() == queries && other.l.len() == queries);
        assert!(
            self.acc.len() == other.acc.len() && (queries == 0 || self.acc.len().is_multiple_of(queries))
        );
        let d = self.acc.len() / queries.max(1);
        // Factors of some queries at once: a loop that a compiler makes vectors of.
        const SOME: usize = 16;
        for first in (0..queries).step_by(SOME) {
            let some = first..queries.min(first + SOME);
            let (mut a, mut b) = ([f32::NEG_INFINITY; SOME], [f32::NEG_INFINITY; SOME]);
            a[..some.len()].copy_from_slice(&self.m[some.clone()]);
            b[..some.len()].copy_from_slice(&other.m[some.clone()]);
            let m: [f32; SOME] = std::array::from_fn(|i| a[i].max(b[i]));
            for i in 0..SOME {
                a[i] = crate::math::exp(a[i] - base(m[i]));
                b[i] = crate::math::exp(b[i] - base(m[i]));
            }
            for (i, (m, (a, b))) in some.zip(m.into_iter().zip(a.into_iter().zip(b))) {
                self.m[i] = m;
                self.l[i] = self.l[i] * a + other.l[i] * b;
                for (x, y) in self.acc[i * d..][..d].iter_mut().zip(&other.acc[i * d..][..d]) {
                    *x = *x * a + y * b;
                }
            }
        }
    }

    /// Some of the queries.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn part(&mut self, some: std::ops::Range<usize>) -> OnlineSoftmax<'_> {
        let d = self.acc.len() / self.m.len().max(1);
        OnlineSoftmax {
            acc: &mut self.acc[some.start * d..some.end * d],
            l: &mut self.l[some.clone()],
            m: &mut self.m[some],
        }
    }

    /// Adds to each query a token with that score and the value zero: an attention sink takes weight from all others.
    /// As [`OnlineSoftmax::merge`] of the state of that token alone.
    ///
    /// # Panics
    /// If there is not one score a query.
    pub fn add_sinks(&mut self, sinks: &[f32]) {
        assert_eq!(sinks.len(), self.m.len());
        let d = self.acc.len() / self.m.len().max(1);
        for (i, &sink) in sinks.iter().enumerate() {
            let m = self.m[i].max(sink);
            let (a, b) = (crate::math::exp(self.m[i] - base(m)), crate::math::exp(sink - base(m)));
            self.m[i] = m;
            self.l[i] = self.l[i] * a + b;
            self.acc[i * d..][..d].iter_mut().for_each(|x| *x *= a);
        }
    }

    /// Writes `acc / l` to `out`, `[queries][head_dim]` or the first elements of each; zeros for a query that saw no token.
    ///
    /// # Panics
    /// If `out` is longer than `acc`, or no whole number of elements a query.
    #[inline(always)]
    pub fn finish(&self, out: &mut [f32]) {
        let queries = self.l.len().max(1);
        assert!(out.len() <= self.acc.len() && out.len().is_multiple_of(queries));
        let (d, width) = (self.acc.len() / queries, out.len() / queries);
        for (i, &l) in self.l.iter().enumerate() {
            for (o, a) in out[i * width..][..width].iter_mut().zip(&self.acc[i * d..][..width]) {
                *o = if l == 0.0 { 0.0 } else { a / l };
            }
        }
    }
}

/// # Safety
/// The host runs the kernel's instruction set, and the lengths are those that [`Attention::attend_block`] checks.
pub(crate) type AttentionFn = unsafe fn(&KvBlock<'_>, &Queries<'_>, &mut OnlineSoftmax<'_>);

/// Attention over one block.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub(crate) isa: Isa,
    pub(crate) kernel: AttentionFn,
    /// For queries and weights of bfloat16.
    pub(crate) rounding: AttentionFn,
}

impl Attention {
    /// The instruction set of the kernel.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Lets `queries` attend to the visible tokens of `block`, updating `state`:
    ///
    /// ```text
    /// s[t] = scale * sum of q[d] * k[t][d] in ascending d, then capped (codes first, then their scale), then bias[t] added
    /// m'   = max(m, max s[t]);  c = exp(m - m');  p[t] = exp(s[t] - m')
    /// l    = l * c + sum of p[t];  acc[d] = acc[d] * c + p[t] * v[t][d] in ascending t
    /// ```
    ///
    /// With [`Queries::rounds`], `m' = max(m, ceil(max s[t] / ln 2) * ln 2)`, `acc` sums rounded `p[t]` (times the scale of the value) and
    /// `l` those that are not; subnormal numbers may count as zero, and sums are in the order of the CPU's instructions.
    ///
    /// with [`math::exp`](crate::math::exp); products may be fused into sums, those inside of exp as well. Tokens beyond a
    /// query's `visible` are never part of a sum, nor those that are `hidden`. A NaN score makes the query's state NaN. The result of a query never
    /// depends on others.
    ///
    /// # Panics
    /// If a slice is not as long as the shapes say, `head_dim` is odd, 0 or above [`MAX_HEAD_DIM`], or a `visible` exceeds 32.
    #[inline]
    pub fn attend_block(&self, block: &KvBlock<'_>, queries: &Queries<'_>, state: &mut OnlineSoftmax<'_>) {
        let (n, d) = (queries.visible.len(), block.head_dim);
        assert!(
            (1..=MAX_HEAD_DIM).contains(&d) && d.is_multiple_of(2),
            "head_dim {d} is odd or out of range"
        );
        let bytes = kv::head_bytes(block.elem, d);
        assert!(block.keys.len() == bytes && block.values.len() == bytes, "a head's keys or values are cut");
        assert!(queries.q.len() == n * d && state.acc.len() == n * d, "queries or state are cut");
        assert!(state.m.len() == n && state.l.len() == n, "state is cut");
        assert!(
            queries.visible.iter().all(|&v| v as usize <= kv::TOKENS),
            "more tokens visible than there are"
        );
        assert!(
            queries.hidden.is_empty() || queries.hidden.len() == n,
            "hidden tokens are not told for each query"
        );
        assert!(
            queries.bias.is_empty() || queries.bias.len() == n * kv::TOKENS,
            "what is added is not told for each query and token"
        );
        let kernel = if queries.rounds { self.rounding } else { self.kernel };
        let caps = queries.bias.is_empty() && (queries.softcap.is_none() || self.caps());
        if caps && queries.hidden.is_empty() {
            // SAFETY: the kernel comes from a `KernelSet`, which exists only for what the host runs; the lengths were
            // checked above.
            return unsafe { kernel(block, queries, state) };
        }
        // What is done to a query never depends on others: its own numbers alone choose its kernel.
        let plain = |i: usize| caps && queries.hidden.get(i).is_none_or(|&h| h == 0);
        let mut first = 0;
        while first < n {
            let end = (first..n).find(|&i| plain(i) != plain(first)).unwrap_or(n);
            let (some, mut state) = (queries.part(d, first..end), state.part(first..end));
            match plain(first) {
                // SAFETY: as above; a part of what was checked.
                true => unsafe { kernel(block, &some, &mut state) },
                false => self.masked(block, &some, &mut state),
            }
            first = end;
        }
    }

    /// Whether the kernel caps scores by itself.
    fn caps(&self) -> bool {
        matches!(self.isa, Isa::Avx512 | Isa::Avx2 | Isa::Portable)
    }

    /// The portable kernel compiled for this kernel's instruction set: it alone hides tokens and adds to scores, and it caps everywhere.
    fn masked(&self, block: &KvBlock<'_>, queries: &Queries<'_>, state: &mut OnlineSoftmax<'_>) {
        match self.isa {
            // SAFETY: the host runs the instruction set, as for `attend_block`.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { crate::x86_64::avx512::attention::masked(block, queries, state) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { crate::x86_64::avx2::attention::masked(block, queries, state) },
            _ => portable::attend_block(block, queries, state),
        }
    }

    /// [`OnlineSoftmax::merge`] with the exponentials of this kernel's instruction set.
    #[inline]
    pub fn merge(&self, state: &mut OnlineSoftmax<'_>, later: &OnlineSoftmax<'_>) {
        match self.isa {
            // SAFETY: the host runs the instruction set, as for `attend_block`.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { crate::x86_64::avx512::attention::merge(state, later) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { crate::x86_64::avx2::attention::merge(state, later) },
            _ => state.merge(later),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_merges_alike() {
        let mut random = crate::testkit::data::Random::new(7);
        for kernel in
            Isa::ALL.iter().filter_map(|isa| crate::KernelSet::for_isa(*isa)).map(|set| set.attention())
        {
            for (queries, d) in [(1, 64), (1, 2), (3, 64), (9, 80), (16, 16), (17, 70), (33, 6)] {
                // A maximum, a sum and elements for each query; some have seen nothing.
                let mut some = || -> [Vec<f32>; 3] {
                    let (mut m, mut l) = (random.floats(queries), random.floats(queries));
                    let mut acc = random.floats(queries * d);
                    for i in (0..queries).filter(|i| (i + queries) % 3 == 1) {
                        (m[i], l[i]) = (f32::NEG_INFINITY, 0.0);
                        acc[i * d..][..d].fill(0.0);
                    }
                    m.iter_mut().for_each(|m| *m *= 10.0);
                    [m, l, acc]
                };
                fn of([m, l, acc]: &mut [Vec<f32>; 3]) -> OnlineSoftmax<'_> {
                    OnlineSoftmax { m, l, acc }
                }
                let (mut first, mut later) = (some(), some());
                let mut want = first.clone();
                of(&mut want).merge(&of(&mut later));
                kernel.merge(&mut of(&mut first), &of(&mut later));
                for (got, want) in first.iter().flatten().zip(want.iter().flatten()) {
                    // Two terms, each with the error of an exponential and two roundings.
                    assert!(
                        got == want || (got - want).abs() <= 1e-6,
                        "{} {queries} x {d}",
                        kernel.isa.name()
                    );
                }
            }
        }
    }

    #[test]
    fn merging_an_empty_state_changes_nothing() {
        let (mut m, mut l, mut acc) = ([1.5f32, f32::NEG_INFINITY], [2.0f32, 0.0], [1.0f32, 2.0, 0.0, 0.0]);
        let mut state = OnlineSoftmax { m: &mut m, l: &mut l, acc: &mut acc };
        let (mut em, mut el, mut ea) = ([0.0; 2], [0.0; 2], [0.0; 4]);
        let mut empty = OnlineSoftmax { m: &mut em, l: &mut el, acc: &mut ea };
        empty.reset();
        state.merge(&empty);
        assert_eq!((&state.m[..], &state.l[..]), (&[1.5, f32::NEG_INFINITY][..], &[2.0, 0.0][..]));
        let mut out = [9.0; 4];
        state.finish(&mut out);
        assert_eq!(out, [0.5, 1.0, 0.0, 0.0]);
        empty.merge(&state);
        empty.finish(&mut out);
        assert_eq!(out, [0.5, 1.0, 0.0, 0.0]);
    }
}
