//! Checkpoints that are right are read; each one that is wrong is a typed error that names place and cause.

use std::path::{Path, PathBuf};

use bessemer_compiler::import::arch::llama::LlamaConfig;
use bessemer_compiler::import::rope::{RopePairing, RopeScaling};
use bessemer_compiler::import::{Checkpoint, ImportError, Metadata, StoredType, arch};
use bessemer_tests::checkpoints::*;
use serde_json::{Value, json};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open_gguf(bytes: &[u8]) -> Result<Checkpoint, ImportError> {
    let folder = folder();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path)
}

fn open_tiny(config: &Value, weights: &[u8]) -> Result<Checkpoint, ImportError> {
    let folder = folder();
    write_directory(folder.path(), config, weights).unwrap();
    Checkpoint::open(folder.path())
}

fn hf_config(config: &Value) -> Result<LlamaConfig, ImportError> {
    LlamaConfig::read(&open_tiny(config, &safetensors(&tiny_tensors()))?)
}

fn gguf_config(file: &Gguf) -> Result<LlamaConfig, ImportError> {
    LlamaConfig::read(&open_gguf(&file.bytes())?)
}

/// Asserts that the error says all of `parts`; returns it.
#[track_caller]
fn refused<T>(result: Result<T, ImportError>, parts: &[&str]) -> ImportError {
    let Err(error) = result else { panic!("accepted, expected an error that says {parts:?}") };
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    error
}

#[test]
fn gguf_tensors_have_row_major_shapes_and_their_own_bytes() {
    for file in [tiny_gguf(), Gguf { version: 2, ..tiny_gguf() }] {
        let mut written = Vec::new();
        file.clone().edit(|tensors| written = tensors.clone());
        let checkpoint = open_gguf(&file.bytes()).unwrap();
        assert_eq!(checkpoint.tensors().len(), written.len());
        for tensor in written {
            let info = checkpoint.tensor(&tensor.name).unwrap();
            let outermost_first: Vec<usize> = tensor.dims.iter().rev().map(|dim| *dim as usize).collect();
            assert_eq!(info.shape, outermost_first, "{}", tensor.name);
            assert_eq!(checkpoint.bytes(&tensor.name).unwrap(), tensor.data, "{}", tensor.name);
        }
        assert_eq!(checkpoint.tensor("blk.0.attn_q.weight").unwrap().stored, StoredType::Q4_1);
        let Metadata::Gguf(metadata) = checkpoint.config() else { panic!("not GGUF") };
        assert_eq!(metadata.string("general.name"), Some("tiny"));
        refused(checkpoint.bytes("nobody"), &["nobody", "12"]);
    }
}

#[test]
fn gguf_metadata_of_every_type_is_read() {
    use bessemer_compiler::import::gguf::{Array, Value};
    let nested = [
        &9u32.to_le_bytes()[..],
        &1u64.to_le_bytes(),
        &5u32.to_le_bytes(),
        &2u64.to_le_bytes(),
        &(-1i32).to_le_bytes(),
        &7i32.to_le_bytes(),
    ]
    .concat();
    let cases: [(u32, Vec<u8>, Value); 13] = [
        (0, vec![200], Value::Unsigned(200)),
        (1, vec![0xff], Value::Signed(-1)),
        (2, 40000u16.to_le_bytes().into(), Value::Unsigned(40000)),
        (3, (-2i16).to_le_bytes().into(), Value::Signed(-2)),
        (4, u32::MAX.to_le_bytes().into(), Value::Unsigned(u32::MAX.into())),
        (5, i32::MIN.to_le_bytes().into(), Value::Signed(i32::MIN.into())),
        (6, 0.5f32.to_le_bytes().into(), Value::F32(0.5)),
        (7, vec![1], Value::Bool(true)),
        (8, [&2u64.to_le_bytes()[..], "é".as_bytes()].concat(), Value::String("é".into())),
        (9, nested, Value::Array(Array::Array(vec![Array::I32(vec![-1, 7])]))),
        (10, u64::MAX.to_le_bytes().into(), Value::Unsigned(u64::MAX)),
        (11, i64::MIN.to_le_bytes().into(), Value::Signed(i64::MIN)),
        (12, 0.1f64.to_le_bytes().into(), Value::F64(0.1)),
    ];
    for (kind, bytes, expected) in cases {
        let checkpoint = open_gguf(&tiny_gguf().raw("general.x", kind, &bytes).bytes()).unwrap();
        let Metadata::Gguf(metadata) = checkpoint.config() else { panic!("not GGUF") };
        assert_eq!(metadata.get("general.x"), Some(&expected));
    }
}

