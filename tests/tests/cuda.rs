//! Engines on NVIDIA's GPUs, end to end through the driver's interface. No GPU is used: the driver is the shim's.

use bessemer_compiler::options::CompileOptions;
use bessemer_format::QuantScheme;
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::KvElem;
use bessemer_tests::checkpoints::{plausible_safetensors, small_llama, write_directory};
use bessemer_tests::gpu::FakeCuda;
use bessemer_tests::models::fixture;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
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

/// What the driver counted, if it was asked for anything.
type Counts = BTreeMap<String, u64>;

fn counts(log: &Path) -> Counts {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter_map(|l| l.split_once(' ')).map(|(k, v)| (k.into(), v.parse().unwrap())).collect()
}

/// What `on_device` says of an engine on such a machine, and what the driver counted.
fn holds(fake: &FakeCuda, folder: &Path, machine: &[(&str, &str)], args: &[&str]) -> (String, Counts) {
    let log = folder.join("log");
    let _ = std::fs::remove_file(&log);
    let machine = [machine, &[("FAKE_CUDA_LOG", log.to_str().unwrap())]].concat();
    let out = on_device(fake, &machine, args);
    let (text, why) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    println!("{args:?}\n{text}");
    assert!(out.status.success(), "{args:?}: {text}{why}");
    let counts = counts(&log);
    assert_eq!(counts.get("bytes_left").copied().unwrap_or(0), 0, "memory that nobody gave back");
    (text.into_owned(), counts)
}

/// Fixtures for CPU and GPU.
fn engines(fake: &FakeCuda, models: &[&str], kv: KvElem) -> Vec<PathBuf> {
    let of = |model: &&str| {
        let precision = if model.ends_with(".gguf") { PrecisionPolicy::Source } else { PrecisionPolicy::F32 };
        (fixture(model), CompileOptions { precision, ..CompileOptions::default() })
    };
    fake.engines(&models.iter().map(of).collect::<Vec<_>>(), kv, &["sm_80"])
}

/// Models whole, and divided: the GPU takes the last layers and the CPU the others. With keys and values of every token, latents, and what
/// is carried on; one sequence and batches, forks, sequences that are saved and loaded here and on the CPU.
#[test]
fn models_hold_their_goldens_whole_and_divided() {
    let folder = tempfile::tempdir().unwrap();
    let Some(fake) = FakeCuda::build(folder.path()) else { return };
    let models = [("gqa_tied", 2), ("gemma3", 4), ("qwen3_moe", 2), ("deepseek_v3", 2), ("lfm2", 4)];
    let engines = engines(&fake, &models.map(|(model, _)| model), KvElem::F32);
    for ((model, layers), engine) in models.into_iter().zip(&engines) {
        let mut before = 0;
        for asked in BTreeSet::from([0, 1, layers - 1, layers]) {
            let args = [engine.to_str().unwrap(), "cuda:0", "f32", model, "1e-4", &asked.to_string()];
            let (text, counts) = holds(&fake, folder.path(), &[], &args);
            if asked == 0 {
                assert!(text.contains("device: cpu") && counts.is_empty(), "{text}");
                continue;
            }
            match asked < layers {
                true => {
                    let said = format!("{asked} of {layers} layers; the first {} on cpu", layers - asked);
                    assert!(text.contains(&said), "{text}");
                }
                false => assert!(text.contains("kernels for sm_80\n"), "{text}"),
            }
            // Every layer more takes its weights and its cache along.
            assert!(counts["bytes_peak"] > before, "{counts:?} after {before}");
            before = counts["bytes_peak"];
            // A graph for one row and one for two, for each worker, each recorded once and launched for every token.
            assert!(counts["graphs"] <= 8 && counts["graphs_launched"] > 2 * counts["graphs"], "{counts:?}");
        }
    }
}

#[test]
fn a_cache_of_bf16_and_every_kind_of_stored_weight() {
    let folder = tempfile::tempdir().unwrap();
    let Some(fake) = FakeCuda::build(folder.path()) else { return };
    let models = ["gemma3", "qwen3_moe", "deepseek_v3", "gqa_tied.mixed.gguf", "blocks.gguf", "f16_sharded"];
    for (model, engine) in models.iter().zip(engines(&fake, &models, KvElem::Bf16)) {
        holds(&fake, folder.path(), &[], &[engine.to_str().unwrap(), "cuda:0", "bf16", model, "2e-2"]);
    }
}

/// A Llama in every precision that has a name, and schemes of every kind, against the same engine on the CPU, which others hold to the
/// oracle. Both compute in f32, so that only the order of sums tells them apart.
#[test]
fn every_precision_computes_what_the_cpu_computes() {
    let folder = tempfile::tempdir().unwrap();
    let Some(fake) = FakeCuda::build(folder.path()) else { return };
    let (config, tensors) = small_llama();
    let llama = folder.path().join("llama");
    write_directory(&llama, &config, &plausible_safetensors(&tensors)).unwrap();
    let named = ["f32", "bf16", "int8", "int6", "int5", "int4", "int3", "int2", "int8:0", "u4:f16x32-8"];
    let others = [
        QuantScheme::fp8(128),
        QuantScheme::MXFP4,
        QuantScheme::NVFP4,
        QuantScheme::Q4_K,
        QuantScheme::Q6_K,
        QuantScheme::IQ4_XS,
    ];
    let names = named.map(String::from).into_iter().chain(others.map(|scheme| scheme.to_string()));
    let models: Vec<_> = names
        .map(|name| {
            let precision = name.parse().unwrap_or_else(|e| panic!("{e}"));
            (llama.clone(), CompileOptions { precision, ..CompileOptions::default() })
        })
        .collect();
    for engine in fake.engines(&models, KvElem::F32, &["sm_80"]) {
        holds(&fake, folder.path(), &[], &[engine.to_str().unwrap(), "cuda:0", "f32", "cpu", "1e-5"]);
    }
}

/// A worker that is gone leaves its memory to the next one, whether it comes from a pool or not.
#[test]
fn memory_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let Some(fake) = FakeCuda::build(folder.path()) else { return };
    let engine = &engines(&fake, &["biases"], KvElem::F32)[0];
    let args = [engine.to_str().unwrap(), "cuda:0", "f32", "biases", "1e-4"];
    for pools in ["1", "0"] {
        let (_, counts) = holds(&fake, folder.path(), &[("FAKE_CUDA_POOLS", pools)], &args);
        assert_eq!(counts.contains_key("pool_allocations"), pools == "1", "{counts:?}");
        let just_enough = counts["bytes_peak"].to_string();
        let machine = [("FAKE_CUDA_POOLS", pools), ("FAKE_CUDA_MEMORY", &just_enough)];
        holds(&fake, folder.path(), &machine, &args);
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
        (out.status.success(), text, counts(&log))
    };
    for (capability, arch) in [("86", "sm_80"), ("90", "sm_90a")] {
        let (good, text, counts) = run(capability);
        assert!(good && text.contains(&format!("kernels for {arch}")), "{text}");
        assert!(!counts.contains_key("texts_compiled"), "{counts:?}");
    }
    // No machine code for it: the driver compiles the text, for each worker that is started.
    let (good, text, counts) = run("120");
    assert!(good && text.contains("kernels for compute_80"), "{text}");
    assert_eq!(counts["texts_compiled"], 2);
    let (good, text, _) = run("75");
    assert!(!good && text.contains("sm_75") && text.contains("sm_80, sm_90a, compute_80"), "{text}");
}
