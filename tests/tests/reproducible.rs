//! The bytes of an engine are a function of source, options and version, and of nothing else.

use bessemer_compiler::calibrate::{Corpus, Statistics, StatisticsError, Text, gather};
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_compiler::{CompileError, Method, Progress, Silent, compile};
use bessemer_passes::PrecisionPolicy;
use bessemer_tests::models::fixture;
use std::path::Path;
use std::sync::Mutex;

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

/// Options that calibrate on made-up tokens, since the fixture has no tokenizer.
fn calibrated(method: Method) -> CompileOptions {
    let tokens = |seed: u32, n: u32| (0..n).map(|i| (i * i * 7 + i * seed) % 96).collect();
    let corpus = |seed, windows| Corpus { text: Text::Tokens(tokens(seed, 256)), windows, window: 32 };
    CompileOptions {
        precision: PrecisionPolicy::Int4 { group: 32 },
        overrides: vec!["embed=int8".parse().unwrap()],
        method,
        calibration: corpus(3, 8),
        measure: Some(corpus(5, 2)),
        ..CompileOptions::default()
    }
}

#[test]
fn calibrated_bytes_are_those_of_any_thread_count_and_scratch() {
    for method in Method::ALL.into_iter().filter(|m| m.calibrates()) {
        let folder = tempfile::tempdir().unwrap();
        let scratch = folder.path().join("scratch");
        let run = |name: &str, threads, scratch: Option<&Path>| {
            let run =
                RunOptions { threads, scratch: scratch.map(Path::to_path_buf), ..RunOptions::default() };
            let out = folder.path().join(name);
            compile(&fixture("gqa_untied"), &out, &calibrated(method), &run, None, &Silent).unwrap()
        };
        let first = run("a.engine", 1, None);
        assert_eq!(first.sha256, run("b.engine", 3, Some(&scratch)).sha256, "{method}");
        assert_eq!(first.sha256, run("c.engine", 2, Some(&scratch)).sha256, "{method}, from the scratch");
        let quality = first.quality.unwrap();
        assert!(quality.mean_kl > 0.0 && quality.tokens == 62, "{method}: {quality:?}");
        // Uniform numbers in 15 steps lose a fifteenth of themselves; scales in f16 and what a shift of ranges costs come on top.
        assert!(quality.weights.iter().all(|(_, e)| *e > 0.0 && *e < 1.5 / 15.0), "{method}: {quality:?}");
        assert!(quality.weights.len() >= 14, "{} weights", quality.weights.len());
        verify_weights(&folder.path().join("a.engine"));
    }
}

fn verify_weights(engine: &Path) {
    bessemer_runtime::Engine::open(engine).unwrap().verify().unwrap();
}

/// Statistics of the fixture, by way of a file.
fn gathered(out: &Path, threads: usize, progress: &dyn Progress) -> Result<Statistics, CompileError> {
    let checkpoint = Checkpoint::open(fixture("gqa_untied")).unwrap();
    let run = RunOptions { threads, ..RunOptions::default() };
    gather(&checkpoint, out, &calibrated(Method::Awq), &run, progress)?;
    Ok(Statistics::open(out)?)
}

#[test]
fn statistics_in_a_file_are_those_of_any_thread_count_and_of_a_run_that_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let one = gathered(&path("one.stats"), 1, &Silent).unwrap();
    let bytes = std::fs::read(path("one.stats")).unwrap();
    gathered(&path("three.stats"), 3, &Silent).unwrap();
    assert!(bytes == std::fs::read(path("three.stats")).unwrap());

    let out = path("killed.stats");
    let kept = || {
        let folders = std::fs::read_dir(path("killed.stats.partial")).into_iter().flatten();
        folders.map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count()).sum::<usize>()
    };
    let mut before = 0;
    // Halves of layers have four and three pieces.
    for after in [5, 9, 13] {
        let killed = Killed::new("calibrate: statistics", after);
        let stopped = gathered(&out, 2, &killed);
        assert!(matches!(stopped, Err(CompileError::Interrupted)), "after {after}: {stopped:?}");
        assert!(!out.exists() && kept() > before, "after {after}: {} results", kept());
        before = kept();
    }
    gathered(&out, 2, &Silent).unwrap();
    assert!(bytes == std::fs::read(&out).unwrap());
    assert_eq!(kept(), 0, "what is in the file is not kept beside it");

    let statistics = Some(std::sync::Arc::new(one));
    for method in [Method::Awq, Method::Gptq, Method::AwqGptq] {
        let compile = |options: &CompileOptions, name: &str, threads| {
            let run = RunOptions { threads, ..RunOptions::default() };
            compile(&fixture("gqa_untied"), &path(name), options, &run, None, &Silent).unwrap()
        };
        let text = compile(&calibrated(method), "text.engine", 1);
        let options = CompileOptions { statistics: statistics.clone(), ..calibrated(method) };
        let (a, b) = (compile(&options, "a.engine", 1), compile(&options, "b.engine", 3));
        assert_eq!(a.sha256, b.sha256, "{method}");
        // The same codes; the manifest names another input.
        assert_eq!(text.quality, a.quality, "{method}");
        assert_ne!(text.sha256, a.sha256);
        let engine = bessemer_runtime::Engine::open(path("a.engine")).unwrap();
        let hash = statistics.as_ref().unwrap().hash().to_string();
        assert!(engine.manifest().options.contains(&("statistics".into(), hash)), "{method}");
    }
}

