//! Golden plans: what the compiler decides for an architecture, a target and a precision, as text that a review can read.
//! A change is made on purpose: `BLESS=1 cargo test -p bessemer-tests --test plans`.

use bessemer_compiler::compile::{plan, prepare};
use bessemer_compiler::emit;
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_format::plan::Plan;
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::KvElem;
use bessemer_targets::Targets;
use bessemer_targets::clike::{self, Dialect};
use bessemer_tests::models::{fixture, root};

/// A fixture, and what becomes of its weights.
const PLANS: [(&str, PrecisionPolicy); 3] = [
    ("gqa_tied", PrecisionPolicy::F32),
    ("biases", PrecisionPolicy::Int8 { group: 32 }),
    ("gqa_tied.mixed.gguf", PrecisionPolicy::Source),
];

/// The plan of a fixture for a target. Programs differ in sizes and in where attention splits: the first and the last show both.
fn scheduled(model: &str, precision: PrecisionPolicy, target: &str) -> Plan {
    let checkpoint = Checkpoint::open(fixture(model)).unwrap();
    let targets = Targets::parse([target]).unwrap();
    let options = CompileOptions { targets, precision, ..CompileOptions::default() };
    let prepared = prepare(&checkpoint, &options, &RunOptions::default()).unwrap();
    let mut scheduled = plan(&prepared, &options).unwrap().plan;
    let last = scheduled.programs.len() - 1;
    scheduled.programs = [0, last].map(|i| scheduled.programs[i].clone()).to_vec();
    scheduled
}

/// Compares texts with those that are kept, after replacing those if that is asked for.
fn are_as_reviewed(texts: impl IntoIterator<Item = (String, String)>) {
    let mut changed = Vec::new();
    for (name, text) in texts {
        let path = root().join(format!("tests/plans/{name}").replace(':', "-"));
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

#[test]
fn plans_are_as_reviewed() {
    are_as_reviewed(PLANS.map(|(model, precision)| {
        (format!("{model}.{precision}.plan"), emit::plan(&scheduled(model, precision, "cpu")))
    }));
}

#[test]
fn launches_of_gpus_are_as_reviewed() {
    are_as_reviewed(PLANS.map(|(model, precision)| {
        let plan = scheduled(model, precision, "cuda");
        let code = clike::emit(&plan, KvElem::Bf16, Dialect::Cuda).unwrap().code;
        // The launches are the same for every GPU: dialects differ in text alone.
        assert_eq!(clike::emit(&plan, KvElem::Bf16, Dialect::Metal).unwrap().code, code);
        (format!("{model}.{precision}.launches"), emit::launches(&plan, &code))
    }));
}

/// Kernels of decoding, without what stands before those of any plan.
#[test]
fn texts_for_gpus_are_as_reviewed() {
    let mut plan = scheduled("gqa_tied.mixed.gguf", PrecisionPolicy::Source, "cuda");
    plan.programs.truncate(1);
    let texts = [("cu", Dialect::Cuda), ("metal", Dialect::Metal)].map(|(name, dialect)| {
        let text = clike::emit(&plan, KvElem::Bf16, dialect).unwrap().text;
        let own = text.find("\nstruct W0 ").expect("a layout of weights") + 1;
        (format!("gqa_tied.mixed.gguf.decode.{name}"), text[own..].to_string())
    });
    are_as_reviewed(texts);
}
