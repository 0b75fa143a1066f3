//! A disk that is full at any point of the file: a typed error, and nothing is left on it.

use super::listing;
use bessemer_tests::models::fixture;
use std::path::Path;
use std::process::{Command, Output};

const COMPILE: &str = env!("CARGO_BIN_EXE_compile_once");
const MODEL: &str = "gqa_tied.mixed.gguf";

/// Runs a shell script with `args` as its `$1`, `$2` and so on.
fn shell(script: &str, args: &[&Path]) -> Output {
    Command::new("sh").args(["-c", script, "sh"]).args(args).output().unwrap()
}

/// Asserts that the compilation in `output` ended with an error about its output.
fn assert_output_error(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text.starts_with("Output {"), "{text}");
    assert!(text.contains("the file was not written") && words.iter().any(|w| text.contains(w)), "{text}");
}

/// Files may not grow beyond so many blocks: every write that would is refused, as on a full disk.
#[cfg(unix)]
#[test]
fn a_limit_on_the_size_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.engine");
    let mut refused = 0;
    for blocks in (0..).step_by(8) {
        // Without the trap the system would end the process, before it could say why.
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$1\" \"$2\" \"$3\"");
        let output = shell(&script, &[Path::new(COMPILE), &fixture(MODEL), &out]);
        if output.status.success() {
            break;
        }
        assert_output_error(&output, &["File too large"]);
        assert!(listing(folder.path()).is_empty(), "{:?}", listing(folder.path()));
        refused += 1;
    }
    // A block has 512 bytes, or 1024 in some shells.
    let bytes = std::fs::metadata(&out).unwrap().len();
    assert!(refused >= bytes / 1024 / 8, "{bytes} bytes were written after {refused} refusals");
    println!("a limit on the size of files: {refused} refusals");
}

/// A small file system in memory, page by page.
#[cfg(target_os = "linux")]
#[test]
fn a_full_file_system() {
    let folder = tempfile::tempdir().unwrap();
    let mount = folder.path();
    let pages = |pages: u32, script: &str| {
        let mount_it = format!("mount -t tmpfs -o size={}k,mode=777 none \"$3\" || exit 99", pages * 4);
        let script = format!("unshare -rm sh -c '{mount_it}; {script}' sh \"$@\" || exit $?");
        shell(&script, &[Path::new(COMPILE), &fixture(MODEL), mount])
    };
    if !pages(1, "exit 0").status.success() {
        bessemer_tests::skip(bessemer_tests::HOST, "a full file system: a tmpfs cannot be mounted here");
        return;
    }
    let mut refused = 0;
    for size in 1.. {
        let compiled = "\"$1\" \"$2\" \"$3/m.engine\"; code=$?; ls -A \"$3\"; exit $code";
        let output = pages(size, compiled);
        let text = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            assert_eq!(text, "m.engine\n");
            break;
        }
        assert_output_error(&output, &["No space left"]);
        assert!(text.trim_end().ends_with("the file was not written"), "left behind: {text}");
        refused += 1;
    }
    assert!(refused > 10, "the engine fits into {refused} pages");
    println!("a full file system: {refused} refusals");
}
