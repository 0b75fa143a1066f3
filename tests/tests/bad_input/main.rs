//! Bad input, end to end: whatever a checkpoint or an engine file holds, the answer is a result or a typed error. Never
//! a panic, a hang, or a file that is half written.
//!
//! Every ring of mutations prints how many it made; the same seeds give the same mutations on every machine. `cargo test
//! -p bessemer-tests --test bad_input -- --ignored` makes ten times as many.

mod checkpoints;
mod disk;
mod engines;
mod interrupted;
mod unsupported;

use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_compiler::{CompileError, Compiled, Progress, Silent};
use bessemer_runtime::text::{ChatInput, ChatMessage, Special};
use bessemer_runtime::{Batch, Engine, Want, Worker, WorkerOptions};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest that one small file may take: far above what any takes, far below what a loop without bound does.
const PATIENCE: Duration = Duration::from_secs(10);

/// Options for one source among thousands: machine code is left out, one thread packs.
fn quick() -> CompileOptions {
    CompileOptions { code: false, ..CompileOptions::default() }
}

/// Compiles into a folder of its own, and asserts what holds for every compilation: the folder holds the engine, or nothing
/// at all, and an error says something in less than 2000 bytes.
fn compile_into(
    out: &Path,
    source: &Path,
    options: &CompileOptions,
    progress: &dyn Progress,
) -> Result<Compiled, CompileError> {
    let run = RunOptions { threads: 1, ..RunOptions::default() };
    let result = bessemer_compiler::compile(source, &out.join("m.engine"), options, &run, None, progress);
    let left = listing(out);
    match &result {
        Ok(_) => assert_eq!(left, ["m.engine"]),
        Err(error) => {
            assert!(left.is_empty(), "left behind after `{error}`: {left:?}");
            let text = error.to_string();
            assert!((10..2000).contains(&text.len()), "a message of {} bytes: {text}", text.len());
        }
    }
    result
}

/// As [`compile_into`] a fresh folder, in silence.
fn compile(source: &Path, options: &CompileOptions) -> Result<Compiled, CompileError> {
    compile_into(tempfile::tempdir().unwrap().path(), source, options, &Silent)
}

/// Asserts that `source` is refused and that the message says all of `parts`.
#[track_caller]
fn refused(source: &Path, parts: &[&str]) -> CompileError {
    let error = match compile(source, &quick()) {
        Ok(_) => panic!("compiled, expected an error that says {parts:?}"),
        Err(error) => error,
    };
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    error
}

/// Names in a folder, sorted.
fn listing(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Runs a prompt of three tokens and one more: a prefill and a decode program.
fn run_a_little(engine: &Engine) {
    let options = WorkerOptions::default().threads(1).pin(false).max_tokens(64);
    let mut worker = Worker::new(engine, options).unwrap();
    let mut sequence = worker.sequence();
    for tokens in [&[1, 2, 3][..], &[4]] {
        let mut batch = Batch::new();
        batch.push(&mut sequence, tokens, Want::Last);
        worker.forward(&mut batch).unwrap();
    }
}

/// Encodes, decodes and renders with whatever tokenizer and template an engine has: each may be refused.
fn speak(engine: &Engine) {
    let Ok(tokenizer) = engine.tokenizer() else { return };
    for special in [Special::AsText, Special::Parse] {
        if let Ok(tokens) = tokenizer.encode("Once upon a time, 42 naïve 语 <s><|im_end|>", special) {
            tokenizer.decode(&tokens);
        }
    }
    if let Some(template) = tokenizer.chat_template() {
        let messages = [ChatMessage::new("user", "Hello"), ChatMessage::new("assistant", "{{ 1 }}")];
        let _ = template.render(&ChatInput::new(&messages).add_generation_prompt(true));
    }
}

/// Calls `attempt`, which says what was done and whether it was accepted, and checks that it neither panics nor lasts.
fn guarded(label: &str, round: usize, done: &str, attempt: impl FnOnce() -> bool) -> bool {
    let start = Instant::now();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attempt));
    let took = start.elapsed();
    let accepted = outcome.unwrap_or_else(|_| panic!("{label} {round} ({done}): failed, see above"));
    assert!(took < PATIENCE, "{label} {round} ({done}): took {took:?}");
    accepted
}