#[test]
fn gguf_alignment_follows_the_file() {
    let file = tiny_gguf().u32("general.alignment", 256);
    let checkpoint = open_gguf(&file.aligned(256)).unwrap();
    assert!(checkpoint.tensors().values().all(|info| info.offset.is_multiple_of(256)));
    for wrong in [0, 3, 1 << 31] {
        refused(
            open_gguf(&tiny_gguf().u32("general.alignment", wrong).bytes()),
            &["general.alignment", "power of two"],
        );
    }
}

#[test]
fn damaged_gguf_files_are_refused_by_name() {
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let deep = [&array(9, 1)[..], &array(9, 1), &array(9, 1), &array(9, 1), &array(9, 0)].concat();
    let edit = |change: fn(&mut GgufTensor)| tiny_gguf().edit(|tensors| change(&mut tensors[2]));
    let cases: Vec<(Gguf, &[&str])> = vec![
        (Gguf { version: 1, ..tiny_gguf() }, &["version 1", "version 2 or 3"]),
        (Gguf { version: 4, ..tiny_gguf() }, &["version 4"]),
        (Gguf { version: 3u32.swap_bytes(), ..tiny_gguf() }, &["big-endian"]),
        (
            Gguf { tensor_count: Some(u64::MAX), ..tiny_gguf() },
            &["number of tensors", "18446744073709551615"],
        ),
        (
            Gguf { entry_count: Some(1 << 60), ..tiny_gguf() },
            &["number of metadata entries", "1152921504606846976"],
        ),
        (tiny_gguf().repeat("general.name", 7, &[1]), &["general.name", "two"]),
        (tiny_gguf().raw("general.x", 13, &[0]), &["general.x", "0 to 12", "13"]),
        (tiny_gguf().raw("general.x", 7, &[2]), &["general.x", "0 or 1"]),
        (tiny_gguf().raw("general.x", 8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]), &["general.x", "UTF-8"]),
        (tiny_gguf().raw("general.x", 9, &array(0, 1 << 62)), &["general.x", "4611686018427387904"]),
        (tiny_gguf().raw("general.x", 9, &array(12, u64::MAX)), &["general.x", "18446744073709551615"]),
        (tiny_gguf().raw("general.x", 9, &deep), &["general.x", "levels"]),
        (tiny_gguf().raw("split.count", 2, &[3, 0]), &["split.count", "3 parts", "--merge"]),
        (edit(|tensor| tensor.dims = vec![1; 5]), &["blk.0.attn_q.weight", "4 dimensions", "5"]),
        (edit(|tensor| tensor.dims = vec![1 << 40, 1 << 40]), &["blk.0.attn_q.weight", "64 bits"]),
        (edit(|tensor| tensor.dims = vec![33, 32]), &["blk.0.attn_q.weight", "multiple of 32", "33"]),
        (edit(|tensor| tensor.dims = vec![32, 1 << 40]), &["blk.0.attn_q.weight", "bytes of data"]),
        (edit(|tensor| tensor.ty = 4), &["blk.0.attn_q.weight", "ggml tensor type", "4"]),
        (edit(|tensor| tensor.ty = 77), &["blk.0.attn_q.weight", "ggml tensor type", "77"]),
        (edit(|tensor| tensor.offset = Some(33)), &["blk.0.attn_q.weight", "multiple of 32", "33"]),
        (edit(|tensor| tensor.offset = Some(0)), &["offset", "behind the tensor before it"]),
        (edit(|tensor| tensor.offset = Some(u64::MAX - 31)), &["blk.0.attn_q.weight", "bytes of data"]),
        (edit(|tensor| tensor.name = "output.weight".into()), &["output.weight", "two"]),
    ];
    for (file, parts) in cases {
        let error = refused(open_gguf(&file.bytes()), parts);
        assert!(
            matches!(error, ImportError::Damaged { .. } | ImportError::UnsupportedFile { .. }),
            "{error:?} is of another kind"
        );
    }
}

