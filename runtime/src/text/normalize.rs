//! Changing the characters of a text before it is split.

use std::borrow::Cow;

use regex_automata::meta::Regex;
use serde::{Deserialize, Serialize};
use unicode_normalization::{
    IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfd_quick, is_nfkc_quick, is_nfkd_quick,
};
use unicode_segmentation::UnicodeSegmentation;

use super::TextError;
use super::section::{Bytes, NormalizeStep, Normalizer};

impl NormalizeStep {
    /// A step that replaces what a regular expression matches; one that does not compile is an error.
    pub fn replace(regex: impl Into<String>, with: impl Into<String>) -> Result<Self, TextError> {
        let step = NormalizeStep::Replace { regex: regex.into(), with: with.into() };
        step.compile()?;
        Ok(step)
    }

    fn compile(&self) -> Result<Option<Regex>, TextError> {
        let NormalizeStep::Replace { regex, .. } = self else { return Ok(None) };
        let compiled = Regex::new(regex).map_err(|e| {
            let reason = e.syntax_error().map_or_else(|| e.to_string(), ToString::to_string);
            TextError::Pattern { pattern: regex.clone(), reason }
        })?;
        Ok(Some(compiled))
    }

    /// `regex` is what [`NormalizeStep::compile`] gave.
    fn apply<'t>(&self, regex: Option<&Regex>, text: &'t str) -> Cow<'t, str> {
        use IsNormalized::Yes;
        match self {
            NormalizeStep::Nfc if is_nfc_quick(text.chars()) != Yes => Cow::Owned(text.nfc().collect()),
            NormalizeStep::Nfd if is_nfd_quick(text.chars()) != Yes => Cow::Owned(text.nfd().collect()),
            NormalizeStep::Nfkc if is_nfkc_quick(text.chars()) != Yes => Cow::Owned(text.nfkc().collect()),
            NormalizeStep::Nfkd if is_nfkd_quick(text.chars()) != Yes => Cow::Owned(text.nfkd().collect()),
            NormalizeStep::Nfc | NormalizeStep::Nfd | NormalizeStep::Nfkc | NormalizeStep::Nfkd => {
                Cow::Borrowed(text)
            }
            // Character by character: a whole text would give a sigma at the end of a word its own form.
            NormalizeStep::Lowercase => Cow::Owned(text.chars().flat_map(char::to_lowercase).collect()),
            NormalizeStep::Replace { with, .. } => {
                let Some(regex) = regex.filter(|r| r.is_match(text)) else { return Cow::Borrowed(text) };
                let (mut out, mut at) = (String::with_capacity(text.len()), 0);
                for found in regex.find_iter(text) {
                    out.push_str(&text[at..found.start()]);
                    out.push_str(with);
                    at = found.end();
                }
                Cow::Owned(out + &text[at..])
            }
            NormalizeStep::Charsmap(map) => Cow::Owned(map.apply(text)),
            NormalizeStep::Clusters(map) => Cow::Owned(map.apply_to_clusters(text)),
        }
    }
}

impl Normalizer {
    /// `text` after [`Normalizer::steps`]; spaces are left as they are.
    pub fn characters(&self, text: &str) -> Result<String, TextError> {
        Ok(Compiled::new(&self.steps)?.run(&self.steps, text).into_owned())
    }
}

/// The regular expressions of a normaliser's steps, compiled.
pub(super) struct Compiled(Vec<Option<Regex>>);

impl Compiled {
    pub(super) fn new(steps: &[NormalizeStep]) -> Result<Self, TextError> {
        Ok(Compiled(steps.iter().map(NormalizeStep::compile).collect::<Result<_, _>>()?))
    }

    /// Runs `steps`, those it was made of.
    pub(super) fn run<'t>(&self, steps: &[NormalizeStep], text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        for (step, regex) in steps.iter().zip(&self.0) {
            let changed = match step.apply(regex.as_ref(), &text) {
                Cow::Owned(changed) => changed,
                Cow::Borrowed(_) => continue,
            };
            text = Cow::Owned(changed);
        }
        text
    }
}

/// SentencePiece's `precompiled_charsmap`: a trie of the sequences that are replaced, and the texts that replace them.
///
/// The trie is a double array as darts-clone writes it. One unit of 32 bits is a node: its label (bits 0 to 7), whether a
/// sequence ends here (bit 8), and where its children are (bits 10 to 30, shifted by 8 where bit 9 is set); or, with bit 31,
/// a value.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Charsmap {
    units: Bytes,
    texts: Bytes,
}

