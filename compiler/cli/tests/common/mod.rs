//! A user at the command line.
#![allow(dead_code, reason = "each file of tests uses some of it")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A user of their own: folders for cache and trust list that no other test sees.
pub struct User {
    pub home: TempDir,
}

impl User {
    pub fn new() -> Self {
        Self { home: TempDir::new().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bessemer"));
        command.args(args).stdin(Stdio::null()).env("HOME", self.home.path());
        command.env("XDG_CACHE_HOME", self.path("cache")).env("XDG_DATA_HOME", self.path("data"));
        command.env_remove("BESSEMER_CACHE");
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed; gives stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// Runs a command that must fail with `code` and say `words`, and nothing on stdout.
    pub fn fails(&self, args: &[&str], code: i32, words: &[&str]) {
        let output = self.run(args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(output.stdout.is_empty(), "{args:?} printed on stdout");
        for word in words {
            assert!(text.contains(word), "{args:?} does not say `{word}`: {text}");
        }
        assert!(!text.contains("panicked"), "{text}");
    }

    /// A compiled fixture.
    pub fn engine(&self) -> String {
        let path = text(&self.path("model.engine"));
        self.ok(&["compile", &model(), "-o", &path]);
        path
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

pub fn fixture(name: &str) -> String {
    text(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../fixtures/models")
            .join(name)
            .canonicalize()
            .unwrap(),
    )
}

pub fn model() -> String {
    fixture("gqa_tied")
}