#[test]
fn a_gguf_file_cut_anywhere_is_refused() {
    let bytes = tiny_gguf().bytes();
    // Behind the last tensor only padding follows, and its absence harms nobody.
    let mut end = 0;
    let checkpoint = open_gguf(&bytes).unwrap();
    for info in checkpoint.tensors().values() {
        end = end.max(info.offset + info.len);
    }
    for len in (0..end).step_by(17).chain([end - 1]) {
        let error = refused(open_gguf(&bytes[..len]), &[]);
        assert!(
            matches!(error, ImportError::Damaged { .. } | ImportError::NotACheckpoint { .. }),
            "{len}: {error}"
        );
    }
    open_gguf(&bytes[..end]).unwrap();
}

#[test]
fn a_known_encoding_that_is_not_read_is_refused_by_name_when_used() {
    // Q6_K: 256 elements in 210 bytes.
    let checkpoint = open_gguf(&tiny_gguf().tensor("extra", &[256], 14, &[0; 210]).bytes()).unwrap();
    assert_eq!(checkpoint.tensor("extra").unwrap().stored, StoredType::Unsupported("Q6_K"));
    let error = refused(checkpoint.bytes("extra"), &["extra", "Q6_K", "Q4_1"]);
    assert!(matches!(error, ImportError::UnsupportedEncoding { .. }));

    let header = r#"{"t": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}"#;
    let checkpoint = open_tiny(&tiny_config(), &safetensors_with(header, &[0; 2])).unwrap();
    refused(checkpoint.bytes("t"), &["`t`", "F8_E4M3", "BF16"]);
}

#[test]
fn safetensors_tensors_have_their_own_bytes() {
    let weights = safetensors(&tiny_tensors());
    let checkpoint = open_tiny(&tiny_config(), &weights).unwrap();
    let mut next = 0f32;
    for (name, shape) in tiny_tensors() {
        let info = checkpoint.tensor(&name).unwrap();
        assert_eq!((&info.shape, info.stored), (&shape, StoredType::F32));
        let (elements, rest) = checkpoint.bytes(&name).unwrap().as_chunks();
        assert!(rest.is_empty());
        for element in elements {
            assert_eq!(f32::from_le_bytes(*element), next);
            next += 1.0;
        }
    }
}

#[test]
fn damaged_safetensors_files_are_refused_by_name() {
    let tensor = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{from}, {to}]}}"#)
    };
    let file = |tensors: &[String], len: usize| {
        safetensors_with(&format!("{{{}}}", tensors.join(",")), &vec![0; len])
    };
    let max = u64::MAX;
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (vec![], &["header length", "8 bytes"]),
        (vec![1, 2, 3], &["header length", "a file of 3"]),
        ([&[0xff; 8][..], b"{}"].concat(), &["header length", "at most 2", "18446744073709551615"]),
        ([&3u64.to_le_bytes()[..], b"{}"].concat(), &["header length", "at most 2", "found 3"]),
        (safetensors_with("{", &[]), &["header", "JSON"]),
        (safetensors_with("[]", &[]), &["header", "an object of tensors"]),
        (safetensors_with(&"[".repeat(100_000), &[]), &["header"]),
        (safetensors_with("\u{0}", &[]), &["header"]),
        (file(&[tensor("a", "Q9", "[1]", 0, 4)], 4), &["Q9"]),
        (file(&[tensor("a", "F32", "[-1]", 0, 4)], 4), &["header"]),
        (file(&[tensor("a", "F32", "[2]", 0, 4)], 4), &["side by side"]),
        (file(&[tensor("a", "F32", "[1]", 4, 8)], 8), &["side by side", "a"]),
        (file(&[tensor("a", "F32", "[1]", 8, 4)], 8), &["side by side"]),
        (
            file(&[tensor("a", "F32", "[2]", 0, 8), tensor("b", "F32", "[2]", 4, 12)], 12),
            &["side by side", "`b`"],
        ),
        (
            file(&[tensor("a", "F32", "[1]", 0, 4), tensor("a", "F32", "[1]", 4, 8)], 8),
            &["two tensors named `a`"],
        ),
        (file(&[tensor("a", "F32", "[1]", 0, 4)], 8), &["4 bytes", "8 bytes"]),
        (file(&[tensor("a", "F32", "[1]", 0, 4)], 3), &["4 bytes", "3 bytes"]),
        (file(&[tensor("a", "U8", &format!("[{max}]"), 0, max)], 0), &["a"]),
        (file(&[tensor("a", "F32", &format!("[{max},{max}]"), 0, 4)], 4), &["side by side"]),
    ];
    for (bytes, parts) in cases {
        let error = refused(open_tiny(&tiny_config(), &bytes), parts);
        assert!(matches!(error, ImportError::Damaged { .. }), "{error:?} is of another kind");
    }
}

