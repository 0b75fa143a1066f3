//! Tactics change how fast an engine is: not what it computes, and not whether its bytes can be made again.

use bessemer_compiler::compile::{plan, prepare};
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_compiler::tuning::{Event, Key, Measured, TuneOptions, Tuning, TuningCache, tune};
use bessemer_compiler::{Silent, compile};
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::{Engine, KvElem, Worker, WorkerOptions};
use bessemer_targets::{Tactic, tactics};
use bessemer_tests::models::{engine, fixture, forward, golden, logits, relative_error};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MODEL: &str = "gqa_tied";
const MACHINE: &str = "a machine, 2 threads";

fn with(tactics: &[(Tactic, u32)], precision: PrecisionPolicy) -> CompileOptions {
    CompileOptions { tactics: tactics.iter().copied().collect(), precision, ..CompileOptions::default() }
}

fn worker() -> WorkerOptions {
    WorkerOptions::default().threads(2).kv(KvElem::F32)
}

/// The logits of all tokens, given in pieces of these sizes, again and again.
fn in_pieces(engine: &Engine, tokens: &[u32], sizes: &[usize]) -> Vec<Vec<f32>> {
    let mut worker = Worker::new(engine, worker()).unwrap();
    let mut sequence = worker.sequence();
    let (mut out, mut at) = (Vec::new(), 0);
    for size in sizes.iter().cycle() {
        let end = tokens.len().min(at + size);
        out.extend(forward(&mut worker, &mut sequence, &tokens[at..end]));
        at = end;
        if at == tokens.len() {
            return out;
        }
    }
    out
}

#[test]
fn engines_with_other_tactics_hold_the_golden_at_every_border() {
    let g = golden(MODEL, "");
    for (chunk_rows, split_rows, attention_chunk) in
        [(8, 2, 32), (3, 1, 32), (1, 1, 64), (64, 64, 32), (65, 15, 96), (1024, 31, 256)]
    {
        let chosen = [
            (Tactic::ChunkRows, chunk_rows),
            (Tactic::SplitRows, split_rows),
            (Tactic::AttentionChunk, attention_chunk),
        ];
        let engine = engine(MODEL, &with(&chosen, PrecisionPolicy::F32));
        let borders: Vec<u32> = engine.plan().programs.iter().map(|p| p.regime.max_rows).collect();
        assert_eq!(borders.last(), Some(&chunk_rows), "{chosen:?}");
        let mut pieces = vec![vec![g.tokens.len()], vec![1]];
        for border in borders {
            pieces.push(vec![border as usize]);
            pieces.push(vec![border as usize + 1, 1]);
        }
        for sizes in pieces {
            let error = relative_error(&in_pieces(&engine, &g.tokens, &sizes), &g.logits);
            assert!(error < 1e-4, "{chosen:?} in pieces of {sizes:?}: {error:.2e}");
        }
    }
}

/// Tokens for which no golden exists, enough for several chunks of attention.
fn many_tokens() -> Vec<u32> {
    (0..200u32).map(|i| i * 7919 % 256).collect()
}

#[test]
fn rows_of_programs_change_no_bit_and_chunks_of_attention_only_the_last_ones() {
    for precision in [PrecisionPolicy::F32, PrecisionPolicy::Int8 { group: 32 }] {
        let tokens = many_tokens();
        let run =
            |tactics: &[(Tactic, u32)]| logits(&engine(MODEL, &with(tactics, precision)), worker(), &tokens);
        let plain = run(&[]);
        for rows in [[(Tactic::ChunkRows, 48)], [(Tactic::SplitRows, 64)], [(Tactic::SplitRows, 1)]] {
            assert!(run(&rows) == plain, "{rows:?} with {precision} gives other bits");
        }
        for chunk in [32, 64] {
            let error = relative_error(&run(&[(Tactic::AttentionChunk, chunk)]), &plain);
            // Rounding of activations can turn a last bit into a step of a code.
            let bound = if precision == PrecisionPolicy::F32 { 1e-5 } else { 1e-2 };
            assert!(error < bound, "chunks of {chunk} with {precision}: {error:.2e}");
        }
    }
}

/// A cache with an entry for the fixture, as somebody's machine would have written it.
fn cache(machine: &str, tactic: Tactic, value: u32) -> TuningCache {
    let checkpoint = Checkpoint::open(fixture(MODEL)).unwrap();
    let prepared = prepare(&checkpoint, &CompileOptions::default(), &RunOptions::default()).unwrap();
    let key = Key {
        machine: machine.into(),
        producer: bessemer_format::PRODUCER.into(),
        target: "cpu".into(),
        tactic,
        shapes: tactics::shapes(&prepared.graph),
    };
    let mut cache = TuningCache::default();
    let candidates = BTreeMap::from([(value, 1000)]);
    cache.insert(key, Measured { value, workload: "a test".into(), candidates });
    cache
}

fn tuned(cache: TuningCache) -> CompileOptions {
    let tuning = Some(Tuning { cache: Arc::new(cache), machine: MACHINE.into() });
    CompileOptions { tuning, ..CompileOptions::default() }
}

