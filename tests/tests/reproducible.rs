//! The bytes of an engine are a function of source, options and version, and of nothing else.

use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_compiler::{CompileError, Silent, compile};
use bessemer_passes::PrecisionPolicy;
use bessemer_tests::models::fixture;
use std::path::Path;

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    } else {
        std::fs::copy(from, to).unwrap();
    }
}

#[test]
fn folder_name_and_threads_change_nothing() {
    for (model, copy_name) in [
        ("gqa_tied", "another name"),
        ("f16_sharded", "x"),
        ("gqa_tied.mixed.gguf", "renamed.bin"),
        ("gqa_tied.f32.gguf", "b.gguf"),
    ] {
        for precision in [PrecisionPolicy::Source, PrecisionPolicy::Int4 { group: 32 }] {
            let options = CompileOptions { precision, ..CompileOptions::default() };
            let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let moved = two.path().join(copy_name);
            copy(&fixture(model), &moved);
            let run = |source: &Path, out: &Path, threads| {
                let run = RunOptions { threads, ..RunOptions::default() };
                compile(source, out, &options, &run, None, &Silent).unwrap_or_else(|e| panic!("{model}: {e}"))
            };
            let a = run(&fixture(model), &one.path().join("a.engine"), 1);
            let b = run(&moved, &two.path().join("b.bin"), 2);
            assert_eq!(a.sha256, b.sha256, "{model} {precision}");
            let bytes = |p: &Path| std::fs::read(p).unwrap();
            assert!(bytes(&one.path().join("a.engine")) == bytes(&two.path().join("b.bin")));
        }
    }
}

#[test]
fn a_demanded_hash_is_checked_before_anything_appears() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.engine");
    let options = CompileOptions::default();
    let run = |expected: Option<&str>| {
        compile(&fixture("gqa_tied"), &out, &options, &RunOptions::default(), expected, &Silent)
    };
    let zeros = "0".repeat(64);
    assert!(matches!(run(Some(&zeros)), Err(CompileError::Hash { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    let made = run(None).unwrap();
    run(Some(&made.sha256)).unwrap();
}
