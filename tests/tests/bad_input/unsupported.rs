//! Sound files that ask for what cannot be: each is refused with both sides of the mismatch and a remedy, whichever command
//! meets them first.

use super::{compile, listing, quick, refused};
use bessemer_compiler::CompileError;
use bessemer_compiler::import::ImportError;
use bessemer_format::FormatError;
use bessemer_format::manifest::Manifest;
use bessemer_format::variant::DeviceCode;
use bessemer_runtime::{Engine, EngineError};
use bessemer_tests::checkpoints::{
    safetensors, safetensors_with, tiny_config, tiny_gguf, tiny_tensors, write_directory,
};
use bessemer_tests::models::fixture;
use serde_json::{Value, json};
use std::path::PathBuf;
use tempfile::TempDir;

fn gguf(folder: &TempDir, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn directory(folder: &TempDir, config: &Value, weights: &[u8]) -> PathBuf {
    let path = folder.path().join("m");
    write_directory(&path, config, weights).unwrap();
    path
}

/// Copies a fixture of a directory, and changes one of its files.
fn changed(folder: &TempDir, name: &str, file: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let path = folder.path().join("m");
    std::fs::create_dir(&path).unwrap();
    for name_of in listing(&fixture(name)) {
        std::fs::copy(fixture(name).join(&name_of), path.join(&name_of)).unwrap();
    }
    let mut json: Value = serde_json::from_slice(&std::fs::read(path.join(file)).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path.join(file), json.to_string()).unwrap();
    path
}

#[test]
fn headers_that_reach_beyond_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let data = safetensors(&tiny_tensors());
    for claimed in [data.len() as u64, 1 << 32, i64::MAX as u64, u64::MAX] {
        let weights = [&claimed.to_le_bytes(), &data[8..]].concat();
        refused(&directory(&folder, &tiny_config(), &weights), &["model.safetensors", "fetch it again"]);
    }
    for count in [1 << 20, u64::MAX] {
        let mut file = tiny_gguf();
        file.tensor_count = Some(count);
        refused(&gguf(&folder, &file.bytes()), &["m.gguf"]);
        let mut file = tiny_gguf();
        file.entry_count = Some(count);
        refused(&gguf(&folder, &file.bytes()), &["m.gguf"]);
    }
    refused(&gguf(&folder, b"GGUF"), &["m.gguf"]);
    refused(&gguf(&folder, b""), &["m.gguf"]);
    let mut file = tiny_gguf();
    file.tensors[3].offset = Some(1 << 50);
    refused(&gguf(&folder, &file.bytes()), &["blk.0.attn_k.weight"]);
}

#[test]
fn absurd_shapes() {
    let folder = tempfile::tempdir().unwrap();
    for dims in [vec![1 << 40, 1 << 40], vec![0, 8], vec![u64::MAX], vec![32; 9], vec![]] {
        let file = tiny_gguf().edit(|tensors| tensors[0].dims = dims);
        refused(&gguf(&folder, &file.bytes()), &["token_embd.weight"]);
    }
    for shape in ["[1099511627776,1099511627776]", "[0,32]", "[-8,32]", "[8.5,32]", "[18446744073709551616]"]
    {
        let header = format!(
            r#"{{"model.embed_tokens.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[0,1024]}}}}"#
        );
        refused(
            &directory(&folder, &tiny_config(), &safetensors_with(&header, &[0; 1024])),
            &["model.safetensors"],
        );
    }
    // Sizes that only the configuration claims: refused before anything is allocated for them.
    for key in ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
    {
        for value in [json!(0), json!(-1), json!(1u64 << 31), json!(u64::MAX), json!(1e300)] {
            let mut config = tiny_config();
            config[key] = value;
            refused(&directory(&folder, &config, &safetensors(&tiny_tensors())), &[]);
        }
    }
}

#[test]
fn missing_extra_and_misshaped_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let mut fewer = tiny_tensors();
    let (gone, _) = fewer.remove(4);
    let error = refused(
        &directory(&folder, &tiny_config(), &safetensors(&fewer)),
        &[&gone, "asks for 12", "holds 11"],
    );
    assert!(matches!(error, CompileError::Import(ImportError::MissingTensors { .. })));

    let mut more = tiny_tensors();
    more.push(("model.layers.0.self_attn.q_norm.weight".into(), vec![16]));
    let error = refused(
        &directory(&folder, &tiny_config(), &safetensors(&more)),
        &["q_norm", "asks for 12", "holds 13"],
    );
    assert!(matches!(error, CompileError::Import(ImportError::UnexpectedTensors { .. })));

    let mut other = tiny_tensors();
    other[1].1 = vec![31];
    let error =
        refused(&directory(&folder, &tiny_config(), &safetensors(&other)), &[&other[1].0, "31", "32"]);
    assert!(matches!(error, CompileError::Import(ImportError::TensorShape { .. })));
}

