//! Four ways to run one model agree: oracle, eager executor, engine by nests, engine with generated code. And what rounding costs on a
//! real text. Models are fetched by `fixtures/fetch.py`; without them a test says that it was skipped.

use bessemer_compiler::compile::prepare;
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_eager::{Eager, EagerOptions, SequenceRows, Wanted};
use bessemer_ir::{Graph, Phase};
use bessemer_oracle::{Oracle, Reading};
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::{Batch, Engine, KvElem, NestPath, Want, Worker, WorkerOptions};
use bessemer_tests::models::{argmax, book, cached_model, compile, greedy, open_trusted, root};
use bessemer_tests::{HOST, skip};
use std::path::Path;

/// The graph as an interpreter sees it: unfused, weights as stored.
fn canonical(checkpoint: &Checkpoint) -> Graph {
    let run = RunOptions { stop_after: Some(Phase::Canonical), ..RunOptions::default() };
    prepare(checkpoint, &CompileOptions::default(), &run).unwrap().graph
}

/// Greedy decoding by whatever gives the logits of the last of some new tokens.
fn decode(prompt: &[u32], count: usize, mut last: impl FnMut(&[u32]) -> Vec<f32>) -> Vec<u32> {
    let mut out = vec![argmax(&last(prompt))];
    while out.len() < count {
        out.push(argmax(&last(&out[out.len() - 1..])));
    }
    out
}

fn part(tokens: &[u32]) -> [SequenceRows<'_>; 1] {
    [SequenceRows { sequence: 0, tokens, types: &[], logits: Wanted::Last }]
}

#[test]
fn two_hundred_tokens_of_a_story() {
    let Some(source) = cached_model("stories15M") else { return };
    let checkpoint = Checkpoint::open(&source).unwrap();
    let graph = canonical(&checkpoint);
    let prompt = [1];
    let count = 200;

    let mut oracle = Oracle::new(&graph, &checkpoint, Reading::Exact).unwrap();
    let expected = decode(&prompt, count, |t| oracle.forward(&part(t)).unwrap().values);

    let mut eager =
        Eager::new(&graph, &checkpoint, EagerOptions { threads: 2, ..EagerOptions::default() }).unwrap();
    assert_eq!(decode(&prompt, count, |t| eager.forward(&part(t)).unwrap().values), expected, "eager");

    let folder = tempfile::tempdir().unwrap();
    let options = CompileOptions { precision: PrecisionPolicy::F32, ..CompileOptions::default() };
    let (path, _) = compile(&source, folder.path(), &options).unwrap();
    let worker = || WorkerOptions::default().threads(2).kv(KvElem::F32);
    let nests = Engine::open(&path).unwrap();
    assert_eq!(nests.nest_path(), NestPath::Interpreted);
    assert_eq!(greedy(&nests, worker(), &prompt, count), expected, "engine by nests");
    let code = open_trusted(&path);
    if code.nest_path() == NestPath::Generated {
        assert_eq!(greedy(&code, worker(), &prompt, count), expected, "engine with generated code");
    } else {
        skip(HOST, "no code is generated for it");
    }
}

/// Sum of `-ln p(next token)`, in f64.
fn surprise(logits: &[f32], next: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|v| f64::from(v - max).exp()).sum();
    sum.ln() - f64::from(logits[next as usize] - max)
}

const WINDOW: usize = 512;

fn engine_surprise(engine: &Engine, tokens: &[u32]) -> f64 {
    let mut worker = Worker::new(engine, WorkerOptions::default().threads(2).max_tokens(WINDOW)).unwrap();
    let mut total = 0.0;
    for window in tokens.chunks(WINDOW) {
        let mut sequence = worker.sequence();
        for (at, piece) in window.chunks(64).enumerate() {
            let mut batch = Batch::new();
            batch.push(&mut sequence, piece, Want::All);
            let logits = worker.forward(&mut batch).unwrap();
            for (row, next) in logits.of(0).iter().zip(&window[(at * 64 + 1).min(window.len())..]) {
                total += surprise(row, *next);
            }
        }
    }
    total
}

fn eager_surprise(source: &Path, tokens: &[u32]) -> f64 {
    let checkpoint = Checkpoint::open(source).unwrap();
    let options = EagerOptions { threads: 2, ..EagerOptions::default() };
    let mut eager = Eager::new(&canonical(&checkpoint), &checkpoint, options).unwrap();
    let mut total = 0.0;
    for window in tokens.chunks(WINDOW) {
        eager.reset();
        for (at, piece) in window.chunks(64).enumerate() {
            let part = [SequenceRows { sequence: 0, tokens: piece, types: &[], logits: Wanted::All }];
            let logits = eager.forward(&part).unwrap();
            for (row, next) in logits.rows().zip(&window[(at * 64 + 1).min(window.len())..]) {
                total += surprise(row, *next);
            }
        }
    }
    total
}

/// Perplexity of the engine as stored, relative to the f32 executor on the same dequantised weights.
fn perplexity_ratio(tokens: usize) -> Option<f64> {
    let source = cached_model("smollm2-135m-instruct.gguf")?;
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = compile(&source, folder.path(), &CompileOptions::default()).unwrap();
    let engine = open_trusted(&path);
    let text = book(&engine, tokens)?;
    let predicted = (text.len() - text.len().div_ceil(WINDOW)) as f64;
    let (ours, theirs) =
        (engine_surprise(&engine, &text) / predicted, eager_surprise(&source, &text) / predicted);
    println!("{tokens} tokens: perplexity {:.4} as stored, {:.4} in f32", ours.exp(), theirs.exp());
    Some((ours - theirs).exp())
}

#[test]
fn a_stored_model_keeps_its_perplexity() {
    let Some(ratio) = perplexity_ratio(4_096) else { return };
    assert!((ratio - 1.0).abs() < 0.005, "perplexity times {ratio:.5}");
}

/// The whole text of the promise; a few minutes in the dev profile.
#[test]
#[ignore = "long: run with --ignored before a release"]
fn a_stored_model_keeps_its_perplexity_over_twenty_thousand_tokens() {
    let Some(ratio) = perplexity_ratio(20_000) else { return };
    assert!((ratio - 1.0).abs() < 0.005, "perplexity times {ratio:.5}");
}

#[test]
fn eager_and_oracle_agree_on_real_text() {
    let Some(source) = cached_model("smollm2-135m-instruct.gguf") else { return };
    let json = std::fs::read_to_string(root().join("fixtures/goldens/smollm2.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let prompt: Vec<u32> = json["runs"][1]["prompt_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as u32)
        .collect();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let graph = canonical(&checkpoint);
    let all = [SequenceRows { sequence: 0, tokens: &prompt, types: &[], logits: Wanted::All }];
    let exact = Oracle::new(&graph, &checkpoint, Reading::Exact).unwrap().forward(&all).unwrap();
    let options = EagerOptions { threads: 2, ..EagerOptions::default() };
    let fast = Eager::new(&graph, &checkpoint, options).unwrap().forward(&all).unwrap();
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference =
        norm(&mut exact.values.iter().zip(&fast.values).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let error = difference / norm(&mut exact.values.iter().map(|v| f64::from(*v)));
    println!("{} tokens of SmolLM2: eager is {error:.1e} from the oracle", prompt.len());
    assert!(error < 1e-4, "{error:.1e}");
}
