//! What is not built, or does not fit together, is an error that names it.

use std::path::Path;

use bessemer_runtime::text::{Frame, TextError};
use serde_json::{Value as Json, json};

use super::super::tokenizer_json;
use super::*;

fn fixture(model: &str) -> Json {
    let path = repository().join("fixtures/models").join(model).join("tokenizer.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn read(json: &Json) -> Result<(), TextImportError> {
    tokenizer_json::read(Origin(Path::new("tokenizer.json")), json.to_string().as_bytes()).map(|_| ())
}

#[test]
fn components_that_are_not_built_are_named() {
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
    let cases = [
        ("model", "/model/type", json!("WordLevel")),
        ("model.dropout", "/model/dropout", json!(0.1)),
        ("model.end_of_word_suffix", "/model/end_of_word_suffix", json!("</w>")),
        ("model.continuing_subword_prefix", "/model/continuing_subword_prefix", json!("##")),
        ("normalizer", "/normalizer", json!({"type": "ByteLevel"})),
        ("normalizer", "/normalizer", json!({"type": "Prepend", "prepend": "\u{2581}"})),
        ("pre_tokenizer", "/pre_tokenizer", json!({"type": "Whitespace"})),
        ("pre_tokenizer", "/pre_tokenizer", Json::Null),
        (
            "pre_tokenizer",
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [byte_level, {"type": "Digits"}]}),
        ),
        (
            "pre_tokenizer",
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "MergedWithNext", "invert": false}),
        ),
        ("decoder", "/decoder", json!({"type": "WordPiece"})),
        ("added_tokens", "/added_tokens/0/single_word", json!(true)),
    ];
    assert!(read(&fixture("gqa_tied")).is_ok());
    for (expected, pointer, value) in cases {
        let mut json = fixture("gqa_tied");
        *json.pointer_mut(pointer).unwrap() = value;
        match read(&json) {
            Err(TextImportError::Unsupported { component, .. }) => {
                assert_eq!(component, expected, "{pointer}")
            }
            other => panic!("{pointer}: {other:?}"),
        }
    }
}

#[test]
fn patterns_that_automata_cannot_match_are_errors() {
    let mut json = fixture("bf16");
    *json.pointer_mut("/pre_tokenizer/pretokenizers/0/pattern/Regex").unwrap() = json!(r"(?<=a)b|\s+");
    let error = read(&json).unwrap_err();
    assert!(matches!(&error, TextImportError::Table { source: TextError::Pattern { .. }, .. }), "{error}");
}

#[test]
fn contradictions_are_errors() {
    let cases = [
        ("/model/merges/0", json!(["h", "no such token"])),
        ("/model/merges/0", json!("he")),
        ("/model/unk_token", json!("<none>")),
        ("/model/vocab/!", json!(4_000_000_000u32)),
        ("/added_tokens/0/id", json!(4_000_000_000u32)),
    ];
    for (pointer, value) in cases {
        let mut json = fixture("gqa_tied");
        *json.pointer_mut(pointer).unwrap() = value;
        let error = read(&json).unwrap_err();
        assert!(matches!(error, TextImportError::Inconsistent { .. }), "{pointer}: {error}");
    }
}

#[test]
fn damaged_files_give_errors_or_some_tokeniser() {
    for model in ["gqa_tied", "f16_sharded", "bf16"] {
        let path = repository().join("fixtures/models").join(model).join("tokenizer.json");
        let bytes = std::fs::read(&path).unwrap();
        let mut state = 1u64;
        for _ in 0..400 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (state >> 33) as usize % bytes.len();
            assert!(tokenizer_json::read(Origin(&path), &bytes[..at]).is_err(), "cut at {at}");
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (state >> 61);
            let Ok(pipeline) = tokenizer_json::read(Origin(&path), &flipped) else { continue };
            let section =
                bessemer_runtime::text::TextSection { tokenizer: pipeline.data, ..Default::default() };
            Tokenizer::new(section).unwrap().encode("The 1st <s> caf\u{e9}", Special::Parse).unwrap();
        }
    }
}