#[test]
fn the_same_cache_gives_the_same_bytes_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tuning.json");
    cache(MACHINE, Tactic::ChunkRows, 24).write(&file).unwrap();
    let hash = TuningCache::read(&file).unwrap().hash();
    let run = |threads, name: &str| {
        let options = tuned(TuningCache::read(&file).unwrap());
        let out = folder.path().join(name);
        let run = RunOptions { threads, ..RunOptions::default() };
        let made = compile(&fixture(MODEL), &out, &options, &run, None, &Silent).unwrap();
        (made.sha256, Engine::open(out).unwrap())
    };
    let (first, engine) = run(1, "a.engine");
    for (threads, name) in [(2, "b.engine"), (5, "c.engine")] {
        assert_eq!(run(threads, name).0, first, "{threads} threads");
    }
    assert_eq!(engine.plan().programs.last().unwrap().regime.max_rows, 24);
    let named = engine.manifest().options.iter().find(|(k, _)| k == "tuning").unwrap();
    assert_eq!(named.1, format!("{hash} for {MACHINE}"));
    let report = engine.report().unwrap().unwrap();
    let why = |tactic: Tactic| report.tactics.iter().find(|t| t.name == tactic.name()).unwrap().why.clone();
    assert!(why(Tactic::ChunkRows).contains(MACHINE));
    assert!(why(Tactic::SplitRows).starts_with("rule"));
}

#[test]
fn what_was_measured_elsewhere_is_not_used() {
    let checkpoint = Checkpoint::open(fixture(MODEL)).unwrap();
    let planned = |options: &CompileOptions| {
        let prepared = prepare(&checkpoint, options, &RunOptions::default()).unwrap();
        plan(&prepared, options).unwrap().plan
    };
    let rule = planned(&CompileOptions::default());
    let here = tuned(cache(MACHINE, Tactic::ChunkRows, 24));
    assert_ne!(planned(&here), rule);
    assert_eq!(planned(&tuned(cache("another machine, 2 threads", Tactic::ChunkRows, 24))), rule);
    // Another precision has other shapes.
    let other = CompileOptions { precision: PrecisionPolicy::Int4 { group: 32 }, ..here.clone() };
    assert_eq!(planned(&other), planned(&CompileOptions { tuning: None, ..other.clone() }));
    // And what the user says comes first.
    let given = CompileOptions { tactics: BTreeMap::from([(Tactic::ChunkRows, 512)]), ..here };
    assert_eq!(planned(&given), rule);
}

fn tune_fixture(folder: &Path, known: TuningCache, limit: Duration) -> (TuningCache, Vec<Event>) {
    let checkpoint = Checkpoint::open(fixture(MODEL)).unwrap();
    let events = Mutex::new(Vec::new());
    let tuning = Tuning { cache: Arc::new(known), machine: MACHINE.into() };
    let how = TuneOptions {
        threads: 2,
        limit,
        folder,
        open: &|path| Engine::open(path),
        tell: &|event| events.lock().unwrap().push(event.clone()),
    };
    let (options, run) = (CompileOptions::default(), RunOptions::default());
    let found = tune(&checkpoint, &options, &tuning, &run, &how, &Silent).unwrap();
    (found, events.into_inner().unwrap())
}

#[test]
fn tuning_measures_what_is_not_known_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let known = cache(MACHINE, Tactic::SplitRows, 3);
    let (found, events) = tune_fixture(folder.path(), known.clone(), Duration::from_secs(3600));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let tactics: Vec<Tactic> = found.entries().map(|(key, _)| key.tactic).collect();
    assert_eq!(tactics, Tactic::ALL);
    assert!(matches!(&events[0], Event::Skipped { tactic: Tactic::SplitRows, why } if why.contains("cache")));
    for (key, measured) in found.entries().filter(|(key, _)| key.tactic != Tactic::SplitRows) {
        assert!(measured.candidates.len() > 2, "{key:?}: {measured:?}");
        assert!(measured.candidates.values().all(|ns| *ns > 0));
        assert!(events.iter().any(|e| matches!(e, Event::Chosen { tactic, .. } if *tactic == key.tactic)));
    }
    // Compiling with it takes what was found, and tuning again measures nothing.
    let engine = engine(MODEL, &tuned(found.clone()));
    let report = engine.report().unwrap().unwrap();
    for (key, measured) in found.entries() {
        let reported = report.tactics.iter().find(|t| t.name == key.tactic.name()).unwrap();
        assert_eq!(reported.value, measured.value);
    }
    let (again, events) = tune_fixture(folder.path(), found.clone(), Duration::from_secs(3600));
    assert_eq!(again, found);
    assert!(events.iter().all(|e| matches!(e, Event::Skipped { .. })));
    // Without time nothing is found, and it is said.
    let (nothing, events) = tune_fixture(folder.path(), known.clone(), Duration::ZERO);
    assert_eq!(nothing, known);
    assert_eq!(events.iter().filter(|e| format!("{e:?}").contains("limit")).count(), 2);
}

#[test]
fn every_step_has_a_reason() {
    for model in [MODEL, "gqa_tied.mixed.gguf"] {
        let engine = engine(model, &CompileOptions::default());
        let report = engine.report().unwrap().unwrap();
        for step in engine.plan().programs.iter().flat_map(|p| &p.steps) {
            let selection = report.selection.iter().find(|s| s.node == step.source);
            let selection =
                selection.unwrap_or_else(|| panic!("{model}: nothing says why {} is", step.source));
            assert!(!selection.rejected.is_empty(), "{model}: {selection:?}");
        }
    }
}