impl Charsmap {
    /// Takes the bytes apart: the trie's length, the trie, texts that end with a zero byte. `None` if they are no such table.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let (units, texts) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        let is_whole = units.len().is_multiple_of(4) && std::str::from_utf8(texts).is_ok();
        is_whole.then(|| Charsmap { units: Bytes(units.to_vec()), texts: Bytes(texts.to_vec()) })
    }

    fn unit(&self, index: u32) -> Option<u32> {
        let start = (index as usize).checked_mul(4)?;
        Some(u32::from_le_bytes(self.units.0.get(start..start + 4)?.try_into().ok()?))
    }

    /// The beginnings of `text` that are replaced, short ones first: their lengths, and where what they become stands.
    fn beginnings<'t>(&'t self, text: &'t str) -> impl Iterator<Item = (usize, u32)> + 't {
        let children = |unit: u32| (unit >> 10) << ((unit & (1 << 9)) >> 6);
        let mut node = self.unit(0).map(children);
        let mut bytes = text.bytes().enumerate();
        std::iter::from_fn(move || {
            for (i, byte) in bytes.by_ref() {
                let at = node.take()? ^ u32::from(byte);
                let unit = self.unit(at).filter(|unit| unit & (1 << 31 | 0xff) == u32::from(byte))?;
                let next = at ^ children(unit);
                node = Some(next);
                if unit & (1 << 8) != 0 && text.is_char_boundary(i + 1) {
                    return Some((i + 1, self.unit(next)? & !(1 << 31)));
                }
            }
            None
        })
    }

    /// The text that stands at `at`.
    fn text(&self, at: u32) -> Option<&str> {
        std::str::from_utf8(&self.texts.0).ok()?.get(at as usize..)?.split('\0').next()
    }

    /// The longest beginning of `text` that is replaced: its length and what it becomes.
    fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let (len, at) = self.beginnings(text).last()?;
        Some((len, self.text(at)?))
    }

    fn apply(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let len = match self.longest(rest) {
                Some((len, with)) => {
                    out.push_str(with);
                    len
                }
                None => {
                    out.push(first);
                    first.len_utf8()
                }
            };
            rest = &rest[len..];
        }
        out
    }
}

impl Charsmap {
    /// As the tokenizers library has it: a cluster of fewer than 6 bytes becomes what its shortest beginning in the table becomes, of others
    /// each character by itself.
    fn apply_to_clusters(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let shortest = |text: &str| self.beginnings(text).next().and_then(|(_, at)| self.text(at));
        for cluster in text.graphemes(true) {
            if let Some(with) = Some(cluster).filter(|cluster| cluster.len() < 6).and_then(shortest) {
                out.push_str(with);
                continue;
            }
            for c in cluster.chars() {
                match shortest(c.encode_utf8(&mut [0; 4])) {
                    Some(with) => out.push_str(with),
                    None => out.push(c),
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(steps: Vec<NormalizeStep>, text: &str) -> String {
        Compiled::new(&steps).unwrap().run(&steps, text).into_owned()
    }

    #[test]
    fn forms_and_case() {
        assert_eq!(run(vec![NormalizeStep::Nfd], "é"), "e\u{301}");
        assert_eq!(run(vec![NormalizeStep::Nfd, NormalizeStep::Nfc], "éａ"), "éａ");
        assert_eq!(run(vec![NormalizeStep::Nfkc], "ａﬁ①"), "afi1");
        assert_eq!(run(vec![NormalizeStep::Nfkd, NormalizeStep::Lowercase], "É"), "e\u{301}");
        assert_eq!(run(vec![NormalizeStep::Lowercase], "ΣΑΣ İ"), "σασ i\u{307}");
    }

    #[test]
    fn replacements_come_in_order() {
        let steps = vec![
            NormalizeStep::replace(r"\p{Mn}", "").unwrap(),
            NormalizeStep::replace(" {2,}", " ").unwrap(),
            NormalizeStep::replace("^ | $", "").unwrap(),
        ];
        assert_eq!(run(steps, "  e\u{301}   a "), "e a");
        assert!(matches!(NormalizeStep::replace("(", ""), Err(TextError::Pattern { .. })));
    }

    /// A double array for "a" -> "x" and "ab" -> "yz", laid out by hand.
    fn charsmap() -> Vec<u8> {
        let mut units = vec![0u32; 1024];
        let unit = |label: u32, leaf: bool, offset: u32| label | u32::from(leaf) << 8 | offset << 10;
        units[0] = unit(0, false, 256);
        let a = 256 ^ u32::from(b'a');
        units[a as usize] = unit(b'a'.into(), true, a ^ 512);
        units[512] = 1 << 31;
        let b = 512 ^ u32::from(b'b');
        units[b as usize] = unit(b'b'.into(), true, b ^ 768);
        units[768] = 1 << 31 | 2;
        let units: Vec<u8> = units.into_iter().flat_map(u32::to_le_bytes).collect();
        [&(units.len() as u32).to_le_bytes(), units.as_slice(), b"x\0yz\0"].concat()
    }

    #[test]
    fn charsmap_takes_the_longest_sequence() {
        let map = Charsmap::new(&charsmap()).unwrap();
        assert_eq!(map.apply("aabcaé"), "xyzcxé");
        // A cluster is one, though the table knows its beginning only; long ones are taken apart.
        assert_eq!(
            map.apply_to_clusters("abe\u{301}a\u{301}a\u{301}\u{301}\u{301}"),
            "xbe\u{301}xx\u{301}\u{301}\u{301}"
        );
    }

    #[test]
    fn damaged_charsmaps_do_no_harm() {
        let whole = charsmap();
        assert!(Charsmap::new(&whole[..3]).is_none() && Charsmap::new(&whole[..100]).is_none());
        let mut state = 7u32;
        for _ in 0..2000 {
            let mut bytes = whole.clone();
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = 4 + state as usize % (bytes.len() - 4);
            bytes[at] ^= (state >> 8) as u8;
            if let Some(map) = Charsmap::new(&bytes) {
                map.apply("aabcabé");
                map.apply_to_clusters("aabcabé");
            }
        }
    }
}
