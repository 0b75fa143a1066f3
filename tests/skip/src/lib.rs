//! How a test says that it was skipped: in a line that nobody misses and that `.ci/run` counts.
//!
//! A crate of its own, without dependencies, so that the tests of every crate can use it.

use std::fmt::Display;
use std::io::Write;
use std::path::Path;

/// What a test needs that no fetcher and no package brings: instructions, or a right that the process lacks.
pub const HOST: &str = "this host";

/// Says that the test which calls this is skipped, whole or in part, for want of `needs`: a path below `.cache` (`toolchain/nvidia`,
/// `models/stories15M`), a program (`g++`), or [`HOST`]. In CI a skip for want of something that is there is an error.
///
/// The line goes past the test harness, which would keep it from whoever reads the output of a test that passes.
pub fn skip(needs: &str, why: impl Display) {
    let thread = std::thread::current();
    let line = format!("SKIPPED [{needs}] {}: {why}\n", thread.name().unwrap_or("a test"));
    // One write a line, so that tests on other threads do not come in between. Nobody is left to tell of an error.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Whether `path` exists, which lies below `cache`; otherwise the test that calls this is [skipped](skip).
pub fn cached(cache: &Path, path: &Path) -> bool {
    if path.exists() {
        return true;
    }
    let needs: Vec<_> = path.strip_prefix(cache).unwrap_or(path).iter().take(2).collect();
    let needs = needs.join("/".as_ref());
    skip(
        &needs.to_string_lossy(),
        format_args!("{} is not there; run `python3 fixtures/fetch.py all`", path.display()),
    );
    false
}
