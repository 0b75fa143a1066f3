//! Damaged checkpoints through the whole compiler, and on to tokens where they still compile.

use super::{compile_into, guarded, quick, run_a_little, speak};
use bessemer_compiler::Silent;
use bessemer_compiler::options::CompileOptions;
use bessemer_runtime::Engine;
use bessemer_tests::checkpoints::{safetensors, tiny_config, tiny_gguf, tiny_tensors, write_directory};
use bessemer_tests::models::fixture;
use bessemer_tests::mutate::Mutator;
use std::path::{Path, PathBuf};

/// A checkpoint of which one file is damaged.
struct Victim {
    label: &'static str,
    /// What is compiled.
    source: PathBuf,
    /// What is damaged: the source itself or a file in it.
    file: PathBuf,
    /// Half of the damage goes into that many first bytes.
    head: usize,
}

/// Compiles `rounds` damaged versions of a file, and runs every engine that comes out. Gives how many were refused.
fn damage(victim: &Victim, seed: u64, rounds: usize, options: &CompileOptions) -> usize {
    let Victim { label, source, file, head } = victim;
    let original = std::fs::read(file).unwrap();
    let out = tempfile::tempdir().unwrap();
    let engine = out.path().join("m.engine");
    compile_into(out.path(), source, options, &Silent)
        .unwrap_or_else(|e| panic!("{label} is not sound: {e}"));
    std::fs::remove_file(&engine).unwrap();

    let mut mutator = Mutator::new(seed);
    let mut refused = 0;
    for round in 0..rounds {
        let (bytes, done) = mutator.mutate(&original, *head);
        std::fs::write(file, bytes).unwrap();
        let accepted = guarded(label, round, &done, || {
            if compile_into(out.path(), source, options, &Silent).is_err() {
                return false;
            }
            let opened = Engine::open(&engine).unwrap_or_else(|e| panic!("compiled and not opened: {e}"));
            run_a_little(&opened);
            speak(&opened);
            std::fs::remove_file(&engine).unwrap();
            true
        });
        refused += usize::from(!accepted);
    }
    std::fs::write(file, original).unwrap();
    println!("{label}: {rounds} mutations, {refused} refused, {} compiled and run", rounds - refused);
    refused
}

/// The tiny GGUF, and a fixture with all of its block formats and a tokenizer.
fn gguf(folder: &Path) -> [Victim; 2] {
    let tiny = folder.join("tiny.gguf");
    let bytes = tiny_gguf().bytes();
    std::fs::write(&tiny, &bytes).unwrap();
    let mixed = folder.join("mixed.gguf");
    std::fs::copy(fixture("gqa_tied.mixed.gguf"), &mixed).unwrap();
    [
        Victim { label: "GGUF", source: tiny.clone(), file: tiny, head: bytes.len() - 8192 },
        Victim { label: "GGUF with tokenizer", source: mixed.clone(), file: mixed, head: 24 << 10 },
    ]
}

/// Every kind of file of a directory.
fn directories(folder: &Path) -> Vec<Victim> {
    let tiny = folder.join("tiny");
    let weights = safetensors(&tiny_tensors());
    write_directory(&tiny, &tiny_config(), &weights).unwrap();
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;

    let sharded = folder.join("sharded");
    std::fs::create_dir(&sharded).unwrap();
    for entry in std::fs::read_dir(fixture("f16_sharded")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), sharded.join(entry.file_name())).unwrap();
    }
    let whole = usize::MAX;
    let member = |label, folder: &PathBuf, name, head| Victim {
        label,
        source: folder.clone(),
        file: folder.join(name),
        head,
    };
    vec![
        member("safetensors", &tiny, "model.safetensors", header),
        member("config.json", &tiny, "config.json", whole),
        member("index", &sharded, "model.safetensors.index.json", whole),
        member("tokenizer.json", &sharded, "tokenizer.json", whole),
        member("tokenizer_config.json", &sharded, "tokenizer_config.json", whole),
        member("generation_config.json", &sharded, "generation_config.json", whole),
        member("chat_template.jinja", &sharded, "chat_template.jinja", whole),
    ]
}

/// Mutations of a file in the ordinary run.
const ROUNDS: usize = 700;

fn damaged_gguf(times: usize, seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    for victim in gguf(folder.path()) {
        let refused = damage(&victim, seed, 2 * times * ROUNDS, &quick());
        // A mutator or a compiler that saw nothing would refuse nothing.
        assert!(refused > times * ROUNDS / 4, "{}: only {refused} refused", victim.label);
    }
}

fn damaged_directories(times: usize, seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    for victim in directories(folder.path()) {
        let refused = damage(&victim, seed, times * ROUNDS, &quick());
        // Most of a template is text, which may say anything.
        if victim.label != "chat_template.jinja" {
            assert!(refused > times * ROUNDS / 4, "{}: only {refused} refused", victim.label);
        }
    }
}

#[test]
fn damaged_gguf_compiles_or_is_refused() {
    damaged_gguf(1, 0x5eed);
}

#[test]
fn damaged_directories_compile_or_are_refused() {
    damaged_directories(1, 0x5eed);
}

/// Machine code and the other precisions see the numbers that a damaged checkpoint brings.
#[test]
fn damage_meets_code_generation_and_quantisation() {
    use bessemer_passes::PrecisionPolicy::{Bf16, Int4, Int8};
    let folder = tempfile::tempdir().unwrap();
    let victim = &gguf(folder.path())[1];
    for (seed, precision) in [Bf16, Int8 { group: 32 }, Int4 { group: 32 }].into_iter().enumerate() {
        damage(victim, seed as u64, 50, &CompileOptions { precision, ..CompileOptions::default() });
    }
}

#[test]
#[ignore = "minutes: ten times the mutations of the ordinary run, others than those"]
fn ten_times_as_many_damaged_checkpoints() {
    damaged_gguf(10, 0xfeed);
    damaged_directories(10, 0xfeed);
}
