//! Checkpoints that others quantised: their codes and scales are kept, and engines compute what they stand for.

use bessemer_compiler::import::{Checkpoint, StoredType};
use bessemer_compiler::options::CompileOptions;
use bessemer_runtime::{Engine, KvElem, WorkerOptions};
use bessemer_tests::models::{compile, golden, logits, relative_error, root};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Fixture, and the scheme that its projections keep.
const MODELS: &[(&str, &str)] = &[
    ("awq", "u4:f16x32-u8"),
    ("gptq", "u4:f16x32-8"),
    ("gptq_v1_zeros", "u4:f16x32-u8"),
    ("gptq_v2_3bit", "u3:f16x32-u8"),
    // Groups whose elements are no neighbours have no scheme: what they stand for, which f32 holds exactly.
    ("gptq_act_order", "f32"),
    ("ct_w4a16_act_order", "f32"),
    ("fp8_blocks", "e4m3:f32x32"),
    ("fp8_blocks_128", "e4m3:f32x128"),
    ("mxfp4", "e2m1:e8m0x32"),
    ("ct_w4a16", "u4:bf16x32-8"),
    ("ct_w4a16_asym", "u4:bf16x32-u8"),
    ("ct_w8a8", "s8:bf16x0"),
    ("ct_fp8", "e4m3:bf16x0"),
    ("ct_nvfp4", "e2m1:e4m3x16*f32x0"),
];

fn fixture(name: &str) -> PathBuf {
    root().join("fixtures/quantised").join(name)
}

#[test]
fn nothing_is_requantised() {
    for (name, scheme) in MODELS {
        let checkpoint = Checkpoint::open(fixture(name)).unwrap();
        let info = checkpoint.tensor("model.layers.0.mlp.down_proj.weight").unwrap();
        let StoredType::Packed(packed) = info.stored else { panic!("{name}: {:?}", info.stored) };
        let shape = if *name == "fp8_blocks_128" { [160, 144] } else { [64, 96] };
        assert_eq!((packed.scheme().to_string().as_str(), &info.shape[..]), (*scheme, &shape[..]), "{name}");
    }
}

#[test]
fn engines_compute_what_the_stored_numbers_stand_for() {
    for (name, _) in MODELS {
        let g = golden(&format!("quantised_{name}"), "");
        for (f32_activations, bound) in [(true, 1e-4), (false, 2e-2)] {
            let options = CompileOptions { f32_activations, ..CompileOptions::default() };
            let folder = tempfile::tempdir().unwrap();
            let (path, _) = compile(&fixture(name), folder.path(), &options).unwrap();
            let engine = Engine::open(&path).unwrap();
            let found = logits(&engine, WorkerOptions::default().threads(2).kv(KvElem::F32), &g.tokens);
            let error = relative_error(&found, &g.logits);
            println!("{name}, f32 activations {f32_activations}: {error:.2e}");
            assert!(
                error < bound,
                "{name}, f32 activations {f32_activations}: {error:.2e} above {bound:.0e}"
            );
        }
    }
}

/// A copy of a fixture whose tensor `name` was changed.
fn changed(fixture_name: &str, name: &str, change: impl Fn(&mut [u8])) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| fixture(fixture_name).join(name);
    std::fs::copy(file("config.json"), folder.path().join("config.json")).unwrap();
    let mut bytes = std::fs::read(file("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor(name).unwrap().data();
    let start = data.as_ptr() as usize - bytes.as_ptr() as usize;
    let range = start..start + data.len();
    change(&mut bytes[range]);
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

#[test]
fn elements_of_a_group_that_is_not_there_are_refused_by_name() {
    let folder = changed("gptq_act_order", "model.layers.0.mlp.up_proj.g_idx", |data| data[20] = 9);
    let out = tempfile::tempdir().unwrap();
    let error = compile(folder.path(), out.path(), &CompileOptions::default()).unwrap_err().to_string();
    for part in ["mlp.up_proj", "element 5", "group 9", "g_idx"] {
        assert!(error.contains(part), "{error}");
    }
}

/// What each configuration asks for that is not read, by the key that says so.
#[test]
fn layouts_that_are_not_read_are_refused_by_name() {
    for (name, key, value) in [
        ("awq", "quant_method", json!("hqq")),
        ("awq", "version", json!("gemv")),
        ("awq", "bits", json!(3)),
        ("gptq", "checkpoint_format", json!("marlin")),
        ("gptq", "group_size", json!(20)),
        ("fp8_blocks", "fmt", json!("e5m2")),
        ("ct_w4a16", "format", json!("marlin-24")),
        ("ct_w4a16", "sparsity_config", json!({"format": "sparse-24-bitmask"})),
    ] {
        let folder = changed(name, "model.norm.weight", |_| {});
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let quantisation = &mut config["quantization_config"];
        quantisation[key] = value.clone();
        if let Some(groups) = quantisation.get_mut("config_groups").filter(|_| key == "format") {
            groups["group_0"].as_object_mut().unwrap().remove("format");
        }
        std::fs::write(&path, config.to_string()).unwrap();
        let error = Checkpoint::open(folder.path()).err().unwrap_or_else(|| panic!("{name}: {key} {value}"));
        let error = error.to_string();
        let refused = error.contains("not read") || error.contains("not built");
        assert!(error.contains(key) && refused, "{name}: {error}");
    }
}

#[test]
fn zero_points_that_contradict_the_configuration_are_an_error() {
    let folder = changed("gptq", "model.layers.0.mlp.up_proj.qzeros", |data| data[0] ^= 1);
    let out = tempfile::tempdir().unwrap();
    let error = compile(folder.path(), out.path(), &CompileOptions::default()).unwrap_err().to_string();
    assert!(error.contains("up_proj") && error.contains("zero point"), "{error}");
}
