//! Text in, text out: tokeniser, streaming detokeniser, chat template and stop strings.
//!
//! Everything is built from the engine's TOKENIZER section ([`TextSection`]), which the compiler lays out so that
//! opening it is a few block copies: no JSON, no hash map of the vocabulary, no regular expression compiled before
//! the first text comes.
//!
//! # Why our own tokeniser
//!
//! Two crates were weighed, by the token ids that the `tokenizers` library itself gives for 9,738 texts (1.7 MB:
//! llama.cpp's test inputs, books, source code, 7,500 random strings over 19 Unicode ranges, white space, contractions
//! and names of special tokens) and by the time from the bytes of the compact form to a tokeniser that can encode
//! (release build, one process each, warm file, median of three on a two-core cloud machine):
//!
//! | vocabulary | kitoken 0.11.1: ids differ | open | `tokenizers` 0.23.2: open (JSON) | ours: ids differ | open | first encode |
//! |---|---|---|---|---|---|---|
//! | SmolLM2, 49,152 | 49 texts, books among them | 13.5 ms | 63 ms | 0 | 0.5 ms | 1.1 ms |
//! | Llama 2, 32,000 | 266 (special tokens) | 8.8 ms | 57 ms | 0 | 0.5 ms | 0.3 ms |
//! | Mistral, 32,768 | 0 | 12 ms | 44 ms | 0 | 0.5 ms | 0.3 ms |
//! | Llama 3, 128,256 | 0 | 50 ms | 285 ms | 0 | 2.2 ms | 1.5 ms |
//! | Qwen 2, 151,665 | 2 | 51 ms | 239 ms | 2 | 1.6 ms | 1.4 ms |
//! | DeepSeek, 128,815 | 0 | 50 ms | 203 ms | 0 | 1.4 ms | 1.2 ms |
//! | Gemma, 256,000 | 2 | 96 ms | 919 ms | 0 | 4.2 ms | 0.5 ms |
//!
//! kitoken (BSD-2-Clause, 53 crates with its converters) misses contractions such as `'tis` under SmolLM2's two
//! pre-tokenisers and builds three hash maps of the vocabulary when it opens. `tokenizers` (Apache-2.0, 84 crates)
//! has no compact form. Ours adds four crates, decodes the section by copying blocks (1.3 MB for SmolLM2, 5.7 MB for
//! Llama 3; kitoken's take 0.5 and 1.3 MB) and searches them in place: merges as compressed rows, words by binary
//! search. What remains is the pre-tokeniser's automaton, built by the first text (the column "first encode"), and
//! about 1 MB of code for regex-automata. A book encodes at 7 (Llama 2) to 16 MB/s (Llama 3), decoding takes 40 ns a
//! token. The two texts of Qwen hold combining marks that Unicode assigned after the tables that `tokenizers`
//! composes with. `tests/tokenizers` compares again (in one process, where warm memory makes our opening ten times
//! shorter still).
//!
//! A chat template compiles and renders for the first time in 0.05 to 0.3 ms (Llama 3.2's). Of 888 renderings (74
//! published templates, six conversations, with and without tools) 878 are what Jinja2 gives.

mod bpe;
mod chat;
mod detokenizer;
mod normalize;
mod section;
mod segment;
mod split;
mod stop;
mod tokenizer;

pub use bpe::{Merge, MergeTable};
pub use chat::{ChatInput, ChatMessage, ChatTemplate};
pub use detokenizer::Detokenizer;
pub use normalize::Charsmap;
pub use section::{
    AddedToken, Algorithm, Frame, NO_TOKEN, NormalizeStep, Normalizer, Prefix, Symbols, TextSection,
    TokenizerData, U32Array, Vocab,
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
