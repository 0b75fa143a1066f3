//! Tokeniser, chat template and stop tokens of a checkpoint, laid out for the engine.
//!
//! What a checkpoint asks for and the runtime cannot do exactly is an error that names the component: a tokeniser
//! that is nearly right makes a model nearly right, which nobody notices.

mod base64;
mod bert;
mod builder;
mod gguf;
mod hugging_face;
mod sentencepiece;
mod tekken;
mod token_list;
mod tokenizer_json;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bessemer_runtime::text::{Frame, TextError, TextSection, TokenizerData};

pub use gguf::GgufVocab;
pub use token_list::TokenKind;

use super::{Checkpoint, Metadata};

/// The TOKENIZER section of a checkpoint; `None` if it comes without a tokeniser.
pub fn text_section(checkpoint: &Checkpoint) -> Result<Option<TextSection>, TextImportError> {
    match checkpoint.config() {
        Metadata::HuggingFace(config) => hugging_face::section(checkpoint, config),
        Metadata::Gguf(metadata) => {
            let Some(vocab) = GgufVocab::read(checkpoint.path(), metadata)? else { return Ok(None) };
            vocab.section(checkpoint.path()).map(Some)
        }
    }
}

/// What a tokeniser's own file says, of whichever format it is.
#[derive(Debug)]
struct Tokens {
    data: TokenizerData,
    /// Tokens around a text.
    frame: Frame,
    /// The token that ends a text, where the file names it.
    eos: Option<u32>,
    /// Names of all tokens that other files may name.
    ids: BTreeMap<String, u32>,
}

/// A tokeniser could not be read, or it is of a kind that is not built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextImportError {
    /// A file is not the JSON that it should be.
    #[error("{path}: {source}; the file is damaged, fetch it again", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },

    /// A file is not UTF-8.
    #[error("{path}: not UTF-8 after byte {valid}; the file is damaged, fetch it again", path = path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Length of the valid beginning.
        valid: usize,
    },

    /// The tokeniser asks for something that is not built.
    #[error("{path}: {component}: found {found}, supported is {supported}; use another checkpoint of this model, \
        or compile without a tokeniser and feed token ids", path = path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Which part of the tokeniser.
        component: String,
        /// What it asks for.
        found: String,
        /// What is built.
        supported: String,
    },

    /// Two parts of the file contradict each other.
    #[error("{path}: {what}: {detail}; the file is damaged, fetch it again", path = path.display())]
    Inconsistent {
        /// The file.
        path: PathBuf,
        /// Which part.
        what: String,
        /// The contradiction.
        detail: String,
    },

    /// The runtime's tables refuse the content.
    #[error("{path}: {source}", path = path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// What they refuse.
        source: TextError,
    },
}

/// Makes errors about one file.
#[derive(Debug, Clone, Copy)]
struct Origin<'a>(&'a Path);

impl Origin<'_> {
    fn unsupported(&self, component: &str, found: impl Into<String>, supported: &str) -> TextImportError {
        TextImportError::Unsupported {
            path: self.0.to_owned(),
            component: component.to_owned(),
            found: found.into(),
            supported: supported.to_owned(),
        }
    }

    fn inconsistent(&self, what: impl Into<String>, detail: impl Into<String>) -> TextImportError {
        TextImportError::Inconsistent { path: self.0.to_owned(), what: what.into(), detail: detail.into() }
    }

    fn table(&self, source: TextError) -> TextImportError {
        TextImportError::Table { path: self.0.to_owned(), source }
    }

    fn json(&self, source: serde_json::Error) -> TextImportError {
        TextImportError::Json { path: self.0.to_owned(), source }
    }
}

#[cfg(test)]
mod tests;
