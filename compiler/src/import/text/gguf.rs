//! The vocabulary in a GGUF file's metadata.

use std::collections::BTreeMap;
use std::path::Path;

use bessemer_runtime::text::{
    Algorithm, Frame, Merge, Normalizer, Prefix, SplitPattern, Symbols, TextSection, TokenizerData,
};

use super::bert::{self, BertRules};
use super::builder::{GPT2_PATTERN, NamedVocab};
use super::sentencepiece::{Cutting, Rules};
use super::token_list::{TokenKind, TokenList};
use super::{Origin, TextImportError};
use crate::import::gguf::{Array, GgufMetadata, Value};

/// The tokeniser as GGUF metadata spells it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GgufVocab {
    /// `tokenizer.ggml.model`: `gpt2`, `llama`, `t5`, `gemma4` or `bert`.
    pub model: String,
    /// `tokenizer.ggml.pre`: the name of the pre-tokeniser.
    pub pre: Option<String>,
    /// Names of the tokens, by id.
    pub tokens: Vec<String>,
    /// Scores of the tokens; the higher, the earlier a piece is made. For `llama` and `t5`.
    pub scores: Vec<f32>,
    /// Kinds of the tokens.
    pub kinds: Vec<TokenKind>,
    /// Pairs of names, best first. For `gpt2`.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id` and `eom_token_id`: further tokens that end an answer.
    pub end_of_turn: Vec<u32>,
    /// `unknown_token_id`.
    pub unknown: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `cls_token_id`, which begins a text for an encoder.
    pub cls: Option<u32>,
    /// `seperator_token_id` (so spelled), which ends one.
    pub sep: Option<u32>,
    /// `add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `remove_extra_whitespaces`. For `t5`.
    pub collapses_spaces: Option<bool>,
    /// `precompiled_charsmap`: SentencePiece's table of replacements. For `t5`.
    pub charsmap: Vec<u8>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

/// Control tokens that end an answer, by name: files do not always list them under a key.
const END_OF_TURN: [&str; 6] =
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"];

/// Characters of the longest word that WordPiece looks at; the metadata has no key for it, and published models no other value.
const WORD_PIECE_MAX_CHARS: u32 = 100;

impl GgufVocab {
    /// Takes the vocabulary out of the metadata of the file at `path`; `None` if there is none.
    pub fn read(path: &Path, metadata: &GgufMetadata) -> Result<Option<Self>, TextImportError> {
        let reader = Reader { origin: Origin(path), metadata };
        let Some(model) = reader.string("tokenizer.ggml.model")? else { return Ok(None) };
        let kinds = match reader.array("tokenizer.ggml.token_type")? {
            None => Vec::new(),
            Some(array) => reader.kinds(array)?,
        };
        let scores = match reader.array("tokenizer.ggml.scores")? {
            None => Vec::new(),
            Some(Array::F32(scores)) => scores.clone(),
            Some(_) => return Err(reader.wrong_type("tokenizer.ggml.scores", "an array of f32")),
        };
        const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
        let charsmap = match reader.array(CHARSMAP)? {
            None => Vec::new(),
            Some(Array::U8(bytes)) => bytes.clone(),
            Some(Array::I8(bytes)) => bytes.iter().map(|&byte| byte as u8).collect(),
            Some(_) => return Err(reader.wrong_type(CHARSMAP, "an array of bytes")),
        };
        let ends = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
        let ends: Result<Vec<_>, _> = ends.iter().map(|key| reader.id(key)).collect();
        Ok(Some(GgufVocab {
            model,
            pre: reader.string("tokenizer.ggml.pre")?,
            tokens: reader.strings("tokenizer.ggml.tokens")?,
            scores,
            kinds,
            merges: reader.strings("tokenizer.ggml.merges")?,
            bos: reader.id("tokenizer.ggml.bos_token_id")?,
            eos: reader.id("tokenizer.ggml.eos_token_id")?,
            end_of_turn: ends?.into_iter().flatten().collect(),
            unknown: reader.id("tokenizer.ggml.unknown_token_id")?,
            add_bos: reader.flag("tokenizer.ggml.add_bos_token")?,
            add_eos: reader.flag("tokenizer.ggml.add_eos_token")?,
            cls: reader.id("tokenizer.ggml.cls_token_id")?,
            sep: reader.id("tokenizer.ggml.seperator_token_id")?,
            add_space_prefix: reader.flag("tokenizer.ggml.add_space_prefix")?,
            collapses_spaces: reader.flag("tokenizer.ggml.remove_extra_whitespaces")?,
            charsmap,
            chat_template: reader.string("tokenizer.chat_template")?,
        }))
    }

