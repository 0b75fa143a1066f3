//! State that layers carry from token to token: sequences that fork, go back, come in parts, are saved and are stopped.

use bessemer_compiler::options::CompileOptions;
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::{
    Batch, CancelHandle, Engine, Generate, KvElem, RunError, Sequence, Session, Want, Worker, WorkerOptions,
};
use bessemer_tests::models::{engine, forward, golden, relative_error};
use std::sync::{Arc, Mutex};

const MODEL: &str = "lfm2";

fn recurrent() -> Engine {
    engine(MODEL, &CompileOptions { precision: PrecisionPolicy::F32, ..CompileOptions::default() })
}

fn worker(engine: &Engine) -> Worker {
    Worker::new(engine, WorkerOptions::default().threads(2).kv(KvElem::F32).max_tokens(512)).unwrap()
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 37 + 11) % 96).collect()
}

/// Logits of all rows of one sequence, fed in parts of the given lengths, again and again.
fn in_parts(
    worker: &mut Worker,
    sequence: &mut Sequence,
    tokens: &[u32],
    lengths: &[usize],
) -> Vec<Vec<f32>> {
    let (mut out, mut rest) = (Vec::new(), tokens);
    for length in lengths.iter().cycle() {
        let (now, later) = rest.split_at((*length).min(rest.len()));
        out.extend(forward(worker, sequence, now));
        rest = later;
        if rest.is_empty() {
            return out;
        }
    }
    out
}

/// Logits of all rows of a sequence of its own.
fn alone(worker: &mut Worker, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut sequence = worker.sequence();
    forward(worker, &mut sequence, tokens)
}

#[track_caller]
fn near(found: &[Vec<f32>], expected: &[Vec<f32>]) {
    let error = relative_error(found, expected);
    assert!(error < 1e-5, "{error:.2e}");
}

#[test]
fn the_parts_that_a_text_comes_in_do_not_matter() {
    let mut worker = worker(&recurrent());
    let tokens = tokens(100);
    let expected = alone(&mut worker, &tokens);
    // Around the taps of the convolution, and around the ends of blocks.
    for lengths in [&[1][..], &[2], &[3], &[1, 2, 5], &[31, 1], &[32], &[33], &[30, 1, 1, 1, 2], &[64, 36]] {
        let mut sequence = worker.sequence();
        near(&in_parts(&mut worker, &mut sequence, &tokens, lengths), &expected);
    }
    let limited = WorkerOptions::default().threads(3).kv(KvElem::F32).max_rows(7);
    let mut limited = Worker::new(worker.engine(), limited).unwrap();
    near(&alone(&mut limited, &tokens), &expected);
}

#[test]
fn forks_go_their_own_ways() {
    let mut worker = worker(&recurrent());
    let tokens = tokens(100);
    // In the middle of a block, at its end, and one behind it.
    for common in [1, 2, 40, 63, 64, 65] {
        let mut sequence = worker.sequence();
        forward(&mut worker, &mut sequence, &tokens[..common]);
        let mut fork = sequence.fork();
        let free = worker.free_tokens();
        let mine = forward(&mut worker, &mut sequence, &tokens[common..common + 9]);
        let theirs = forward(&mut worker, &mut fork, &tokens[common + 9..common + 20]);
        assert!(worker.free_tokens() <= free);
        for (own, found) in [(common..common + 9, mine), (common + 9..common + 20, theirs)] {
            let mut alone = worker.sequence();
            forward(&mut worker, &mut alone, &tokens[..common]);
            near(&found, &forward(&mut worker, &mut alone, &tokens[own]));
        }
    }
}

#[test]
fn sequences_go_back_to_the_end_of_a_block() {
    let mut worker = worker(&recurrent());
    let tokens = tokens(100);
    let expected = alone(&mut worker, &tokens);
    for (len, kept) in
        [(100, 100), (200, 100), (99, 96), (96, 96), (95, 64), (64, 64), (33, 32), (31, 0), (0, 0)]
    {
        let mut sequence = worker.sequence();
        forward(&mut worker, &mut sequence, &tokens);
        sequence.truncate(len);
        assert_eq!(sequence.len(), kept, "truncated to {len}");
        if kept < 100 {
            near(&forward(&mut worker, &mut sequence, &tokens[kept..]), &expected[kept..]);
        }
        // Other tokens first, which leave their own state in the same blocks.
        sequence.truncate(kept.min(64));
        forward(&mut worker, &mut sequence, &[5; 20]);
        sequence.truncate(kept.min(64));
        let kept = sequence.len();
        near(&forward(&mut worker, &mut sequence, &tokens[kept..]), &expected[kept..]);
    }
}

