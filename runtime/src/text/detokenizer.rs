//! Text out of tokens, one at a time.

use super::Tokenizer;

/// Turns generated tokens into text as they come, in whole characters.
///
/// A token may end inside a character: its bytes wait for the next token. What can no longer become a character
/// is given as U+FFFD at once, so the pieces always concatenate to the lossy decoding of all the bytes.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    /// The beginning of a character whose rest has not come yet.
    pending: Vec<u8>,
    strip_space: bool,
    show_special: bool,
}

impl Detokenizer {
    /// For a sequence from its beginning: the space that SentencePiece tokenisers put in front is dropped.
    pub fn new(tokenizer: Tokenizer) -> Self {
        let strip_space = tokenizer.data().strip_leading_space;
        Detokenizer { tokenizer, pending: Vec::new(), strip_space, show_special: false }
    }

    /// For tokens that continue a text, as those that follow a prompt do: a leading space is part of the text.
    pub fn continuing(tokenizer: Tokenizer) -> Self {
        Detokenizer { strip_space: false, ..Self::new(tokenizer) }
    }

    /// Shows special tokens by their names instead of leaving them out.
    pub fn show_special(mut self, show: bool) -> Self {
        self.show_special = show;
        self
    }

    /// The text that is complete once `id` is there; often empty. Ids without a token give nothing.
    pub fn push(&mut self, id: u32) -> String {
        if !self.show_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        let mut bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
        let joins = self.tokenizer.data().join_punctuation
            && bytes.split_first().is_some_and(|(_, text)| JOINED.iter().any(|mark| text.starts_with(mark)));
        if !bytes.is_empty() && (self.strip_space || joins) {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.strip_space = false;
        }
        self.pending.extend_from_slice(bytes);
        self.take_complete()
    }

    /// The end of the sequence: bytes that still wait become U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut used = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let rest = &self.pending[used..];
            if chunk.invalid().is_empty() || is_unfinished_char(rest) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            used += chunk.invalid().len();
        }
        self.pending.drain(..used);
        text
    }
}

/// What [`super::TokenizerData::join_punctuation`] writes without the space in front (the tokenizers library's `cleanup`).
const JOINED: [&[u8]; 9] = [b".", b"?", b"!", b",", b"n't", b"'m", b"'s", b"'ve", b"'re"];

/// Whether more bytes could make `bytes` one character.
fn is_unfinished_char(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
}