    /// The section for the engine; `path` is for messages.
    pub fn section(&self, path: &Path) -> Result<TextSection, TextImportError> {
        let origin = Origin(path);
        self.check(origin)?;
        let list = self.list(origin);
        let (mut data, merges, symbols, add_bos) = match self.model.as_str() {
            "gpt2" => {
                let pre = self.pre_tokenizer(origin)?;
                let splits =
                    pre.patterns.iter().map(|p| SplitPattern::new(p, true).map_err(|e| origin.table(e)));
                let data = TokenizerData {
                    whole_words: pre.whole_words,
                    splits: splits.collect::<Result<_, _>>()?,
                    unknown: self.unknown,
                    ..Default::default()
                };
                (data, self.listed_merges(origin)?, Symbols::Bytes, pre.add_bos)
            }
            "llama" | "t5" => {
                let unigram = self.model == "t5";
                let rules = Rules {
                    cutting: if unigram { Cutting::MostProbable } else { Cutting::Merges },
                    prefix: if self.add_space_prefix.unwrap_or(true) { Prefix::Every } else { Prefix::None },
                    collapses_spaces: unigram && self.collapses_spaces.unwrap_or(false),
                    charsmap: if unigram { &self.charsmap } else { &[] },
                    unknown: self.unknown,
                };
                let (data, merges) = rules.apply(&list)?;
                (data, merges, Symbols::Chars, !unigram)
            }
            "gemma4" => {
                let data = TokenizerData {
                    unknown: self.unknown,
                    normalizer: Normalizer { steps: Vec::new(), space_marker: true, prefix: Prefix::None },
                    splits: vec![SplitPattern::new(r"[^\n]+|\n+", true).map_err(|e| origin.table(e))?],
                    ..Default::default()
                };
                (data, self.listed_merges(origin)?, Symbols::Chars, true)
            }
            "bert" => (self.word_piece(origin)?, Vec::new(), Symbols::Chars, true),
            other => {
                return Err(origin.unsupported(
                    "tokenizer.ggml.model",
                    format!("`{other}`"),
                    "`gpt2`, `llama`, `t5`, `gemma4`, `bert`",
                ));
            }
        };
        let vocab = NamedVocab {
            origin,
            symbols,
            byte_fallback: matches!(self.model.as_str(), "llama" | "t5" | "gemma4"),
            ids: list.spelled().collect(),
            added: list.added(&data.normalizer, false)?,
        };
        vocab.fill(&mut data, merges)?;
        let named_ends = (0..).zip(&self.tokens).filter(|(id, name)| {
            list.kind(*id) == TokenKind::Control && END_OF_TURN.contains(&name.as_str())
        });
        let mut stop_tokens: Vec<u32> =
            self.eos.into_iter().chain(self.end_of_turn.iter().copied()).collect();
        stop_tokens.extend(named_ends.map(|(id, _)| id));
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        let (mut bos, mut eos, mut frame) = (self.bos, self.eos, Frame::default());
        if self.model == "bert" {
            (bos, eos) = (self.cls.or(bos).or(list.named("[CLS]")), self.sep.or(eos).or(list.named("[SEP]")));
            (frame.between, frame.after) = (eos.into_iter().collect(), eos.into_iter().collect());
        }
        if self.add_bos.unwrap_or(add_bos) {
            frame.before.extend(bos);
        }
        if self.add_eos.unwrap_or(self.model == "t5") && frame.after.is_empty() {
            frame.after.extend(eos);
        }
        Ok(TextSection {
            tokenizer: data,
            bos,
            eos,
            frame,
            stop_tokens,
            chat_template: self.chat_template.clone(),
        })
    }

