//! The model of `tokenizer.json`: how words become tokens.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bessemer_runtime::text::{Algorithm, Merge, TokenizerData};
use serde::Deserialize;
use serde_json::Value as Json;

use super::super::sentencepiece::UNKNOWN_PENALTY;
use super::super::{Origin, TextImportError};
use super::text;

pub(super) enum Model {
    Bpe(Bpe),
    WordPiece(WordPiece),
    Unigram(Unigram),
}

#[derive(Deserialize)]
pub(super) struct Bpe {
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

#[derive(Deserialize)]
pub(super) struct WordPiece {
    vocab: BTreeMap<String, u32>,
    unk_token: String,
    #[serde(default = "continuing")]
    continuing_subword_prefix: String,
    #[serde(default = "max_chars")]
    max_input_chars_per_word: u32,
}

fn continuing() -> String {
    "##".to_owned()
}

fn max_chars() -> u32 {
    100
}

#[derive(Deserialize)]
pub(super) struct Unigram {
    vocab: Vec<(String, f64)>,
    unk_id: Option<u32>,
    #[serde(default)]
    byte_fallback: bool,
}

impl Model {
    pub(super) fn read(origin: Origin<'_>, json: Json) -> Result<Self, TextImportError> {
        let has = |key: &str| json.get(key).is_some();
        // Files of the library's first versions do not name the model.
        let kind = match text(&json, "type") {
            "" if has("merges") => "BPE",
            "" if has("continuing_subword_prefix") => "WordPiece",
            "" if has("unk_id") => "Unigram",
            named => named,
        };
        let wrong = |e| origin.json(e);
        Ok(match kind {
            "BPE" => Model::Bpe(serde_json::from_value(json).map_err(wrong)?),
            "WordPiece" => Model::WordPiece(serde_json::from_value(json).map_err(wrong)?),
            "Unigram" => Model::Unigram(serde_json::from_value(json).map_err(wrong)?),
            other => {
                let supported = "`BPE`, `WordPiece`, `Unigram`";
                return Err(origin.unsupported("model", format!("`{other}`"), supported));
            }
        })
    }

    /// The rules of the tokeniser, as far as the model says them.
    pub(super) fn rules(&self, origin: Origin<'_>) -> Result<TokenizerData, TextImportError> {
        let mut data = TokenizerData::default();
        match self {
            Model::Bpe(model) => {
                let affix = |name, value: &Option<String>| match value.as_deref() {
                    None | Some("") => Ok(()),
                    Some(text) => Err(origin.unsupported(name, format!("`{text}`"), "none")),
                };
                affix("model.continuing_subword_prefix", &model.continuing_subword_prefix)?;
                affix("model.end_of_word_suffix", &model.end_of_word_suffix)?;
                if let Some(dropout) = model.dropout.filter(|&d| d != 0.0) {
                    return Err(origin.unsupported("model.dropout", dropout.to_string(), "none"));
                }
                data.whole_words = model.ignore_merges;
                data.fuse_unknown = model.fuse_unk;
                data.unknown =
                    model.unk_token.as_deref().map(|t| unknown(origin, &model.vocab, t)).transpose()?;
            }
            Model::WordPiece(model) => {
                data.algorithm = Algorithm::LongestMatch { max_chars: model.max_input_chars_per_word };
                data.unknown = Some(unknown(origin, &model.vocab, &model.unk_token)?);
            }
            Model::Unigram(model) => {
                let scores = model.vocab.iter().map(|(_, score)| *score);
                if let Some(id) = scores.clone().position(|s| !s.is_finite()) {
                    return Err(
                        origin.inconsistent("model.vocab", format!("the score of token {id} is no number"))
                    );
                }
                if let Some(id) = model.unk_id.filter(|&id| id as usize >= model.vocab.len()) {
                    let detail = format!("{id}, there are {} tokens", model.vocab.len());
                    return Err(origin.inconsistent("model.unk_id", detail));
                }
                let worst = scores.clone().fold(f64::INFINITY, f64::min).min(f64::from(f32::MAX));
                data.algorithm = Algorithm::MostProbable {
                    scores: scores.map(|s| (s as f32).to_bits()).collect(),
                    unknown: (worst - UNKNOWN_PENALTY) as f32,
                };
                data.unknown = model.unk_id;
                data.fuse_unknown = true;
            }
        }
        Ok(data)
    }

    /// Tokens by the names that SentencePiece would give them. WordPiece marks what continues a word, SentencePiece what begins one.
    pub(super) fn spelled(&self) -> Vec<(Cow<'_, str>, u32)> {
        match self {
            Model::Bpe(model) => model.vocab.iter().map(|(name, id)| (name.into(), *id)).collect(),
            Model::WordPiece(model) => {
                let spell = |name: &'_ String| match name.strip_prefix(&model.continuing_subword_prefix) {
                    Some(rest) => rest.to_owned().into(),
                    None => format!("\u{2581}{name}").into(),
                };
                model.vocab.iter().map(|(name, id)| (spell(name), *id)).collect()
            }
            Model::Unigram(model) => model.vocab.iter().map(|(name, _)| name.into()).zip(0..).collect(),
        }
    }

    pub(super) fn byte_fallback(&self) -> bool {
        match self {
            Model::Bpe(model) => model.byte_fallback,
            Model::WordPiece(_) => false,
            Model::Unigram(model) => model.byte_fallback,
        }
    }

    /// The merges of byte-pair encoding, best first.
    pub(super) fn merges(&self, origin: Origin<'_>) -> Result<Vec<Merge>, TextImportError> {
        let Model::Bpe(model) = self else { return Ok(Vec::new()) };
        let mut merges = Vec::with_capacity(model.merges.len());
        for (rank, pair) in (0..).zip(&model.merges) {
            let wrong = |detail: String| origin.inconsistent(format!("model.merges[{rank}]"), detail);
            let (left, right) = pair.parts().ok_or_else(|| wrong("not two tokens".to_owned()))?;
            let id = |name: &str| {
                let id = model.vocab.get(name).copied();
                id.ok_or_else(|| wrong(format!("`{name}` is not in the vocabulary")))
            };
            let merged = id(&format!("{left}{right}"))?;
            merges.push(Merge { left: id(left)?, right: id(right)?, merged, rank });
        }
        Ok(merges)
    }

    /// Tokens by the names that the file gives them.
    pub(super) fn into_names(self) -> BTreeMap<String, u32> {
        match self {
            Model::Bpe(model) => model.vocab,
            Model::WordPiece(model) => model.vocab,
            Model::Unigram(model) => model.vocab.into_iter().map(|(name, _)| name).zip(0..).collect(),
        }
    }
}

fn unknown(origin: Origin<'_>, vocab: &BTreeMap<String, u32>, name: &str) -> Result<u32, TextImportError> {
    let id = vocab.get(name).copied();
    id.ok_or_else(|| origin.inconsistent("model.unk_token", format!("`{name}` is not in the vocabulary")))
}
