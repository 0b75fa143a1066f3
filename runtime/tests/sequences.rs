//! What sequences can do besides growing, and what callers can get wrong.

mod common;

use bessemer_runtime::{Batch, CancelHandle, KvElem, RunError, SnapshotError, Want, Worker, WorkerOptions};
use common::{Model, Random, Shape, forward, worker};

fn model() -> Model {
    Model::random(Shape::default(), 11)
}

#[test]
fn truncate_and_replay_gives_the_same_bits() {
    let model = model();
    let tokens = Random(12).tokens(130, model.shape.vocab);
    let mut worker = worker(&model.engine(), 2, KvElem::Bf16);
    let mut sequence = worker.sequence();
    let first = forward(&mut worker, &mut sequence, &tokens);
    for keep in [129, 96, 64, 33, 1, 0] {
        let other = Random(13).tokens(model.shape.context - 130, model.shape.vocab);
        forward(&mut worker, &mut sequence, &other);
        sequence.truncate(keep);
        assert_eq!(sequence.len(), keep);
        let again = forward(&mut worker, &mut sequence, &tokens[keep..]);
        assert!(again == first[keep * model.shape.vocab..], "replay from {keep} differs");
    }
    sequence.truncate(1000);
    assert_eq!(sequence.len(), 130);
}

#[test]
fn forks_share_memory_until_they_differ() {
    let model = model();
    let tokens = Random(14).tokens(80, model.shape.vocab);
    let mut worker = worker(&model.engine(), 2, KvElem::Bf16);
    let mut sequence = worker.sequence();
    forward(&mut worker, &mut sequence, &tokens[..40]);
    let free = worker.free_tokens();

    let mut fork = sequence.fork();
    assert_eq!(worker.free_tokens(), free);
    // Both write into what was the shared second block, with different tokens.
    let a = forward(&mut worker, &mut sequence, &tokens[40..60]);
    let b = forward(&mut worker, &mut fork, &tokens[60..80]);
    assert_eq!(worker.free_tokens(), free - 32);
    for (history, got) in [(&tokens[40..60], a), (&tokens[60..80], b)] {
        let mut fresh = worker.sequence();
        forward(&mut worker, &mut fresh, &tokens[..40]);
        assert!(forward(&mut worker, &mut fresh, history) == got);
    }
    // A fork that forgets its own and part of the common tokens leaves the other's alone.
    fork.truncate(35);
    forward(&mut worker, &mut fork, &tokens[..5]);
    let mut fresh = worker.sequence();
    forward(&mut worker, &mut fresh, &tokens[..60]);
    let want = forward(&mut worker, &mut fresh, &tokens[..1]);
    assert!(forward(&mut worker, &mut sequence, &tokens[..1]) == want);
    drop((fresh, fork, sequence));
    assert_eq!(worker.free_tokens(), 1024);
}

#[test]
fn a_saved_sequence_goes_on_elsewhere() {
    let model = model();
    let engine = model.engine();
    let tokens = Random(15).tokens(70, model.shape.vocab);
    let mut first = worker(&engine, 2, KvElem::Bf16);
    let mut sequence = first.sequence();
    forward(&mut first, &mut sequence, &tokens[..50]);
    let saved = sequence.save().unwrap();
    let want = forward(&mut first, &mut sequence, &tokens[50..]);

    let mut second = worker(&engine, 1, KvElem::Bf16);
    let mut loaded = second.load(&saved).unwrap();
    assert_eq!(loaded.len(), 50);
    assert!(forward(&mut second, &mut loaded, &tokens[50..]) == want);
    assert!(second.load(&first.sequence().save().unwrap()).unwrap().is_empty());

    let error = |worker: &Worker, bytes: &[u8]| worker.load(bytes).map(|s| s.len()).unwrap_err();
    assert!(matches!(error(&second, &saved[..50]), SnapshotError::Header { .. }));
    assert!(matches!(error(&second, b"something else"), SnapshotError::Header { .. }));
    assert!(matches!(error(&second, &saved[..saved.len() - 1]), SnapshotError::Damaged { .. }));
    for at in [100, saved.len() - 1] {
        let mut damaged = saved.clone();
        damaged[at] ^= 1;
        assert!(matches!(error(&second, &damaged), SnapshotError::Damaged { .. }));
    }
    let mut longer = saved.clone();
    longer[16] = 65;
    assert!(matches!(error(&second, &longer), SnapshotError::Damaged { .. }));
    longer[16] = 255;
    assert!(matches!(error(&second, &longer), SnapshotError::Run(RunError::Context { .. })));
    let f32_worker = worker(&engine, 1, KvElem::F32);
    assert!(matches!(error(&f32_worker, &saved), SnapshotError::Kv { .. }));
    let other = Model::random(Shape::default(), 99);
    assert!(matches!(error(&worker(&other.engine(), 1, KvElem::Bf16), &saved), SnapshotError::Engine { .. }));
    assert_eq!(
        second.free_tokens(),
        1024 - loaded.len().div_ceil(32) * 32,
        "failed loads give everything back"
    );
}

