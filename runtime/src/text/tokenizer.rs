//! Encoding and decoding with a tokeniser that is searched where it lies.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use super::bpe::Merger;
use super::normalize::Compiled;
use super::section::{AddedToken, Algorithm, Frame, NO_TOKEN, Prefix, Symbols, TextSection, TokenizerData};
use super::segment::BestCut;
use super::split::Splitter;
use super::{ChatTemplate, TextError};

/// What the names of special tokens mean when they stand in a text to encode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Plain text: for what users write.
    AsText,
    /// The tokens themselves: for prompts that a chat template rendered, but where [`Tokenizer::shield`] marked what users wrote.
    Parse,
}

/// Stands within a shielded name, and in no encoded text. Unicode keeps this code point for a program's own use.
const SHIELD: char = '\u{fdd0}';

/// The tokeniser of one engine. Cloning shares it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    section: TextSection,
    /// Ids of the special tokens, ascending.
    special: Vec<u32>,
    /// Compiled by the first text that is encoded.
    patterns: OnceLock<Result<Patterns, TextError>>,
    chat_template: Option<ChatTemplate>,
}

/// The regular expressions of the section, compiled.
struct Patterns {
    normalizer: Compiled,
    splitter: Splitter,
}

impl Patterns {
    fn new(data: &TokenizerData) -> Result<Self, TextError> {
        Ok(Patterns {
            normalizer: Compiled::new(&data.normalizer.steps)?,
            splitter: Splitter::new(&data.splits)?,
        })
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_len", &self.vocab_len()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens the tokeniser in the bytes of an engine's TOKENIZER section.
    pub fn from_section(bytes: &[u8]) -> Result<Self, TextError> {
        Self::new(TextSection::decode(bytes)?)
    }

    /// Opens the tokeniser of a decoded section.
    pub fn new(mut section: TextSection) -> Result<Self, TextError> {
        let data = &section.tokenizer;
        if data.byte_tokens.len() != 256 {
            return Err(TextError::ByteTable { len: data.byte_tokens.len() });
        }
        let mut special: Vec<u32> = data.added.iter().filter(|t| t.special).map(|t| t.id).collect();
        special.sort_unstable();
        let name = |id: Option<u32>| -> String {
            let bytes = id.and_then(|id| data.vocab.get(id)).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        let (bos, eos) = (name(section.bos), name(section.eos));
        let chat_template = section.chat_template.take().map(|source| ChatTemplate::new(source, bos, eos));
        Ok(Tokenizer {
            inner: Arc::new(Inner { section, special, patterns: OnceLock::new(), chat_template }),
        })
    }

    /// Number of tokens. A model's logits may have more rows than that (padding).
    pub fn vocab_len(&self) -> usize {
        self.inner.section.tokenizer.vocab.len()
    }

    /// The token that begins a text, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.inner.section.bos
    }

    /// The token that ends a text, if there is one.
    pub fn eos(&self) -> Option<u32> {
        self.inner.section.eos
    }

    /// The tokens that the model expects around a text; [`Tokenizer::encode`] never adds them.
    pub fn frame(&self) -> &Frame {
        &self.inner.section.frame
    }

    /// Whether the model expects [`Tokenizer::bos`] before a plain prompt; [`Tokenizer::encode`] never adds it.
    pub fn adds_bos(&self) -> bool {
        self.bos().is_some_and(|bos| self.frame().before.contains(&bos))
    }

    /// Tokens at which generation ends, as the checkpoint says.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.inner.section.stop_tokens
    }

