//! From named tokens to the runtime's tables: what the two sources of tokenisers share.

use std::collections::{BTreeMap, BTreeSet};

use bessemer_runtime::text::{
    AddedToken, Algorithm, Merge, MergeTable, NO_TOKEN, SPACE_MARKER, SplitPattern, Symbols, TokenizerData,
    U32Array, Vocab,
};

use super::{Origin, TextImportError};

/// GPT-2's pattern, which byte-level tokenisers use unless they bring their own.
pub(super) const GPT2_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Token ids may leave holes, but a file of a few bytes must not ask for gigabytes of them.
const MAX_HOLES: usize = 1 << 16;

/// A vocabulary with the names that its file gives the tokens.
pub(super) struct NamedVocab<'a> {
    pub origin: Origin<'a>,
    /// What the smallest symbols are, which also says how names spell bytes.
    pub symbols: Symbols,
    /// Whether characters without a token fall back to tokens named `<0x00>` to `<0xFF>`.
    pub byte_fallback: bool,
    /// Names of ordinary tokens.
    pub ids: BTreeMap<&'a str, u32>,
    /// Tokens that are found whole.
    pub added: Vec<AddedToken>,
}

impl NamedVocab<'_> {
    /// Fills the tables that follow from the names.
    pub(super) fn fill(&self, data: &mut TokenizerData, merges: Vec<Merge>) -> Result<(), TextImportError> {
        let tokens = self.token_bytes()?;
        let splits_at_spaces = self.symbols == Symbols::Chars && data.splits.is_empty() && !data.whole_words;
        let has_space = self.ids.contains_key(SPACE_MARKER.to_string().as_str());
        let crosses = match data.algorithm {
            Algorithm::Merges => {
                merges.iter().any(|m| tokens.get(m.merged as usize).is_some_and(|token| ends_a_word(token)))
            }
            _ => tokens.iter().any(|token| ends_a_word(token)),
        };
        if splits_at_spaces && has_space && !crosses {
            // Nothing joins across the beginning of a run of spaces, so that words can be taken one by one, with
            // the same result: a queue of a few symbols is several times faster than one of the whole text.
            data.splits.push(SplitPattern::new(" *[^ ]+| +", true).map_err(|e| self.origin.table(e))?);
        }
        data.symbols = self.symbols;
        data.merges = MergeTable::new(tokens.len(), merges).map_err(|e| self.origin.table(e))?;
        data.vocab = Vocab::new(&tokens).map_err(|e| self.origin.table(e))?;
        let id = |name: &str| self.ids.get(name).copied().unwrap_or(NO_TOKEN);
        data.byte_tokens = match self.symbols {
            Symbols::Bytes => byte_alphabet().map(|c| id(c.encode_utf8(&mut [0; 4]))).into_iter().collect(),
            Symbols::Chars if self.byte_fallback => {
                (0..=255u8).map(|b| id(&format!("<0x{b:02X}>"))).collect()
            }
            Symbols::Chars => [NO_TOKEN; 256].into_iter().collect(),
        };
        data.lexicon = self.lexicon(data, &tokens);
        data.added = self.added.clone();
        // Longest first, so that the first match is the longest; ids make the order complete.
        data.added.sort_by(|a, b| b.text.len().cmp(&a.text.len()).then(a.id.cmp(&b.id)));
        Ok(())
    }

    fn token_bytes(&self) -> Result<Vec<Vec<u8>>, TextImportError> {
        let ids = self.ids.values().copied().chain(self.added.iter().map(|t| t.id));
        let len = ids.max().map_or(0, |id| id as usize + 1);
        let named = self.ids.len() + self.added.len();
        if len > named + MAX_HOLES {
            let detail = format!("the highest id is {} but only {named} tokens have names", len - 1);
            return Err(self.origin.inconsistent("vocabulary", detail));
        }
        let mut tokens = vec![Vec::new(); len];
        let alphabet: BTreeMap<char, u8> = byte_alphabet().into_iter().zip(0..=255).collect();
        for (name, &id) in &self.ids {
            tokens[id as usize] = match self.symbols {
                Symbols::Bytes => {
                    let bytes: Option<Vec<u8>> = name.chars().map(|c| alphabet.get(&c).copied()).collect();
                    bytes.unwrap_or_else(|| name.as_bytes().to_vec())
                }
                Symbols::Chars => match self.byte_fallback.then(|| byte_of_name(name)).flatten() {
                    Some(byte) => vec![byte],
                    None => name.replace(SPACE_MARKER, " ").into_bytes(),
                },
            };
        }
        for token in &self.added {
            // A normalised token is looked for with the prefix's space, which is no part of its name.
            let name = if token.normalized { token.text.trim_start_matches(' ') } else { &token.text };
            let bytes = &mut tokens[token.id as usize];
            if bytes.is_empty() {
                *bytes = name.as_bytes().to_vec();
            }
        }
        Ok(tokens)
    }

    /// Ids that a text can be looked up as: every single character, or where words are looked up every token.
    fn lexicon(&self, data: &TokenizerData, tokens: &[Vec<u8>]) -> U32Array {
        let words = data.whole_words || data.algorithm != Algorithm::Merges;
        // A control token's name in a text is text. (Merges never make one, so that it does no harm in their lexicon.)
        let control: BTreeSet<u32> = match data.algorithm {
            Algorithm::Merges => BTreeSet::new(),
            _ => self.added.iter().filter(|t| t.special).map(|t| t.id).collect(),
        };
        let from_text = |name: &str| match self.symbols {
            Symbols::Bytes => words,
            // Where the marker stands for a space, a token with a real space is never made from text.
            Symbols::Chars => {
                (words || name.chars().count() == 1)
                    && !(data.normalizer.space_marker && name.contains(' '))
                    && !(self.byte_fallback && byte_of_name(name).is_some())
            }
        };
        let named = self.ids.iter().filter(|(name, id)| from_text(name) && !control.contains(id));
        let mut ids: Vec<u32> =
            named.map(|(_, &id)| id).filter(|&id| !tokens[id as usize].is_empty()).collect();
        ids.sort_by(|&a, &b| tokens[a as usize].cmp(&tokens[b as usize]).then(a.cmp(&b)));
        ids.into_iter().collect()
    }
}

