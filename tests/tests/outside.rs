//! A program outside the workspace depends on the runtime by its path, builds, and generates what the library generates here.

use bessemer_compiler::options::CompileOptions;
use bessemer_runtime::text::Special;
use bessemer_runtime::{Engine, Generate, Session, Worker, WorkerOptions};
use bessemer_tests::models::{compile, fixture, root};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

/// Builds the program of `tests/outside` in a folder of its own, with the versions of crates that this workspace uses.
fn build() -> PathBuf {
    let from = root().join("tests/outside");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside");
    std::fs::create_dir_all(folder.join("src")).unwrap();
    let runtime = root().join("runtime").to_string_lossy().replace('\\', "/");
    let manifest = std::fs::read_to_string(from.join("Cargo.toml")).unwrap();
    assert!(manifest.contains("../../runtime"));
    std::fs::write(folder.join("Cargo.toml"), manifest.replace("../../runtime", &runtime)).unwrap();
    std::fs::copy(from.join("src/main.rs"), folder.join("src/main.rs")).unwrap();
    std::fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();

    let out = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--target-dir", "target"])
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    folder.join("target/debug").join(format!("outside{}", std::env::consts::EXE_SUFFIX))
}

fn generate(engine: &Engine, prompt: &str, count: usize) -> String {
    let tokenizer = engine.tokenizer().unwrap();
    let worker = Arc::new(Mutex::new(Worker::new(engine, WorkerOptions::default()).unwrap()));
    let mut session = Session::new(&worker).unwrap();
    session.feed(&tokenizer.encode(prompt, Special::AsText).unwrap()).unwrap();
    let pieces = session.generate_text(&tokenizer, Generate::greedy(count)).unwrap();
    pieces.map(Result::unwrap).collect()
}

#[test]
fn a_program_outside_the_workspace_generates_the_same_text() {
    let program = build();
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = compile(&fixture("bf16"), folder.path(), &CompileOptions::default()).unwrap();
    let engine = Engine::open(&path).unwrap();
    let mut texts = Vec::new();
    for prompt in ["Once upon a time", "42"] {
        let out = Command::new(&program).arg(&path).args([prompt, "40"]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).unwrap();
        assert_eq!(text, generate(&engine, prompt, 40));
        assert!(!text.is_empty());
        texts.push(text);
    }
    assert_ne!(texts[0], texts[1], "the prompt changes nothing");

    // Its errors are the library's.
    std::fs::write(&path, b"BESSEMER").unwrap();
    let out = Command::new(&program).arg(&path).args(["42", "1"]).output().unwrap();
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("Length"), "{out:?}");
}
