//! Published vocabularies and chat templates, held to what their own libraries make of them.

use sha2::{Digest, Sha256};

use super::super::{sentencepiece, tekken};
use super::*;
use bessemer_runtime::text::{ChatTemplate, TextError};

// The tables of fixtures/generator/vocabularies.py.
const RANGES: [(u32, u32); 26] = [
    (0x20, 0x7f),
    (0x09, 0x0e),
    (0xa0, 0x250),
    (0x300, 0x340),
    (0x370, 0x378),
    (0x3a3, 0x500),
    (0x531, 0x557),
    (0x5d0, 0x5eb),
    (0x620, 0x6d0),
    (0x904, 0x93a),
    (0xe01, 0xe3b),
    (0x1100, 0x1200),
    (0x1e00, 0x1f00),
    (0x2000, 0x2065),
    (0x20a0, 0x20b0),
    (0x2190, 0x2400),
    (0x3041, 0x3097),
    (0x30a1, 0x30ff),
    (0x4e00, 0x9fa0),
    (0xac00, 0xd7a4),
    (0xf900, 0xfa0e),
    (0xff01, 0xff60),
    (0x10000, 0x1000c),
    (0x1d400, 0x1d455),
    (0x1f300, 0x1f600),
    (0x20000, 0x20100),
];
const WORDS: [&str; 25] = [
    "   ",
    "\r\n",
    "'s",
    "'LL",
    "don't",
    "'tis",
    "\u{17f}",
    "1234567",
    "²³½",
    "e\u{301}",
    "--",
    "中文",
    "한국어",
    "\u{1f999}",
    "hello",
    " World",
    "CamelCase",
    "<|im_start|>",
    "<s>",
    "Ünïcödé",
    "a.b,c;d",
    "$5.00 + 3 = <8>",
    "[CLS]",
    "\u{fffd}",
    "\u{200b}",
];

fn strings() -> Vec<String> {
    let mut state = 1u64;
    let mut below = move |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let mut text = || {
        let mut text = String::new();
        for _ in 0..=below(20) {
            if below(3) == 0 {
                text.push_str(WORDS[below(WORDS.len())]);
                continue;
            }
            let (low, high) = RANGES[below(RANGES.len())];
            let count = below(4) + 1;
            text.extend(
                (0..count).map(|_| char::from_u32(low + below((high - low) as usize) as u32).unwrap()),
            );
        }
        text
    };
    (0..2000).map(|_| text()).collect()
}

/// What differs from the golden: ids, or what they decode to.
fn difference(
    tokenizer: &Tokenizer,
    special: Special,
    texts: &[String],
    golden: &Json,
) -> Option<&'static str> {
    let (mut ids, mut decoded, mut count) = (Sha256::new(), Sha256::new(), 0);
    for text in texts {
        let encoded = tokenizer.encode(text, special).unwrap();
        count += encoded.len();
        ids.update((encoded.len() as u32).to_le_bytes());
        encoded.iter().for_each(|id| ids.update(id.to_le_bytes()));
        let plain = tokenizer.decode(&encoded);
        decoded.update((plain.len() as u32).to_le_bytes());
        decoded.update(plain);
    }
    let hex = |hasher: Sha256| hasher.finalize()[..16].iter().map(|b| format!("{b:02x}")).collect::<String>();
    let (ids, decoded) = (hex(ids), hex(decoded));
    if golden["tokens"] != json!(count) || golden["ids"] != json!(ids) {
        Some("ids")
    } else if golden["decoded"] != json!(decoded) {
        Some("decoded")
    } else {
        None
    }
}

