//! Tokenisers in files of their own: SentencePiece's `tokenizer.model`, and `tekken.json`.

use std::path::Path;

use serde_json::json;

use super::super::{sentencepiece, tekken};
use super::*;

/// A model without a tokeniser, with these files beside it.
fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(repository().join("fixtures/models/mha_untied")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(repository().join("fixtures/tokenizers").join(name)).unwrap()
}

fn check(kind: &str, tokenizer: &Tokenizer) {
    let golden = repository().join(format!("fixtures/goldens/sentencepiece_{kind}.json"));
    let golden: Json = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 70);
    for case in cases {
        let (text, expected) = (case["text"].as_str().unwrap(), ids(&case["ids"]));
        assert_eq!(tokenizer.encode(text, Special::AsText).unwrap(), expected, "{kind}: {text:?}");
        if let Some(decoded) = case["decoded"].as_str() {
            assert_eq!(tokenizer.decode(&expected), decoded, "{kind}: {text:?}");
        }
    }
}

#[test]
fn model_files_match_sentencepiece() {
    for kind in ["bpe", "unigram"] {
        let folder = directory(&[("tokenizer.model", &fixture(&format!("{kind}.model")))]);
        let tokenizer = open(folder.path());
        check(kind, &tokenizer);
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
        assert_eq!(tokenizer.frame().before, [1]);
        let special = tokenizer.encode("<s> a", Special::Parse).unwrap();
        assert_eq!(special[0], 1, "{kind}: on request the name of a control token is the token");
    }
}

#[test]
fn gguf_metadata_of_a_unigram_model_match_sentencepiece() {
    let tokenizer = open(&repository().join("fixtures/tokenizers/unigram.gguf"));
    check("unigram", &tokenizer);
    assert_eq!(tokenizer.frame().after, [2], "this kind ends with </s>");
}

#[test]
fn files_beside_a_model_file_add_tokens_and_say_where_spaces_go() {
    let model = fixture("bpe.model");
    let config = json!({
        "legacy": false,
        "add_bos_token": false,
        "eos_token": "<|end|>",
        "added_tokens_decoder": {
            "1": {"content": "<s>", "special": true},
            "420": {"content": "<|end|>", "special": true, "rstrip": true},
            "421": {"content": "<|tool|>", "special": false},
        },
    });
    let config = config.to_string();
    let folder = directory(&[("tokenizer.model", &model), ("tokenizer_config.json", config.as_bytes())]);
    let tokenizer = open(folder.path());
    let encode = |text: &str, special| tokenizer.encode(text, special).unwrap();
    assert_eq!((tokenizer.eos(), tokenizer.frame().before.len()), (Some(420), 0));
    let a = encode("a", Special::AsText);
    let parsed = encode("a<|end|>  a<|tool|>", Special::Parse);
    assert_eq!((parsed[0], parsed.last()), (a[0], Some(&421)));
    assert!(parsed.contains(&420));
    assert!(!encode("<|end|>", Special::AsText).contains(&420));
    let plain = open(directory(&[("tokenizer.model", &model)]).path());
    let first = |tokenizer: &Tokenizer| tokenizer.encode("<s>a", Special::Parse).unwrap()[1];
    assert_ne!(first(&plain), first(&tokenizer), "`legacy: false` puts no space behind a special token");
    let names = json!({"<extra>": 420}).to_string();
    let folder = directory(&[("tokenizer.model", &model), ("added_tokens.json", names.as_bytes())]);
    assert_eq!(open(folder.path()).encode("<extra>", Special::Parse).unwrap(), [420]);
}

