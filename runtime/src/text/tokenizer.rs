//! Encoding and decoding with a tokeniser that is searched where it lies.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::bpe::Merger;
use super::section::{AddedToken, NO_TOKEN, Prefix, Symbols, TextSection};
use super::split::Splitter;
use super::{ChatTemplate, TextError};

/// What the names of special tokens mean when they stand in a text to encode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Plain text: for what users write.
    AsText,
    /// The tokens themselves: for prompts that a chat template rendered.
    Parse,
}

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
    splitter: OnceLock<Result<Splitter, TextError>>,
    chat_template: Option<ChatTemplate>,
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
            inner: Arc::new(Inner { section, special, splitter: OnceLock::new(), chat_template }),
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

    /// Whether the model expects [`Tokenizer::bos`] before a plain prompt; [`Tokenizer::encode`] never adds it.
    pub fn adds_bos(&self) -> bool {
        self.inner.section.add_bos
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

    pub(super) fn strips_leading_space(&self) -> bool {
        self.inner.section.tokenizer.strip_leading_space
    }

    /// The tokens of `text`, without [`Tokenizer::bos`].
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>, TextError> {
        let data = &self.inner.section.tokenizer;
        let splitter =
            self.inner.splitter.get_or_init(|| Splitter::new(&data.splits)).as_ref().map_err(Clone::clone)?;
        let mut encoder = Encoder { tokenizer: self, splitter, merger: Merger::default(), out: Vec::new() };
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
                    let text = self.normalize(text, at_start);
                    scan(&normalized, &text, &mut |piece| match piece {
                        Piece::Token(id) => encoder.out.push(id),
                        Piece::Text(text) => encoder.encode(text),
                    });
                }
            }
            at_start = false;
        });
        Ok(encoder.out)
    }

    fn normalize<'t>(&self, text: &'t str, at_start: bool) -> Cow<'t, str> {
        let rules = &self.inner.section.tokenizer.normalizer;
        let mut text = Cow::Borrowed(text);
        if rules.nfc && is_nfc_quick(text.chars()) != IsNormalized::Yes {
            text = Cow::Owned(text.nfc().collect());
        }
        if rules.space_marker && text.contains(SPACE_MARKER) {
            text = Cow::Owned(text.replace(SPACE_MARKER, " "));
        }
        let prefix = match rules.prefix {
            Prefix::None => false,
            Prefix::Every => true,
            Prefix::EveryUnlessSpace => !text.starts_with(' '),
            Prefix::FirstUnlessSpace => at_start && !text.starts_with(' '),
        };
        if prefix { Cow::Owned(format!(" {text}")) } else { text }
    }

    /// The token whose bytes are exactly `text`, among those in the lexicon.
    fn look_up(&self, text: &[u8]) -> Option<u32> {
        let data = &self.inner.section.tokenizer;
        let (mut low, mut high) = (0, data.lexicon.len());
        while low < high {
            let middle = low.midpoint(high);
            let id = data.lexicon.get(middle)?;
            match data.vocab.get(id)?.cmp(text) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(id),
            }
        }
        None
    }
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

/// Encodes normalised text between added tokens.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    splitter: &'a Splitter,
    merger: Merger,
    out: Vec<u32>,
}

impl Encoder<'_> {
    fn encode(&mut self, text: &str) {
        let splitter = self.splitter;
        splitter.split(text, &mut |word| self.encode_word(word));
    }

    fn encode_word(&mut self, word: &str) {
        let data = &self.tokenizer.inner.section.tokenizer;
        if data.whole_words
            && let Some(id) = self.tokenizer.look_up(word.as_bytes())
        {
            self.out.push(id);
            return;
        }
        let byte_token = |byte: u8| data.byte_tokens.get(byte as usize).filter(|&id| id != NO_TOKEN);
        let mut after_unknown = false;
        let mut push = |known: Option<u32>, bytes: &[u8]| {
            let is_unknown = known.is_none() && !bytes.iter().all(|&b| byte_token(b).is_some());
            if let Some(id) = known {
                self.merger.push(id);
            } else if !is_unknown {
                bytes.iter().filter_map(|&b| byte_token(b)).for_each(|id| self.merger.push(id));
            } else if let Some(unknown) = data.unknown
                && !(after_unknown && data.fuse_unknown)
            {
                self.merger.push(unknown);
            }
            after_unknown = is_unknown;
        };
        match data.symbols {
            Symbols::Bytes => word.bytes().for_each(|b| push(None, &[b])),
            Symbols::Chars => {
                let mut utf8 = [0; 4];
                for c in word.chars() {
                    let bytes = c.encode_utf8(&mut utf8).as_bytes();
                    push(self.tokenizer.look_up(bytes), bytes);
                }
            }
        }
        self.merger.finish(&data.merges, &mut self.out);
    }
}
