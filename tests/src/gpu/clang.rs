//! Kernels for Metal, checked and not run: clang knows address spaces.

use crate::models::root;
use std::process::Command;

/// How clang reads a text: see `tests/shim/check/metal_stdlib`. Metal has f16 and no f64.
const READINGS: [&[&str]; 2] = [
    &[
        "-xcl",
        "-cl-std=clc++2021",
        "-cl-no-stdinc",
        "--target=spir64",
        "-Xclang",
        "-cl-ext=-all,+cl_khr_fp16,+__opencl_c_generic_address_space",
    ],
    &["-xc++", "-std=c++17", "--target=aarch64-linux-gnu"],
];

/// A clang that was found.
pub struct Clang {
    program: &'static str,
}

impl Clang {
    /// A clang that this machine has, newest first, or `None` after saying that there is none.
    pub fn find() -> Option<Self> {
        const NAMES: [&str; 5] = ["clang", "clang-19", "clang-16", "clang-15", "clang-14"];
        let starts =
            |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success());
        let found = NAMES.into_iter().find(starts).map(|program| Self { program });
        if found.is_none() {
            crate::skip("clang", "it checks texts for Metal (Debian: apt-get install clang)");
        }
        found
    }

    /// What clang says about a text in the Metal Shading Language: `Err` with its first errors.
    pub fn check(&self, text: &str) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernels.metal");
        std::fs::write(&file, text).unwrap();
        for reading in READINGS {
            let out = Command::new(self.program)
                .args(reading)
                // Attributes say where arguments come from: in Metal's own words.
                .args(["-fsyntax-only", "-Wno-unknown-attributes", "-ferror-limit=5"])
                .arg("-I")
                .arg(root().join("tests/shim/check"))
                .arg(&file)
                .output()
                .unwrap();
            if !out.status.success() {
                return Err(String::from_utf8_lossy(&out.stderr).into_owned());
            }
        }
        Ok(())
    }
}
