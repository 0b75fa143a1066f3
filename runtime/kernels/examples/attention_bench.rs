//! Speed of the attention kernels of every instruction set that this host runs, on one thread:
//! `cargo run --release -p bessemer-kernels --example attention_bench [FILTER]`.
//!
//! Decode has one row and walks caches that no cache of the CPU holds; its bound is how fast this thread reads memory. `cached` is the
//! same over one head again and again: what a decode takes beside reading.
//! Prefill has blocks of rows of one sequence and a causal mask, in f32 and with products of bfloat16; its bound is the arithmetic of f32. Both bounds are measured
//! first. GB/s counts the bytes of keys and values once; G counts multiply-adds of visible tokens only.

use bessemer_format::kv::{self, TOKENS};
use bessemer_format::scheme::round_f16;
use bessemer_kernels::attention::{Attention, KvBlock, OnlineSoftmax, Queries, round_queries};
use bessemer_kernels::peak::{Arithmetic, multiply_adds};
use bessemer_kernels::{Isa, KernelSet, KvElem};
use std::hint::black_box;
use std::time::Instant;

/// Head size, and query heads that share a KV head.
const HEADS: [(usize, usize); 4] = [(64, 1), (64, 3), (64, 4), (128, 4)];
/// Bytes of keys and values that a decode walks: far more than a cache holds.
const FAR: usize = 512 << 20;
/// Heads of all layers together, which share a block.
const HELD: usize = 96;
/// Rows of a prefill that attend together.
const ROWS: usize = 8;

fn main() {
    let filter: Vec<String> = std::env::args().skip(1).collect();
    let (read, peak) = (read_bound(), arithmetic_bound());
    println!("one thread reads {:.1} GB/s and does {:.1} G multiply-adds a second", read / 1e9, peak / 1e9);
    println!(
        "{:<10} {:<5} {:<5} {:>10} {:<8} {:>6} {:>9} {:>7} {:>7} {:>6}",
        "isa", "in", "kv", "d x group", "phase", "tokens", "us", "GB/s", "G", "bound"
    );
    for elem in KvElem::ALL {
        for (d, group) in HEADS {
            let cache = Cache::new(elem, d);
            for &isa in Isa::ALL {
                let Some(set) = KernelSet::for_isa(isa) else { continue };
                let kernel = set.attention();
                for (phase, tokens, rounds) in [
                    ("cached", 512, false),
                    ("decode", 512, false),
                    ("decode", 4096, false),
                    ("prefill", 512, false),
                    ("prefill", 512, true),
                    ("prefill", 4096, false),
                    ("prefill", 4096, true),
                ] {
                    let line = format!(
                        "{:<10} {:<5} {:<5} {:>10} {phase:<8} {tokens:>6}",
                        isa.name(),
                        if rounds { "bf16" } else { "f32" },
                        elem.name(),
                        format!("{d}x{group}")
                    );
                    if !filter.iter().all(|f| line.contains(f.as_str())) {
                        continue;
                    }
                    let (seconds, pairs) = match phase {
                        "cached" => (cache.decode(&kernel, group, tokens, 1), tokens),
                        "decode" => (cache.decode(&kernel, group, tokens, usize::MAX), tokens),
                        // Causal: row `r` sees `r + 1` tokens.
                        _ => (cache.prefill(&kernel, group, tokens, rounds), tokens * (tokens + 1) / 2),
                    };
                    let bytes = (tokens / TOKENS * 2 * kv::head_bytes(elem, d)) as f64;
                    let ops = (2 * pairs * group * d) as f64;
                    let bound = (bytes / read).max(ops / peak);
                    println!(
                        "{line} {:>9.2} {:>7.1} {:>7.1} {:>4.0} %",
                        seconds * 1e6,
                        bytes / seconds / 1e9,
                        ops / seconds / 1e9,
                        100.0 * bound / seconds
                    );
                }
            }
        }
    }
}

/// Keys and values of one head after another, in blocks.
struct Cache {
    elem: KvElem,
    d: usize,
    bytes: Vec<u8>,
}

impl Cache {
    fn new(elem: KvElem, d: usize) -> Self {
        let mut bytes = Vec::with_capacity(FAR);
        let mut noise = noise();
        while bytes.len() < FAR {
            let v = noise.next().unwrap_or(0) as f32 / u32::MAX as f32 - 0.5;
            match elem {
                KvElem::F16 => bytes.extend_from_slice(&round_f16(v).to_le_bytes()),
                KvElem::Bf16 => bytes.extend_from_slice(&v.to_le_bytes()[2..]),
                // Any bytes are codes, and these are scales too.
                _ => bytes.extend_from_slice(&v.to_le_bytes()),
            }
        }
        Self { elem, d, bytes }
    }

