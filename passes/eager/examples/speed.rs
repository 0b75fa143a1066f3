//! How fast the executor is, on the shapes of SmolLM2-135M with random weights: prefill and decode, beside what the machine gives its two
//! bounds, a matrix product and reading memory. `cargo run --release -p bessemer-eager --example speed [threads]`; medians.

use bessemer_eager::defined::{add_second_moment, product};
use bessemer_eager::{Eager, EagerOptions, SequenceRows, Wanted, WeightFormat};
use bessemer_ir::recipe::NoSource;
use bessemer_ir::testing::{TinyConfig, tiny_llama};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

const PROMPT: usize = 512;
const DECODED: usize = 32;
const RUNS: usize = 7;

/// Median seconds of several runs, after one that warms up.
fn median(mut run: impl FnMut()) -> f64 {
    run();
    let mut seconds: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[RUNS / 2]
}

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |n| n.parse().expect("a number of threads"));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("threads");
    let config = TinyConfig {
        vocab: 49_152,
        hidden: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        ffn: 1536,
        tied: true,
        ..TinyConfig::default()
    };
    let (h, ffn) = (config.hidden as usize, config.ffn as usize);
    let [q, kv] = [config.heads, config.kv_heads].map(|heads| (heads * config.head_dim) as usize);
    let linears = config.layers as usize * (2 * h * q + 2 * h * kv + 3 * h * ffn);
    let matrices = linears + config.vocab as usize * h;
    println!("{threads} threads, {:.0} M weights", matrices as f64 / 1e6);

    // The bounds.
    let x = vec![0.5f32; PROMPT * h];
    let w = vec![0.25f32; ffn * h];
    let mut out = vec![0f32; PROMPT * ffn];
    let seconds = median(|| {
        let x = MatRef::from_row_major_slice(&x, PROMPT, h);
        let w = MatRef::from_row_major_slice(&w, ffn, h).transpose();
        let out = MatMut::from_row_major_slice_mut(&mut out, PROMPT, ffn);
        matmul(out, Accum::Replace, x, w, 1.0, Par::rayon(threads));
    });
    println!("faer alone: {:.0} GFLOP/s", 2.0 * (PROMPT * h * ffn) as f64 / seconds / 1e9);
    let seconds = median(|| {
        black_box(product(&x, PROMPT, &w, ffn, h));
    });
    println!("defined to the bit: {:.0} GFLOP/s", 2.0 * (PROMPT * h * ffn) as f64 / seconds / 1e9);
    // What calibration of a model of 1B parameters runs: many windows together.
    let (rows, n, k) = (2048, 8192, 2048);
    let (many, large) = (vec![0.5f32; rows * k], vec![0.25f32; n * k]);
    let seconds = median(|| {
        black_box(product(&many, rows, &large, n, k));
    });
    println!("the same, {rows} x {n} x {k}: {:.0} GFLOP/s", 2.0 * (rows * n * k) as f64 / seconds / 1e9);
    drop((many, large));
    let mut moment = vec![0f32; ffn * ffn];
    let wide = vec![0.5f32; PROMPT * ffn];
    let seconds = median(|| add_second_moment(&wide, PROMPT, ffn, ffn, &mut moment));
    println!("second moment: {:.0} GFLOP/s", (PROMPT * ffn * ffn) as f64 / seconds / 1e9);
    let memory = vec![1u64; 1 << 25];
    let seconds = median(|| {
        black_box(
            memory
                .par_chunks(1 << 16)
                .map(|c| c.iter().fold(0, |a: u64, b| a ^ b))
                .reduce(|| 0, |a, b| a ^ b),
        );
    });
    println!("reading memory: {:.1} GB/s", (memory.len() * 8) as f64 / seconds / 1e9);
    drop(memory);

    let graph = tiny_llama(&config).expect("a graph");
    let tokens: Vec<u32> = (0..PROMPT as u32).collect();
    for (weights, bytes) in [(WeightFormat::F32, 4), (WeightFormat::Bf16, 2)] {
        let mut eager =
            Eager::new(&graph, &NoSource, EagerOptions { weights, threads, ..EagerOptions::default() })
                .expect("an executor");
        let pass = |eager: &mut Eager, tokens: &[u32]| {
            let rows = SequenceRows { sequence: 0, tokens, types: &[], logits: Wanted::Last };
            black_box(eager.forward(&[rows]).expect("logits"));
        };
        let seconds = median(|| {
            eager.reset();
            pass(&mut eager, &tokens);
        });
        let rate = 2.0 * (linears * PROMPT) as f64 / seconds / 1e9;
        println!(
            "{weights:?} prefill {PROMPT}: {:.1} ms, {:.0} tok/s, linears at {rate:.0} GFLOP/s or more",
            seconds * 1e3,
            PROMPT as f64 / seconds
        );
        let seconds = median(|| {
            eager.truncate(0, PROMPT);
            (0..DECODED).for_each(|_| pass(&mut eager, &[7]));
        }) / DECODED as f64;
        let rate = (matrices * bytes) as f64 / seconds / 1e9;
        println!(
            "{weights:?} decode: {:.2} ms, {:.1} tok/s, weights at {rate:.1} GB/s or more",
            seconds * 1e3,
            1.0 / seconds
        );
    }
}
