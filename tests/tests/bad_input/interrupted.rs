//! A compilation that somebody stops leaves nothing, and what was there before stays.

use super::{compile_into, listing, quick};
use bessemer_compiler::options::CompileOptions;
use bessemer_compiler::{CompileError, Progress, Silent};
use bessemer_tests::models::fixture;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Wants to stop from the `from`-th question on.
struct Impatient {
    from: usize,
    asked: AtomicUsize,
}

impl Progress for Impatient {
    fn start(&self, _: &str, _: bessemer_compiler::Amount) {}
    fn advance(&self, _: u64) {}
    fn cancelled(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) >= self.from
    }
}

#[test]
fn a_compilation_stops_at_every_point_where_it_asks() {
    for model in ["gqa_tied", "gqa_tied.mixed.gguf"] {
        let folder = tempfile::tempdir().unwrap();
        let mut stopped = 0;
        loop {
            let progress = Impatient { from: stopped, asked: AtomicUsize::new(0) };
            match compile_into(folder.path(), &fixture(model), &quick(), &progress) {
                Ok(_) => break,
                Err(error) => assert!(matches!(error, CompileError::Interrupted), "{error}"),
            }
            stopped += 1;
        }
        // Once a weight at least.
        assert!(stopped > 20, "{model} asks only {stopped} times");
        println!("{model}: stopped at {stopped} points");
    }
}

#[test]
fn an_engine_that_was_there_stays() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.engine");
    compile_into(folder.path(), &fixture("gqa_tied"), &quick(), &Silent).unwrap();
    let before = std::fs::read(&out).unwrap();
    let run = |progress: &dyn Progress, expected| {
        let source = fixture("biases");
        bessemer_compiler::compile(&source, &out, &quick(), &Default::default(), expected, progress)
            .unwrap_err()
    };
    let stopped = run(&Impatient { from: 3, asked: AtomicUsize::new(0) }, None);
    assert!(matches!(stopped, CompileError::Interrupted), "{stopped}");
    assert!(matches!(run(&Silent, Some("0")), CompileError::Hash { .. }));
    assert_eq!(listing(folder.path()), ["m.engine"]);
    assert!(std::fs::read(&out).unwrap() == before);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("absent/m.engine");
    let run = |options: &CompileOptions| {
        bessemer_compiler::compile(&fixture("gqa_tied"), &out, options, &Default::default(), None, &Silent)
    };
    let error = run(&quick()).unwrap_err();
    assert!(matches!(&error, CompileError::Output { path, .. } if *path == out), "{error}");
}