/// A directory with two shards and this weight map.
fn sharded(weight_map: Value) -> TempDir {
    let folder = folder();
    let (first, second) = (tiny_tensors(), tiny_tensors().split_off(5));
    std::fs::write(folder.path().join("config.json"), tiny_config().to_string()).unwrap();
    std::fs::write(folder.path().join("a.safetensors"), safetensors(&first[..5])).unwrap();
    std::fs::write(folder.path().join("b.safetensors"), safetensors(&second)).unwrap();
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": weight_map });
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    folder
}

fn weight_map() -> Value {
    let home = |i: usize| if i < 5 { "a.safetensors" } else { "b.safetensors" };
    tiny_tensors().into_iter().enumerate().map(|(i, (name, _))| (name, Value::from(home(i)))).collect()
}

#[test]
fn shards_are_held_against_their_index() {
    let folder = sharded(weight_map());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    LlamaConfig::read(&checkpoint).unwrap();
    let second = checkpoint.bytes("lm_head.weight").unwrap();
    assert_eq!(second.len(), 8 * 32 * 4);

    let open = |change: &dyn Fn(&mut Value)| {
        let mut map = weight_map();
        change(&mut map);
        Checkpoint::open(sharded(map).path())
    };
    let absent = open(&|map| {
        map["model.norm.weight"] = json!("z.safetensors");
        map["lm_head.weight"] = json!("y.safetensors");
    });
    let ImportError::MissingShards { files, .. } = refused(absent, &["y.safetensors", "2 missing"]) else {
        panic!("another error")
    };
    assert_eq!(files, ["y.safetensors", "z.safetensors"]);
    for path in [
        "../a.safetensors",
        "/etc/passwd",
        "x/../a.safetensors",
        "..",
        ".",
        "",
        "..\\a.safetensors",
        "a.safetensors/",
    ] {
        refused(open(&|map| map["lm_head.weight"] = json!(path)), &["a file name without a folder"]);
    }
    refused(open(&|map| map["lm_head.weight"] = json!("a.safetensors")), &["lm_head.weight"]);
    refused(open(&|map| map["ghost"] = json!("a.safetensors")), &["`ghost`", "no such tensor"]);
    refused(
        open(&|map| drop(map.as_object_mut().unwrap().remove("lm_head.weight"))),
        &["lm_head.weight", "index"],
    );
    refused(open(&|map| map["lm_head.weight"] = json!(3)), &["weight_map"]);
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = sharded(weight_map());
    std::fs::write(folder.path().join("b.safetensors"), safetensors(&tiny_tensors())).unwrap();
    refused(Checkpoint::open(folder.path()), &["only in `a.safetensors`", "also in `b.safetensors`"]);
}

#[test]
fn what_is_no_checkpoint_is_told_what_it_is() {
    let folder = folder();
    refused(Checkpoint::open(folder.path()), &["config.json", "without it"]);
    std::fs::write(folder.path().join("config.json"), tiny_config().to_string()).unwrap();
    refused(Checkpoint::open(folder.path()), &["model.safetensors", "without weights"]);
    std::fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    refused(Checkpoint::open(folder.path()), &["pytorch_model.bin", "safe_serialization"]);
    refused(Checkpoint::open(folder.path().join("absent")), &["absent"]);
    refused(
        Checkpoint::open(folder.path().join("config.json")),
        &["a Hugging Face directory or a GGUF file"],
    );
    std::fs::write(folder.path().join("config.json"), "[1]").unwrap();
    refused(Checkpoint::open(folder.path()), &["config.json", "JSON object"]);
    #[cfg(unix)]
    refused(Checkpoint::open("/dev/zero"), &["not a regular file"]);
}

