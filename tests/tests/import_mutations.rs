//! Damaged checkpoints are read or refused, never answered with a panic, a hang or a huge allocation.
//!
//! One test, so that the address space that is measured is its own.

use std::path::Path;
use std::time::{Duration, Instant};

use bessemer_compiler::import::{Checkpoint, ImportError, arch};
use bessemer_tests::checkpoints::*;
use bessemer_tests::models::{ENCODERS, FAMILIES, fixture};
use bessemer_tests::mutate::Mutator;
use serde_json::{Value, json};

/// Everything that import does with a checkpoint.
fn import(path: &Path) -> Result<(), ImportError> {
    let checkpoint = Checkpoint::open(path)?;
    arch::detect(&checkpoint)?.model(&checkpoint, None)?;
    for name in checkpoint.tensors().keys() {
        checkpoint.bytes(name)?;
    }
    Ok(())
}

/// Imports `rounds` mutations of `original`, each written to `file` of the checkpoint `path`.
fn damage(label: &str, path: &Path, file: &Path, original: &[u8], head: usize, rounds: usize) {
    let mut mutator = Mutator::new(0x5eed ^ label.len() as u64);
    let (mut sound, mut refused) = (0, 0);
    for round in 0..rounds {
        let (bytes, done) = mutator.mutate(original, head);
        std::fs::write(file, bytes).unwrap();
        let start = Instant::now();
        let outcome = std::panic::catch_unwind(|| import(path));
        let took = start.elapsed();
        match outcome {
            Ok(Ok(())) => sound += 1,
            Ok(Err(error)) => {
                refused += 1;
                let text = error.to_string();
                assert!(text.len() < 2000, "{label} {round} ({done}): a message of {} bytes", text.len());
            }
            Err(_) => panic!("{label} {round} ({done}): panicked"),
        }
        assert!(took < Duration::from_secs(5), "{label} {round} ({done}): took {took:?}");
    }
    println!("{label}: {rounds} mutations, {refused} refused, {sound} still sound");
    // Flips in weights are sound; a mutator or a reader that saw nothing would not refuse.
    assert!(refused > rounds / 4, "{label}: only {refused} of {rounds} refused");
}

/// The largest address space that the process ever had, in KiB, where the system tells.
fn peak_address_space() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmPeak:"))?.trim().strip_suffix(" kB")?.parse().ok()
}

#[test]
fn damage_never_panics_hangs_or_allocates_without_bound() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = folder.path().join("tiny.gguf");
    let hf = folder.path().join("hf");
    let weights = safetensors(&tiny_tensors());
    write_directory(&hf, &tiny_config(), &weights).unwrap();
    let file = tiny_gguf().bytes();
    std::fs::write(&gguf, &file).unwrap();
    import(&gguf).unwrap();
    import(&hf).unwrap();
    let before = peak_address_space();

    let gguf_head = file.len() - 8192;
    damage("GGUF", &gguf, &gguf, &file, gguf_head, 4000);
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    damage("safetensors", &hf, &hf.join("model.safetensors"), &weights, 8 + header, 4000);
    damage("first bytes", &hf, &hf.join("model.safetensors"), &weights, 24, 1000);
    std::fs::write(hf.join("model.safetensors"), &weights).unwrap();
    let config = tiny_config().to_string();
    damage("config.json", &hf, &hf.join("config.json"), config.as_bytes(), config.len(), 2000);
    std::fs::write(hf.join("config.json"), &config).unwrap();
    values(&hf);
    families(folder.path());

    std::fs::remove_file(hf.join("model.safetensors")).unwrap();
    std::fs::write(hf.join("a.safetensors"), &weights).unwrap();
    let map: serde_json::Map<_, _> =
        tiny_tensors().into_iter().map(|(name, _)| (name, "a.safetensors".into())).collect();
    let index = serde_json::json!({ "weight_map": map }).to_string();
    let index_path = hf.join("model.safetensors.index.json");
    std::fs::write(&index_path, &index).unwrap();
    import(&hf).unwrap();
    damage("index", &hf, &index_path, index.as_bytes(), index.len(), 1000);

    match (before, peak_address_space()) {
        (Some(before), Some(after)) => {
            let grown = (after - before) / 1024;
            assert!(grown < 64, "the address space grew by {grown} MiB over files of a few KiB");
        }
        _ => bessemer_tests::skip(bessemer_tests::HOST, "the bound on memory: there is no /proc/self/status"),
    }
}

