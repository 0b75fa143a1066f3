//! A checkpoint on disk: which tensors there are, where their bytes lie, and what the configuration says.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use bessemer_format::file::Bytes;
use bessemer_ir::Stored;
use bessemer_ir::stored::Packed;
use serde_json::Value as Json;

use super::error::{ImportError, excerpt};
use super::gguf::{self, GgufMetadata};
use super::map::map_file;
use super::pooling;
use super::quantised::{self, Assembled};
use super::safetensors;

pub(super) const CONFIG: &str = "config.json";
pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The files beside config and weights that change what an engine does. Together with those they are the content
/// of a Hugging Face directory; a README is not.
pub(super) const COMPANIONS: [&str; 12] = [
    pooling::POOLING,
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    pooling::MODULES,
    pooling::SENTENCES,
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
];

/// Under this name a GGUF file enters the content hash, whatever it is called on disk.
const GGUF_NAME: &str = "model.gguf";

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoredType {
    /// In an encoding that is read.
    Known(Stored),
    /// In several tensors, quantised before.
    Packed(Packed),
    /// A known encoding, by name, that is not read as numbers.
    Unsupported(&'static str),
}

impl StoredType {
    /// The encodings that can be read, for messages.
    pub fn supported() -> String {
        Stored::ALL.iter().map(|stored| stored.name()).collect::<Vec<_>>().join(", ")
    }

    /// The name in the container's own spelling.
    pub fn name(self) -> &'static str {
        match self {
            StoredType::Known(stored) => stored.name(),
            StoredType::Packed(packed) => packed.format.name(),
            StoredType::Unsupported(name) => name,
        }
    }
}

/// One tensor: what it is and where its bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Extents, outermost first: a linear's weight is `[out, in]` from either container.
    pub shape: Vec<usize>,
    /// Encoding of the bytes.
    pub stored: StoredType,
    /// Number of the file, an index into [`Checkpoint::files`].
    pub file: usize,
    /// First byte in that file. The format promises no alignment for it.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

/// What the checkpoint says about the model, in its own words.
#[derive(Debug)]
pub enum Metadata {
    /// The object in `config.json`.
    HuggingFace(serde_json::Map<String, Json>),
    /// The key-value section of a GGUF file.
    Gguf(GgufMetadata),
}

impl Metadata {
    /// Name of the container of the weights.
    pub fn format(&self) -> &'static str {
        match self {
            Metadata::HuggingFace(_) => "safetensors",
            Metadata::Gguf(_) => "gguf",
        }
    }
}

/// A mapped file of a checkpoint.
struct SourceFile {
    /// Name inside the checkpoint, not on disk.
    name: String,
    map: Bytes,
}

impl fmt::Debug for SourceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.map.len())
    }
}

/// An opened checkpoint. The places of all tensors are checked; weight bytes are read only through
/// [`Checkpoint::bytes`], straight from the mapping.
///
/// A file that another process truncates while it is mapped makes the operating system raise `SIGBUS`.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config_path: PathBuf,
    files: Vec<SourceFile>,
    tensors: BTreeMap<String, TensorInfo>,
    /// Tensors that packed matrices are made of.
    parts: BTreeMap<String, TensorInfo>,
    config: Metadata,
}

