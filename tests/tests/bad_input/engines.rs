//! Damaged engines: what is hashed at open is refused there, what is not (the weights) is named by `verify`, and no byte
//! of either makes the runtime do more than give wrong numbers.

use super::{guarded, quick, run_a_little, speak};
use bessemer_compiler::options::CompileOptions;
use bessemer_format::FormatError;
use bessemer_format::header::{Frame, HEADER_BYTES, SectionKind};
use bessemer_format::manifest::Hash;
use bessemer_runtime::{Engine, EngineError};
use bessemer_tests::models::{compile, fixture};
use bessemer_tests::mutate::Mutator;
use std::ops::Range;

/// The bytes of an engine compiled from a fixture.
fn engine_of(name: &str, options: &CompileOptions) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = compile(&fixture(name), folder.path(), options).unwrap();
    std::fs::read(path).unwrap()
}

/// A real engine with every section: tokenizer, machine code, report, text.
fn engine() -> Vec<u8> {
    engine_of("gqa_tied.mixed.gguf", &CompileOptions::default())
}

/// Where a section lies.
fn section(bytes: &[u8], kind: SectionKind) -> Range<usize> {
    let frame = Frame::parse(bytes).unwrap();
    let entry = frame.entry(kind).unwrap();
    entry.offset as usize..(entry.offset + entry.len) as usize
}

/// Makes the hashes of a changed file right again, so that what lies behind them meets the damage.
fn reseal(bytes: &mut [u8]) {
    let count = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    for at in (1..=count).map(|i| i * HEADER_BYTES) {
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let range = number(at + 8)..number(at + 8) + number(at + 16);
        if bytes[at] != SectionKind::Weights as u8 {
            let hash = Hash::of(&bytes[range]);
            bytes[at + 32..at + 64].copy_from_slice(&hash.0);
        }
    }
    reseal_header(bytes, count);
}

fn reseal_header(bytes: &mut [u8], count: usize) {
    let covered = [&bytes[..32], &bytes[HEADER_BYTES..HEADER_BYTES * (count + 1)]].concat();
    bytes[32..64].copy_from_slice(&Hash::of(&covered).0);
}

/// Opens what must not open.
fn refused(bytes: &[u8], what: &str) -> EngineError {
    match Engine::from_bytes(bytes) {
        Ok(_) => panic!("{what}: opened"),
        Err(error) => {
            let text = error.to_string();
            assert!((10..2000).contains(&text.len()), "{what}: a message of {} bytes", text.len());
            error
        }
    }
}

#[test]
fn truncated_engines_are_refused() {
    let bytes = engine();
    let mut random = Mutator::new(7);
    let edges = Frame::parse(&bytes).unwrap().entries.into_iter().flat_map(|e| [e.offset, e.offset + e.len]);
    let lens: Vec<usize> = (0..600)
        .chain(edges.map(|at| at as usize).filter(|at| *at < bytes.len()))
        .chain((0..400).map(|_| random.below(bytes.len())))
        .collect();
    for len in &lens {
        refused(&bytes[..*len], &format!("cut at {len}"));
        // The length in the header made to fit: a file that a careless tool shortened.
        if *len >= 1024 {
            let mut shorter = bytes[..*len].to_vec();
            shorter[16..24].copy_from_slice(&(*len as u64).to_le_bytes());
            let count = u32::from_le_bytes(shorter[12..16].try_into().unwrap()) as usize;
            reseal_header(&mut shorter, count);
            refused(&shorter, &format!("cut and sealed at {len}"));
        }
    }
    println!("truncated engines: {} refused", lens.len());
}