/// Holds the vocabularies of one part of the goldens to random strings and three books; texts are encoded as `special` says.
fn check_published(part: &str, special: Special) {
    let golden = repository().join("fixtures/goldens/vocabularies.json");
    let golden: Json = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let texts = strings();
    assert_eq!(json!(texts[..3]), golden["first"], "the generators differ");
    let mut wrong = Vec::new();
    for (name, golden) in golden[part].as_object().unwrap() {
        let Some(path) = fetched(name) else { continue };
        let bytes = std::fs::read(&path).unwrap();
        let origin = Origin(&path);
        let tokens = match name {
            _ if name.ends_with(".model") => sentencepiece::read(origin, &bytes, &Default::default()),
            _ if name.contains("tekken") => tekken::read(origin, &bytes),
            _ => tokenizer_json::read(origin, &bytes),
        };
        let tokens = tokens.unwrap_or_else(|e| panic!("{name}: {e}"));
        let tokenizer = Tokenizer::new(TextSection { tokenizer: tokens.data, ..Default::default() }).unwrap();
        for (group, golden) in texts.chunks(100).zip(golden["strings"].as_array().unwrap()) {
            if let Some(what) = difference(&tokenizer, special, group, golden) {
                wrong.push(format!("{name}: a group of strings: {what}"));
            }
        }
        for (book, golden) in golden["books"].as_object().unwrap() {
            let Some(path) = fetched(&format!("gutenberg/{book}")) else { continue };
            let text = std::fs::read_to_string(path).unwrap();
            if let Some(what) = difference(&tokenizer, special, std::slice::from_ref(&text), golden) {
                wrong.push(format!("{name}: {book}: {what}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn published_vocabularies_agree_with_the_tokenizers_library() {
    check_published("vocabularies", Special::Parse);
}

/// SentencePiece and mistral-common take the names of special tokens in a text for text.
#[test]
fn published_model_files_agree_with_their_own_libraries() {
    check_published("plain", Special::AsText);
}

/// A word without any place to cut takes time in proportion to its length, more or less.
#[test]
fn long_words_take_no_square_of_their_length() {
    let tokenizer = open(&repository().join("fixtures/models/f16_sharded"));
    // The shortest of some times: what else the machine does makes none shorter.
    let time = |len: usize| {
        let text = "ab".repeat(len / 2);
        let times = (0..4).map(|_| {
            let start = std::time::Instant::now();
            tokenizer.encode(&text, Special::AsText).unwrap();
            start.elapsed().as_secs_f64()
        });
        times.fold(f64::INFINITY, f64::min)
    };
    let (short, long) = (time(20_000).max(1e-4), time(640_000));
    assert!(long < short * 32.0 * 16.0, "32 times the length takes {:.0} times as long", long / short);
}

/// Real templates render what transformers renders, errors included.
#[test]
fn chat_templates_render_as_transformers_does() {
    let folder = repository().join("fixtures/goldens/chats");
    let mut templates = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "jinja") {
            continue;
        }
        templates += 1;
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let golden: Json =
            serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
        let template = ChatTemplate::new(std::fs::read_to_string(&path).unwrap(), "<bos>", "<eos>");
        for case in golden["cases"].as_array().unwrap() {
            let messages =
                golden["conversations"][case["conversation"].as_str().unwrap()].as_array().unwrap();
            // 2025-02-03 04:05:06
            let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_738_555_506);
            let tools = if case["tools"] == json!(true) { json!([golden["tool"]]) } else { Json::Null };
            let input = ChatInput::new(messages)
                .add_generation_prompt(case["add_generation_prompt"] == json!(true))
                .tools(tools)
                .with("documents", Json::Null)
                .now(now);
            let label = format!("{name}: {case}");
            // Where Python itself gives up (an iteration over None), what we do is no matter of templates.
            if case.get("python").is_some() {
                continue;
            }
            match (template.render(&input), case["text"].as_str(), case["error"].as_str()) {
                (Ok(text), Some(expected), None) => assert_eq!(text, expected, "{label}"),
                (Err(TextError::TemplateRaised { message }), None, Some(expected)) => {
                    assert_eq!(message, expected, "{label}")
                }
                (Err(TextError::Template { .. }), None, Some(_)) => {}
                (got, ..) => panic!("{label}: {got:?}"),
            }
        }
    }
    assert!(templates >= 8, "{templates} templates");
}