#[test]
fn damaged_model_files_give_errors_or_some_tokeniser() {
    let origin = Origin(Path::new("tokenizer.model"));
    let read = |bytes: &[u8]| sentencepiece::read(origin, bytes, &Default::default());
    assert!(matches!(read(b"{}"), Err(TextImportError::Inconsistent { .. })));
    assert!(matches!(read(b""), Err(TextImportError::Inconsistent { .. })));
    for kind in ["bpe.model", "unigram.model"] {
        let bytes = fixture(kind);
        let mut state = 1u64;
        for _ in 0..600 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let mut changed = bytes.clone();
            let at = (state >> 33) as usize % bytes.len();
            match state >> 60 & 1 {
                0 => changed.truncate(at),
                _ => changed[at] ^= 1 << (state >> 61),
            }
            let Ok(tokens) = read(&changed) else { continue };
            let section = TextSection { tokenizer: tokens.data, ..Default::default() };
            let tokenizer = Tokenizer::new(section).unwrap();
            tokenizer.encode("The 1st <s> caf\u{e9}  girl", Special::Parse).unwrap();
        }
    }
}

#[test]
fn models_that_are_not_built_are_named() {
    // trainer_spec { model_type: WORD }, and a piece.
    let word = [0x0a, 3, 0x0a, 1, b'a', 0x12, 2, 0x18, 3];
    let error = sentencepiece::read(Origin(Path::new("m")), &word, &Default::default()).unwrap_err();
    assert!(error.to_string().contains("WORD"), "{error}");
}

/// All bytes, and what `pairs` join to.
fn tekken_file(pairs: &[&str]) -> Json {
    let base64 = |bytes: &[u8]| {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for group in bytes.chunks(3) {
            let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(*group.get(i).unwrap_or(&0)));
            let digits = (0..4).map(|i| DIGITS[(bits >> (18 - 6 * i)) as usize & 63] as char);
            text.extend(digits.take(group.len() + 1));
            text.extend(std::iter::repeat_n('=', 3 - group.len()));
        }
        text
    };
    let bytes = (0..=255u8).map(|byte| vec![byte]).chain(pairs.iter().map(|text| text.as_bytes().to_vec()));
    let vocab: Vec<Json> =
        bytes.enumerate().map(|(rank, token)| json!({"rank": rank, "token_bytes": base64(&token)})).collect();
    let config = json!({"pattern": r" ?\w+|\s+|[^\w\s]+", "default_vocab_size": 3 + vocab.len(), "default_num_special_tokens": 3});
    json!({"config": config, "vocab": vocab})
}

#[test]
fn tekken_files_join_by_rank() {
    let tekken = tekken_file(&["bc", "ab", "abc", " a"]).to_string();
    let tokenizer = open(directory(&[("tekken.json", tekken.as_bytes())]).path());
    let encode = |text: &str| tokenizer.encode(text, Special::AsText).unwrap();
    let byte = |b: u8| 3 + u32::from(b);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_len()), (Some(1), Some(2), 3 + 260));
    assert_eq!(tokenizer.frame().before, [1]);
    assert_eq!(encode("abcd"), [3 + 258, byte(b'd')], "bc first, then a + bc");
    assert_eq!(encode("abd a"), [3 + 257, byte(b'd'), 3 + 259]);
    assert_eq!(encode("<s>").len(), 3, "text, unless asked");
    assert_eq!(tokenizer.encode("<s>a", Special::Parse).unwrap(), [1, byte(b'a')]);
    assert_eq!(tokenizer.decode(&encode("caf\u{e9} abc!")), "caf\u{e9} abc!");
}

#[test]
fn contradictions_of_a_tekken_file_are_errors() {
    let read = |json: &Json| tekken::read(Origin(Path::new("tekken.json")), json.to_string().as_bytes());
    assert!(read(&tekken_file(&[])).is_ok());
    for (pointer, value) in [
        ("/vocab/7/rank", json!(8)),
        ("/vocab/7/token_bytes", json!("?")),
        ("/config/default_vocab_size", json!(1000)),
        ("/config/default_vocab_size", json!(2)),
    ] {
        let mut json = tekken_file(&[]);
        *json.pointer_mut(pointer).unwrap() = value;
        let error = read(&json).err().unwrap_or_else(|| panic!("{pointer}"));
        assert!(matches!(error, TextImportError::Inconsistent { .. }), "{pointer}: {error}");
    }
}