/// The configurations of all families: mutated, and each key with every kind of value.
fn families(folder: &Path) {
    for (name, _) in FAMILIES.iter().chain(ENCODERS) {
        let source = fixture(name);
        let Ok(config) = std::fs::read(source.join("config.json")) else { continue };
        let copy = folder.join(name);
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(source.join("model.safetensors"), copy.join("model.safetensors")).unwrap();
        let original: Value = serde_json::from_slice(&config).unwrap();
        let compact = original.to_string();
        damage(name, &copy, &copy.join("config.json"), compact.as_bytes(), compact.len(), 300);
        std::fs::write(copy.join("config.json"), &compact).unwrap();
        import(&copy).unwrap();
        each_value(&copy, &original, &[]);
    }
}

/// Every key of the tiny configuration with every kind of value.
fn values(folder: &Path) {
    let more = [
        "head_dim",
        "rope_scaling",
        "rope_parameters",
        "sliding_window",
        "quantization_config",
        "layer_types",
        "unheard_of",
    ];
    each_value(folder, &tiny_config(), &more);
}

/// What refusals of a changed key spoke of.
#[derive(Debug, Default)]
struct Said {
    /// The key itself, or one below it.
    of_the_key: usize,
    /// A key that it has to fit.
    of_another: usize,
    /// Tensors that are not as the changed sizes ask for.
    of_tensors: usize,
}

impl Said {
    /// Every refusal names what is wrong, what stands there and what is supported.
    fn explained(&mut self, key: &str, value: &Value, error: &ImportError) {
        match error {
            ImportError::Config { key: named, expected, found, .. } => {
                assert!(!expected.is_empty() && !found.is_empty(), "`{key}` = {value}: {error}");
                match named == key || named.starts_with(&format!("{key}.")) {
                    true => self.of_the_key += 1,
                    false => self.of_another += 1,
                }
            }
            ImportError::UnknownKeys { keys, .. } => {
                assert!(keys.iter().any(|named| named.starts_with(key)), "`{key}` = {value}: {error}");
                self.of_the_key += 1;
            }
            ImportError::UnknownArchitecture { supported, .. } => {
                assert!(["model_type", "architectures"].contains(&key), "`{key}` = {value}: {error}");
                assert!(supported.contains("LlamaForCausalLM"), "{error}");
            }
            ImportError::MissingTensors { .. }
            | ImportError::UnexpectedTensors { .. }
            | ImportError::TensorShape { .. } => self.of_tensors += 1,
            // How a checkpoint was quantised says how its tensors are to be read.
            ImportError::Damaged { .. } if key == "quantization_config" => self.of_tensors += 1,
            other => panic!("`{key}` = {value}: {other}"),
        }
    }
}

fn each_value(folder: &Path, original: &Value, more: &[&str]) {
    let kinds = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(2147483647u32),
        json!(2147483648u32),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e308),
        json!(5e-324),
        json!(-0.0),
        json!("silu"),
        json!("\u{0}\u{10ffff}"),
        json!("x".repeat(100_000)),
        json!([]),
        json!([[[]]]),
        json!({}),
        json!({ "rope_type": "llama3", "factor": 1e308, "low_freq_factor": 1, "high_freq_factor": 2,
            "original_max_position_embeddings": 1 }),
        json!({ "type": {} }),
        json!({ "rope_type": "yarn", "factor": 1e-300, "original_max_position_embeddings": 2147483647 }),
        json!({ "rope_type": "longrope", "short_factor": [], "long_factor": [1e300],
            "original_max_position_embeddings": 1 }),
        json!({ "full_attention": { "rope_type": "linear", "factor": 5e-324 }, "sliding_attention": {} }),
        json!([0, 1]),
        json!(["sliding_attention", "full_attention"]),
    ];
    let keys = original.as_object().unwrap().keys().map(String::as_str).chain(more.iter().copied());
    let (mut count, mut said) = (0, Said::default());
    for key in keys {
        for value in &kinds {
            let mut config: Value = original.clone();
            config[key] = value.clone();
            std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
            let outcome = std::panic::catch_unwind(|| import(folder));
            let outcome = outcome.unwrap_or_else(|_| panic!("`{key}` = {value} panicked"));
            if let Err(error) = &outcome {
                said.explained(key, value, error);
            }
            if key == "unheard_of" {
                assert_eq!(outcome.is_ok(), value.is_null(), "{value}");
            }
            count += 1;
        }
    }
    println!("config.json: {count} single values, {said:?}");
    // Another key is to blame only where the two have to fit together.
    assert!(10 * said.of_another <= said.of_the_key, "{said:?}");
    std::fs::write(folder.join("config.json"), original.to_string()).unwrap();
}
