//! `tokenizer.model`: the protocol buffer that SentencePiece trains.

use std::collections::BTreeMap;

use bessemer_runtime::text::{AddedToken, Frame, Prefix, Symbols};

use super::super::builder::NamedVocab;
use super::super::token_list::{TokenKind, TokenList};
use super::super::{Origin, TextImportError, Tokens};
use super::protobuf::{Message, NotAMessage, Value};
use super::{Cutting, Rules};

/// What the files beside the model say about it.
#[derive(Debug, Default)]
pub(in super::super) struct Surroundings {
    /// Tokens that were added behind those of the model.
    pub added: Vec<AddedToken>,
    /// Whether a space goes before the very beginning of a text only (`legacy: false`), not behind special tokens too.
    pub prefix_first: bool,
}

/// Reads the file.
pub(in super::super) fn read(
    origin: Origin<'_>,
    bytes: &[u8],
    surroundings: &Surroundings,
) -> Result<Tokens, TextImportError> {
    let model = Model::parse(bytes).map_err(|NotAMessage| {
        let detail = "not the protocol buffer of a SentencePiece model";
        origin.inconsistent("content", detail)
    })?;
    model.check(origin)?;
    let list = TokenList { origin, names: &model.names, scores: &model.scores, kinds: &model.kinds };
    let prefix = match (model.dummy_prefix, surroundings.prefix_first) {
        (false, _) => Prefix::None,
        (true, true) => Prefix::First,
        (true, false) => Prefix::Every,
    };
    let rules = Rules {
        cutting: if model.kind == BPE { Cutting::Merges } else { Cutting::MostProbable },
        prefix,
        collapses_spaces: model.collapses_spaces,
        charsmap: model.charsmap,
        unknown: list.of_kind(TokenKind::Unknown),
    };
    let (mut data, merges) = rules.apply(&list)?;
    let mut added = list.added(&data.normalizer, true)?;
    let beyond = surroundings.added.iter().filter(|t| t.id as usize >= model.names.len());
    added.extend(beyond.cloned());
    let mut ids: BTreeMap<String, u32> = model.names.iter().cloned().zip(0..).collect();
    ids.extend(added.iter().map(|t| (t.text.clone(), t.id)));
    let vocab = NamedVocab {
        origin,
        symbols: Symbols::Chars,
        byte_fallback: model.byte_fallback,
        ids: list.spelled().filter(|(_, id)| list.kind(*id) != TokenKind::Unused).collect(),
        added,
    };
    vocab.fill(&mut data, merges)?;
    // SentencePiece adds nothing by itself; the models that come in its files expect the token that begins a text.
    let control = |name: &str| ids.get(name).copied().filter(|&id| list.kind(id) == TokenKind::Control);
    let (bos, eos) = (control(model.bos), control(model.eos));
    let frame = Frame { before: bos.into_iter().collect(), ..Frame::default() };
    Ok(Tokens { data, frame, eos, ids })
}

const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

/// `sentencepiece_model.proto`, with the defaults that it gives.
struct Model<'a> {
    names: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<TokenKind>,
    kind: u64,
    space_behind: bool,
    byte_fallback: bool,
    bos: &'a str,
    eos: &'a str,
    charsmap: &'a [u8],
    dummy_prefix: bool,
    collapses_spaces: bool,
    escapes_spaces: bool,
}

impl<'a> Model<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, NotAMessage> {
        let mut model = Model {
            names: Vec::new(),
            scores: Vec::new(),
            kinds: Vec::new(),
            kind: UNIGRAM,
            space_behind: false,
            byte_fallback: false,
            bos: "<s>",
            eos: "</s>",
            charsmap: &[],
            dummy_prefix: true,
            collapses_spaces: true,
            escapes_spaces: true,
        };
        for field in Message(bytes) {
            match field? {
                (1, Value::Bytes(piece)) => model.piece(piece)?,
                (2, Value::Bytes(trainer)) => model.trainer(trainer)?,
                (3, Value::Bytes(normalizer)) => model.normalizer(normalizer)?,
                _ => {}
            }
        }
        Ok(model)
    }

    fn piece(&mut self, bytes: &'a [u8]) -> Result<(), NotAMessage> {
        let (mut name, mut score, mut kind) = ("", 0.0, TokenKind::Normal);
        for field in Message(bytes) {
            match field? {
                (1, Value::Bytes(text)) => name = utf8(text)?,
                (2, Value::Fixed32(bits)) => score = f32::from_bits(bits),
                (3, Value::Varint(code)) => kind = TokenKind::from_code(code as i64).ok_or(NotAMessage)?,
                _ => {}
            }
        }
        self.names.push(name.to_owned());
        self.scores.push(score);
        self.kinds.push(kind);
        Ok(())
    }

    fn trainer(&mut self, bytes: &'a [u8]) -> Result<(), NotAMessage> {
        for field in Message(bytes) {
            match field? {
                (3, Value::Varint(kind)) => self.kind = kind,
                (24, Value::Varint(flag)) => self.space_behind = flag != 0,
                (35, Value::Varint(flag)) => self.byte_fallback = flag != 0,
                (46, Value::Bytes(name)) => self.bos = utf8(name)?,
                (47, Value::Bytes(name)) => self.eos = utf8(name)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn normalizer(&mut self, bytes: &'a [u8]) -> Result<(), NotAMessage> {
        for field in Message(bytes) {
            match field? {
                (2, Value::Bytes(table)) => self.charsmap = table,
                (3, Value::Varint(flag)) => self.dummy_prefix = flag != 0,
                (4, Value::Varint(flag)) => self.collapses_spaces = flag != 0,
                (5, Value::Varint(flag)) => self.escapes_spaces = flag != 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self, origin: Origin<'_>) -> Result<(), TextImportError> {
        if self.names.is_empty() {
            return Err(origin.inconsistent("pieces", "none; this is no SentencePiece model"));
        }
        let refuse =
            |what: &str, found: &str, supported: &str| Err(origin.unsupported(what, found, supported));
        match self.kind {
            UNIGRAM | BPE => {}
            3 => return refuse("trainer_spec.model_type", "WORD", "UNIGRAM, BPE"),
            4 => return refuse("trainer_spec.model_type", "CHAR", "UNIGRAM, BPE"),
            other => return refuse("trainer_spec.model_type", &other.to_string(), "UNIGRAM, BPE"),
        }
        if self.space_behind {
            return refuse("trainer_spec.treat_whitespace_as_suffix", "true", "false");
        }
        if !self.escapes_spaces {
            return refuse("normalizer_spec.escape_whitespaces", "false", "true");
        }
        // SentencePiece makes such pieces on the way to others, and takes them apart again.
        if self.kind == BPE && self.kinds.contains(&TokenKind::Unused) {
            return refuse("pieces", "one of type UNUSED", "those of a BPE model are all used");
        }
        Ok(())
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, NotAMessage> {
    std::str::from_utf8(bytes).map_err(|_| NotAMessage)
}
