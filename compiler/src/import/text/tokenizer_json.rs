//! `tokenizer.json`, the serialised pipeline of Hugging Face's tokenizers library.

use std::collections::BTreeMap;

use bessemer_runtime::text::{
    AddedToken, Merge, Normalizer, Prefix, SPACE_MARKER, SplitPattern, Symbols, TokenizerData,
};
use serde::Deserialize;
use serde_json::Value as Json;

use super::builder::{GPT2_PATTERN, NamedVocab};
use super::{Origin, TextImportError};

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Json,
    #[serde(default)]
    pre_tokenizer: Json,
    #[serde(default)]
    post_processor: Json,
    #[serde(default)]
    decoder: Json,
    model: Json,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Bpe {
    vocab: BTreeMap<String, u32>,
    merges: Vec<Pair>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// Two names, joined by a space in older files.
#[derive(Deserialize)]
#[serde(untagged)]
enum Pair {
    Two(String, String),
    Joined(String),
}

impl Pair {
    fn parts(&self) -> Option<(&str, &str)> {
        match self {
            Pair::Two(left, right) => Some((left, right)),
            Pair::Joined(text) => text.split_once(' '),
        }
    }
}

/// What `tokenizer.json` says.
pub(super) struct Pipeline {
    pub data: TokenizerData,
    /// Token that the post-processor puts in front.
    pub bos: Option<u32>,
    /// Names of all tokens, for the files that name them.
    pub ids: BTreeMap<String, u32>,
}

/// Reads the file.
pub(super) fn read(origin: Origin<'_>, bytes: &[u8]) -> Result<Pipeline, TextImportError> {
    let file: File = serde_json::from_slice(bytes).map_err(|e| origin.json(e))?;
    let kind = text(&file.model, "type");
    // Files of the library's first versions do not name the model; only BPE has merges.
    if !(kind == "BPE" || kind.is_empty() && file.model.get("merges").is_some()) {
        return Err(origin.unsupported("model", format!("`{kind}`"), "`BPE`"));
    }
    let model: Bpe = serde_json::from_value(file.model).map_err(|e| origin.json(e))?;
    let affix = |name, value: &Option<String>| match value.as_deref() {
        None | Some("") => Ok(()),
        Some(text) => Err(origin.unsupported(name, format!("`{text}`"), "none")),
    };
    affix("model.continuing_subword_prefix", &model.continuing_subword_prefix)?;
    affix("model.end_of_word_suffix", &model.end_of_word_suffix)?;
    if let Some(dropout) = model.dropout.filter(|&d| d != 0.0) {
        return Err(origin.unsupported("model.dropout", dropout.to_string(), "none"));
    }

    let mut data = TokenizerData {
        whole_words: model.ignore_merges,
        fuse_unknown: model.fuse_unk,
        ..Default::default()
    };
    let normalizes = normalizer(origin, &file.normalizer, &mut data.normalizer)?;
    let symbols = pre_tokenizer(origin, &file.pre_tokenizer, &mut data)?;
    data.strip_leading_space = decoder(origin, &file.decoder, symbols)?;
    data.unknown = match &model.unk_token {
        Some(name) => Some(*model.vocab.get(name).ok_or_else(|| {
            origin.inconsistent("model.unk_token", format!("`{name}` is not in the vocabulary"))
        })?),
        None => None,
    };

    let added: Result<Vec<AddedToken>, _> =
        file.added_tokens.iter().map(|t| added_token(origin, t, normalizes, &data.normalizer)).collect();
    let vocab = NamedVocab {
        origin,
        symbols,
        byte_fallback: model.byte_fallback,
        ids: model.vocab.iter().map(|(name, &id)| (name.as_str(), id)).collect(),
        added: added?,
    };
    vocab.fill(&mut data, merges(origin, &model)?)?;
    let mut ids: BTreeMap<String, u32> =
        file.added_tokens.iter().map(|t| (t.content.clone(), t.id)).collect();
    let bos = bos(&file.post_processor, &ids, &model.vocab);
    ids.extend(model.vocab);
    Ok(Pipeline { data, bos, ids })
}

fn merges(origin: Origin<'_>, model: &Bpe) -> Result<Vec<Merge>, TextImportError> {
    let mut merges = Vec::with_capacity(model.merges.len());
    for (rank, pair) in (0..).zip(&model.merges) {
        let wrong = |detail: String| origin.inconsistent(format!("model.merges[{rank}]"), detail);
        let (left, right) = pair.parts().ok_or_else(|| wrong("not two tokens".to_owned()))?;
        let id = |name: &str| {
            model.vocab.get(name).copied().ok_or_else(|| wrong(format!("`{name}` is not in the vocabulary")))
        };
        merges.push(Merge {
            left: id(left)?,
            right: id(right)?,
            merged: id(&format!("{left}{right}"))?,
            rank,
        });
    }
    Ok(merges)
}

/// The string under `key`, or nothing.
fn text<'j>(json: &'j Json, key: &str) -> &'j str {
    json.get(key).and_then(Json::as_str).unwrap_or_default()
}