#[test]
fn both_containers_give_the_same_llama() {
    let (hf, gguf) = (hf_config(&tiny_config()).unwrap(), gguf_config(&tiny_gguf()).unwrap());
    for config in [&hf, &gguf] {
        let sizes =
            [config.hidden, config.layers, config.heads, config.kv_heads, config.head_dim, config.ffn];
        assert_eq!(sizes, [32, 1, 2, 1, 16, 48]);
        assert_eq!((config.vocab, config.context), (8, 64));
        assert_eq!(config.rms_norm_eps as f32, 1e-5);
        assert_eq!((config.rope.theta, &config.rope.scaling), (10000.0, &RopeScaling::None));
        assert!(!config.tied && !config.attention_bias && !config.mlp_bias);
    }
    assert_eq!(hf.rope.pairing, RopePairing::HalfSplit);
    assert_eq!(gguf.rope.pairing, RopePairing::Interleaved);
}

/// The tiny configuration with changes; a null removes the key.
fn with(changes: Value) -> Value {
    let mut config = tiny_config();
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(key)),
            value => config[key] = value.clone(),
        }
    }
    config
}

#[test]
fn config_values_that_change_the_arithmetic_are_refused_by_name() {
    let cases: Vec<(Value, &[&str])> = vec![
        (json!({ "hidden_act": "gelu" }), &["`hidden_act`", "silu", "gelu"]),
        (json!({ "sliding_window": 32 }), &["`sliding_window`", "32"]),
        (json!({ "logits_scaling": 8.0 }), &["logits_scaling = 8.0"]),
        (json!({ "auto_map": { "AutoModel": "x.Y" } }), &["auto_map"]),
        (json!({ "quantization_config": { "quant_method": "gptq" } }), &["`quantization_config`", "gptq"]),
        (json!({ "partial_rotary_factor": 0.5 }), &["`partial_rotary_factor`", "0.5"]),
        (json!({ "rope_interleaved": true }), &["`rope_interleaved`", "true"]),
        (json!({ "layer_types": ["sliding_attention"] }), &["`layer_types`"]),
        (json!({ "pruned_heads": { "0": [1] } }), &["`pruned_heads`"]),
        (json!({ "hidden_size": null }), &["`hidden_size`", "nothing"]),
        (json!({ "hidden_size": "32" }), &["`hidden_size`", "\"32\""]),
        (json!({ "hidden_size": 0 }), &["`hidden_size`", "found 0"]),
        (json!({ "hidden_size": 33 }), &["divisor of hidden_size 33"]),
        (json!({ "num_attention_heads": -2 }), &["`num_attention_heads`", "-2"]),
        (json!({ "num_key_value_heads": 3 }), &["`num_key_value_heads`", "divisor of the 2 heads"]),
        (json!({ "head_dim": 15 }), &["`head_dim`", "even"]),
        (json!({ "rms_norm_eps": -1e-5 }), &["`rms_norm_eps`", "above 0"]),
        (json!({ "rope_theta": 0 }), &["`rope_theta`", "above 0"]),
        (
            json!({ "rope_scaling": { "rope_type": "yarn", "factor": 4.0 } }),
            &["`rope_scaling.rope_type`", "yarn"],
        ),
        (
            json!({ "rope_scaling": { "type": "dynamic", "factor": 4.0 } }),
            &["`rope_scaling.type`", "dynamic"],
        ),
        (
            json!({ "rope_scaling": { "type": "linear", "rope_type": "llama3" } }),
            &["`rope_scaling.type`", "llama3"],
        ),
        (json!({ "rope_scaling": { "type": "linear" } }), &["`rope_scaling.factor`", "nothing"]),
        (
            json!({ "rope_scaling": { "type": "linear", "factor": 2, "mscale": 1 } }),
            &["rope_scaling.mscale = 1"],
        ),
        (json!({ "rope_parameters": { "rope_theta": 5000.0 } }), &["`rope_parameters.rope_theta`", "10000"]),
        (json!({ "rope_scaling": {}, "rope_parameters": {} }), &["`rope_scaling`", "`rope_parameters`"]),
        (json!({ "rope_scaling": "linear" }), &["`rope_scaling`", "an object"]),
    ];
    for (changes, parts) in cases {
        let error = refused(hf_config(&with(changes)), parts);
        assert!(matches!(error, ImportError::Config { .. } | ImportError::UnknownKeys { .. }), "{error:?}");
    }
}