#[test]
fn statistics_that_are_damaged_or_of_another_source_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.stats");
    let statistics = gathered(&path, 2, &Silent).unwrap();
    let compile = |source: &str, statistics: Statistics| {
        let statistics = Some(std::sync::Arc::new(statistics));
        let options = CompileOptions { statistics, ..calibrated(Method::Gptq) };
        let out = folder.path().join("m.engine");
        compile(&fixture(source), &out, &options, &RunOptions::default(), None, &Silent)
    };
    let other = compile("gqa_tied", statistics);
    assert!(matches!(other, Err(CompileError::Statistics(StatisticsError::Source { .. }))), "{other:?}");

    let bytes = std::fs::read(&path).unwrap();
    let opened = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Statistics::open(&path)
    };
    let flipped = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        bytes
    };
    assert!(matches!(opened(&flipped(3)), Err(StatisticsError::Kind { .. })));
    assert!(matches!(opened(&flipped(8)), Err(StatisticsError::Version { found: 0, .. })));
    for at in [12, 15, 19, 40, 200] {
        assert!(matches!(opened(&flipped(at)), Err(StatisticsError::Damaged { .. })), "{at}");
    }
    for len in [0, 7, 11, 19, 100] {
        assert!(opened(&bytes[..len]).is_err(), "{len}");
    }
    let moment = compile("gqa_untied", opened(&flipped(bytes.len() - 1)).unwrap());
    assert!(matches!(moment, Err(CompileError::Statistics(StatisticsError::Damaged { .. }))), "{moment:?}");
    let cut = compile("gqa_untied", opened(&bytes[..bytes.len() - 1]).unwrap());
    assert!(matches!(cut, Err(CompileError::Statistics(StatisticsError::Damaged { .. }))), "{cut:?}");
}

/// Stops after so many pieces of one stretch of work.
struct Killed {
    stretch: &'static str,
    after: usize,
    /// Pieces of the stretch so far; none before it begins.
    done: Mutex<Option<usize>>,
}

impl Killed {
    fn new(stretch: &'static str, after: usize) -> Self {
        Self { stretch, after, done: Mutex::new(None) }
    }
}

impl Progress for Killed {
    fn start(&self, what: &str, _: bessemer_compiler::Amount) {
        *self.done.lock().unwrap() = (what == self.stretch).then_some(0);
    }
    fn advance(&self, _: u64) {
        self.done.lock().unwrap().iter_mut().for_each(|done| *done += 1);
    }
    fn cancelled(&self) -> bool {
        self.done.lock().unwrap().is_some_and(|done| done >= self.after)
    }
}

#[test]
fn a_killed_calibration_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.engine");
    let options = calibrated(Method::AwqGptq);
    let scratch = Some(folder.path().join("scratch"));
    let run = RunOptions { threads: 2, scratch, ..RunOptions::default() };
    let files = || -> std::collections::BTreeMap<_, _> {
        let folders = std::fs::read_dir(folder.path().join("scratch")).into_iter().flatten();
        let files = folders.flat_map(|f| std::fs::read_dir(f.unwrap().path()).unwrap());
        files.map(|f| f.unwrap()).map(|f| (f.path(), f.metadata().unwrap().modified().unwrap())).collect()
    };
    let mut kept = files();
    for (stretch, after) in [("calibrate: statistics", 5), ("calibrate: scales", 2), ("calibrate: codes", 3)]
    {
        let killed = Killed::new(stretch, after);
        let stopped = compile(&fixture("gqa_untied"), &out, &options, &run, None, &killed);
        assert!(matches!(stopped, Err(CompileError::Interrupted)), "{stretch}: {stopped:?}");
        assert!(!out.exists());
        let now = files();
        assert!(now.len() > kept.len(), "{stretch}: {} results", now.len());
        assert!(kept.iter().all(|(path, time)| now.get(path) == Some(time)), "nothing is made twice");
        kept = now;
    }
    let resumed = compile(&fixture("gqa_untied"), &out, &options, &run, None, &Silent).unwrap();
    assert!(kept.iter().all(|(path, time)| files().get(path) == Some(time)));
    let whole = RunOptions { threads: 1, ..RunOptions::default() };
    let other = folder.path().join("whole.engine");
    let whole = compile(&fixture("gqa_untied"), &other, &options, &whole, None, &Silent).unwrap();
    assert_eq!(resumed.sha256, whole.sha256);
}
