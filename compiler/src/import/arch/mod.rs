//! Model families. Each is one file here and one line in [`ARCHITECTURES`].

pub mod bert;
pub mod cohere;
pub mod deepseek;
pub mod exaone4;
pub mod gemma2;
pub mod gemma3;
pub mod glm4;
pub mod gpt2;
pub mod gpt_neox;
pub mod gpt_oss;
pub mod granite;
pub mod lfm2;
pub mod llama;
pub mod mistral;
pub mod mixtral;
pub mod modernbert;
pub mod mpnet;
pub mod olmo2;
pub mod olmo3;
pub mod olmoe;
pub mod phi3;
pub mod qwen2;
pub mod qwen3;
pub mod qwen3_moe;
pub mod smollm3;
pub mod starcoder2;

use serde_json::Value;

use super::build::Model;
use super::error::{ImportError, excerpt};
use super::gguf;
use super::source::{Checkpoint, Metadata};

/// A model family: how checkpoints name it and who reads it.
#[derive(Debug)]
pub struct Architecture {
    /// Name of the family.
    pub name: &'static str,
    /// Checkpoints that people know it by.
    pub models: &'static str,
    /// What it has beyond a plain decoder.
    pub features: &'static str,
    /// `model_type` and `architectures` in `config.json`.
    pub hf: &'static [(&'static str, &'static str)],
    /// `general.architecture` in GGUF. Of families that share a name the first in [`ARCHITECTURES`] reads the files of all.
    pub gguf: &'static [&'static str],
    /// Reads the configuration, holds the checkpoint's tensors against it, and builds the graph. The number is the context that the
    /// model is wanted for, where it is not its own: it matters to ropes that scale by it.
    pub build: fn(&Checkpoint, Option<usize>) -> Result<Model, ImportError>,
}

/// All families that are built.
pub const ARCHITECTURES: &[&Architecture] = &[
    &bert::ARCHITECTURE,
    &cohere::ARCHITECTURE,
    &deepseek::V2,
    &deepseek::V3,
    &exaone4::ARCHITECTURE,
    &gemma2::ARCHITECTURE,
    &gemma3::ARCHITECTURE,
    &glm4::ARCHITECTURE,
    &gpt2::ARCHITECTURE,
    &gpt_neox::ARCHITECTURE,
    &gpt_oss::ARCHITECTURE,
    &granite::ARCHITECTURE,
    &lfm2::ARCHITECTURE,
    &llama::ARCHITECTURE,
    &mistral::ARCHITECTURE,
    &mixtral::ARCHITECTURE,
    &modernbert::ARCHITECTURE,
    &mpnet::ARCHITECTURE,
    &olmo2::ARCHITECTURE,
    &olmo3::ARCHITECTURE,
    &olmoe::ARCHITECTURE,
    &phi3::ARCHITECTURE,
    &qwen2::ARCHITECTURE,
    &qwen3::ARCHITECTURE,
    &qwen3_moe::ARCHITECTURE,
    &smollm3::ARCHITECTURE,
    &starcoder2::ARCHITECTURE,
];

/// The families as a table in Markdown.
pub fn table() -> String {
    let mut out = String::from("| family | models | files | beside a plain decoder |\n|---|---|---|---|\n");
    for family in ARCHITECTURES {
        let Architecture { name, models, features, .. } = family;
        out.push_str(&format!("| {name} | {models} | {} | {features} |\n", family.files().join(", ")));
    }
    out
}

impl Architecture {
    /// The model of a checkpoint, for sequences of at most `context` tokens where it is not for as many as the model can have.
    pub fn model(&self, checkpoint: &Checkpoint, context: Option<u32>) -> Result<Model, ImportError> {
        let mut model = (self.build)(checkpoint, context.map(|context| context as usize))?;
        let longest = model.facts.context;
        let context = context.unwrap_or(longest);
        if context == 0 || context > longest {
            let path = checkpoint.config_path().to_owned();
            return Err(ImportError::Context { path, asked: context, longest });
        }
        model.facts.context = context;
        Ok(model)
    }

    /// The containers that its checkpoints come in.
    pub fn files(&self) -> Vec<&'static str> {
        let kinds = [(!self.hf.is_empty(), "safetensors"), (!self.gguf.is_empty(), "GGUF")];
        kinds.into_iter().filter(|(known, _)| *known).map(|(_, kind)| kind).collect()
    }
}

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
            let key = format!("{name}.expert_count");
            let has_experts = !matches!(metadata.entries.get(&key), None | Some(gguf::Value::Unsigned(0)));
            // One name for a family and its mixture of experts, where they share it.
            let with_experts = format!("{name} with experts");
            let names = if has_experts { [with_experts.as_str(), name] } else { [name, name] };
            let known = |name: &str| ARCHITECTURES.iter().any(|family| family.gguf.contains(&name));
            let name = if known(names[0]) { names[0] } else { names[1] };
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
    names.dedup();
    names.join(", ")
}