fn flag(json: &Json, key: &str, default: bool) -> bool {
    json.get(key).and_then(Json::as_bool).unwrap_or(default)
}

/// The steps of a component: a sequence's members in order, one component as itself, none for null.
fn steps<'j>(json: &'j Json, members: &str) -> Vec<&'j Json> {
    match json {
        Json::Null => Vec::new(),
        _ if text(json, "type") == "Sequence" => {
            let parts = json.get(members).and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
            parts.iter().flat_map(|part| steps(part, members)).collect()
        }
        _ => vec![json],
    }
}

/// Whether the normaliser changes spaces, which makes it matter on which side of it a token is looked for.
fn normalizer(origin: Origin<'_>, json: &Json, out: &mut Normalizer) -> Result<bool, TextImportError> {
    for step in steps(json, "normalizers") {
        let is = |key: &str, value: &str| step.get(key).and_then(Json::as_str) == Some(value);
        let pattern = step.get("pattern").and_then(|p| p.get("String")).and_then(Json::as_str);
        match text(step, "type") {
            "NFC" => out.nfc = true,
            "Prepend" if is("prepend", MARKER) => out.prefix = Prefix::Every,
            "Replace" if pattern == Some(" ") && is("content", MARKER) => out.space_marker = true,
            _ => {
                let supported = "NFC, Prepend `▁`, Replace ` ` by `▁`";
                return Err(origin.unsupported("normalizer", excerpt(step), supported));
            }
        }
    }
    if out.prefix != Prefix::None && !out.space_marker {
        return Err(origin.unsupported(
            "normalizer",
            "Prepend `▁` alone",
            "Prepend together with Replace ` ` by `▁`",
        ));
    }
    Ok(out.space_marker)
}

const MARKER: &str = "\u{2581}";