#[test]
fn config_values_of_every_accepted_kind_are_read() {
    let rope = |changes| hf_config(&with(changes)).unwrap().rope;
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 32,
    };
    let keys = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32 });
    assert_eq!(rope(json!({ "rope_scaling": keys })).scaling, llama3);

    let mut new = keys.clone();
    new["rope_theta"] = json!(500000.0);
    let read = rope(json!({ "rope_theta": null, "rope_parameters": new }));
    assert_eq!((read.theta, read.scaling), (500000.0, llama3));

    for old in [json!({ "type": "linear", "factor": 4 }), json!({ "rope_type": "linear", "factor": 4.0 })] {
        assert_eq!(rope(json!({ "rope_scaling": old })).scaling, RopeScaling::Linear { factor: 4.0 });
    }
    assert_eq!(rope(json!({ "rope_theta": 1000000 })).theta, 1e6);
    assert_eq!(rope(json!({ "rope_parameters": { "rope_type": "default" } })).scaling, RopeScaling::None);

    let harmless = json!({ "sliding_window": 64, "hidden_act": null, "transformers_version": "4.0", "use_cache": false,
        "rope_interleaved": false, "is_llama_config": true, "pretraining_tp": 1, "layer_types": ["full_attention"] });
    assert_eq!(hf_config(&with(harmless)).unwrap(), hf_config(&tiny_config()).unwrap());
}

#[test]
fn mistral_is_accepted_only_without_a_window() {
    let mistral = json!({ "architectures": ["MistralForCausalLM"], "model_type": "mistral" });
    let merged = |more: Value| {
        let mut all = mistral.clone();
        more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        with(all)
    };
    // The window of the class, 4096 tokens, covers the context of 64.
    hf_config(&merged(json!({}))).unwrap();
    refused(hf_config(&merged(json!({ "max_position_embeddings": 8192 }))), &["`sliding_window`", "nothing"]);
    let mut explicit = merged(json!({ "max_position_embeddings": 8192 }));
    explicit["sliding_window"] = Value::Null;
    assert_eq!(hf_config(&explicit).unwrap().context, 8192);
    refused(
        hf_config(&merged(json!({ "max_position_embeddings": 8192, "sliding_window": 4096 }))),
        &["4096"],
    );
    let checkpoint = open_tiny(&explicit, &safetensors(&tiny_tensors())).unwrap();
    assert_eq!(arch::detect(&checkpoint).unwrap().name, "llama");
}

#[test]
fn gguf_keys_that_change_the_arithmetic_are_refused_by_name() {
    let cases: Vec<(Gguf, &[&str])> = vec![
        (tiny_gguf().f32("llama.logit_scale", 0.5), &["llama.logit_scale = 0.5"]),
        (tiny_gguf().u32("llama.expert_count", 8), &["`llama.expert_count`", "8"]),
        (tiny_gguf().u32("llama.attention.sliding_window", 16), &["`llama.attention.sliding_window`", "16"]),
        (
            tiny_gguf().u32("llama.rope.dimension_count", 8),
            &["`llama.rope.dimension_count`", "head size 16", "8"],
        ),
        (tiny_gguf().string("llama.rope.scaling.type", "yarn"), &["`llama.rope.scaling.type`", "yarn"]),
        (tiny_gguf().without("llama.block_count"), &["`llama.block_count`", "nothing"]),
        (tiny_gguf().f32("llama.block_count", 1.0), &["`llama.block_count`", "1.0"]),
        (tiny_gguf().f32("llama.rope.freq_base", f32::INFINITY), &["`llama.rope.freq_base`", "inf"]),
        (
            tiny_gguf().strings("llama.feed_forward_length", &["1", "2"]),
            &["`llama.feed_forward_length`", "array of 2"],
        ),
        (tiny_gguf().u32("llama.vocab_size", 9), &["token_embd.weight", "[9, 32]", "[8, 32]"]),
        (tiny_gguf().tensor("rope_freqs.weight", &[4], 0, &[0; 16]), &["rope_freqs.weight", "[8]", "[4]"]),
        (tiny_gguf().tensor("rope_freqs.weight", &[8], 0, &[0; 32]), &["rope_freqs.weight", "above 0"]),
        (tiny_gguf().tensor("rope_freqs.weight", &[8], 1, &[0; 16]), &["rope_freqs.weight", "F16", "F32"]),
        (tiny_gguf().tensor("blk.0.attn_q_norm.weight", &[16], 0, &[0; 64]), &["blk.0.attn_q_norm.weight"]),
    ];
    for (file, parts) in cases {
        refused(gguf_config(&file), parts);
    }
}