#[test]
fn every_mistake_of_a_caller_has_its_error() {
    let model = model();
    let engine = model.engine();
    let mut worker = worker(&engine, 2, KvElem::Bf16);
    let mut other = Worker::new(&engine, WorkerOptions::default().threads(1)).unwrap();
    let tokens = vec![1; 211];
    let mut sequence = worker.sequence();
    let mut run = |worker: &mut Worker, tokens: &[u32], want| {
        let mut batch = Batch::new();
        batch.push(&mut sequence, tokens, want);
        worker.forward(&mut batch).map(|_| ()).unwrap_err()
    };
    let error = run(&mut worker, &tokens, Want::None);
    assert!(matches!(error, RunError::Context { len: 0, tokens: 211, context: 210, .. }), "{error}");
    let error = run(&mut worker, &[3, 53], Want::Last);
    assert!(matches!(error, RunError::Token { token: 53, index: 1, vocab: 53, .. }), "{error}");
    let error = run(&mut worker, &[3, u32::MAX], Want::Last);
    assert!(matches!(error, RunError::Token { .. }), "{error}");
    let error = run(&mut worker, &[3, 4], Want::Mask(&[true]));
    assert!(matches!(error, RunError::Mask { found: 1, tokens: 2, .. }), "{error}");
    let error = run(&mut other, &[3], Want::None);
    assert!(matches!(error, RunError::Foreign { entry: 0 }), "{error}");
    assert!(sequence.is_empty());

    // To the last position and not one further.
    forward(&mut worker, &mut sequence, &tokens[..209]);
    assert_eq!(sequence.room(), 1);
    forward(&mut worker, &mut sequence, &[5]);
    let mut batch = Batch::new();
    batch.push(&mut sequence, &[5], Want::Last);
    let error = worker.forward(&mut batch).map(|_| ()).unwrap_err();
    assert!(matches!(error, RunError::Context { len: 210, tokens: 1, .. }), "{error}");
}

#[test]
fn a_full_cache_is_an_error_that_changes_nothing() {
    let model = model();
    let options = WorkerOptions::default().threads(1).max_tokens(64);
    let mut worker = Worker::new(&model.engine(), options).unwrap();
    let [mut a, mut b] = [(); 2].map(|()| worker.sequence());
    forward(&mut worker, &mut a, &[1; 20]);
    let mut batch = Batch::new();
    batch.push(&mut a, &[2; 20], Want::None);
    batch.push(&mut b, &[2; 1], Want::Last);
    let error = worker.forward(&mut batch).map(|_| ()).unwrap_err();
    assert!(matches!(error, RunError::CacheFull { needed: 1, free: 0, total: 2 }), "{error}");
    assert_eq!((a.len(), b.len(), worker.free_tokens()), (20, 0, 32));
    drop(a);
    forward(&mut worker, &mut b, &[1; 64]);
}

#[test]
fn a_cancelled_prefill_stops_and_keeps_what_is_done() {
    let model = model();
    let engine = model.engine();
    let tokens = Random(16).tokens(200, model.shape.vocab);
    let mut worker = worker(&engine, 3, KvElem::Bf16);
    let handle = CancelHandle::new();
    let mut sequence = worker.sequence();
    handle.cancel();
    let mut batch = Batch::new();
    batch.push(&mut sequence, &tokens, Want::Last);
    batch.cancel_with(&handle);
    assert!(matches!(worker.forward(&mut batch), Err(RunError::Cancelled)));
    assert!(sequence.is_empty());

    // From another thread, at any moment: whatever was done counts, and the rest can follow.
    handle.reset();
    let want = forward(&mut worker, &mut sequence, &tokens);
    for pause in [0, 20, 200, 1000] {
        sequence.truncate(0);
        handle.reset();
        let mut batch = Batch::new();
        batch.push(&mut sequence, &tokens, Want::None);
        batch.cancel_with(&handle);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_micros(pause));
                handle.cancel();
            });
            match worker.forward(&mut batch) {
                Ok(_) | Err(RunError::Cancelled) => {}
                Err(e) => panic!("{e}"),
            }
        });
        let done = sequence.len();
        println!("cancelled after {pause} µs: {done} tokens");
        assert!(done == 200 || done.is_multiple_of(common::CHUNK_ROWS));
        let rest = forward(&mut worker, &mut sequence, &tokens[done..]);
        assert!(rest == want[done * model.shape.vocab..]);
    }
}
