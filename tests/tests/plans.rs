//! Golden plans: what the compiler decides for an architecture, a target and a precision, as text that a review can read.
//! A change is made on purpose: `BLESS=1 cargo test -p bessemer-tests --test plans`.

use bessemer_compiler::compile::{plan, prepare};
use bessemer_compiler::emit;
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_passes::PrecisionPolicy;
use bessemer_tests::models::{fixture, root};

#[test]
fn plans_are_as_reviewed() {
    let mut changed = Vec::new();
    for (model, precision) in [
        ("gqa_tied", PrecisionPolicy::F32),
        ("biases", PrecisionPolicy::Int8 { group: 32 }),
        ("gqa_tied.mixed.gguf", PrecisionPolicy::Source),
    ] {
        let checkpoint = Checkpoint::open(fixture(model)).unwrap();
        let options = CompileOptions { precision, ..CompileOptions::default() };
        let prepared = prepare(&checkpoint, &options, &RunOptions::default()).unwrap();
        let mut scheduled = plan(&prepared, &options).unwrap().plan;
        // Programs differ in sizes and in where attention splits: the first and the last show both.
        let last = scheduled.programs.len() - 1;
        scheduled.programs = [0, last].map(|i| scheduled.programs[i].clone()).to_vec();
        let text = emit::plan(&scheduled);
        let path = root().join(format!("tests/plans/{model}.{precision}.plan").replace(':', "-"));
        if std::env::var_os("BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if let Some((at, (a, b))) = text.lines().zip(kept.lines()).enumerate().find(|(_, (a, b))| a != b) {
            changed.push(format!("{}:{}\n  now  {a}\n  kept {b}", path.display(), at + 1));
        } else if text != kept {
            changed.push(format!(
                "{}: {} lines, kept are {}",
                path.display(),
                text.lines().count(),
                kept.lines().count()
            ));
        }
    }
    assert!(changed.is_empty(), "plans changed (bless if this is meant):\n{}", changed.join("\n"));
}
