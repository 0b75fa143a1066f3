//! Rules of the house that a compiler does not check: directions of dependencies, the runtime's allow-list, where `unsafe` may
//! stand, where a model family may be named, how long a file may be.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn metadata() -> Value {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Which floor a crate lives on; a floor may use itself and those below it in this list.
const FLOORS: [&[&str]; 4] = [
    &["bessemer-runtime", "bessemer-format", "bessemer-kernels"],
    &["bessemer-passes", "bessemer-ir", "bessemer-oracle", "bessemer-eager", "bessemer-calibrate"],
    &["bessemer-targets"],
    &["bessemer-compiler", "bessemer", "bessemer-tests", "bessemer-skip"],
];

/// Floor 0 uses no library that only compiling needs.
const NOT_IN_RUNTIME: &[&str] =
    &["petgraph", "cranelift-codegen", "cranelift-frontend", "melior", "safetensors", "serde_json", "clap"];

#[test]
fn dependencies_point_downwards() {
    let metadata = metadata();
    let floor = |name: &str| FLOORS.iter().position(|f| f.contains(&name));
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let own = floor(name).unwrap_or_else(|| panic!("crate {name} is on no floor: add it to FLOORS"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            let is_dev = dependency["kind"].as_str() == Some("dev");
            if let Some(theirs) = floor(on) {
                assert!(theirs <= own || is_dev, "{name} uses {on}, which lives on a higher floor");
            }
            if own == 0 && !is_dev {
                assert!(!NOT_IN_RUNTIME.contains(&on), "{name} uses {on}, which only compiling needs");
            }
            if name == "bessemer-targets" && !is_dev {
                let passes = ["bessemer-passes", "bessemer-eager", "bessemer-oracle"];
                assert!(!passes.contains(&on), "targets see the IR only, not {on}");
            }
        }
    }
}

/// Names of the crates that `package` needs at run time, itself left out, as are procedural macros and what those need.
fn closure(package: &str, features: &[&str]) -> BTreeSet<String> {
    let out = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "-p", package, "-e", "normal,no-proc-macro"])
        .args(["--prefix", "none", "--format", "{p}"])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .args(features)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout)
        .unwrap()
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        .filter(|n| *n != package)
        .map(str::to_string)
        .collect()
}

#[test]
fn the_runtime_needs_what_its_allow_list_says() {
    let path = root().join("tests/allow/runtime-dependencies.txt");
    let text = std::fs::read_to_string(&path).unwrap();
    let allowed: BTreeMap<&str, &str> = text
        .lines()
        .filter(|l| !l.starts_with('#') && !l.trim().is_empty())
        .map(|l| l.split_once(':').unwrap_or_else(|| panic!("`{l}` gives no reason")))
        .map(|(name, why)| (name.trim(), why.trim()))
        .collect();
    let found = closure("bessemer-runtime", &[]);
    for name in &found {
        assert!(
            allowed.contains_key(name.as_str()),
            "bessemer-runtime needs {name}, which {} does not allow",
            path.display()
        );
    }
    for name in allowed.keys() {
        assert!(found.contains(*name), "{} allows {name}, which nobody needs any more", path.display());
    }
}

#[test]
fn a_run_only_build_holds_no_compiler() {
    let found = closure("bessemer", &["--no-default-features", "--features", "run"]);
    let compiling = FLOORS[1..].iter().flat_map(|f| f.iter()).chain(NOT_IN_RUNTIME);
    for name in compiling {
        // The command line itself parses arguments and prints JSON.
        if !["bessemer", "clap", "serde_json"].contains(name) {
            assert!(!found.contains(*name), "the run-only build needs {name}");
        }
    }
}

/// Rust sources of the product: path from the root, and text.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["compiler", "passes", "runtime", "targets", "tests"].iter().map(|f| root().join(f)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if path.file_name().is_some_and(|n| n != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(found.len() > 50, "only {} sources found", found.len());
    found
}

