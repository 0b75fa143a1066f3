//! Text in, text out: tokeniser, streaming detokeniser, chat template and stop strings.
//!
//! Everything is built from the engine's TOKENIZER section ([`TextSection`]), which the compiler lays out so that
//! opening it is a few block copies: no JSON, no hash map of the vocabulary, no regular expression compiled before
//! the first text comes.
//!
//! # Why our own tokeniser
//!
//! Two crates were weighed against the vectors and the clock.
mod bpe;
mod chat;
mod detokenizer;
mod section;
mod split;
mod stop;
mod tokenizer;

pub use bpe::{Merge, MergeTable};
pub use chat::{ChatInput, ChatMessage, ChatTemplate};
pub use detokenizer::Detokenizer;
pub use section::{
    AddedToken, NO_TOKEN, Normalizer, Prefix, Symbols, TextSection, TokenizerData, U32Array, Vocab,
};
pub use split::SplitPattern;
pub use stop::{StopMatch, StopMatcher};
pub use tokenizer::{SPACE_MARKER, Special, Tokenizer};

/// What can go wrong between text and tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The section does not decode.
    #[error("the TOKENIZER section does not decode ({reason}); rebuild the engine with `bessemer compile`")]
    Decode {
        /// What the decoder says.
        reason: String,
    },
    /// The section cannot be encoded.
    #[error("the TOKENIZER section cannot be encoded: {reason}")]
    Encode {
        /// What the encoder says.
        reason: String,
    },
    /// The section is longer than what it holds.
    #[error(
        "the TOKENIZER section has {len} bytes but its content ends after {used}; rebuild the engine with `bessemer compile`"
    )]
    TrailingBytes {
        /// Bytes of content.
        used: usize,
        /// Bytes of the section.
        len: usize,
    },
    /// The table of single-byte tokens has another length than 256.
    #[error(
        "the table of byte tokens has {len} entries instead of 256; rebuild the engine with `bessemer compile`"
    )]
    ByteTable {
        /// Its length.
        len: usize,
    },
    /// A merge names a token that the vocabulary does not have.
    #[error("merge {left} + {right} -> {merged} names a token outside the vocabulary of {vocab}")]
    MergeOutside {
        /// Left token.
        left: u32,
        /// Right token.
        right: u32,
        /// Result.
        merged: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A table does not fit 32-bit offsets.
    #[error("the {what} is larger than 32-bit offsets reach")]
    TooLarge {
        /// Which table.
        what: &'static str,
    },
    /// A pre-tokeniser pattern that cannot be matched.
    #[error("pre-tokeniser pattern `{pattern}` is not supported: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Why.
        reason: String,
    },
    /// The chat template does not compile or failed while it was rendered.
    #[error("chat template, line {line}: {reason}; `--raw` prompts without the template")]
    Template {
        /// Line of the template, 0 if unknown.
        line: usize,
        /// What the template engine says.
        reason: String,
    },
    /// The chat template refused the conversation.
    #[error("the chat template refuses this conversation: {message}")]
    TemplateRaised {
        /// Its own words.
        message: String,
    },
}

#[cfg(test)]
mod tests;
