//! A cache of fewer bits: what it costs in quality on a real model, and what it saves.

use bessemer_compiler::calibrate::{Corpus, Text};
use bessemer_compiler::options::CompileOptions;
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::{Batch, Engine, KvElem, Want, Worker, WorkerOptions};
use bessemer_tests::models::{book, cached_model, compile, fixture};

/// Tokens of a context.
const WINDOW: usize = 512;

fn compiled(source: &std::path::Path, precision: PrecisionPolicy) -> Engine {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) =
        compile(source, folder.path(), &CompileOptions { precision, ..CompileOptions::default() }).unwrap();
    // A copy: the folder goes away.
    Engine::from_bytes(&std::fs::read(path).unwrap()).unwrap()
}

/// Natural logarithms of the probabilities of every token after each of a window's.
fn log_probabilities(engine: &Engine, kv: KvElem, window: &[u32]) -> Vec<Vec<f64>> {
    let mut worker = Worker::new(engine, WorkerOptions::default().threads(2).kv(kv)).unwrap();
    let mut sequence = worker.sequence();
    let mut out = Vec::new();
    for piece in window.chunks(64) {
        let mut batch = Batch::new();
        batch.push(&mut sequence, piece, Want::All);
        let logits = worker.forward(&mut batch).unwrap();
        out.extend(logits.of(0).iter().map(|row| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
            row.iter().map(|v| f64::from(v - max) - sum.ln()).collect()
        }));
    }
    out
}

/// Mean KL divergence of a cache's next-token distributions from those of an exact one.
fn divergence(exact: &[Vec<f64>], other: &[Vec<f64>]) -> f64 {
    let row = |p: &Vec<f64>, q: &Vec<f64>| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    exact.iter().zip(other).map(|(p, q)| row(p, q)).sum::<f64>() / exact.len() as f64
}

/// Mean KL divergence of caches from an f32 one, over `windows` contexts of a book; `None` without model or book.
fn costs<const N: usize>(windows: usize, caches: [KvElem; N]) -> Option<[f64; N]> {
    let source = cached_model("smollm2-135m-instruct.gguf")?;
    // In f32, so that nothing else rounds: bytes as activations would amplify every difference, that of bf16 as well.
    let engine = compiled(&source, PrecisionPolicy::F32);
    let text = book(&engine, windows * WINDOW)?;
    let mut sums = [0.0; N];
    for window in text.chunks(WINDOW) {
        let exact = log_probabilities(&engine, KvElem::F32, window);
        for (sum, kv) in sums.iter_mut().zip(caches) {
            *sum += divergence(&exact, &log_probabilities(&engine, kv, window));
        }
    }
    for (sum, kv) in sums.iter().zip(caches) {
        let mean = sum / windows as f64;
        println!("KL of a {} cache over {windows} contexts of {WINDOW} tokens: {mean:.5}", kv.name());
    }
    Some(sums.map(|sum| sum / windows as f64))
}

#[test]
fn eight_bits_cost_little_on_a_real_model() {
    let Some([int8]) = costs(1, [KvElem::Int8]) else { return };
    assert!(int8 < 0.002, "{int8}");
}

