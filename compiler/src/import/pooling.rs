//! How a checkpoint makes one vector of a text: the modules of sentence-transformers behind the model, or GGUF's pooling type.

use bessemer_format::plan::Output;
use bessemer_ir::Value;
use bessemer_ir::attr::PoolKind;
use serde_json::{Map, Value as Json};

use super::build::Builder;
use super::config::{Fields, Harmless};
use super::error::ImportError;
use super::source::Checkpoint;

/// The list of modules.
pub const MODULES: &str = "modules.json";
/// The pooling module, where sentence-transformers writes it.
pub const POOLING: &str = "1_Pooling/config.json";
/// Settings of the model's own module.
pub const SENTENCES: &str = "sentence_bert_config.json";

/// What becomes of the rows of a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pooling {
    /// Which rows count; the last one where there is no kind.
    pub kind: Option<PoolKind>,
    /// Whether the vector is scaled to length 1.
    pub normalise: bool,
    /// Most tokens of a text that are read.
    pub max_tokens: Option<usize>,
}

impl Pooling {
    /// The modules of a directory. A model without a list of modules is pooled by the mean, as sentence-transformers does it.
    pub fn from_hf(checkpoint: &Checkpoint) -> Result<Pooling, ImportError> {
        let mut pooling = Pooling { kind: Some(PoolKind::Mean), normalise: false, max_tokens: None };
        if let Some(map) = object(checkpoint, SENTENCES)? {
            let path = checkpoint.path().join(SENTENCES);
            let fields = Fields::new(&path, "", &map);
            pooling.max_tokens = fields.count("max_seq_length")?;
            fields.skip(&[Harmless { reason: "the tokenizer's own file says so", keys: &["do_lower_case"] }]);
            fields.finish()?;
        }
        let Some(json) = parsed(checkpoint, MODULES)? else { return Ok(pooling) };
        let path = checkpoint.path().join(MODULES);
        let kinds: Vec<&str> = json
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|module| module.get("type")?.as_str()?.rsplit('.').next())
            .collect();
        match kinds[..] {
            ["Transformer", "Pooling"] => {}
            ["Transformer", "Pooling", "Normalize"] => pooling.normalise = true,
            _ => {
                return Err(ImportError::Config {
                    path,
                    key: "type".into(),
                    expected: "the modules Transformer, Pooling and perhaps Normalize".into(),
                    found: kinds.join(", "),
                    remedy: "other modules are not built; use a model without them",
                });
            }
        }
        if let Some(map) = object(checkpoint, POOLING)? {
            let path = checkpoint.path().join(POOLING);
            pooling.kind = mode(&Fields::new(&path, "", &map))?;
        }
        Ok(pooling)
    }

    /// GGUF's `pooling_type`. Vectors are scaled to length 1, which is what programs that read these files do with them.
    pub fn from_gguf(fields: &Fields) -> Result<Pooling, ImportError> {
        let value = fields.value("pooling_type").and_then(Json::as_u64);
        let kind = match (fields.value("pooling_type").is_some(), value) {
            (false, _) | (_, Some(1)) => Some(PoolKind::Mean),
            (_, Some(2)) => Some(PoolKind::First),
            (_, Some(3)) => None,
            _ => {
                let expected = "1 (mean), 2 (first token) or 3 (last token)";
                return Err(fields.error("pooling_type", expected, "this pooling is not built"));
            }
        };
        Ok(Pooling { kind, normalise: true, max_tokens: None })
    }

    /// One vector of `width` elements for each wanted row.
    pub fn build(
        &self,
        b: &mut Builder,
        x: Value,
        rows: Value,
        width: usize,
    ) -> Result<(Value, Output), ImportError> {
        let pooled = match self.kind {
            Some(kind) => b.pool(x, rows, kind)?,
            None => b.select_rows(x, rows)?,
        };
        let vector = if self.normalise { b.l2_norm(pooled, width)? } else { pooled };
        Ok((vector, Output::Embedding { width: width as u32 }))
    }
}

/// The one mode that is switched on.
fn mode(fields: &Fields) -> Result<Option<PoolKind>, ImportError> {
    const MODES: [(&str, &str, Option<PoolKind>); 3] = [
        ("pooling_mode_cls_token", "cls", Some(PoolKind::First)),
        ("pooling_mode_mean_tokens", "mean", Some(PoolKind::Mean)),
        ("pooling_mode_lasttoken", "lasttoken", None),
    ];
    for key in
        ["pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens"]
    {
        fields.neutral(key, "false", |value| value == false)?;
    }
    fields.skip(&[Harmless {
        reason: "follows from the model, or speaks of prompts, which the caller writes",
        keys: &["word_embedding_dimension", "embedding_dimension", "include_prompt"],
    }]);
    let named = fields.text("pooling_mode")?;
    let mut chosen = Vec::new();
    for (key, name, kind) in MODES {
        if fields.flag(key)? == Some(true) || named == Some(name) {
            chosen.push(kind);
        }
    }
    match chosen[..] {
        [kind] => Ok(kind),
        _ => Err(fields.error(
            "pooling_mode_mean_tokens",
            "one mode: the first token, the mean or the last token",
            "other poolings are not built; use a model without them",
        )),
    }
}

fn parsed(checkpoint: &Checkpoint, name: &str) -> Result<Option<Json>, ImportError> {
    let Some(bytes) = checkpoint.companion(name) else { return Ok(None) };
    let json = serde_json::from_slice(bytes).map_err(|error| {
        ImportError::damaged(&checkpoint.path().join(name), "the file", "JSON", error.to_string())
    })?;
    Ok(Some(json))
}

fn object(checkpoint: &Checkpoint, name: &str) -> Result<Option<Map<String, Json>>, ImportError> {
    match parsed(checkpoint, name)? {
        None => Ok(None),
        Some(Json::Object(map)) => Ok(Some(map)),
        Some(other) => {
            let found = super::error::excerpt(&other.to_string());
            Err(ImportError::damaged(&checkpoint.path().join(name), "the file", "a JSON object", found))
        }
    }
}