    fn check(&self, origin: Origin<'_>) -> Result<(), TextImportError> {
        let count = self.tokens.len();
        if u32::try_from(count).is_err() || count == 0 {
            return Err(origin.inconsistent("tokenizer.ggml.tokens", format!("{count} tokens")));
        }
        for (key, len) in [("token_type", self.kinds.len()), ("scores", self.scores.len())] {
            if len != 0 && len != count {
                let detail = format!("{len} entries for {count} tokens");
                return Err(origin.inconsistent(format!("tokenizer.ggml.{key}"), detail));
            }
        }
        let single = [self.bos, self.eos, self.unknown, self.cls, self.sep];
        let ids = single.into_iter().flatten().chain(self.end_of_turn.iter().copied());
        match ids.max() {
            Some(id) if id as usize >= count => {
                Err(origin.inconsistent("tokenizer.ggml", format!("token {id} is named, there are {count}")))
            }
            _ => Ok(()),
        }
    }

    fn list<'a>(&'a self, origin: Origin<'a>) -> TokenList<'a> {
        TokenList { origin, names: &self.tokens, scores: &self.scores, kinds: &self.kinds }
    }

    /// BERT's tokeniser; the tokens that begin a word are marked like SentencePiece's.
    fn word_piece(&self, origin: Origin<'_>) -> Result<TokenizerData, TextImportError> {
        let rules = BertRules { clean_text: true, split_chinese: true, strip_accents: true, lowercase: true };
        let steps = rules.steps().map_err(|e| origin.table(e))?;
        Ok(TokenizerData {
            algorithm: Algorithm::LongestMatch { max_chars: WORD_PIECE_MAX_CHARS },
            unknown: self.unknown.or_else(|| self.list(origin).named("[UNK]")),
            normalizer: Normalizer { steps, space_marker: false, prefix: Prefix::EveryWord },
            splits: vec![SplitPattern::new(&bert::words(true), false).map_err(|e| origin.table(e))?],
            strip_leading_space: true,
            join_punctuation: true,
            ..Default::default()
        })
    }

    fn listed_merges(&self, origin: Origin<'_>) -> Result<Vec<Merge>, TextImportError> {
        // The list was made over all tokens, so that special ones are no exception here.
        let ids: BTreeMap<&str, u32> = self.tokens.iter().map(String::as_str).zip(0..).collect();
        let mut merges = Vec::with_capacity(self.merges.len());
        for (rank, pair) in (0..).zip(&self.merges) {
            let wrong =
                |detail: String| origin.inconsistent(format!("tokenizer.ggml.merges[{rank}]"), detail);
            // A token may begin with a space that is no separator.
            let at = pair.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(i, _)| i);
            let at = at.ok_or_else(|| wrong(format!("`{pair}` is not two tokens")))?;
            let (left, right) = (&pair[..at], &pair[at + 1..]);
            let id = |name: &str| ids.get(name).copied().ok_or_else(|| wrong(format!("no token `{name}`")));
            merges.push(Merge {
                left: id(left)?,
                right: id(right)?,
                merged: id(&format!("{left}{right}"))?,
                rank,
            });
        }
        Ok(merges)
    }

    fn pre_tokenizer(&self, origin: Origin<'_>) -> Result<PreTokenizer, TextImportError> {
        let name = self.pre.as_deref().unwrap_or("default");
        let known = PRE_TOKENIZERS.iter().find(|(names, _)| names.contains(&name));
        known.map(|(_, pre)| *pre).ok_or_else(|| {
            let names: Vec<&str> =
                PRE_TOKENIZERS.iter().flat_map(|(names, _)| names.iter().copied()).collect();
            origin.unsupported("tokenizer.ggml.pre", format!("`{name}`"), &names.join(", "))
        })
    }
}

/// What a name in `tokenizer.ggml.pre` stands for.
#[derive(Debug, Clone, Copy)]
struct PreTokenizer {
    patterns: &'static [&'static str],
    whole_words: bool,
    add_bos: bool,
}

const fn pre(patterns: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { patterns, whole_words: false, add_bos: false }
}