impl Checkpoint {
    /// Opens a Hugging Face directory or a `.gguf` file. What is in a file decides, not its name.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint, ImportError> {
        let path = path.as_ref();
        let kind = std::fs::metadata(path).map_err(|source| ImportError::io(path, source))?;
        if kind.is_dir() { Self::open_directory(path) } else { Self::open_gguf(path) }
    }

    fn open_gguf(path: &Path) -> Result<Checkpoint, ImportError> {
        let map = map_file(path).map_err(|source| ImportError::io(path, source))?;
        if !map.starts_with(&gguf::MAGIC) {
            return Err(ImportError::NotACheckpoint {
                path: path.to_owned(),
                expected: "a Hugging Face directory or a GGUF file",
                found: format!("a file that starts with {:02x?}", &map[..map.len().min(4)]),
                remedy: "give the directory that holds `config.json`, or a .gguf file",
            });
        }
        let (metadata, tensors) = gguf::read(path, &map)?;
        Ok(Checkpoint {
            path: path.to_owned(),
            config_path: path.to_owned(),
            files: vec![SourceFile { name: GGUF_NAME.into(), map }],
            tensors,
            parts: BTreeMap::new(),
            config: Metadata::Gguf(metadata),
        })
    }

    fn open_directory(folder: &Path) -> Result<Checkpoint, ImportError> {
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();

        let Some(config) = open_member(folder, CONFIG)? else {
            return Err(ImportError::NotACheckpoint {
                path: folder.to_owned(),
                expected: "`config.json`",
                found: "a directory without it".into(),
                remedy: "give the directory of a Hugging Face model, or the path of a .gguf file itself",
            });
        };
        let object = serde_json::from_slice(&config.map).map_err(|error| {
            ImportError::damaged(&folder.join(CONFIG), "the file", "a JSON object", error.to_string())
        })?;
        files.push(config);

        // A single file wins over an index, as in transformers.
        if let Some(weights) = open_member(folder, SINGLE)? {
            tensors = safetensors::read(&folder.join(SINGLE), &weights.map, files.len())?;
            files.push(weights);
        } else if let Some(json) = open_member(folder, INDEX)? {
            let path = folder.join(INDEX);
            let index = safetensors::Index::read(&path, &json.map)?;
            for shard in index.shards() {
                let shard_path = folder.join(shard);
                let map = map_file(&shard_path).map_err(|source| ImportError::io(&shard_path, source))?;
                let found = safetensors::read(&shard_path, &map, files.len())?;
                index.check(&path, shard, &found)?;
                // No name twice: the index gives each tensor one home, and `check` holds the shards to it.
                tensors.extend(found);
                files.push(SourceFile { name: shard.to_owned(), map });
            }
            files.push(json);
        } else {
            return Err(no_weights(folder));
        }

        for name in COMPANIONS {
            files.extend(open_member(folder, name)?);
        }
        let Assembled { tensors, parts } =
            quantised::assemble(folder, &folder.join(CONFIG), &object, tensors, |info| {
                &files[info.file].map[info.offset..info.offset + info.len]
            })?;
        Ok(Checkpoint {
            path: folder.to_owned(),
            config_path: folder.join(CONFIG),
            files,
            tensors,
            parts,
            config: Metadata::HuggingFace(object),
        })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that holds the configuration, for messages.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }

    /// What the checkpoint says about the model.
    pub fn config(&self) -> &Metadata {
        &self.config
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The mapped files by their name in the checkpoint, in the order of [`TensorInfo::file`].
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|file| (file.name.as_str(), &*file.map))
    }

    /// The content of a file beside the weights, such as `tokenizer.json`; `None` when there is none.
    pub fn companion(&self, name: &str) -> Option<&[u8]> {
        self.files().find(|(file, _)| *file == name).map(|(_, bytes)| bytes)
    }

    /// What is known about a tensor.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, ImportError> {
        self.tensors.get(name).ok_or_else(|| ImportError::NoSuchTensor {
            path: self.path.clone(),
            tensor: excerpt(name),
            found: self.tensors.len(),
        })
    }

    /// The stored bytes of a tensor that a packed matrix is made of.
    pub fn part_bytes(&self, name: &str) -> Option<&[u8]> {
        let info = self.parts.get(name)?;
        Some(&self.files[info.file].map[info.offset..info.offset + info.len])
    }

    /// The stored bytes of a tensor (of a packed matrix: its codes), straight from the mapping. An encoding that is not read is an error.
    pub fn bytes(&self, name: &str) -> Result<&[u8], ImportError> {
        let info = self.tensor(name)?;
        if let StoredType::Unsupported(found) = info.stored {
            return Err(ImportError::UnsupportedEncoding {
                path: self.path.clone(),
                tensor: name.to_owned(),
                found,
                supported: StoredType::supported(),
            });
        }
        // `open` checked that the tensor lies inside its file, and a mapping keeps its length.
        Ok(&self.files[info.file].map[info.offset..info.offset + info.len])
    }

    /// BLAKE3 over everything that an engine depends on, and nothing else: not the folder, not the name of a
    /// `.gguf` file, not files that are never read.
    ///
    /// The input is, for every file in ascending order of its name inside the checkpoint, the length of the name
    /// (u64 little endian), the name, the length of the content (u64 little endian), the content. `progress` gets
    /// the bytes done and the bytes in all.
    pub fn content_hash(&self, mut progress: impl FnMut(u64, u64)) -> blake3::Hash {
        let whole = self.content_hash_while(|done, total| {
            progress(done, total);
            true
        });
        whole.unwrap_or_else(|| unreachable!("nobody stopped it"))
    }

    /// As [`Checkpoint::content_hash`]; `None` once `progress` says no.
    pub fn content_hash_while(&self, mut progress: impl FnMut(u64, u64) -> bool) -> Option<blake3::Hash> {
        const STEP: usize = 4 << 20;
        let mut files: Vec<_> = self.files().collect();
        files.sort_by_key(|(name, _)| *name);
        let total = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let mut done = 0;
        let mut hasher = blake3::Hasher::new();
        for (name, bytes) in files {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            for piece in bytes.chunks(STEP) {
                hasher.update(piece);
                done += piece.len() as u64;
                if !progress(done, total) {
                    return None;
                }
            }
        }
        Some(hasher.finalize())
    }
}

/// Maps a file of a directory; `None` when it does not exist.
fn open_member(folder: &Path, name: &str) -> Result<Option<SourceFile>, ImportError> {
    let path = folder.join(name);
    match map_file(&path) {
        Ok(map) => Ok(Some(SourceFile { name: name.to_owned(), map })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ImportError::io(&path, error)),
    }
}

/// Says what weights the directory has instead.
fn no_weights(folder: &Path) -> ImportError {
    let has_pickle =
        ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| folder.join(name).exists());
    let (found, remedy) = match has_pickle {
        true => (
            "`pytorch_model.bin`, which runs code when it is read",
            "save the model again with `save_pretrained(..., safe_serialization=True)`",
        ),
        false => ("a directory without weights", "fetch the *.safetensors files of the model"),
    };
    ImportError::NotACheckpoint {
        path: folder.to_owned(),
        expected: "`model.safetensors` or `model.safetensors.index.json`",
        found: found.into(),
        remedy,
    }
}
