//! `tekken.json`: byte-level byte-pair encoding whose ranks are the ids, in the manner of tiktoken.

use std::collections::BTreeMap;

use bessemer_runtime::text::{AddedToken, Frame, Merge, SplitPattern, Symbols, TokenizerData};
use serde::Deserialize;

use super::base64;
use super::builder::{NamedVocab, spell};
use super::{Origin, TextImportError, Tokens};

#[derive(Deserialize)]
struct File {
    config: Config,
    vocab: Vec<Entry>,
    #[serde(default)]
    special_tokens: Option<Vec<Special>>,
}

#[derive(Deserialize)]
struct Config {
    pattern: String,
    /// Tokens that count, special ones among them; the list may go on.
    default_vocab_size: u32,
    default_num_special_tokens: u32,
}

#[derive(Deserialize)]
struct Entry {
    rank: u32,
    token_bytes: String,
}

#[derive(Deserialize)]
struct Special {
    rank: u32,
    token_str: String,
    #[serde(default = "yes")]
    is_control: bool,
}

fn yes() -> bool {
    true
}

/// Special tokens of files that do not list them.
const SPECIAL: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

/// Reads the file.
pub(super) fn read(origin: Origin<'_>, bytes: &[u8]) -> Result<Tokens, TextImportError> {
    let File { config, vocab, special_tokens } = serde_json::from_slice(bytes).map_err(|e| origin.json(e))?;
    let specials = config.default_num_special_tokens;
    let Some(len) =
        config.default_vocab_size.checked_sub(specials).filter(|&len| len as usize <= vocab.len())
    else {
        let detail = format!("{} with {} tokens listed", config.default_vocab_size, vocab.len());
        return Err(origin.inconsistent("config.default_vocab_size", detail));
    };
    let mut ranks: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    for (i, entry) in (0..len).zip(&vocab) {
        let wrong = |detail: &str| origin.inconsistent(format!("vocab[{i}]"), detail);
        if entry.rank != i {
            return Err(wrong("the rank is another number"));
        }
        let token = base64::decode(&entry.token_bytes).ok_or_else(|| wrong("token_bytes is no base64"))?;
        ranks.insert(token, specials + i);
    }
    let listed = special_tokens.unwrap_or_else(|| {
        let known = (0..).zip(SPECIAL);
        known.map(|(rank, name)| Special { rank, token_str: name.to_owned(), is_control: true }).collect()
    });
    let added = listed.into_iter().filter(|token| token.rank < specials).map(|token| AddedToken {
        id: token.rank,
        text: token.token_str,
        special: token.is_control,
        normalized: false,
        lstrip: false,
        rstrip: false,
    });
    let added: Vec<AddedToken> = added.collect();
    let mut data = TokenizerData {
        whole_words: true,
        splits: vec![SplitPattern::new(&config.pattern, true).map_err(|e| origin.table(e))?],
        ..Default::default()
    };
    let spelled: Vec<(String, u32)> = ranks.iter().map(|(token, &id)| (spell(token), id)).collect();
    let named = NamedVocab {
        origin,
        symbols: Symbols::Bytes,
        byte_fallback: false,
        ids: spelled.iter().map(|(name, id)| (name.as_str(), *id)).collect(),
        added,
    };
    named.fill(&mut data, merges(&ranks))?;
    let ids: BTreeMap<String, u32> = named.added.iter().map(|t| (t.text.clone(), t.id)).collect();
    let find = |name: &str| ids.get(name).copied();
    let frame = Frame { before: find("<s>").into_iter().collect(), ..Frame::default() };
    Ok(Tokens { data, frame, eos: find("</s>"), ids })
}

/// The pair whose union has the lowest rank joins first, whichever way the union is cut.
fn merges(ranks: &BTreeMap<Vec<u8>, u32>) -> Vec<Merge> {
    let mut merges = Vec::new();
    for (token, &merged) in ranks {
        for at in 1..token.len() {
            if let (Some(&left), Some(&right)) = (ranks.get(&token[..at]), ranks.get(&token[at..])) {
                merges.push(Merge { left, right, merged, rank: merged });
            }
        }
    }
    merges
}
