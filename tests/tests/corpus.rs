//! Engine files that are kept: the bytes of a compilation, pinned. A change of them is a change of the format, of a pass or of the
//! generator, and is made on purpose: `BLESS=1 cargo test -p bessemer-tests --test corpus`.

use bessemer_compiler::options::CompileOptions;
use bessemer_runtime::{Engine, KvElem, WorkerOptions};
use bessemer_tests::models::{compile, fixture, golden, greedy, logits, relative_error, root};

const ENGINES: &[&str] = &["gqa_tied"];

#[test]
fn compiling_gives_the_bytes_that_are_kept() {
    for name in ENGINES {
        let kept = root().join(format!("fixtures/engines/{name}.engine"));
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = compile(&fixture(name), folder.path(), &CompileOptions::default()).unwrap();
        let made = std::fs::read(&path).unwrap();
        if std::env::var_os("BLESS").is_some() {
            std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
            std::fs::write(&kept, &made).unwrap();
        }
        let expected = std::fs::read(&kept).unwrap_or_else(|e| panic!("{}: {e}", kept.display()));
        let at = made.iter().zip(&expected).position(|(a, b)| a != b);
        assert!(
            made == expected,
            "{name}: {} bytes, kept are {}, first difference at {at:?}; bless if this is meant",
            made.len(),
            expected.len()
        );
    }
}

#[test]
fn kept_engines_still_open_and_compute() {
    for name in ENGINES {
        let engine = Engine::open(root().join(format!("fixtures/engines/{name}.engine"))).unwrap();
        engine.verify().unwrap();
        let g = golden(name, "");
        let options = || WorkerOptions::default().threads(2).kv(KvElem::F32);
        let error = relative_error(&logits(&engine, options(), &g.tokens), &g.logits);
        assert!(error < 1e-4, "{name}: {error:.2e}");
        assert_eq!(greedy(&engine, options(), &g.tokens[..5], 4).len(), 4);
    }
}
