//! The configuration and the tensors that it asks for.

use std::path::{Path, PathBuf};

use bessemer_compiler::import::arch::{self, mistral};
use bessemer_compiler::import::decoder::{Biases, Decoder};
use bessemer_compiler::import::rope::{RopePairing, RopeScaling};
use bessemer_compiler::import::{Checkpoint, ImportError};
use bessemer_tests::checkpoints::*;
use serde_json::{Value, json};

use crate::{llama, open_gguf, open_tiny, refused};

fn hf_config(config: &Value) -> Result<Decoder, ImportError> {
    llama(&open_tiny(config, &safetensors(&tiny_tensors()))?)
}

fn gguf_config(file: &Gguf) -> Result<Decoder, ImportError> {
    llama(&open_gguf(&file.bytes())?)
}

#[test]
fn both_containers_give_the_same_llama() {
    let (hf, gguf) = (hf_config(&tiny_config()).unwrap(), gguf_config(&tiny_gguf()).unwrap());
    for config in [&hf, &gguf] {
        let sizes =
            [config.hidden, config.layers.count, config.heads, config.kv_heads, config.head_dim, config.ffn];
        assert_eq!(sizes, [32, 1, 2, 1, 16, 48]);
        assert_eq!((config.vocab, config.context), (8, 64));
        assert_eq!(config.rms_norm_eps as f32, 1e-5);
        assert_eq!((config.ropes[0].theta, &config.ropes[0].scaling), (10000.0, &RopeScaling::None));
        assert!(!config.tied);
        assert_eq!(config.biases, Biases::default());
    }
    assert_eq!(hf.ropes[0].pairing, RopePairing::HalfSplit);
    assert_eq!(gguf.ropes[0].pairing, RopePairing::Interleaved);
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
        (
            json!({ "quantization_config": { "quant_method": "gptq" } }),
            &["`quantization_config.bits`", "nothing"],
        ),
        (
            json!({ "quantization_config": { "quant_method": "aqlm", "bits": 2 } }),
            &["`quantization_config.quant_method`", "aqlm", "awq, gptq"],
        ),
        (
            json!({ "quantization_config": { "quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv" } }),
            &["`quantization_config.version`", "gemv", "gemm"],
        ),
        (
            json!({ "quantization_config": { "quant_method": "gptq", "bits": 4, "group_size": 32, "tiles": 2 } }),
            &["quantization_config.tiles = 2"],
        ),
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
            &["`rope_scaling.original_max_position_embeddings`", "nothing"],
        ),
        (
            json!({ "rope_scaling": { "type": "ntk", "factor": 4.0 } }),
            &["`rope_scaling.type`", "ntk", "yarn"],
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
    let rope = |changes| hf_config(&with(changes)).unwrap().ropes.remove(0);
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
fn windows_of_mistral_are_read_and_default_to_those_of_its_class() {
    let window = |more: Value| {
        let mut all = json!({ "architectures": ["MistralForCausalLM"], "model_type": "mistral" });
        more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        let checkpoint = open_tiny(&with(all), &safetensors(&tiny_tensors())).unwrap();
        assert_eq!(arch::detect(&checkpoint).unwrap().name, "mistral");
        mistral::read(&checkpoint).unwrap().layers.window
    };
    assert_eq!(window(json!({ "max_position_embeddings": 8192 })), Some(4096));
    assert_eq!(window(json!({ "sliding_window": 32 })), Some(32));
    let mut none = with(json!({ "architectures": ["MistralForCausalLM"], "model_type": "mistral" }));
    none["sliding_window"] = Value::Null;
    let checkpoint = open_tiny(&none, &safetensors(&tiny_tensors())).unwrap();
    assert_eq!(mistral::read(&checkpoint).unwrap().layers.window, None);
}

#[test]
fn gguf_keys_that_change_the_arithmetic_are_refused_by_name() {
    let cases: Vec<(Gguf, &[&str])> = vec![
        (tiny_gguf().f32("llama.logit_scale", 0.5), &["llama.logit_scale = 0.5"]),
        (tiny_gguf().u32("llama.expert_count", 8), &["`llama.expert_count`", "8"]),
        (tiny_gguf().u32("llama.attention.sliding_window", 16), &["`llama.attention.sliding_window`", "16"]),
        (
            tiny_gguf().u32("llama.rope.dimension_count", 18),
            &["`llama.rope.dimension_count`", "head size 16", "18"],
        ),
        (tiny_gguf().string("llama.rope.scaling.type", "ntk"), &["`llama.rope.scaling.type`", "ntk", "yarn"]),
        (tiny_gguf().string("llama.rope.scaling.type", "yarn"), &["`llama.rope.scaling.factor`", "nothing"]),
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
    let scaling = |file: Gguf| gguf_config(&file).unwrap().ropes.remove(0).scaling;
    assert_eq!(scaling(with_factors.clone()), RopeScaling::Factors { factors, attention_factor: 1.0 });
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
    let read =
        |config: &Value, tensors: &[(String, Vec<usize>)]| llama(&open_tiny(config, &safetensors(tensors))?);
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
    refused(llama(&open_tiny(&tied, &safetensors(&tensors)).unwrap()), &["tie_word_embeddings", "differs"]);
    tensors.pop();
    let weights = safetensors(&tensors);
    assert!(llama(&open_tiny(&tied, &weights).unwrap()).unwrap().tied);

    let header_len = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&weights[8..8 + header_len]).unwrap();
    let mut data = weights[8 + header_len..].to_vec();
    header["lm_head.weight"] =
        json!({ "dtype": "F32", "shape": [8, 32], "data_offsets": [data.len(), data.len() + 1024] });
    data.extend_from_within(..1024);
    let copy = safetensors_with(&header.to_string(), &data);
    assert!(llama(&open_tiny(&tied, &copy).unwrap()).unwrap().tied);
}

#[test]
fn other_architectures_are_refused_with_the_list_of_those_we_build() {
    let weights = safetensors(&tiny_tensors());
    for (changes, found) in [
        (json!({ "model_type": "mamba", "architectures": ["MambaForCausalLM"] }), "MambaForCausalLM"),
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

/// Every fixture, from either container.
fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_fixture_is_sound() {
    let paths = fixtures();
    assert!(paths.len() >= 8, "only {paths:?}");
    for path in paths {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let family = arch::detect(&checkpoint).unwrap();
        family.model(&checkpoint, None).map(drop).unwrap_or_else(|error| panic!("{error}"));
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
        if stem == "blocks" {
            continue; // random blocks, converted from nothing
        }
        if !arch::detect(&Checkpoint::open(path).unwrap()).is_ok_and(|family| family.name == "llama") {
            continue;
        }
        let read = |path: &Path| llama(&Checkpoint::open(path).unwrap()).unwrap();
        let (gguf, hf) = (read(path), read(&path.with_file_name(stem)));
        let sizes = |c: &Decoder| {
            [c.hidden, c.layers.count, c.heads, c.kv_heads, c.head_dim, c.ffn, c.vocab, c.context]
        };
        assert_eq!(sizes(&gguf), sizes(&hf), "{stem}");
        assert_eq!((gguf.tied, gguf.ropes[0].theta as f32), (hf.tied, hf.ropes[0].theta as f32), "{stem}");
        assert_eq!(gguf.rms_norm_eps as f32, hf.rms_norm_eps as f32, "{stem}");
        compared += 1;
    }
    assert!(compared >= 3, "only {compared} converted fixtures");
}