const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_CODER_PATTERNS: [&str; 5] = [
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+",
    r"\p{N}",
];
const DEEPSEEK_LLM_PATTERNS: [&str; 6] = [
    r"[\r\n]",
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+",
    r"\s+$",
    "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+",
    r"\p{N}+",
];
const DEEPSEEK3_PATTERNS: [&str; 3] = [
    r"\p{N}{1,3}",
    "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const TEKKEN_PATTERN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O_PATTERN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What llama.cpp does without a name: punctuation and digits apart, then GPT-2's words.
const DEFAULT_PATTERNS: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]"];

/// The names and the patterns of the original tokenizer.json files (llama.cpp matches rewritten ones, which its
/// regular expressions need; on text they agree).
const PRE_TOKENIZERS: &[(&[&str], PreTokenizer)] = &[
    (&["default"], pre(&DEFAULT_PATTERNS)),
    (
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "exaone4",
            "gigachat",
            "mellum",
            "trillion",
            "granite-docling",
        ],
        pre(&[GPT2_PATTERN]),
    ),
    (
        &["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        PreTokenizer { patterns: &[LLAMA3_PATTERN], whole_words: true, add_bos: true },
    ),
    (&["dbrx", "smaug-bpe", "chatglm-bpe"], pre(&[LLAMA3_PATTERN])),
    (&["glm4"], PreTokenizer { patterns: &[LLAMA3_PATTERN], whole_words: true, add_bos: false }),
    (
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        pre(&[r"\p{N}", GPT2_PATTERN]),
    ),
    (
        &["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "kormo", "solar-open", "grok-2"],
        pre(&[QWEN2_PATTERN]),
    ),
    (&["qwen35"], pre(&[QWEN35_PATTERN])),
    (&["deepseek-llm"], pre(&DEEPSEEK_LLM_PATTERNS)),
    (&["deepseek-coder"], pre(&DEEPSEEK_CODER_PATTERNS)),
    (&["deepseek-v3", "hunyuan-dense", "joyai-llm"], pre(&DEEPSEEK3_PATTERNS)),
    (&["tekken"], PreTokenizer { patterns: &[TEKKEN_PATTERN], whole_words: true, add_bos: true }),
    (&["gpt-4o", "llama4", "kanana2", "minimax-m2"], pre(&[GPT4O_PATTERN])),
    (&["falcon"], pre(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2_PATTERN, "[0-9][0-9][0-9]"])),
];

/// Typed access to the metadata: a key that is there with another type is an error.
struct Reader<'a> {
    origin: Origin<'a>,
    metadata: &'a GgufMetadata,
}

impl<'a> Reader<'a> {
    fn wrong_type(&self, key: &str, expected: &str) -> TextImportError {
        self.origin.inconsistent(key, format!("the value is not {expected}"))
    }

    fn string(&self, key: &str) -> Result<Option<String>, TextImportError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.wrong_type(key, "a string")),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, TextImportError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong_type(key, "a truth value")),
        }
    }

    fn id(&self, key: &str) -> Result<Option<u32>, TextImportError> {
        match (self.metadata.get(key), self.metadata.unsigned(key).map(u32::try_from)) {
            (None, _) => Ok(None),
            (_, Some(Ok(id))) => Ok(Some(id)),
            _ => Err(self.wrong_type(key, "a token id")),
        }
    }

    fn array(&self, key: &str) -> Result<Option<&'a Array>, TextImportError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(_) => Err(self.wrong_type(key, "an array")),
        }
    }

    fn strings(&self, key: &str) -> Result<Vec<String>, TextImportError> {
        match self.array(key)? {
            None => Ok(Vec::new()),
            Some(Array::String(texts)) => Ok(texts.clone()),
            Some(_) => Err(self.wrong_type(key, "an array of strings")),
        }
    }

    fn kinds(&self, array: &Array) -> Result<Vec<TokenKind>, TextImportError> {
        const KEY: &str = "tokenizer.ggml.token_type";
        let codes: Vec<i64> = match array {
            Array::I32(codes) => codes.iter().map(|&c| c.into()).collect(),
            Array::U32(codes) => codes.iter().map(|&c| c.into()).collect(),
            _ => return Err(self.wrong_type(KEY, "an array of 32-bit integers")),
        };
        let kind = |code: i64| {
            TokenKind::from_code(code)
                .ok_or_else(|| self.origin.inconsistent(KEY, format!("no token type has number {code}")))
        };
        codes.into_iter().map(kind).collect()
    }
}