/// Whether a space follows something else in a token.
fn ends_a_word(token: &[u8]) -> bool {
    token.windows(2).any(|pair| pair[0] != b' ' && pair[1] == b' ')
}

/// The byte that a name like `<0x0A>` stands for.
fn byte_of_name(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_canonical =
        digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    if is_canonical { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// A token's bytes in GPT-2's spelling.
pub(super) fn spell(bytes: &[u8]) -> String {
    let alphabet = byte_alphabet();
    bytes.iter().map(|&byte| alphabet[byte as usize]).collect()
}

/// GPT-2's spelling of bytes as printable characters: visible Latin-1 stands for itself, the others follow from
/// U+0100 on (`bytes_to_unicode` in OpenAI's encoder.py).
fn byte_alphabet() -> [char; 256] {
    let mut next = 0x100u32;
    std::array::from_fn(|byte| {
        let byte = byte as u32;
        let visible = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if visible { byte } else { next };
        next += u32::from(!visible);
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_is_gpt2s() {
        let alphabet = byte_alphabet();
        let spelled: String = "\n é\u{7f}".bytes().map(|b| alphabet[b as usize]).collect();
        assert_eq!(spelled, "ĊĠÃ©ġ");
        let distinct: std::collections::BTreeSet<char> = alphabet.into_iter().collect();
        assert_eq!((distinct.len(), distinct.last()), (256, Some(&'\u{143}')));
    }

    #[test]
    fn byte_names() {
        assert_eq!((byte_of_name("<0x0A>"), byte_of_name("<0xFF>")), (Some(10), Some(255)));
        for name in ["<0x0a>", "<0x1>", "<0x+1>", "0x0A", "<0x100>"] {
            assert_eq!(byte_of_name(name), None, "{name}");
        }
    }
}