#[test]
fn gguf_rope_scaling_is_read_as_llama_cpp_does() {
    let factors: Vec<f32> = (1..=8).map(|i| i as f32).collect();
    let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
    let with_factors = tiny_gguf().tensor("rope_freqs.weight", &[8], 0, &bytes);
    let scaling = |file: Gguf| gguf_config(&file).unwrap().rope.scaling;
    assert_eq!(scaling(with_factors.clone()), RopeScaling::Factors(factors));
    // Without a type a factor means linear; type none switches it off.
    let factor = tiny_gguf().f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(scaling(factor.clone()), RopeScaling::Linear { factor: 4.0 });
    assert_eq!(scaling(factor.string("llama.rope.scaling.type", "none")), RopeScaling::None);
    refused(
        gguf_config(&with_factors.f32("llama.rope.scaling.factor", 4.0)),
        &["rope.scaling.factor", "rope_freqs"],
    );
}

#[test]
fn missing_extra_and_misshaped_tensors_are_named_with_both_sides() {
    let read = |config: &Value, tensors: &[(String, Vec<usize>)]| {
        LlamaConfig::read(&open_tiny(config, &safetensors(tensors))?)
    };
    let all = tiny_tensors();
    read(&tiny_config(), &all).unwrap();

    let ImportError::MissingTensors { names, expected, found, .. } =
        refused(read(&tiny_config(), &all[..10]), &["model.norm.weight", "lm_head.weight"])
    else {
        panic!("another error")
    };
    assert_eq!((names.len(), expected, found), (2, 12, 10));

    let more = [&all[..], &[("model.layers.0.self_attn.q_norm.weight".into(), vec![16])]].concat();
    let error = refused(read(&tiny_config(), &more), &["q_norm", "12", "13"]);
    assert!(matches!(error, ImportError::UnexpectedTensors { .. }));
    let frequencies =
        [&all[..], &[("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vec![8])]].concat();
    read(&tiny_config(), &frequencies).unwrap();

    let mut wrong = all.clone();
    wrong[3].1 = vec![32, 16];
    let error = refused(read(&tiny_config(), &wrong), &["k_proj", "[32, 16]", "[16, 32]"]);
    assert!(matches!(error, ImportError::TensorShape { .. }));

    // Biases are asked for and not there; two thousand million layers are reported without listing them.
    refused(read(&with(json!({ "attention_bias": true })), &all), &["q_proj.bias"]);
    refused(
        read(&with(json!({ "num_hidden_layers": 2_000_000_000u64 })), &all),
        &["model.layers.1.", "1000 tensor(s) missing"],
    );
}

#[test]
fn a_tied_head_may_be_stored_only_as_a_copy() {
    let tied = with(json!({ "tie_word_embeddings": true }));
    let mut tensors = tiny_tensors();
    refused(
        LlamaConfig::read(&open_tiny(&tied, &safetensors(&tensors)).unwrap()),
        &["tie_word_embeddings", "differs"],
    );
    tensors.pop();
    let weights = safetensors(&tensors);
    assert!(LlamaConfig::read(&open_tiny(&tied, &weights).unwrap()).unwrap().tied);

    let header_len = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&weights[8..8 + header_len]).unwrap();
    let mut data = weights[8 + header_len..].to_vec();
    header["lm_head.weight"] =
        json!({ "dtype": "F32", "shape": [8, 32], "data_offsets": [data.len(), data.len() + 1024] });
    data.extend_from_within(..1024);
    let copy = safetensors_with(&header.to_string(), &data);
    assert!(LlamaConfig::read(&open_tiny(&tied, &copy).unwrap()).unwrap().tied);
}

#[test]
fn other_architectures_are_refused_with_the_list_of_those_we_build() {
    let weights = safetensors(&tiny_tensors());
    for (changes, found) in [
        (json!({ "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"] }), "Qwen2ForCausalLM"),
        (json!({ "architectures": ["LlamaForSequenceClassification"] }), "LlamaForSequenceClassification"),
        (json!({ "model_type": "mistral" }), "LlamaForCausalLM (model_type mistral)"),
        (json!({ "model_type": null, "architectures": null }), "model_type"),
    ] {
        let error = refused(
            arch::detect(&open_tiny(&with(changes), &weights).unwrap()),
            &[found, "MistralForCausalLM"],
        );
        assert!(matches!(error, ImportError::UnknownArchitecture { .. }));
    }
    let other = tiny_gguf().string("general.architecture", "mamba").bytes();
    refused(arch::detect(&open_gguf(&other).unwrap()), &["mamba", "GGUF llama"]);
    arch::detect(&open_tiny(&with(json!({ "architectures": null })), &weights).unwrap()).unwrap();
}

#[test]
fn the_content_hash_depends_on_content_alone() {
    let hash = |path: &Path| Checkpoint::open(path).unwrap().content_hash(|_, _| {});
    let (one, two) = (folder(), folder());
    let (first, second) = (one.path().join("x.gguf"), two.path().join("another.name"));
    let mut bytes = tiny_gguf().bytes();
    std::fs::write(&first, &bytes).unwrap();
    std::fs::write(&second, &bytes).unwrap();
    assert_eq!(hash(&first), hash(&second));
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&second, &bytes).unwrap();
    assert_ne!(hash(&first), hash(&second));

    let (one, two) = (folder(), folder());
    for folder in [&one, &two] {
        write_directory(folder.path(), &tiny_config(), &safetensors(&tiny_tensors())).unwrap();
    }
    assert_eq!(hash(one.path()), hash(two.path()));
    std::fs::write(two.path().join("README.md"), "not read").unwrap();
    assert_eq!(hash(one.path()), hash(two.path()));
    std::fs::write(two.path().join("tokenizer.json"), "{}").unwrap();
    assert_ne!(hash(one.path()), hash(two.path()));

    let mut steps = Vec::new();
    Checkpoint::open(one.path()).unwrap().content_hash(|done, total| steps.push((done, total)));
    assert!(
        steps.is_sorted() && steps.last().is_some_and(|(done, total)| done == total && *total > 0),
        "{steps:?}"
    );
}

