//! The tokeniser of a directory, and the files around it: which tokens begin and end a text, and the chat template.

use std::collections::BTreeMap;

use bessemer_runtime::text::{AddedToken, TextSection};
use serde_json::{Map, Value as Json};

use super::sentencepiece::Surroundings;
use super::{Origin, TextImportError, Tokens, sentencepiece, tekken, tokenizer_json};
use crate::import::Checkpoint;

/// The files that hold tokenisers. The first one that is there counts: it was made of the others, and says more.
const TOKENIZER: &str = "tokenizer.json";
const SENTENCEPIECE: &str = "tokenizer.model";
const TEKKEN: &str = "tekken.json";

/// The section of a Hugging Face directory whose `config.json` is `config`.
pub(super) fn section(
    checkpoint: &Checkpoint,
    config: &Map<String, Json>,
) -> Result<Option<TextSection>, TextImportError> {
    let tokenizer_config = object(checkpoint, "tokenizer_config.json")?;
    let Some(pipeline) = tokens(checkpoint, &tokenizer_config)? else { return Ok(None) };
    let special_tokens = object(checkpoint, "special_tokens_map.json")?;
    let generation = object(checkpoint, "generation_config.json")?;

    let named = |key: &str| {
        let name =
            [&tokenizer_config, &special_tokens].into_iter().find_map(|file| token_name(file.get(key)?))?;
        pipeline.ids.get(name).copied()
    };
    let listed = |key: &str| {
        let ids = token_ids(generation.get(key));
        if ids.is_empty() { token_ids(config.get(key)) } else { ids }
    };
    let mut frame = pipeline.frame;
    let bos = named("bos_token")
        .or_else(|| frame.before.first().copied())
        .or_else(|| listed("bos_token_id").first().copied());
    let mut stop_tokens = listed("eos_token_id");
    let eos = named("eos_token")
        .or_else(|| stop_tokens.first().copied())
        .or_else(|| frame.after.first().copied())
        .or(pipeline.eos);
    stop_tokens.extend(eos);
    stop_tokens.sort_unstable();
    stop_tokens.dedup();
    match tokenizer_config.get("add_bos_token").and_then(Json::as_bool) {
        Some(true) if frame.before.is_empty() => frame.before.extend(bos),
        Some(false) => frame.before.clear(),
        _ => {}
    }
    if tokenizer_config.get("add_eos_token").and_then(Json::as_bool) == Some(true) && frame.after.is_empty() {
        frame.after.extend(eos);
    }
    Ok(Some(TextSection {
        tokenizer: pipeline.data,
        bos,
        eos,
        frame,
        stop_tokens,
        chat_template: chat_template(checkpoint, &tokenizer_config)?,
    }))
}

/// What the file that holds the tokeniser says; `None` if there is no such file.
fn tokens(
    checkpoint: &Checkpoint,
    tokenizer_config: &BTreeMap<String, Json>,
) -> Result<Option<Tokens>, TextImportError> {
    let file = |name: &str| Some((checkpoint.path().join(name), checkpoint.companion(name)?));
    if let Some((path, bytes)) = file(TOKENIZER) {
        return tokenizer_json::read(Origin(&path), bytes).map(Some);
    }
    if let Some((path, bytes)) = file(SENTENCEPIECE) {
        let surroundings = Surroundings {
            added: added_tokens(checkpoint, tokenizer_config)?,
            prefix_first: tokenizer_config.get("legacy").and_then(Json::as_bool) == Some(false),
        };
        return sentencepiece::read(Origin(&path), bytes, &surroundings).map(Some);
    }
    file(TEKKEN).map(|(path, bytes)| tekken::read(Origin(&path), bytes)).transpose()
}

/// The tokens that were added to a model without changing its file.
fn added_tokens(
    checkpoint: &Checkpoint,
    tokenizer_config: &BTreeMap<String, Json>,
) -> Result<Vec<AddedToken>, TextImportError> {
    let mut added = Vec::new();
    if let Some(listed) = tokenizer_config.get("added_tokens_decoder").and_then(Json::as_object) {
        for (id, token) in listed {
            let flag = |key: &str| token.get(key).and_then(Json::as_bool).unwrap_or(false);
            let (Ok(id), Some(text)) = (id.parse(), token_name(token)) else { continue };
            let text = text.to_owned();
            let (special, lstrip, rstrip) = (flag("special"), flag("lstrip"), flag("rstrip"));
            added.push(AddedToken { id, text, special, normalized: false, lstrip, rstrip });
        }
        return Ok(added);
    }
    // Older files say no more than the names; then what a user writes must not become one.
    for (text, id) in object(checkpoint, "added_tokens.json")? {
        let id = token_ids(Some(&id)).first().copied();
        let token = id.map(|id| AddedToken {
            id,
            text,
            special: true,
            normalized: false,
            lstrip: false,
            rstrip: false,
        });
        added.extend(token);
    }
    Ok(added)
}

/// A companion file with an object in it; empty if there is no such file.
fn object(checkpoint: &Checkpoint, name: &str) -> Result<BTreeMap<String, Json>, TextImportError> {
    let path = checkpoint.path().join(name);
    match checkpoint.companion(name) {
        Some(bytes) => serde_json::from_slice(bytes).map_err(|e| Origin(&path).json(e)),
        None => Ok(BTreeMap::new()),
    }
}

/// A token's name, given as text or as an object with its flags.
fn token_name(json: &Json) -> Option<&str> {
    json.as_str().or_else(|| json.get("content")?.as_str())
}

/// A token id or a list of them.
fn token_ids(json: Option<&Json>) -> Vec<u32> {
    let id = |json: &Json| json.as_u64().and_then(|id| u32::try_from(id).ok());
    match json {
        Some(Json::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(json) => id(json).into_iter().collect(),
        None => Vec::new(),
    }
}

/// The template from its own file, or from the tokeniser's configuration: a text, or a list of named texts of which
/// `default` is meant.
fn chat_template(
    checkpoint: &Checkpoint,
    tokenizer_config: &BTreeMap<String, Json>,
) -> Result<Option<String>, TextImportError> {
    const JINJA: &str = "chat_template.jinja";
    if let Some(bytes) = checkpoint.companion(JINJA) {
        let text = std::str::from_utf8(bytes).map_err(|e| TextImportError::NotUtf8 {
            path: checkpoint.path().join(JINJA),
            valid: e.valid_up_to(),
        })?;
        return Ok(Some(text.to_owned()));
    }
    let own_file = object(checkpoint, "chat_template.json")?;
    let json = own_file.get("chat_template").or_else(|| tokenizer_config.get("chat_template"));
    let template = match json {
        Some(Json::Array(named)) => {
            let is_default = |entry: &&Json| entry.get("name").and_then(Json::as_str) == Some("default");
            named.iter().find(is_default).and_then(|entry| entry.get("template"))
        }
        other => other,
    };
    Ok(template.and_then(Json::as_str).map(str::to_owned))
}
