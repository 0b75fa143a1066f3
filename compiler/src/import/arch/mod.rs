//! Model families. Each is one file here and one line in [`ARCHITECTURES`].

pub mod gpt2;
pub mod llama;

use serde_json::Value;

use super::build::Model;
use super::error::{ImportError, excerpt};
use super::source::{Checkpoint, Metadata};

/// A model family: how checkpoints name it and who reads it.
#[derive(Debug)]
pub struct Architecture {
    /// Name of the family.
    pub name: &'static str,
    /// `model_type` and `architectures` in `config.json`.
    pub hf: &'static [(&'static str, &'static str)],
    /// `general.architecture` in GGUF.
    pub gguf: &'static [&'static str],
    /// Reads the configuration, holds the checkpoint's tensors against it, and builds the graph.
    pub build: fn(&Checkpoint) -> Result<Model, ImportError>,
}

/// All families that are built.
pub const ARCHITECTURES: &[&Architecture] = &[&gpt2::ARCHITECTURE, &llama::ARCHITECTURE];

/// The family of a checkpoint.
pub fn detect(checkpoint: &Checkpoint) -> Result<&'static Architecture, ImportError> {
    match checkpoint.config() {
        Metadata::HuggingFace(config) => {
            let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or("");
            // Old files lack `architectures`; then the model type alone says that it is the language model.
            let class = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
            let known =
                |(ty, name): &(&str, &str)| *ty == model_type && class.is_none_or(|class| class == *name);
            find(
                checkpoint,
                |family| family.hf.iter().any(known),
                || match class {
                    Some(class) => format!("{} (model_type {})", excerpt(class), excerpt(model_type)),
                    None => format!("model_type {}", excerpt(model_type)),
                },
            )
        }
        Metadata::Gguf(metadata) => {
            let name = metadata.string("general.architecture").unwrap_or("");
            find(checkpoint, |family| family.gguf.contains(&name), || excerpt(name))
        }
    }
}

fn find(
    checkpoint: &Checkpoint,
    is_it: impl Fn(&Architecture) -> bool,
    found: impl Fn() -> String,
) -> Result<&'static Architecture, ImportError> {
    ARCHITECTURES.iter().copied().find(|family| is_it(family)).ok_or_else(|| {
        ImportError::UnknownArchitecture {
            path: checkpoint.config_path().to_owned(),
            found: found(),
            supported: supported(),
        }
    })
}

fn supported() -> String {
    let mut names: Vec<_> = ARCHITECTURES
        .iter()
        .flat_map(|family| family.hf.iter().map(|(_, class)| (*class).to_owned()))
        .chain(ARCHITECTURES.iter().flat_map(|family| family.gguf.iter().map(|name| format!("GGUF {name}"))))
        .collect();
    names.sort();
    names.join(", ")
}
