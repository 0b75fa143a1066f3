//! What a checkpoint says about its tokens beside the tokeniser itself.

use bessemer_runtime::text::{Frame, TextSection, Tokenizer};
use serde_json::{Value as Json, json};

use super::*;

/// A copy of a fixture with some JSON files changed (`null` removes a file).
fn section_with(model: &str, changes: &[(&str, Json)]) -> Result<TextSection, TextImportError> {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(repository().join("fixtures/models").join(model)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    for (name, change) in changes {
        let path = folder.path().join(name);
        match change {
            Json::Null => std::fs::remove_file(path).unwrap(),
            Json::Object(keys) => {
                let old = std::fs::read(&path).unwrap_or_else(|_| b"{}".to_vec());
                let mut json: serde_json::Map<String, Json> = serde_json::from_slice(&old).unwrap();
                json.extend(keys.clone());
                std::fs::write(path, Json::Object(json).to_string()).unwrap();
            }
            text => std::fs::write(path, text.as_str().unwrap()).unwrap(),
        }
    }
    text_section(&Checkpoint::open(folder.path()).unwrap()).map(|section| section.expect("a tokeniser"))
}

const CONFIG: &str = "tokenizer_config.json";
const GENERATION: &str = "generation_config.json";

#[test]
fn no_tokeniser_is_no_section() {
    let checkpoint = Checkpoint::open(repository().join("fixtures/models/mha_untied")).unwrap();
    assert_eq!(text_section(&checkpoint).unwrap(), None);
}

#[test]
fn stop_tokens_come_from_generation_and_tokeniser() {
    let stops = |changes: &[(&str, Json)]| section_with("gqa_tied", changes).unwrap().stop_tokens;
    assert_eq!(stops(&[]), [2]);
    assert_eq!(stops(&[(GENERATION, json!({"eos_token_id": [3, 0]}))]), [0, 2, 3], "and the tokeniser's own");
    assert_eq!(stops(&[(GENERATION, Json::Null), (CONFIG, json!({"eos_token": null}))]), [2], "config.json");
    assert_eq!(stops(&[(CONFIG, json!({"eos_token": {"content": "<|eos|>", "lstrip": false}}))]), [2, 3]);
    assert_eq!(
        stops(&[
            (CONFIG, json!({"eos_token": null})),
            ("special_tokens_map.json", json!({"eos_token": "<|eos|>"}))
        ]),
        [2, 3]
    );
}

#[test]
fn bos_follows_the_configuration_before_the_post_processor() {
    let bos = |changes: &[(&str, Json)]| {
        let section = section_with("f16_sharded", changes).unwrap();
        (section.bos, section.frame.before == [1])
    };
    assert_eq!(bos(&[]), (Some(1), true));
    assert_eq!(bos(&[(CONFIG, json!({"add_bos_token": false}))]), (Some(1), false));
    assert_eq!(bos(&[(CONFIG, Json::Null)]), (Some(1), true), "the post-processor's template");
    let bare = section_with("gqa_tied", &[]).unwrap();
    assert_eq!((bare.bos, bare.frame), (Some(0), Frame::default()), "there is one, nobody adds it");
}

#[test]
fn chat_templates_from_every_place() {
    let template = |changes: &[(&str, Json)]| section_with("gqa_tied", changes).unwrap().chat_template;
    let named = json!({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]});
    assert_eq!(template(&[(CONFIG, named)]).as_deref(), Some("D"));
    assert_eq!(template(&[(CONFIG, json!({"chat_template": null}))]), None);
    assert_eq!(template(&[("chat_template.json", json!({"chat_template": "J"}))]).as_deref(), Some("J"));
    assert_eq!(template(&[("chat_template.jinja", json!("own file"))]).as_deref(), Some("own file"));
}

fn gguf(tokens: &[(&str, TokenKind, f32)]) -> GgufVocab {
    GgufVocab {
        model: "llama".into(),
        tokens: tokens.iter().map(|t| t.0.into()).collect(),
        kinds: tokens.iter().map(|t| t.1).collect(),
        scores: tokens.iter().map(|t| t.2).collect(),
        ..Default::default()
    }
}

#[test]
fn gguf_scores_say_which_piece_comes_first() {
    use TokenKind::{Byte, Control, Normal, UserDefined};
    let mut tokens =
        vec![("<s>", Control, 0.0), ("\u{2581}", Normal, -9.0), ("a", Normal, -9.0), ("b", Normal, -9.0)];
    tokens.extend([("c", Normal, -9.0), ("ab", Normal, -2.0), ("bc", Normal, -1.0), ("abc", Normal, -3.0)]);
    tokens.extend([("<user>", UserDefined, 0.0), ("<0x21>", Byte, 0.0)]);
    let vocab = GgufVocab { bos: Some(0), add_space_prefix: Some(false), ..gguf(&tokens) };
    let section = vocab.section(Path::new("x.gguf")).unwrap();
    assert_eq!(section.frame.before, [0], "this kind adds it unless told otherwise");
    let tokenizer = Tokenizer::new(section).unwrap();
    let encode = |text: &str| tokenizer.encode(text, Special::AsText).unwrap();
    assert_eq!(encode("abc"), [7], "bc, then a + bc");
    assert_eq!(encode("ab c"), [5, 1, 4]);
    assert_eq!(encode("a<user>!"), [2, 8, 9], "user-defined tokens are always found, bytes back the rest");
    let spaced = GgufVocab { bos: Some(0), ..gguf(&tokens) }.section(Path::new("x.gguf")).unwrap();
    let spaced = Tokenizer::new(spaced).unwrap();
    assert_eq!(spaced.encode("a", Special::AsText).unwrap(), [1, 2]);
    assert_eq!(spaced.decode(&[1, 2, 9]), "a!");
}

#[test]
fn gguf_stop_tokens_by_key_and_by_name() {
    use TokenKind::{Control, Normal};
    let tokens =
        [("a", Normal, 0.0), ("</s>", Control, 0.0), ("<|eot_id|>", Control, 0.0), ("<|end|>", Normal, 0.0)];
    let vocab = GgufVocab { eos: Some(1), end_of_turn: vec![0], ..gguf(&tokens) };
    assert_eq!(
        vocab.section(Path::new("x.gguf")).unwrap().stop_tokens,
        [0, 1, 2],
        "a normal token by that name is text"
    );
}

#[test]
fn words_are_cut_only_where_nothing_merges() {
    use TokenKind::Normal;
    let mut tokens = vec![("\u{2581}", Normal, -9.0), ("a", Normal, -9.0), ("\u{2581}a", Normal, -1.0)];
    let splits = |tokens: &[(&str, TokenKind, f32)]| {
        gguf(tokens).section(Path::new("x.gguf")).unwrap().tokenizer.splits.len()
    };
    assert_eq!(splits(&tokens), 1);
    tokens.push(("a\u{2581}", Normal, -2.0));
    assert_eq!(splits(&tokens), 0, "`a` joins the space behind it");
}