/// Every fixture, from either container.
fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_fixture_is_a_sound_llama() {
    let paths = fixtures();
    assert!(paths.len() >= 8, "only {paths:?}");
    for path in paths {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let family = arch::detect(&checkpoint).unwrap();
        (family.check)(&checkpoint).unwrap_or_else(|error| panic!("{error}"));
        for name in checkpoint.tensors().keys() {
            assert!(!checkpoint.bytes(name).unwrap().is_empty());
        }
    }
}

#[test]
fn a_converted_fixture_has_the_configuration_of_its_source() {
    let mut compared = 0;
    for path in fixtures().iter().filter(|path| path.extension().is_some_and(|end| end == "gguf")) {
        let stem = path.file_name().unwrap().to_str().unwrap().split('.').next().unwrap();
        let read = |path: &Path| LlamaConfig::read(&Checkpoint::open(path).unwrap()).unwrap();
        let (gguf, hf) = (read(path), read(&path.with_file_name(stem)));
        let sizes = |c: &LlamaConfig| {
            [c.hidden, c.layers, c.heads, c.kv_heads, c.head_dim, c.ffn, c.vocab, c.context]
        };
        assert_eq!(sizes(&gguf), sizes(&hf), "{stem}");
        assert_eq!((gguf.tied, gguf.rope.theta as f32), (hf.tied, hf.rope.theta as f32), "{stem}");
        assert_eq!(gguf.rms_norm_eps as f32, hf.rms_norm_eps as f32, "{stem}");
        compared += 1;
    }
    assert!(compared >= 3, "only {compared} converted fixtures");
}