fn gguf() -> GgufVocab {
    GgufVocab {
        model: "gpt2".into(),
        tokens: ["a", "b", "ab"].map(String::from).to_vec(),
        ..Default::default()
    }
}

fn section(vocab: GgufVocab) -> Result<bessemer_runtime::text::TextSection, TextImportError> {
    vocab.section(Path::new("model.gguf"))
}

#[test]
fn gguf_kinds_that_are_not_built_are_named() {
    assert!(section(gguf()).is_ok());
    let pre = section(GgufVocab { pre: Some("klingon".into()), ..gguf() }).unwrap_err();
    assert!(pre.to_string().contains("`klingon`") && pre.to_string().contains("llama-bpe"), "{pre}");
    let model = section(GgufVocab { model: "rwkv".into(), ..gguf() }).unwrap_err();
    assert!(matches!(&model, TextImportError::Unsupported { found, .. } if found == "`rwkv`"), "{model}");
}

/// As `bert-base-uncased`, with a few tokens.
fn word_piece() -> Json {
    let names =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "##s", "world", ".", "e", "\u{4e2d}", "\u{3c3}"];
    let vocab: serde_json::Map<String, Json> =
        names.iter().zip(0..).map(|(n, i)| (n.to_string(), json!(i))).collect();
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    let added = |id: u32| json!({"id": id, "content": names[id as usize], "special": true});
    json!({
        "added_tokens": [added(0), added(1), added(2), added(3)],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("[CLS]"), text("A"), special("[SEP]")],
            "pair": [special("[CLS]"), text("A"), special("[SEP]"), text("B"), special("[SEP]")],
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab},
    })
}

#[test]
fn word_piece_as_the_tokenizers_library_does_it() {
    let path = Path::new("tokenizer.json");
    let pipeline = tokenizer_json::read(Origin(path), word_piece().to_string().as_bytes()).unwrap();
    assert_eq!(pipeline.frame, Frame { before: vec![2], between: vec![3], after: vec![3] });
    let section = bessemer_runtime::text::TextSection { tokenizer: pipeline.data, ..Default::default() };
    let tokenizer = Tokenizer::new(section).unwrap();
    let encode = |text: &str| tokenizer.encode(text, Special::AsText).unwrap();
    assert_eq!(encode("Hello, HELLOS world."), [4, 1, 4, 5, 6, 7]);
    assert_eq!(encode("\u{e9} h\u{e9}llo\u{200b}s\u{4e2d}world \u{3a3}"), [8, 4, 5, 9, 6, 10]);
    assert_eq!(encode(&"s".repeat(101)), [1]);
    assert_eq!(tokenizer.encode("[CLS] world", Special::Parse).unwrap(), [2, 6]);
    assert_eq!(tokenizer.decode(&[2, 4, 5, 6, 7, 3]), "hellos world.");
    let mut odd = word_piece();
    odd["pre_tokenizer"] = json!({"type": "ByteLevel"});
    assert!(matches!(read(&odd), Err(TextImportError::Unsupported { .. })));
}

#[test]
fn gguf_contradictions_are_errors() {
    let llama = GgufVocab { model: "llama".into(), scores: vec![0.0, -1.0, -2.0], ..gguf() };
    assert!(section(llama.clone()).is_ok());
    let cases = [
        GgufVocab { tokens: Vec::new(), ..gguf() },
        GgufVocab { kinds: vec![TokenKind::Normal], ..gguf() },
        GgufVocab { merges: vec!["a c".into()], ..gguf() },
        GgufVocab { merges: vec!["ab".into()], ..gguf() },
        GgufVocab { eos: Some(3), ..gguf() },
        GgufVocab { end_of_turn: vec![9], ..gguf() },
        GgufVocab { scores: Vec::new(), ..llama.clone() },
        GgufVocab { scores: vec![0.0; 2], ..llama.clone() },
        GgufVocab { scores: vec![0.0, f32::NAN, 0.0], ..llama },
    ];
    for vocab in cases {
        let error = section(vocab.clone()).unwrap_err();
        assert!(matches!(error, TextImportError::Inconsistent { .. }), "{vocab:?}: {error}");
    }
}