    /// The checkpoint's chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.inner.chat_template.as_ref()
    }

    /// The bytes that a token stands for (not always whole characters); `None` for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.inner.section.tokenizer.vocab.get(id)
    }

    /// Whether a token is a control token, which decoded text does not show.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special.binary_search(&id).is_ok()
    }

    /// The text of a whole sequence; special tokens and ids without a token are left out, bytes that are no
    /// UTF-8 become U+FFFD. [`super::Detokenizer`] gives the same text token by token.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut detokenizer = super::Detokenizer::new(self.clone());
        let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// What a user wrote, for a prompt that is encoded with [`Special::Parse`]: names of special tokens in it stay text there. A template
    /// sees a mark within each such name; nothing else changes.
    ///
    /// ```no_run
    /// # use bessemer_runtime::{Engine, text::{ChatInput, ChatMessage, Special}};
    /// # let tokenizer = Engine::open("model.engine")?.tokenizer()?;
    /// let message = ChatMessage::new("user", tokenizer.shield("What does <|im_end|> do?"));
    /// let prompt = tokenizer.chat_template().unwrap().render(&ChatInput::new(&[message]))?;
    /// let tokens = tokenizer.encode(&prompt, Special::Parse)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shield<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let special: Vec<&AddedToken> = self.data().added.iter().filter(|t| t.special).collect();
        let (mut out, mut done) = (String::new(), 0);
        // Every place, not only leftmost matches: behind a mark another name may begin.
        for (at, first) in text.char_indices() {
            let rest = &text.as_bytes()[at..];
            if special.iter().any(|t| !t.text.is_empty() && rest.starts_with(t.text.as_bytes())) {
                let end = at + first.len_utf8();
                out.push_str(&text[done..end]);
                out.push(SHIELD);
                done = end;
            }
        }
        if done == 0 { Cow::Borrowed(text) } else { Cow::Owned(out + &text[done..]) }
    }

    pub(super) fn data(&self) -> &TokenizerData {
        &self.inner.section.tokenizer
    }

    /// The tokens of `text`, without those of [`Tokenizer::frame`].
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>, TextError> {
        let data = self.data();
        let patterns =
            self.inner.patterns.get_or_init(|| Patterns::new(data)).as_ref().map_err(Clone::clone)?;
        let mut encoder = Encoder::new(data, &patterns.splitter);
        let wanted = |normalized: bool| {
            move |t: &&AddedToken| t.normalized == normalized && (special == Special::Parse || !t.special)
        };
        let raw: Vec<&AddedToken> = data.added.iter().filter(wanted(false)).collect();
        let normalized: Vec<&AddedToken> = data.added.iter().filter(wanted(true)).collect();
        let mut at_start = true;
        scan(&raw, text, &mut |piece| {
            match piece {
                Piece::Token(id) => encoder.out.push(id),
                Piece::Text(text) => {
                    let text = normalize(data, &patterns.normalizer, text, at_start);
                    scan(&normalized, &text, &mut |piece| match piece {
                        Piece::Token(id) => encoder.out.push(id),
                        Piece::Text(text) if special == Special::Parse && text.contains(SHIELD) => {
                            encoder.encode(&text.replace(SHIELD, ""));
                        }
                        Piece::Text(text) => encoder.encode(text),
                    });
                }
            }
            at_start = false;
        });
        Ok(encoder.out)
    }
}

fn normalize<'t>(data: &TokenizerData, compiled: &Compiled, text: &'t str, at_start: bool) -> Cow<'t, str> {
    let rules = &data.normalizer;
    let mut text = compiled.run(&rules.steps, text);
    if rules.space_marker && text.contains(SPACE_MARKER) {
        text = Cow::Owned(text.replace(SPACE_MARKER, " "));
    }
    let prefix = match rules.prefix {
        Prefix::None | Prefix::EveryWord => false,
        Prefix::Every => true,
        Prefix::First => at_start,
        Prefix::EveryUnlessSpace => !text.starts_with(' '),
        Prefix::FirstUnlessSpace => at_start && !text.starts_with(' '),
    };
    // What the steps took away altogether stays away.
    if prefix && !text.is_empty() { Cow::Owned(format!(" {text}")) } else { text }
}

/// How SentencePiece writes a space: U+2581.
pub const SPACE_MARKER: char = '\u{2581}';

enum Piece<'t> {
    Token(u32),
    Text(&'t str),
}

/// Cuts `text` at added tokens: the leftmost match, of several the longest (the order of `tokens`).
fn scan<'t>(tokens: &[&AddedToken], text: &'t str, piece: &mut dyn FnMut(Piece<'t>)) {
    let mut starts = [false; 256];
    for token in tokens {
        if let Some(&first) = token.text.as_bytes().first() {
            starts[first as usize] = true;
        }
    }
    let (mut done, mut at) = (0, 0);
    while let Some(step) = text.as_bytes()[at..].iter().position(|&b| starts[b as usize]) {
        at += step;
        let rest = &text.as_bytes()[at..];
        let found = tokens.iter().find(|t| !t.text.is_empty() && rest.starts_with(t.text.as_bytes()));
        let Some(token) = found else {
            at += 1;
            continue;
        };
        let (mut start, mut end) = (at, at + token.text.len());
        if token.lstrip {
            start = done + text[done..start].trim_end().len();
        }
        if token.rstrip {
            end = text.len() - text[end..].trim_start().len();
        }
        if done < start {
            piece(Piece::Text(&text[done..start]));
        }
        piece(Piece::Token(token.id));
        (done, at) = (end, end);
    }
    if done < text.len() {
        piece(Piece::Text(&text[done..]));
    }
}

