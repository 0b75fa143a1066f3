//! `tokenizer.json`, the serialised pipeline of Hugging Face's tokenizers library.

mod frame;
mod model;
mod pipeline;

use std::collections::BTreeMap;

use bessemer_runtime::text::{AddedToken, Normalizer, Prefix, SPACE_MARKER};
use serde::Deserialize;
use serde_json::Value as Json;

use super::builder::NamedVocab;
use super::{Origin, TextImportError, Tokens};
use model::Model;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Json,
    #[serde(default)]
    pre_tokenizer: Json,
    #[serde(default)]
    post_processor: Json,
    #[serde(default)]
    decoder: Json,
    model: Json,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

/// Reads the file.
pub(super) fn read(origin: Origin<'_>, bytes: &[u8]) -> Result<Tokens, TextImportError> {
    let file: File = serde_json::from_slice(bytes).map_err(|e| origin.json(e))?;
    let model = Model::read(origin, file.model)?;
    let mut data = model.rules(origin)?;
    pipeline::normalizer(origin, &file.normalizer, &mut data.normalizer)?;
    let symbols = pipeline::pre_tokenizer(origin, &file.pre_tokenizer, &file.normalizer, &mut data)?;
    pipeline::decoder(origin, &file.decoder, symbols, &mut data)?;

    let added: Result<Vec<AddedToken>, _> =
        file.added_tokens.iter().map(|t| added_token(origin, t, &data.normalizer)).collect();
    let spelled = model.spelled();
    let vocab = NamedVocab {
        origin,
        symbols,
        byte_fallback: model.byte_fallback(),
        ids: spelled.iter().map(|(name, id)| (name.as_ref(), *id)).collect(),
        added: added?,
    };
    vocab.fill(&mut data, model.merges(origin)?)?;
    let mut ids: BTreeMap<String, u32> =
        file.added_tokens.iter().map(|t| (t.content.clone(), t.id)).collect();
    let names = model.into_names();
    let frame = frame::read(&file.post_processor, |name| ids.get(name).or_else(|| names.get(name)).copied());
    ids.extend(names);
    Ok(Tokens { data, frame, eos: None, ids })
}

/// The string under `key`, or nothing.
fn text<'j>(json: &'j Json, key: &str) -> &'j str {
    json.get(key).and_then(Json::as_str).unwrap_or_default()
}

fn flag(json: &Json, key: &str, default: bool) -> bool {
    json.get(key).and_then(Json::as_bool).unwrap_or(default)
}

/// The steps of a component: a sequence's members in order, one component as itself, none for null.
fn steps<'j>(json: &'j Json, members: &str) -> Vec<&'j Json> {
    match json {
        Json::Null => Vec::new(),
        _ if text(json, "type") == "Sequence" => {
            let parts = json.get(members).and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
            parts.iter().flat_map(|part| steps(part, members)).collect()
        }
        _ => vec![json],
    }
}

fn added_token(
    origin: Origin<'_>,
    token: &Added,
    normalizer: &Normalizer,
) -> Result<AddedToken, TextImportError> {
    if token.single_word {
        let found = format!("`{}` with single_word", token.content);
        return Err(origin.unsupported("added_tokens", found, "tokens without single_word"));
    }
    // Only a normaliser that changes the token's own name, or the spaces around it, makes it matter on which side of it the
    // token is looked for.
    let text = normalizer.characters(&token.content).map_err(|e| origin.table(e))?;
    let normalized = token.normalized && (normalizer.space_marker || text != token.content);
    let text = match normalizer.prefix {
        _ if !normalized => token.content.clone(),
        Prefix::Every => format!(" {}", text.replace(SPACE_MARKER, " ")),
        _ => text.replace(SPACE_MARKER, " "),
    };
    let Added { id, special, lstrip, rstrip, .. } = *token;
    Ok(AddedToken { id, text, special, normalized, lstrip, rstrip })
}

/// A component as the file spells it, short enough for a message.
fn excerpt(json: &Json) -> String {
    let text = json.to_string();
    match text.char_indices().nth(160) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