fn pre_tokenizer(
    origin: Origin<'_>,
    json: &Json,
    data: &mut TokenizerData,
) -> Result<Symbols, TextImportError> {
    let steps = steps(json, "pretokenizers");
    let mut symbols = Symbols::Chars;
    for (i, step) in steps.iter().enumerate() {
        let unsupported = |supported: &str| origin.unsupported("pre_tokenizer", excerpt(step), supported);
        let mut split = |pattern: &str, keep_gaps| {
            data.splits.push(SplitPattern::new(pattern, keep_gaps).map_err(|e| origin.table(e))?);
            Ok(())
        };
        match text(step, "type") {
            "ByteLevel" if i + 1 == steps.len() => {
                symbols = Symbols::Bytes;
                if flag(step, "add_prefix_space", true) {
                    if steps.len() > 1 {
                        return Err(unsupported("`add_prefix_space` only without other pre-tokenisers"));
                    }
                    data.normalizer.prefix = Prefix::EveryUnlessSpace;
                }
                if flag(step, "use_regex", true) {
                    split(GPT2_PATTERN, true)?;
                }
            }
            "Digits" => {
                split(if flag(step, "individual_digits", false) { r"\p{N}" } else { r"\p{N}+" }, true)?
            }
            "Split" => {
                let pattern = step.get("pattern").unwrap_or(&Json::Null);
                let keep_gaps = match (text(step, "behavior"), flag(step, "invert", false)) {
                    ("Isolated", _) => true,
                    ("Removed", true) => false,
                    // Gemma's split at spaces comes after they have all become markers: it finds nothing.
                    _ if text(pattern, "String") == " " && data.normalizer.space_marker => continue,
                    _ => return Err(unsupported("behavior `Isolated`, or `Removed` with invert")),
                };
                match pattern.get("Regex").and_then(Json::as_str) {
                    Some(regex) => split(regex, keep_gaps)?,
                    None => return Err(unsupported("a pattern of kind `Regex`")),
                }
            }
            "Metaspace" if steps.len() == 1 && text(step, "replacement") == MARKER => {
                data.normalizer.space_marker = true;
                let old = if flag(step, "add_prefix_space", true) { "always" } else { "never" };
                let scheme = step.get("prepend_scheme").and_then(Json::as_str).unwrap_or(old);
                data.normalizer.prefix = match scheme {
                    "always" => Prefix::EveryUnlessSpace,
                    "first" => Prefix::FirstUnlessSpace,
                    "never" => Prefix::None,
                    _ => return Err(unsupported("prepend_scheme `always`, `first` or `never`")),
                };
                if flag(step, "split", true) {
                    split(" [^ ]*|[^ ]+", true)?;
                }
            }
            _ => return Err(unsupported("Split, Digits, a last ByteLevel, or a lone Metaspace")),
        }
    }
    if symbols == Symbols::Chars && !data.normalizer.space_marker {
        let supported = "ByteLevel, or spaces written as `▁`";
        return Err(origin.unsupported("pre_tokenizer", excerpt(json), supported));
    }
    Ok(symbols)
}

/// Whether decoding drops a leading space. Everything else that a decoder may do is what the runtime does anyway.
fn decoder(origin: Origin<'_>, json: &Json, symbols: Symbols) -> Result<bool, TextImportError> {
    let mut strip = false;
    for step in steps(json, "decoders") {
        let count = |key: &str| step.get(key).and_then(Json::as_u64);
        match (symbols, text(step, "type")) {
            (Symbols::Bytes, "ByteLevel") | (Symbols::Chars, "ByteFallback" | "Fuse") => {}
            (Symbols::Chars, "Replace") if text(step, "content") == " " => {}
            (Symbols::Chars, "Strip") if text(step, "content") == " " && count("stop") == Some(0) => {
                strip = count("start") == Some(1);
            }
            (Symbols::Chars, "Metaspace") => {
                let old = if flag(step, "add_prefix_space", true) { "always" } else { "never" };
                strip = step.get("prepend_scheme").and_then(Json::as_str).unwrap_or(old) != "never";
            }
            _ => {
                let supported = "ByteLevel, or Replace, ByteFallback, Fuse, Strip of one space, Metaspace";
                return Err(origin.unsupported("decoder", excerpt(step), supported));
            }
        }
    }
    Ok(strip)
}

fn added_token(
    origin: Origin<'_>,
    token: &Added,
    normalizes: bool,
    normalizer: &Normalizer,
) -> Result<AddedToken, TextImportError> {
    if token.single_word {
        let found = format!("`{}` with single_word", token.content);
        return Err(origin.unsupported("added_tokens", found, "tokens without single_word"));
    }
    let normalized = token.normalized && normalizes;
    let mut text = token.content.clone();
    if normalized {
        text = text.replace(SPACE_MARKER, " ");
        if normalizer.prefix == Prefix::Every {
            text.insert(0, ' ');
        }
    }
    let Added { id, special, lstrip, rstrip, .. } = *token;
    Ok(AddedToken { id, text, special, normalized, lstrip, rstrip })
}

/// The special token that the post-processor's template begins with.
fn bos(json: &Json, added: &BTreeMap<String, u32>, vocab: &BTreeMap<String, u32>) -> Option<u32> {
    let template =
        steps(json, "processors").into_iter().find(|step| text(step, "type") == "TemplateProcessing")?;
    let name = template.get("single")?.get(0)?.get("SpecialToken")?.get("id")?.as_str()?;
    added.get(name).or_else(|| vocab.get(name)).copied()
}

/// A component as the file spells it, short enough for a message.
fn excerpt(json: &Json) -> String {
    let text = json.to_string();
    match text.char_indices().nth(160) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