/// Encodes normalised text between added tokens; keeps its buffers between words.
struct Encoder<'a> {
    data: &'a TokenizerData,
    splitter: &'a Splitter,
    merger: Merger,
    best: Vec<BestCut>,
    prefixed: String,
    out: Vec<u32>,
}

impl<'a> Encoder<'a> {
    fn new(data: &'a TokenizerData, splitter: &'a Splitter) -> Self {
        let (best, prefixed, out) = (Vec::new(), String::new(), Vec::new());
        Encoder { data, splitter, merger: Merger::default(), best, prefixed, out }
    }

    fn encode(&mut self, text: &str) {
        let splitter = self.splitter;
        let prefix = self.data.normalizer.prefix == Prefix::EveryWord;
        splitter.split(text, &mut |word| {
            if !prefix || word.starts_with(' ') {
                return self.encode_word(word);
            }
            let mut prefixed = std::mem::take(&mut self.prefixed);
            prefixed.clear();
            prefixed.extend([" ", word]);
            self.encode_word(&prefixed);
            self.prefixed = prefixed;
        });
    }

    fn encode_word(&mut self, word: &str) {
        if self.data.whole_words
            && let Some(id) = self.data.look_up(word.as_bytes())
        {
            self.out.push(id);
            return;
        }
        match &self.data.algorithm {
            Algorithm::Merges => self.merge(word),
            Algorithm::LongestMatch { max_chars } => {
                let chars = word.strip_prefix(' ').unwrap_or(word).chars();
                let is_short = chars.take(*max_chars as usize + 1).count() <= *max_chars as usize;
                if !(is_short && self.data.longest_match(word, &mut self.out)) {
                    self.out.extend(self.data.unknown);
                }
            }
            Algorithm::MostProbable { scores, unknown } => {
                let mut after_unknown = false;
                for (token, text) in self.data.most_probable(scores, *unknown, word, &mut self.best) {
                    let symbol = self.data.symbol(token, text.as_bytes());
                    symbol.push(self.data, &mut after_unknown, |id| self.out.push(id));
                }
            }
        }
    }

    fn merge(&mut self, word: &str) {
        let mut after_unknown = false;
        let mut push = |known: Option<u32>, bytes: &[u8]| {
            self.data.symbol(known, bytes).push(self.data, &mut after_unknown, |id| self.merger.push(id));
        };
        match self.data.symbols {
            Symbols::Bytes => word.bytes().for_each(|b| push(None, &[b])),
            Symbols::Chars => {
                let mut utf8 = [0; 4];
                for c in word.chars() {
                    let bytes = c.encode_utf8(&mut utf8).as_bytes();
                    push(self.data.look_up(bytes), bytes);
                }
            }
        }
        self.merger.finish(&self.data.merges, &mut self.out);
    }
}

/// What stands for a piece of text that is not cut further.
enum Symbol<'t> {
    Known(u32),
    Bytes(&'t [u8]),
    Unknown,
}

impl TokenizerData {
    fn byte_token(&self, byte: u8) -> Option<u32> {
        self.byte_tokens.get(byte as usize).filter(|&id| id != NO_TOKEN)
    }

    /// `known` if there is such a token, else the tokens of the bytes if all of them have one.
    fn symbol<'t>(&self, known: Option<u32>, bytes: &'t [u8]) -> Symbol<'t> {
        match known {
            Some(id) => Symbol::Known(id),
            None if bytes.iter().all(|&b| self.byte_token(b).is_some()) => Symbol::Bytes(bytes),
            None => Symbol::Unknown,
        }
    }
}

impl Symbol<'_> {
    fn push(self, data: &TokenizerData, after_unknown: &mut bool, mut push: impl FnMut(u32)) {
        let fuses = *after_unknown && data.fuse_unknown;
        *after_unknown = matches!(self, Symbol::Unknown);
        match self {
            Symbol::Known(id) => push(id),
            Symbol::Bytes(bytes) => bytes.iter().filter_map(|&b| data.byte_token(b)).for_each(push),
            Symbol::Unknown if fuses => {}
            Symbol::Unknown => data.unknown.into_iter().for_each(push),
        }
    }
}
