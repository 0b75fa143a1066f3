//! Encoders against the vectors and scores that transformers computed in f32.

use bessemer_compiler::compile::prepare;
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_eager::{Eager, EagerOptions};
use bessemer_ir::Phase;
use bessemer_ir::exec::{SequenceRows, Wanted};
use bessemer_oracle::{Oracle, Reading};
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::{Batch, EmbedInput, Embedder, Engine, RunError, Session, Want, Worker, WorkerOptions};
use bessemer_tests::models::{
    ENCODERS, cached_model, compile, encoder_golden, engine, fixture, open_trusted, relative_error, root,
    trusted_engine,
};
use safetensors::SafeTensors;
use std::sync::{Arc, Mutex};

fn options(precision: PrecisionPolicy) -> CompileOptions {
    CompileOptions { precision, ..CompileOptions::default() }
}

#[test]
fn the_oracle_and_the_eager_executor_give_what_transformers_gives() {
    for (model, name) in ENCODERS {
        let (inputs, expected) = encoder_golden(name);
        let parts: Vec<_> = inputs
            .iter()
            .enumerate()
            .map(|(sequence, input)| SequenceRows {
                sequence,
                tokens: &input.tokens,
                types: &input.types,
                logits: Wanted::Last,
            })
            .collect();
        let checkpoint = Checkpoint::open(fixture(model)).unwrap();
        for phase in [Phase::Imported, Phase::Packed] {
            let run = RunOptions { stop_after: Some(phase), ..RunOptions::default() };
            let graph = prepare(&checkpoint, &CompileOptions::default(), &run).unwrap().graph;
            let found = Oracle::new(&graph, &checkpoint, Reading::Exact).unwrap().forward(&parts).unwrap();
            let found: Vec<Vec<f32>> = found.rows().map(<[f32]>::to_vec).collect();
            let error = relative_error(&found, &expected);
            assert!(error < 1e-5, "{model} {phase}: oracle {error:.2e}");
            if phase == Phase::Imported {
                let options = EagerOptions { threads: 2, ..EagerOptions::default() };
                let found = Eager::new(&graph, &checkpoint, options).unwrap().forward(&parts).unwrap();
                let found: Vec<Vec<f32>> = found.rows().map(<[f32]>::to_vec).collect();
                let error = relative_error(&found, &expected);
                assert!(error < 1e-4, "{model}: eager {error:.2e}");
            }
        }
    }
}

#[test]
fn engines_give_what_transformers_gives() {
    for (precision, bound) in [(PrecisionPolicy::F32, 1e-4), (PrecisionPolicy::Bf16, 2e-2)] {
        for (model, name) in ENCODERS {
            let (inputs, expected) = encoder_golden(name);
            let engine = engine(model, &options(precision));
            let mut embedder = Embedder::new(&engine, WorkerOptions::default().threads(2)).unwrap();
            let together = embedder.vectors(&inputs).unwrap();
            let error = relative_error(&together, &expected);
            println!("{model} {precision}: {error:.2e}");
            assert!(error < bound, "{model} {precision}: {error:.2e} above {bound:.0e}");
            for (input, vector) in inputs.iter().zip(&together) {
                let alone = embedder.vectors(std::slice::from_ref(input)).unwrap();
                assert!(
                    alone[0] == *vector,
                    "{model} {precision}: a text of {} tokens alone",
                    input.tokens.len()
                );
            }
        }
    }
}

#[test]
fn generated_code_and_any_number_of_threads_give_the_same_bits() {
    for (model, name) in ENCODERS {
        let (inputs, _) = encoder_golden(name);
        let run = |engine: &Engine, threads| {
            let mut embedder = Embedder::new(engine, WorkerOptions::default().threads(threads)).unwrap();
            embedder.vectors(&inputs).unwrap()
        };
        let options = options(PrecisionPolicy::Source);
        let interpreted = run(&engine(model, &options), 1);
        let trusted = trusted_engine(model, &options);
        for threads in [1, 2, 3] {
            assert!(run(&trusted, threads) == interpreted, "{model} on {threads} threads");
        }
    }
}

#[test]
fn sequences_come_whole_and_no_text_is_generated() {
    let engine = engine("bert", &CompileOptions::default());
    let mut worker = Worker::new(&engine, WorkerOptions::default()).unwrap();
    let mut sequence = worker.sequence();
    let mut forward = |tokens: &[u32]| {
        let mut batch = Batch::new();
        batch.push(&mut sequence, tokens, Want::Last);
        worker.forward(&mut batch).map(drop)
    };
    forward(&[5, 6, 7]).unwrap();
    let error = forward(&[8]).unwrap_err();
    assert!(matches!(error, RunError::Whole { len: 3, tokens: 1, .. }), "{error}");
    let worker = Arc::new(Mutex::new(Worker::new(&engine, WorkerOptions::default()).unwrap()));
    assert!(matches!(Session::new(&worker).err(), Some(RunError::NoLogits)));
}

/// The largest cosine distance of two lists of vectors.
fn distance(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = |(a, b): (&Vec<f32>, &Vec<f32>)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    found.iter().zip(expected).map(|pair| 1.0 - cosine(pair)).fold(0.0, f64::max)
}

/// Texts, their tokens and their vectors, as sentence-transformers would make them.
fn sentences() -> (Vec<String>, Vec<EmbedInput>, Vec<Vec<f32>>) {
    let json = std::fs::read_to_string(root().join("fixtures/goldens/minilm.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let runs = json["runs"].as_array().unwrap();
    let ids = |run: &serde_json::Value| -> Vec<u32> {
        run["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let bytes = std::fs::read(root().join("fixtures/goldens/minilm.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (words, _) = file.tensor("vectors").unwrap().data().as_chunks::<4>();
    let floats: Vec<f32> = words.iter().map(|b| f32::from_le_bytes(*b)).collect();
    (
        runs.iter().map(|run| run["text"].as_str().unwrap().to_owned()).collect(),
        runs.iter().map(|run| ids(run).into()).collect(),
        floats.chunks_exact(floats.len() / runs.len()).map(<[f32]>::to_vec).collect(),
    )
}

#[test]
fn minilm_gives_the_vectors_of_sentence_transformers() {
    let Some(source) = cached_model("all-MiniLM-L6-v2") else { return };
    let (texts, inputs, expected) = sentences();
    assert_eq!(texts.len(), 50);
    for (precision, bound) in [
        (PrecisionPolicy::F32, 1e-4),
        (PrecisionPolicy::Bf16, 1e-4),
        (PrecisionPolicy::Int8 { group: 32 }, 1e-2),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = compile(&source, folder.path(), &options(precision)).unwrap();
        let mut embedder = Embedder::new(&open_trusted(&path), WorkerOptions::default().threads(2)).unwrap();
        for (text, input) in texts.iter().zip(&inputs) {
            assert_eq!(embedder.tokens(text).unwrap(), *input, "{text:?}");
        }
        let distance = distance(&embedder.embed(&texts).unwrap(), &expected);
        println!("{precision}: {distance:.2e}");
        assert!(distance < bound, "{precision}: {distance:.2e} above {bound:.0e}");
    }
}
