//! The texts that calibration and measurement read.

use crate::error::CompileError;
use crate::import::Checkpoint;
use crate::import::text::text_section;
use bessemer_format::manifest::Hash;
use bessemer_runtime::text::{Special, Tokenizer};
use std::path::Path;

/// Windows of tokens of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    /// What is read.
    pub text: Text,
    /// At most so many windows.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
}

/// A text, or the tokens of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// Documents in UTF-8, for the checkpoint's tokenizer. No window holds parts of two.
    Utf8(Vec<String>),
    /// Token ids, for checkpoints without one.
    Tokens(Vec<u32>),
}

/// Stories of Sara Cone Bryant, "Stories to Tell to Children" (1918 edition), in the public domain.
const CALIBRATION: &str = include_str!("text/calibration.txt");
/// The beginning of Thornton Burgess, "The Adventures of Buster Bear" (1920), in the public domain.
const HELD_OUT: &str = include_str!("text/held_out.txt");

impl Corpus {
    /// The sample that calibrates if nobody names another.
    pub fn calibration() -> Self {
        Self { text: Text::Utf8(vec![CALIBRATION.into()]), windows: 64, window: 256 }
    }

    /// The sample that quality is measured on if nobody names another; no part of the one for calibration.
    pub fn held_out() -> Self {
        Self { text: Text::Utf8(vec![HELD_OUT.into()]), windows: 8, window: 128 }
    }

    /// The text of a file, or of all files of a folder, each a document, in the order of their names.
    pub fn read(path: &Path, windows: usize, window: usize) -> Result<Self, CompileError> {
        let error = |e: std::io::Error| CompileError::Calibration(format!("{}: {e}", path.display()));
        let mut files = vec![path.to_path_buf()];
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(error)?;
            files = entries.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>().map_err(error)?;
            files.retain(|f| f.is_file());
            files.sort();
        }
        let texts: Result<Vec<_>, _> = files.iter().map(std::fs::read_to_string).collect();
        Ok(Self { text: Text::Utf8(texts.map_err(error)?), windows, window })
    }

    /// Its content and shape, for cache keys: equal for equal tokens of one tokenizer, whatever the file was called.
    fn hash(&self) -> Hash {
        match &self.text {
            Text::Utf8(documents) => {
                // Lengths too, so that documents cut elsewhere are others.
                let of = |text: &String| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
                Hash::of(&documents.iter().flat_map(of).collect::<Vec<u8>>())
            }
            Text::Tokens(tokens) => hash_of([tokens]),
        }
    }

    /// Its windows for a checkpoint, each beginning as the tokenizer has texts begin.
    pub(super) fn cut(&self, checkpoint: &Checkpoint) -> Result<Vec<Vec<u32>>, CompileError> {
        let windows = self.all(checkpoint)?;
        if windows.is_empty() {
            return Err(CompileError::Calibration(
                "the text holds fewer than two tokens; give a longer one".into(),
            ));
        }
        Ok(windows.into_iter().take(self.windows).collect())
    }

    /// The windows behind those of [`Corpus::cut`], as far as the text goes.
    pub(super) fn rest(&self, checkpoint: &Checkpoint) -> Result<Vec<Vec<u32>>, CompileError> {
        Ok(self.all(checkpoint)?.into_iter().skip(self.windows).collect())
    }

    fn all(&self, checkpoint: &Checkpoint) -> Result<Vec<Vec<u32>>, CompileError> {
        let error = |e: &dyn std::fmt::Display| CompileError::Calibration(e.to_string());
        let (documents, bos) = match &self.text {
            Text::Tokens(tokens) => (vec![tokens.clone()], None),
            Text::Utf8(documents) => {
                let section = text_section(checkpoint).map_err(|e| error(&e))?.ok_or_else(|| {
                    error(&"the checkpoint has no tokenizer to read the text with; use `--method rtn`")
                })?;
                let tokenizer = Tokenizer::new(section).map_err(|e| error(&e))?;
                let encode = |text: &String| tokenizer.encode(text, Special::AsText).map_err(|e| error(&e));
                let documents = documents.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
                (documents, tokenizer.bos().filter(|_| tokenizer.adds_bos()))
            }
        };
        let body = self.window.saturating_sub(usize::from(bos.is_some())).max(1);
        let windows = documents.iter().flat_map(|tokens| tokens.chunks(body)).filter(|w| w.len() > 1);
        Ok(windows.map(|w| bos.iter().chain(w).copied().collect()).collect())
    }
}

/// Its hash and shape.
impl std::fmt::Display for Corpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}x{}", self.hash(), self.windows, self.window)
    }
}

/// The hash of windows of tokens.
pub(super) fn hash_of<'a>(windows: impl IntoIterator<Item = &'a Vec<u32>>) -> Hash {
    let bytes = windows.into_iter().flat_map(|w| {
        // Lengths too, so that windows cut elsewhere are others.
        std::iter::once(w.len() as u32).chain(w.iter().copied())
    });
    Hash::of(&bytes.flat_map(u32::to_le_bytes).collect::<Vec<u8>>())
}
