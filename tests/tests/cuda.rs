//! Engines on NVIDIA's GPUs, end to end through the driver's interface. No GPU is used: the driver is the shim's.

use bessemer_compiler::options::CompileOptions;
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::KvElem;
use bessemer_tests::gpu::FakeCuda;
use bessemer_tests::models::fixture;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

/// Runs the checks of `on_device` with the fake driver and the machine that `machine` describes.
fn on_device(fake: &FakeCuda, machine: &[(&str, &str)], args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_on_device"))
        .args(args)
        .env("LD_LIBRARY_PATH", fake.driver())
        .envs(machine.iter().copied())
        .output()
        .unwrap()
}

fn counts(log: &Path) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(log).unwrap();
    text.lines().filter_map(|l| l.split_once(' ')).map(|(k, v)| (k.into(), v.parse().unwrap())).collect()
}

/// Holds a fixture to its golden on the device; what the driver counted.
fn holds(fake: &FakeCuda, folder: &Path, model: &str, kv: KvElem, bound: &str) -> BTreeMap<String, u64> {
    let precision = if model.ends_with(".gguf") { PrecisionPolicy::Source } else { PrecisionPolicy::F32 };
    let options = CompileOptions { precision, ..CompileOptions::default() };
    let engine = fake.engine(&fixture(model), &options, kv, &["sm_80"]);
    let log = folder.join("log");
    let machine = [("FAKE_CUDA_LOG", log.to_str().unwrap())];
    let out = on_device(fake, &machine, &[engine.to_str().unwrap(), "cuda:0", kv.name(), model, bound]);
    let (text, why) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    println!("{model}\n{text}");
    assert!(out.status.success(), "{model}: {why}");
    assert!(text.contains("kernels for sm_80"), "{text}");
    counts(&log)
}

#[test]
fn models_hold_their_goldens_and_decode_is_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let Some(fake) = FakeCuda::build(folder.path()) else { return };
    for model in ["gqa_tied", "gemma3", "qwen3_moe", "deepseek_v3"] {
        let counts = holds(&fake, folder.path(), model, KvElem::F32, "1e-4");
        println!("{counts:?}");
        // A graph for one row and one for two, each recorded once and launched for every token.
        assert!(counts["graphs"] <= 4, "{counts:?}");
        assert!(counts["graphs_launched"] > 2 * counts["graphs"], "{counts:?}");
        assert_eq!(counts["bytes_left"], 0, "memory that nobody gave back");
    }
}

#[test]
fn a_cache_of_bf16_and_every_kind_of_weight() {
    let folder = tempfile::tempdir().unwrap();
    let Some(fake) = FakeCuda::build(folder.path()) else { return };
    // Of every width an element type: floats, blocks of others with one and two levels of scales.
    for model in ["gqa_9_3", "gqa_tied.mixed.gguf", "blocks.gguf", "f16_sharded"] {
        holds(&fake, folder.path(), model, KvElem::Bf16, "2e-2");
    }
}

#[test]
fn the_best_binary_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let Some(fake) = FakeCuda::build(folder.path()) else { return };
    let options = CompileOptions { precision: PrecisionPolicy::F32, ..CompileOptions::default() };
    let engine = fake.engine(&fixture("biases"), &options, KvElem::F32, &["sm_80", "sm_90a", "compute_80"]);
    let run = |capability: &str| {
        let log = folder.path().join("log");
        let machine = [("FAKE_CUDA_CAPABILITY", capability), ("FAKE_CUDA_LOG", log.to_str().unwrap())];
        let out = on_device(&fake, &machine, &[engine.to_str().unwrap(), "cuda:0", "f32", "biases", "1e-4"]);
        let text =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        (out.status.success(), text, if log.exists() { counts(&log) } else { BTreeMap::new() })
    };
    for (capability, arch) in [("86", "sm_80"), ("90", "sm_90a")] {
        let (good, text, counts) = run(capability);
        assert!(good && text.contains(&format!("kernels for {arch}")), "{text}");
        assert!(!counts.contains_key("texts_compiled"), "{counts:?}");
    }
    // No machine code for it: the driver compiles the text.
    let (good, text, counts) = run("120");
    assert!(good && text.contains("kernels for compute_80"), "{text}");
    assert_eq!(counts["texts_compiled"], 1);
    let (good, text, _) = run("75");
    assert!(!good && text.contains("sm_75") && text.contains("sm_80, sm_90a, compute_80"), "{text}");
}