#[test]
fn a_report_states_what_each_cache_costs() {
    let tokens: Vec<u32> = (0..128).map(|i| (i * i * 7 + i * 5) % 96).collect();
    let measure = Corpus { text: Text::Tokens(tokens.clone()), windows: 4, window: 32 };
    let options = CompileOptions {
        precision: PrecisionPolicy::F32,
        measure: Some(measure),
        ..CompileOptions::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let (path, compiled) = compile(&fixture("gqa_untied"), folder.path(), &options).unwrap();
    let engine = Engine::from_bytes(&std::fs::read(path).unwrap()).unwrap();
    let quality = engine.report().unwrap().unwrap().quality.unwrap();
    assert_eq!(Some(&quality), compiled.quality.as_ref());
    assert_eq!(quality.default_kv, KvElem::DEFAULT);
    let names: Vec<&str> = quality.kv.iter().map(|(kv, _)| kv.name()).collect();
    assert_eq!(names, ["f16", "bf16", "int8", "fp8", "int4"]);
    for (kv, stated) in quality.kv {
        // The engine's kernels lose what the eager executor said, but for the order of sums.
        let costs = tokens.chunks(32).map(|window| {
            let seen = |kv| log_probabilities(&engine, kv, window)[..31].to_vec();
            divergence(&seen(KvElem::F32), &seen(kv))
        });
        let measured = costs.sum::<f64>() / 4.0;
        assert!((stated / measured - 1.0).abs() < 0.05, "{}: {stated}, measured {measured}", kv.name());
    }
}

#[test]
#[ignore = "minutes: six contexts of a real model in f32, with each cache"]
fn what_each_cache_costs_on_a_real_model() {
    let caches = [KvElem::F16, KvElem::Bf16, KvElem::Int8, KvElem::Fp8, KvElem::Int4];
    let Some([f16, bf16, int8, fp8, int4]) = costs(6, caches) else { return };
    // Three bits more: errors an eighth as large, whose squares count.
    assert!(f16 < bf16 / 16.0, "{f16} {bf16}");
    assert!(bf16 < 1e-4 && int8 < 0.002 && fp8 < 0.005, "{bf16} {int8} {fp8}");
    // Four bits are reported; they must not be noise either.
    assert!(int4 > fp8 && int4 < 1.0, "{int4}");
}

#[test]
fn fewer_bits_take_less_memory() {
    let engine = compiled(&fixture("gqa_tied"), PrecisionPolicy::Source);
    let bytes = |kv| engine.memory(256, kv, 1).cache as f64;
    // Heads of 16 elements: a scale of four bytes for as many.
    for (kv, share) in [
        (KvElem::F32, 2.0),
        (KvElem::F16, 1.0),
        (KvElem::Int8, 0.625),
        (KvElem::Fp8, 0.625),
        (KvElem::Int4, 0.375),
    ] {
        assert_eq!(bytes(kv) / bytes(KvElem::Bf16), share, "{}", kv.name());
    }
}

#[test]
fn a_saved_sequence_of_codes_goes_on_where_it_was() {
    // Keys and values, and vectors that are both.
    let models = ["gqa_tied", "deepseek_v2"].map(|model| compiled(&fixture(model), PrecisionPolicy::Source));
    for (engine, kv) in models.iter().flat_map(|engine| [(engine, KvElem::Int8), (engine, KvElem::Int4)]) {
        let mut worker = Worker::new(engine, WorkerOptions::default().threads(2).kv(kv)).unwrap();
        let mut sequence = worker.sequence();
        // An odd number: the next token shares its bytes with the last one.
        step(&mut worker, &mut sequence, &[1, 2, 3, 4, 5, 6, 7]);
        let saved = sequence.save().unwrap();
        let next = step(&mut worker, &mut sequence, &[8, 9]);
        let mut again = worker.load(&saved).unwrap();
        assert!(next == step(&mut worker, &mut again, &[8, 9]), "{}", kv.name());
        let mut other = Worker::new(engine, WorkerOptions::default().threads(2)).unwrap();
        assert!(other.load(&saved).is_err(), "a cache of another type was taken");
        // And forgets tokens, one at a time.
        again.truncate(8);
        let rewound = step(&mut worker, &mut again, &[9]);
        assert!(next[next.len() - rewound.len()..] == rewound, "{}", kv.name());
        other = Worker::new(engine, WorkerOptions::default().threads(3).kv(kv)).unwrap();
        let mut fresh = other.sequence();
        let whole = step(&mut other, &mut fresh, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert!(whole[whole.len() - next.len()..] == next, "{}", kv.name());
    }
}

/// The logits of all of `tokens`.
fn step(worker: &mut Worker, sequence: &mut bessemer_runtime::Sequence, tokens: &[u32]) -> Vec<f32> {
    let mut batch = Batch::new();
    batch.push(sequence, tokens, Want::All);
    worker.forward(&mut batch).unwrap().of(0).iter().flatten().copied().collect()
}