#[test]
fn a_flip_outside_weights_is_refused_and_one_inside_is_named() {
    let bytes = engine();
    let weights = section(&bytes, SectionKind::Weights);
    let sound = Engine::from_bytes(&bytes).unwrap();
    sound.verify().unwrap();
    let slices = sound.plan().weights.clone();
    let mut random = Mutator::new(1);
    let (mut outside, mut inside, mut padding) = (0, 0, 0);
    while outside < 4000 || inside < 300 {
        // As often in the small sections as in the large one.
        let at = match random.below(4) {
            0 => random.below(1024),
            1 => weights.start + random.below(weights.len()),
            _ => random.below(bytes.len()),
        };
        let bit = random.below(8);
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << bit;
        if !weights.contains(&at) {
            outside += 1;
            refused(&damaged, &format!("bit {bit} of byte {at}"));
        } else if inside < 300 {
            let engine = Engine::from_bytes(&damaged).unwrap();
            guarded("flip in weights", inside, &format!("bit {bit} of byte {at}"), || {
                run_a_little(&engine);
                true
            });
            let at = (at - weights.start) as u64;
            let Some(id) = slices.iter().position(|w| (w.offset..w.offset + w.len).contains(&at)) else {
                padding += 1;
                continue;
            };
            inside += 1;
            let name = sound.manifest().tensors.iter().find(|t| t.weights.contains(&(id as u32)));
            let name = name.map_or_else(|| format!("weight {id}"), |t| format!("tensor {}", t.name));
            let error = engine.verify().unwrap_err();
            assert!(
                matches!(&error, EngineError::Format(FormatError::Hash { what, .. }) if *what == name),
                "{error}"
            );
        }
    }
    println!(
        "flips in engines: {outside} refused, {inside} in weights named, {padding} in padding of weights"
    );
    assert!(padding < inside / 2, "the weights are mostly padding");
}

/// Weights of any bytes: codes, scales and norms that are NaN, infinite or huge reach every kernel.
#[test]
fn weights_of_noise_run() {
    for (model, options) in [("gqa_tied.mixed.gguf", CompileOptions::default()), ("gqa_9_3", quick())] {
        let bytes = engine_of(model, &options);
        let weights = section(&bytes, SectionKind::Weights);
        let mut random = Mutator::new(3);
        for round in 0..40 {
            let mut damaged = bytes.clone();
            for byte in &mut damaged[weights.clone()] {
                *byte = match round {
                    0 => 0xff,
                    1 => 0x7f,
                    2 => 0x80,
                    _ => random.next_u64() as u8,
                };
            }
            let engine = Engine::from_bytes(&damaged).unwrap();
            guarded("noise", round, model, || {
                run_a_little(&engine);
                true
            });
            assert!(engine.verify().is_err());
        }
    }
}

/// Damage whose hashes are right: somebody made it on purpose. Validation stands alone here, and what it lets through runs.
fn sealed(rounds: usize, seed: u64) {
    let bytes = engine();
    let mut random = Mutator::new(seed);
    let (mut opened, mut named) = (0, 0);
    for round in 0..rounds {
        let kind = match round % 4 {
            0 => SectionKind::Manifest,
            1 => SectionKind::Tokenizer,
            _ => SectionKind::Plan,
        };
        let range = section(&bytes, kind);
        let mut damaged = bytes.clone();
        let mut done = String::new();
        for _ in 0..=random.below(2) {
            let at = range.start + random.below(range.len());
            damaged[at] = match random.below(4) {
                0 => damaged[at] ^ (1 << random.below(8)),
                1 => damaged[at].wrapping_add(1),
                2 => damaged[at].wrapping_sub(1),
                _ => random.next_u64() as u8,
            };
            done += &format!("byte {at} is {} ", damaged[at]);
        }
        reseal(&mut damaged);
        let accepted = guarded("sealed engine", round, &done, || match Engine::from_bytes(&damaged) {
            Ok(engine) => {
                run_sealed(&engine);
                true
            }
            Err(error) => {
                assert!(error.to_string().len() < 2000, "{}", error.to_string().len());
                false
            }
        });
        opened += usize::from(accepted);
        named += usize::from(!accepted);
    }
    println!("sealed engines: {rounds} mutations, {named} refused, {opened} opened and used");
    assert!(
        opened > rounds / 20 && named > rounds / 4,
        "{opened} opened, {named} refused: the mutations test nothing"
    );
}

/// Uses an engine that somebody else wrote: every step may fail with an error.
fn run_sealed(engine: &Engine) {
    use bessemer_runtime::{Batch, Want, Worker, WorkerOptions};
    let options = WorkerOptions::default().threads(1).pin(false).max_tokens(64).max_memory(64 << 20);
    if let Ok(mut worker) = Worker::new(engine, options) {
        let mut sequence = worker.sequence();
        for tokens in [&[1, 2, 3][..], &[4]] {
            let mut batch = Batch::new();
            batch.push(&mut sequence, tokens, Want::Last);
            if worker.forward(&mut batch).is_err() {
                break;
            }
        }
    }
    let _ = engine.verify();
    let _ = engine.report();
    speak(engine);
}

#[test]
fn sealed_damage_is_refused_or_runs() {
    sealed(3000, 0x5eed);
}

#[test]
#[ignore = "minutes: ten times the mutations of the ordinary run, others than those"]
fn ten_times_as_much_sealed_damage() {
    sealed(30_000, 0xfeed);
}