/// Where `unsafe` may stand.
const ISLANDS: &[&str] = &[
    "runtime/kernels/src/x86_64/",
    "runtime/kernels/src/aarch64/",
    // Where a kernel of a set is called: the set exists only on hosts that run it.
    "runtime/kernels/src/attention/mod.rs",
    "runtime/kernels/src/linear/bf16.rs",
    "runtime/kernels/src/linear/gate.rs",
    "runtime/kernels/src/linear/mod.rs",
    "runtime/kernels/src/linear/store.rs",
    "runtime/kernels/src/testkit/",
    "runtime/src/code.rs",
    "runtime/src/device/",
    "runtime/src/pool/",
    "runtime/format/src/file.rs",
    // The C interface of a compiler that is loaded when it is needed.
    "targets/src/cuda/nvrtc.rs",
];

#[test]
fn unsafe_stays_on_its_islands() {
    let mut offenders = Vec::new();
    for (name, text) in sources() {
        if ISLANDS.iter().any(|i| name.starts_with(i)) || name == "tests/tests/tidy.rs" {
            continue;
        }
        for (at, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let opens = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "#[unsafe("];
            // `open_trusted` hands its promise to the caller: its signature is unsafe, its body is not.
            let allowed = (code.contains("unsafe fn open") && name.starts_with("runtime/src/"))
                || (code.contains("open_trusted") && code.contains("unsafe {"))
                || code.contains("unsafe_op_in_unsafe_fn");
            if opens.iter().any(|o| code.contains(o)) && !allowed {
                offenders.push(format!("{name}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    assert!(offenders.is_empty(), "unsafe outside its islands {ISLANDS:?}:\n{}", offenders.join("\n"));
}

#[test]
fn families_are_named_in_their_own_file_only() {
    const FAMILIES: &[&str] =
        &["llama", "mistral", "qwen", "gemma", "smollm", "tinyllama", "mixtral", "deepseek", "lfm2", "mpnet"];
    // Where the word is not a family but a value that checkpoints hold.
    const VALUES: &[(&str, &str)] = &[
        ("compiler/src/import/rope.rs", "`llama3` is a kind of rope scaling"),
        ("compiler/src/import/build.rs", "`Llama3` is a kind of rope scaling"),
        ("compiler/src/import/text/", "`llama`, `llama-bpe`, `smollm` name kinds of tokenisers"),
        ("compiler/src/import/gguf.rs", "a merge tool's name in a remedy"),
        ("compiler/src/import/config.rs", "prefix of metadata keys"),
        ("compiler/src/import/quantised.rs", "`use_exllama` is a key that another tool writes"),
        ("compiler/cli/src/commands/demo", "the demo names its model"),
        ("passes/ir/src/testing.rs", "`tiny_llama` builds graphs for tests"),
        ("passes/eager/examples/", "measures on such a graph"),
    ];
    let mut offenders = Vec::new();
    for (name, text) in sources() {
        let skip = ["tests/", "compiler/src/import/arch/"].iter().any(|p| name.starts_with(p))
            || name.contains("/tests/")
            || name.ends_with("/tests.rs")
            || VALUES.iter().any(|(p, _)| name.starts_with(p));
        if skip {
            continue;
        }
        let code = text.split("#[cfg(test)]\nmod").next().unwrap_or("");
        for (at, line) in code.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("").to_lowercase();
            if FAMILIES.iter().any(|f| code.contains(f)) {
                offenders.push(format!("{name}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    assert!(
        offenders.is_empty(),
        "families named outside compiler/src/import/arch:\n{}",
        offenders.join("\n")
    );
}

/// A line that a test prints is kept from whoever reads that it passed.
#[test]
fn tests_say_in_one_way_that_they_were_skipped() {
    let mut offenders = Vec::new();
    for (name, text) in sources() {
        for said in text.split("println!(").skip(1).filter_map(|rest| rest.split_once(';')) {
            let words = said.0.to_lowercase();
            if words.trim_start().starts_with("\"skipped") {
                offenders.push(format!("{name}: {}", said.0.trim()));
            }
        }
    }
    assert!(offenders.is_empty(), "use bessemer_skip::skip:\n{}", offenders.join("\n"));
}

#[test]
fn files_fit_in_one_head() {
    let long: Vec<String> = sources()
        .iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > 800)
        .map(|(name, lines)| format!("{name}: {lines} lines"))
        .collect();
    assert!(long.is_empty(), "files of more than 800 lines:\n{}", long.join("\n"));
}
