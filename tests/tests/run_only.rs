//! The command line without its compiler: how large it is, and that it runs engines and nothing else.

use bessemer_compiler::options::CompileOptions;
use bessemer_tests::models::{compile, fixture, root};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Most bytes that the stripped binary may have: 8.01 MB were measured on 2026-11-22 (x86-64 Linux, rustc 1.95). Whoever
/// raises it says why. Of these, 0.85 MB are the tiles of the AVX-512 int8 linears, which exist once for each width of the
/// weights, each count of rows and one or two panels; 0.5 MB are the template language.
const LIMIT: u64 = 8_600_000;

/// Builds in the folder that `.ci/run` uses too, and strips a copy.
fn build(folder: &Path) -> PathBuf {
    let target = root().join("target/run-only");
    let out = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--release", "-p", "bessemer"])
        .args(["--no-default-features", "--features", "run", "--target-dir"])
        .arg(&target)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let name = format!("bessemer{}", std::env::consts::EXE_SUFFIX);
    let stripped = folder.join(&name);
    let status =
        Command::new("strip").arg("-o").args([&stripped, &target.join("release").join(name)]).status();
    assert!(status.expect("`strip` is there (package binutils)").success());
    stripped
}

#[test]
#[ignore = "minutes: an optimised build"]
fn a_run_only_build_is_small_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let binary = build(folder.path());
    let bytes = std::fs::metadata(&binary).unwrap().len();
    println!("run-only build: {bytes} bytes stripped, {LIMIT} allowed");
    assert!(bytes <= LIMIT, "{bytes} bytes, {LIMIT} are allowed");

    let bessemer = |args: &[&str]| -> Output {
        // Lists of trust and caches of whoever runs the tests stay out of it.
        let mut command = Command::new(&binary);
        command.args(args).env("HOME", folder.path()).env("XDG_DATA_HOME", folder.path().join("data"));
        command.env("XDG_CACHE_HOME", folder.path().join("cache")).output().unwrap()
    };
    let (engine, _) = compile(&fixture("bf16"), folder.path(), &CompileOptions::default()).unwrap();
    let engine = engine.to_str().unwrap();
    let out = bessemer(&["run", engine, "--raw", "-p", "Once upon a time", "-n", "8", "--temperature", "0"]);
    assert!(out.status.success() && !out.stdout.is_empty(), "{out:?}");
    assert!(bessemer(&["verify", engine]).status.success());
    // There is no compiler in it: neither as a command nor behind `run`.
    let source = fixture("bf16");
    let source = source.to_str().unwrap();
    assert_eq!(bessemer(&["compile", source, "-o", "x.engine"]).status.code(), Some(2));
    assert!(!bessemer(&["run", source, "-p", "x", "-n", "1"]).status.success());
}