    /// Block `index` of a head that has `blocks` of them, or the next head's first. Blocks of a head lie apart, as in an engine, where
    /// a block of the cache holds every head of every layer.
    fn block(&self, blocks: usize, index: usize) -> KvBlock<'_> {
        let keys_and_values = |index: usize| {
            let bytes = kv::head_bytes(self.elem, self.d);
            let (head, block) = (index / blocks, index % blocks);
            let at = (head / HELD * blocks + block) * HELD + head % HELD;
            self.bytes.get(2 * at * bytes..2 * (at + 1) * bytes).map(|b| b.split_at(bytes))
        };
        let (keys, values) = keys_and_values(index).expect("a block of the cache");
        KvBlock { elem: self.elem, head_dim: self.d, keys, values, next: keys_and_values(index + 1) }
    }

    fn blocks(&self) -> usize {
        self.bytes.len() / (2 * kv::head_bytes(self.elem, self.d))
    }

    /// Seconds of one row over `tokens` tokens of one KV head, of which `most` take turns.
    fn decode(&self, kernel: &Attention, group: usize, tokens: usize, most: usize) -> f64 {
        let mut work = Work::new(group, self.d, false);
        let blocks = tokens / TOKENS;
        let heads = (self.blocks() / blocks / HELD * HELD).min(most);
        let all = fastest(|| {
            for head in 0..heads {
                work.state().reset();
                for block in 0..blocks {
                    work.attend(kernel, &self.block(blocks, head * blocks + block), 0, |_| TOKENS);
                }
            }
        });
        all / heads as f64
    }

    /// Seconds of `tokens` rows that see themselves and what is before, of one KV head.
    fn prefill(&self, kernel: &Attention, group: usize, tokens: usize, rounds: bool) -> f64 {
        let mut work = Work::new(ROWS * group, self.d, rounds);
        fastest(|| {
            for row in (0..tokens).step_by(ROWS) {
                work.state().reset();
                for block in 0..=row / TOKENS {
                    work.attend(kernel, &self.block(tokens / TOKENS, block), group, |i| {
                        (row + i + 1 - block * TOKENS).min(TOKENS)
                    });
                }
            }
        })
    }
}

/// Queries and their state.
struct Work {
    q: Vec<f32>,
    visible: Vec<u32>,
    m: Vec<f32>,
    l: Vec<f32>,
    acc: Vec<f32>,
    rounds: bool,
}

impl Work {
    fn new(queries: usize, d: usize, rounds: bool) -> Self {
        let mut q: Vec<f32> = noise().take(queries * d).map(|v| v as f32 / u32::MAX as f32 - 0.5).collect();
        if rounds {
            round_queries(&mut q);
        }
        Self {
            q,
            rounds,
            visible: vec![0; queries],
            m: vec![0.0; queries],
            l: vec![0.0; queries],
            acc: vec![0.0; queries * d],
        }
    }

    fn state(&mut self) -> OnlineSoftmax<'_> {
        OnlineSoftmax { m: &mut self.m, l: &mut self.l, acc: &mut self.acc }
    }

    /// The queries of a row, `group` of them or all, see `seen(row)` tokens.
    fn attend(
        &mut self,
        kernel: &Attention,
        block: &KvBlock<'_>,
        group: usize,
        seen: impl Fn(usize) -> usize,
    ) {
        let group = if group == 0 { self.visible.len() } else { group };
        for (row, visible) in self.visible.chunks_mut(group).enumerate() {
            visible.fill(seen(row) as u32);
        }
        let queries = Queries {
            q: &self.q,
            scale: (block.head_dim as f32).sqrt().recip(),
            visible: &self.visible,
            hidden: &[],
            bias: &[],
            softcap: None,
            rounds: self.rounds,
        };
        let mut state = OnlineSoftmax { m: &mut self.m, l: &mut self.l, acc: &mut self.acc };
        kernel.attend_block(black_box(block), &queries, &mut state);
    }
}

/// Seconds of the fastest `run`: what disturbs is never faster.
fn fastest(mut run: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut least = f64::INFINITY;
    while begin.elapsed().as_millis() < 200 {
        let t = Instant::now();
        run();
        least = least.min(t.elapsed().as_secs_f64());
    }
    least
}

/// Bytes that one thread reads in a second.
fn read_bound() -> f64 {
    let words = vec![1u64; FAR / 8];
    let sum = || {
        let mut sums = [0u64; 32];
        // Four places at once: more reads are under way than one stream gets.
        let (front, back) = black_box(&words[..]).split_at(words.len() / 2);
        let [a, b, c, d] =
            [front, back].map(|h| h.split_at(h.len() / 2)).map(|(x, y)| [x, y]).as_flattened()[..]
        else {
            return;
        };
        let lines = a.as_chunks::<32>().0.iter().zip(b.as_chunks::<32>().0);
        for ((a, b), (c, d)) in lines.zip(c.as_chunks::<32>().0.iter().zip(d.as_chunks::<32>().0)) {
            for i in 0..32 {
                sums[i] = sums[i].wrapping_add(a[i] ^ b[i] ^ c[i] ^ d[i]);
            }
        }
        black_box(sums);
    };
    FAR as f64 / fastest(sum)
}

/// Multiply-adds of one thread in a second.
fn arithmetic_bound() -> f64 {
    let mut count = 0;
    let seconds = fastest(|| count = multiply_adds(Arithmetic::F32, 100_000));
    count as f64 / seconds
}

fn noise() -> impl Iterator<Item = u32> {
    let mut state = 0x1234_5678u32;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    })
}
