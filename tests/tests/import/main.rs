//! Checkpoints that are right are read; each one that is wrong is a typed error that names place and cause.

mod containers;
mod models;

use bessemer_compiler::import::decoder::Decoder;
use bessemer_compiler::import::{Checkpoint, ImportError, arch};
use bessemer_tests::checkpoints::write_directory;
use serde_json::Value;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open_gguf(bytes: &[u8]) -> Result<Checkpoint, ImportError> {
    let folder = folder();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path)
}

fn open_tiny(config: &Value, weights: &[u8]) -> Result<Checkpoint, ImportError> {
    let folder = folder();
    write_directory(folder.path(), config, weights).unwrap();
    Checkpoint::open(folder.path())
}

/// Asserts that the error says all of `parts`; returns it.
#[track_caller]
fn refused<T>(result: Result<T, ImportError>, parts: &[&str]) -> ImportError {
    let Err(error) = result else { panic!("accepted, expected an error that says {parts:?}") };
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    error
}

/// The configuration of a Llama whose tensors fit it.
fn llama(checkpoint: &Checkpoint) -> Result<Decoder, ImportError> {
    let decoder = arch::llama::read(checkpoint)?;
    decoder.model(checkpoint, None, "llama")?;
    Ok(decoder)
}
