//! Normaliser, pre-tokeniser and decoder of `tokenizer.json`.

use bessemer_runtime::text::{
    Algorithm, Charsmap, NormalizeStep, Normalizer, Prefix, SplitPattern, Symbols, TokenizerData,
};
use serde_json::Value as Json;

use super::super::base64::decode as decode_base64;
use super::super::bert::{self, BertRules};
use super::super::builder::GPT2_PATTERN;
use super::super::{Origin, TextImportError};
use super::{excerpt, flag, steps, text};

const MARKER: &str = "\u{2581}";

/// Reads the normaliser.
pub(super) fn normalizer(
    origin: Origin<'_>,
    json: &Json,
    out: &mut Normalizer,
) -> Result<(), TextImportError> {
    for step in steps(json, "normalizers") {
        let is = |key: &str, value: &str| step.get(key).and_then(Json::as_str) == Some(value);
        let replace =
            |regex: &str, with: &str| NormalizeStep::replace(regex, with).map_err(|e| origin.table(e));
        let pattern = step.get("pattern").unwrap_or(&Json::Null);
        let kind = text(step, "type");
        let for_spaces = kind == "Prepend" || kind == "Replace" && is("content", MARKER);
        if out.space_marker && !for_spaces {
            return Err(origin.unsupported("normalizer", excerpt(step), "no step behind Replace ` ` by `▁`"));
        }
        match kind {
            "NFC" => out.steps.push(NormalizeStep::Nfc),
            "NFD" => out.steps.push(NormalizeStep::Nfd),
            "NFKC" => out.steps.push(NormalizeStep::Nfkc),
            "NFKD" => out.steps.push(NormalizeStep::Nfkd),
            "Lowercase" => out.steps.push(NormalizeStep::Lowercase),
            "StripAccents" => out.steps.push(replace(r"\p{M}+", "")?),
            "Strip" => {
                let side = |key: &str, regex: &'static str| flag(step, key, true).then_some(regex);
                for regex in [side("strip_left", r"^\s+"), side("strip_right", r"\s+$")].into_iter().flatten()
                {
                    out.steps.push(replace(regex, "")?);
                }
            }
            "Nmt" => {
                out.steps.push(replace(r"[\x01-\x08\x0b\x0e-\x1f\x7f\x{8f}\x{9f}]+", "")?);
                let spaces = r"[\t\n\x0c\r\x{1680}\x{200b}-\x{200f}\x{2028}\x{2029}\x{2581}\x{feff}\x{fffd}]";
                out.steps.push(replace(spaces, " ")?);
            }
            "BertNormalizer" => out.steps.extend(bert_rules(step).steps().map_err(|e| origin.table(e))?),
            "Precompiled" => {
                let bytes = decode_base64(text(step, "precompiled_charsmap"));
                let map = bytes.and_then(|bytes| Charsmap::new(&bytes));
                let wrong =
                    || origin.inconsistent("normalizer.precompiled_charsmap", "not a table of replacements");
                out.steps.push(NormalizeStep::Clusters(map.ok_or_else(wrong)?));
            }
            "Prepend" if is("prepend", MARKER) => out.prefix = Prefix::Every,
            "Replace" if is("content", MARKER) && text(pattern, "String") == " " => out.space_marker = true,
            "Replace" if step.get("content").is_some_and(Json::is_string) => {
                let literal = pattern.get("String").and_then(Json::as_str).map(escape);
                let regex = literal.or_else(|| Some(pattern.get("Regex")?.as_str()?.to_owned()));
                let wrong = || origin.inconsistent("normalizer", excerpt(step));
                out.steps.push(replace(&regex.ok_or_else(wrong)?, text(step, "content"))?);
            }
            _ => {
                let supported = "NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, Nmt, BertNormalizer, Precompiled, \
                                 Replace, Prepend `▁`";
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
    Ok(())
}

fn bert_rules(step: &Json) -> BertRules {
    let lowercase = flag(step, "lowercase", true);
    BertRules {
        clean_text: flag(step, "clean_text", true),
        split_chinese: flag(step, "handle_chinese_chars", true),
        strip_accents: flag(step, "strip_accents", lowercase),
        lowercase,
    }
}

/// Reads the pre-tokeniser; `normalizer` is the file's.
pub(super) fn pre_tokenizer(
    origin: Origin<'_>,
    json: &Json,
    normalizer: &Json,
    data: &mut TokenizerData,
) -> Result<Symbols, TextImportError> {
    let parts = steps(json, "pretokenizers");
    let mut symbols = Symbols::Chars;
    // Whether white space is dropped where words are cut.
    let mut drops_spaces = false;
    for (i, step) in parts.iter().enumerate() {
        let unsupported = |supported: &str| origin.unsupported("pre_tokenizer", excerpt(step), supported);
        let mut split = |pattern: &str, keep_gaps| {
            data.splits.push(SplitPattern::new(pattern, keep_gaps).map_err(|e| origin.table(e))?);
            Ok(())
        };
        match text(step, "type") {
            "ByteLevel" if i + 1 == parts.len() => {
                symbols = Symbols::Bytes;
                if flag(step, "add_prefix_space", true) {
                    if parts.len() > 1 {
                        return Err(unsupported("`add_prefix_space` only without other pre-tokenisers"));
                    }
                    data.normalizer.prefix = Prefix::EveryUnlessSpace;
                }
                if flag(step, "use_regex", true) {
                    split(GPT2_PATTERN, true)?;
                }
            }
            "BertPreTokenizer" => {
                let chinese = steps(normalizer, "normalizers")
                    .into_iter()
                    .any(|step| text(step, "type") == "BertNormalizer" && bert_rules(step).split_chinese);
                split(&bert::words(chinese), false)?;
                drops_spaces = true;
            }
            "WhitespaceSplit" => {
                split(r"\S+", false)?;
                drops_spaces = true;
            }
            "Whitespace" => {
                split(r"\w+|[^\w\s]+", false)?;
                drops_spaces = true;
            }
            "Punctuation" if matches!(text(step, "behavior"), "" | "Isolated") => {
                split(&format!("[{}]", bert::PUNCTUATION), true)?;
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
                let literal = pattern.get("String").and_then(Json::as_str).map(escape);
                let regex = literal.or_else(|| Some(pattern.get("Regex")?.as_str()?.to_owned()));
                split(
                    &regex.ok_or_else(|| unsupported("a pattern of kind `Regex` or `String`"))?,
                    keep_gaps,
                )?;
            }
            "Metaspace" if i + 1 == parts.len() && text(step, "replacement") == MARKER => {
                data.normalizer.space_marker = true;
                data.normalizer.prefix = match metaspace_prefix(step) {
                    Some("always") if drops_spaces => Prefix::EveryWord,
                    Some("always") if i == 0 => Prefix::EveryUnlessSpace,
                    Some("first") if i == 0 => Prefix::FirstUnlessSpace,
                    Some("never") => Prefix::None,
                    _ => {
                        return Err(unsupported(
                            "prepend_scheme `always`, `never`, or `first` if it stands alone",
                        ));
                    }
                };
                if flag(step, "split", true) && !drops_spaces {
                    split(" [^ ]*|[^ ]+", true)?;
                }
            }
            _ => {
                let supported = "Split, Digits, Punctuation, Whitespace, WhitespaceSplit, BertPreTokenizer, a last \
                                 ByteLevel, or a last Metaspace";
                return Err(unsupported(supported));
            }
        }
    }
    if let Algorithm::LongestMatch { .. } = data.algorithm {
        if symbols == Symbols::Bytes || !drops_spaces || data.normalizer.prefix != Prefix::None {
            let supported = "BertPreTokenizer or Whitespace for WordPiece";
            return Err(origin.unsupported("pre_tokenizer", excerpt(json), supported));
        }
        data.normalizer.prefix = Prefix::EveryWord;
        return Ok(symbols);
    }
    if symbols == Symbols::Chars && !data.normalizer.space_marker {
        let supported = "ByteLevel, or spaces written as `▁`";
        return Err(origin.unsupported("pre_tokenizer", excerpt(json), supported));
    }
    Ok(symbols)
}

/// Where Metaspace puts its marker; older files say it otherwise.
fn metaspace_prefix(step: &Json) -> Option<&str> {
    let old = if flag(step, "add_prefix_space", true) { "always" } else { "never" };
    match step.get("prepend_scheme") {
        None => Some(old),
        Some(scheme) => scheme.as_str(),
    }
}

/// Reads the decoder. Apart from a leading space everything that it may do is what the runtime does anyway.
pub(super) fn decoder(
    origin: Origin<'_>,
    json: &Json,
    symbols: Symbols,
    data: &mut TokenizerData,
) -> Result<(), TextImportError> {
    let is_word_piece = matches!(data.algorithm, Algorithm::LongestMatch { .. });
    data.strip_leading_space = is_word_piece;
    for step in steps(json, "decoders") {
        let count = |key: &str| step.get(key).and_then(Json::as_u64);
        match (symbols, text(step, "type")) {
            (Symbols::Bytes, "ByteLevel") | (Symbols::Chars, "ByteFallback" | "Fuse") => {}
            (Symbols::Chars, "WordPiece") if is_word_piece => {
                data.join_punctuation = flag(step, "cleanup", true)
            }
            (Symbols::Chars, "Replace") if text(step, "content") == " " => {}
            (Symbols::Chars, "Strip") if text(step, "content") == " " && count("stop") == Some(0) => {
                data.strip_leading_space = count("start") == Some(1);
            }
            (Symbols::Chars, "Metaspace") => {
                data.strip_leading_space = metaspace_prefix(step) != Some("never")
            }
            _ => {
                let supported =
                    "ByteLevel, WordPiece, or Replace, ByteFallback, Fuse, Strip of one space, Metaspace";
                return Err(origin.unsupported("decoder", excerpt(step), supported));
            }
        }
    }
    Ok(())
}

/// A regular expression that matches exactly `text`.
fn escape(text: &str) -> String {
    text.chars().flat_map(|c| c.is_ascii_punctuation().then_some('\\').into_iter().chain([c])).collect()
}