#[test]
fn unknown_architectures() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = tiny_config();
    config["architectures"] = json!(["UnheardOfForCausalLM"]);
    config["model_type"] = json!("unheard_of");
    let error =
        refused(&directory(&folder, &config, &safetensors(&tiny_tensors())), &["nheard", "supported are"]);
    assert!(matches!(error, CompileError::Import(ImportError::UnknownArchitecture { .. })));
    let file = tiny_gguf().string("general.architecture", "unheard_of");
    let error = refused(&gguf(&folder, &file.bytes()), &["unheard_of", "supported are"]);
    assert!(matches!(error, CompileError::Import(ImportError::UnknownArchitecture { .. })));
}

/// Both have 384 rows and 380 tokens.
#[test]
fn a_tokenizer_with_more_tokens_than_the_embedding_has_rows() {
    let add = |id: u64| {
        move |json: &mut Value| {
            json["added_tokens"].as_array_mut().unwrap().push(json!({
                "id": id, "content": "<one-more>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            }));
        }
    };
    let rows = 384;
    let folder = tempfile::tempdir().unwrap();
    compile(&changed(&folder, "bf16", "tokenizer.json", add(rows - 1)), &quick()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let error = refused(&changed(&folder, "bf16", "tokenizer.json", add(rows)), &["385 tokens", "384 rows"]);
    assert!(matches!(error, CompileError::Vocabulary { tokens: 385, rows: 384 }));
}

/// Lets the CPU's variant need other features.
fn needs(manifest: &mut Manifest, features: &[&str]) {
    manifest.variants[0].device =
        DeviceCode::Cpu { features: features.iter().map(ToString::to_string).collect() };
}

/// A sound engine with another manifest.
fn resealed(change: impl FnOnce(&mut Manifest)) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = bessemer_tests::models::compile(&fixture("gqa_tied"), folder.path(), &quick()).unwrap();
    bessemer_tests::models::with_manifest(&path, change)
}

fn not_opened(bytes: &[u8], parts: &[&str]) -> EngineError {
    let error = Engine::from_bytes(bytes).map(drop).unwrap_err();
    let text = error.to_string();
    parts.iter().for_each(|part| assert!(text.contains(part), "`{part}` is not in: {text}"));
    error
}

#[test]
fn engines_for_another_machine() {
    Engine::from_bytes(&resealed(|_| {})).unwrap();
    // Names that no version knows yet count as missing.
    let bytes = resealed(|m| needs(m, &["avx1024", "telepathy"]));
    let error = not_opened(&bytes, &["avx1024, telepathy", "this host lacks", "--target cpu"]);
    assert!(matches!(error, EngineError::CpuFeatures { missing, .. } if missing.len() == 2));
    // Every host lacks one of the two.
    let bytes = resealed(|m| needs(m, &["avx2", "neon"]));
    assert!(
        matches!(not_opened(&bytes, &[]), EngineError::CpuFeatures { missing, .. } if !missing.is_empty())
    );
}

#[test]
fn engines_of_another_format() {
    let sound = resealed(|_| {});
    for (at, step) in [(8, 1), (9, 1), (10, 1), (11, 1)] {
        let mut newer = sound.clone();
        newer[at] += step;
        let error = not_opened(&newer, &["this runtime reads", "compile the model again"]);
        assert!(matches!(error, EngineError::Format(FormatError::Version { .. })));
        // Only the first 12 bytes of a later format are known to mean what they mean today.
        not_opened(&newer[..12], &["this runtime reads"]);
    }
    for other in
        [&b"GGUF\x03\0\0\0"[..], b"", b"BESSEMER", &std::fs::read(fixture("gqa_tied.mixed.gguf")).unwrap()]
    {
        not_opened(other, &["compile"]);
    }
}

#[test]
fn files_that_are_no_engine() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_path_buf(), folder.path().join("absent.engine")] {
        let error = Engine::open(&path).map(drop).unwrap_err();
        assert!(matches!(&error, EngineError::Format(FormatError::Io { .. })), "{error}");
        assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
    }
}