#[test]
fn sessions_hide_how_far_they_go_back() {
    let engine = recurrent();
    let shared = Arc::new(Mutex::new(worker(&engine)));
    let tokens = tokens(80);
    let alone = |tokens: &[u32]| {
        let mut session = Session::new(&shared).unwrap();
        session.feed(tokens).unwrap();
        session.logits().unwrap().to_vec()
    };
    let mut session = Session::new(&shared).unwrap();
    session.feed(&tokens).unwrap();
    session.logits().unwrap();
    for len in [79, 70, 41, 3] {
        session.truncate(len);
        assert_eq!(session.tokens().len(), len);
        near(&[session.logits().unwrap().to_vec()], &[alone(&tokens[..len])]);
    }
    let mut other = tokens[..3].to_vec();
    other.extend([9, 9, 9]);
    assert_eq!(session.replace(&other).unwrap(), 3);
    let mut fork = session.fork();
    near(&[session.logits().unwrap().to_vec()], &[alone(&other)]);
    // After a generation the logits of the last token are used up, so it is processed again.
    let generated: Vec<u32> = fork.generate(Generate::greedy(8)).unwrap().map(Result::unwrap).collect();
    assert_eq!(generated.len(), 8);
    near(&[fork.logits().unwrap().to_vec()], &[alone(fork.tokens())]);
}

#[test]
fn saved_sequences_go_on_elsewhere() {
    let engine = recurrent();
    let (mut first, mut second) = (worker(&engine), worker(&engine));
    let tokens = tokens(70);
    for len in [1, 32, 41] {
        let mut sequence = first.sequence();
        forward(&mut first, &mut sequence, &tokens[..len]);
        let mut loaded = second.load(&sequence.save().unwrap()).unwrap();
        let expected = forward(&mut first, &mut sequence, &tokens[len..]);
        assert!(forward(&mut second, &mut loaded, &tokens[len..]) == expected);
    }
}

#[test]
fn a_pass_that_is_stopped_leaves_what_is_known_at_the_end_of_a_block() {
    let mut worker = worker(&recurrent());
    let tokens = tokens(90);
    let expected = alone(&mut worker, &tokens);
    let mut sequence = worker.sequence();
    forward(&mut worker, &mut sequence, &tokens[..45]);
    let stop = CancelHandle::new();
    stop.cancel();
    let mut batch = Batch::new();
    batch.push(&mut sequence, &tokens[45..], Want::None);
    batch.cancel_with(&stop);
    assert!(matches!(worker.forward(&mut batch), Err(RunError::Cancelled)));
    assert_eq!(sequence.len(), 32);
    near(&forward(&mut worker, &mut sequence, &tokens[32..]), &expected[32..]);
}

#[test]
fn state_is_kept_beside_caches_of_every_type() {
    let engine = recurrent();
    let g = golden(MODEL, "");
    for kv in KvElem::ALL {
        let mut worker = Worker::new(&engine, WorkerOptions::default().threads(2).kv(kv)).unwrap();
        let mut sequence = worker.sequence();
        let found = in_parts(&mut worker, &mut sequence, &g.tokens, &[33, 1]);
        let error = relative_error(&found, &g.logits);
        // Only one layer has a cache; int4 holds its keys to a few percent.
        let bound = match kv {
            KvElem::F32 => 1e-4,
            KvElem::F16 => 3e-3,
            KvElem::Bf16 => 2e-2,
            KvElem::Int8 | KvElem::Fp8 => 5e-2,
            KvElem::Int4 => 0.3,
        };
        assert!(error < bound, "{kv:?}: {error:.2e}");
        println!("{kv:?}: {error:.2e}");
    }
    let memory = |kv| engine.memory(32, kv, 1).cache;
    // Three convolutions of 32 columns that carry two inputs in f32, whatever the type of keys and values.
    assert_eq!(2 * (memory(KvElem::Bf16) - 3 * 32 * 2 * 4), memory(KvElem::F32) - 3 * 32 * 2 * 4);
}
