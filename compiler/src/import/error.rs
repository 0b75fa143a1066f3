//! What can go wrong between a path and a checked model: every error says where, what was found, what was
//! expected and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A checkpoint could not be read, or it asks for something that this compiler does not build.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The operating system refused a file.
    #[error("{path}: {source} (check that the file exists and may be read)", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// The graph that an architecture file built does not fit together: our mistake, or a size no check caught.
    #[error("the model's graph does not fit together: {0}; please report the model's configuration")]
    Graph(#[from] bessemer_ir::GraphError),

    /// The path is no checkpoint of a kind that we read.
    #[error("{path}: expected {expected}, found {found}; {remedy}", path = path.display())]
    NotACheckpoint {
        /// The file or directory.
        path: PathBuf,
        /// What a checkpoint would have here.
        expected: &'static str,
        /// What is there.
        found: String,
        /// What to do.
        remedy: &'static str,
    },

    /// The file breaks its own format: cut short, flipped or written wrongly.
    #[error("{path}: {what}: expected {expected}, found {found}; the file is damaged, fetch it again", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The field, key or tensor.
        what: String,
        /// What the format asks for.
        expected: String,
        /// What the file holds.
        found: String,
    },

    /// The file is sound, and of a variant that is not read.
    #[error("{path}: {what}: found {found}, supported is {supported}; {remedy}", path = path.display())]
    UnsupportedFile {
        /// The file.
        path: PathBuf,
        /// The field, key or tensor.
        what: String,
        /// The variant.
        found: String,
        /// The variants that are read.
        supported: &'static str,
        /// What to do.
        remedy: &'static str,
    },

    /// The index names shards that are not there.
    #[error("{path}: the index names {count} missing file(s): {files}; fetch the whole checkpoint",
        path = path.display(), count = files.len(), files = List(files))]
    MissingShards {
        /// The index.
        path: PathBuf,
        /// The missing files, sorted.
        files: Vec<String>,
    },

    /// A configuration value is missing, has the wrong type or asks for arithmetic that is not built.
    #[error("{path}: `{key}`: expected {expected}, found {found}; {remedy}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key, with the keys that lead to it.
        key: String,
        /// What is accepted.
        expected: String,
        /// The value found, as text.
        found: String,
        /// What to do.
        remedy: &'static str,
    },

    /// A context that is asked for and that the model does not have.
    #[error("{path}: a context of {asked} tokens is asked for: expected 1 to {longest}, which is what the model was trained for and its \
        rope can be scaled to; ask for less",
        path = path.display())]
    Context {
        /// The file that names the model's own.
        path: PathBuf,
        /// What is asked for.
        asked: u32,
        /// What the model has.
        longest: u32,
    },

    /// Keys that nobody reads: each of them may change the arithmetic.
    #[error("{path}: unknown key(s) {keys}: expected only keys whose effect on the arithmetic is known; \
        remove a key only if you are sure that the model computes the same without it",
        path = path.display(), keys = List(keys))]
    UnknownKeys {
        /// The file.
        path: PathBuf,
        /// Each key with its value, as `key = value`.
        keys: Vec<String>,
    },

    /// No builder for this model family.
    #[error("{path}: architecture `{found}` is not supported; supported are {supported}", path = path.display())]
    UnknownArchitecture {
        /// The file that names it.
        path: PathBuf,
        /// The name found.
        found: String,
        /// The names that are built.
        supported: String,
    },

    /// Tensors that the configuration asks for and no file holds.
    #[error("{path}: {count} tensor(s) missing: {names}; the configuration asks for {expected} tensors, the \
        checkpoint holds {found}; fetch the whole checkpoint or correct its configuration",
        path = path.display(), count = names.len(), names = List(names))]
    MissingTensors {
        /// The checkpoint.
        path: PathBuf,
        /// The missing names.
        names: Vec<String>,
        /// How many tensors the configuration asks for.
        expected: usize,
        /// How many tensors the checkpoint holds.
        found: usize,
    },

    /// Tensors that nothing reads: the model would compute something else than it was trained for.
    #[error("{path}: {count} tensor(s) that nothing reads: {names}; the configuration asks for {expected} \
        tensors, the checkpoint holds {found}; the model is of another architecture or its configuration is wrong",
        path = path.display(), count = names.len(), names = List(names))]
    UnexpectedTensors {
        /// The checkpoint.
        path: PathBuf,
        /// The names.
        names: Vec<String>,
        /// How many tensors the configuration asks for.
        expected: usize,
        /// How many tensors the checkpoint holds.
        found: usize,
    },

    /// A tensor has another shape than the configuration says.
    #[error("{path}: tensor `{tensor}` has shape {found:?}, the configuration asks for {expected:?}; \
        weights and configuration do not belong together", path = path.display())]
    TensorShape {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// By the configuration, outermost first.
        expected: Vec<usize>,
        /// In the file, outermost first.
        found: Vec<usize>,
    },

    /// A tensor is stored in an encoding that is not read.
    #[error("{path}: tensor `{tensor}` is stored as {found}, supported are {supported}; convert the checkpoint",
        path = path.display())]
    UnsupportedEncoding {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its encoding by name.
        found: &'static str,
        /// The encodings that are read.
        supported: String,
    },

    /// Somebody asked for a tensor that is not there.
    #[error("{path}: no tensor `{tensor}` among the {found} of this checkpoint", path = path.display())]
    NoSuchTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The name asked for.
        tensor: String,
        /// How many tensors there are.
        found: usize,
    },
}

impl ImportError {
    /// An [`ImportError::Io`] for `path`.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        ImportError::Io { path: path.to_owned(), source }
    }

    /// An [`ImportError::Damaged`] in `path`.
    pub(crate) fn damaged(
        path: &Path,
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        ImportError::Damaged {
            path: path.to_owned(),
            what: what.into(),
            expected: expected.into(),
            found: found.into(),
        }
    }
}

/// Prints the head of a list that a damaged file can make very long.
struct List<'a>(&'a [String]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        for (i, name) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}`{}`", if i == 0 { "" } else { ", " }, excerpt(name))?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(rest) if rest > 0 => write!(f, " and {rest} more"),
            _ => Ok(()),
        }
    }
}

/// At most 80 characters of a text that comes out of a file.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
