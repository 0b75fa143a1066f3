//! The TOKENIZER section: everything text needs, laid out so that opening it parses nothing.
//!
//! The large tables are flat little-endian byte strings which [`crate::text::Tokenizer`] searches in place: decoding the
//! section is a handful of block copies, whatever the size of the vocabulary.

use bessemer_format::codec;
use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::{Charsmap, MergeTable, SplitPattern, TextError};

/// The content of an engine's TOKENIZER section.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TextSection {
    /// Vocabulary, merges and rules of the tokeniser.
    pub tokenizer: TokenizerData,
    /// Token that begins a text, if the vocabulary has one.
    pub bos: Option<u32>,
    /// Token that ends a text, if the vocabulary has one.
    pub eos: Option<u32>,
    /// The tokens that the model expects around a plain text.
    pub frame: Frame,
    /// Tokens at which generation ends: those of the checkpoint's generation configuration and [`TextSection::eos`].
    pub stop_tokens: Vec<u32>,
    /// Jinja source that renders a conversation into a prompt.
    pub chat_template: Option<String>,
}

impl TextSection {
    /// Encodes the section as the bytes that [`TextSection::decode`] reads.
    pub fn encode(&self) -> Result<Vec<u8>, TextError> {
        codec::encode(self).map_err(|e| TextError::Encode { reason: e.to_string() })
    }

    /// Decodes a section; bytes that remain after it are an error.
    pub fn decode(bytes: &[u8]) -> Result<Self, TextError> {
        codec::decode("TOKENIZER", bytes).map_err(|e| TextError::Decode { reason: e.to_string() })
    }
}

/// The tokens that a model expects around a text, and between the two texts of a pair.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Frame {
    /// In front: `<s>`, `[CLS]`, or nothing.
    pub before: Vec<u32>,
    /// Between the first text of a pair and the second.
    pub between: Vec<u32>,
    /// At the end: `[SEP]` or `</s>` for encoders. A prompt that is to be continued goes without.
    pub after: Vec<u32>,
}

/// Vocabulary, merges and rules of one tokeniser.
///
/// ```
/// use bessemer_runtime::text::{
///     Merge, MergeTable, SplitPattern, Special, TextSection, Tokenizer, TokenizerData, Vocab,
/// };
///
/// // 256 bytes and one merge: "h" + "i".
/// let texts = (0..=255u8).map(|byte| vec![byte]).chain([b"hi".to_vec()]);
/// let merge = Merge { left: b'h'.into(), right: b'i'.into(), merged: 256, rank: 0 };
/// let data = TokenizerData {
///     vocab: Vocab::new(texts)?,
///     merges: MergeTable::new(257, vec![merge])?,
///     byte_tokens: (0..256).collect(),
///     splits: vec![SplitPattern::new(r" ?\p{L}+|\s+", true)?],
///     ..Default::default()
/// };
/// let bytes = TextSection { tokenizer: data, ..Default::default() }.encode()?;
///
/// let tokenizer = Tokenizer::from_section(&bytes)?;
/// assert_eq!(tokenizer.encode("hi you", Special::AsText)?, [256, 32, 121, 111, 117]);
/// assert_eq!(tokenizer.decode(&[256, 32, 121]), "hi y");
/// # Ok::<(), bessemer_runtime::text::TextError>(())
/// ```
///
/// Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) and SentencePiece-style BPE (Llama 2, Mistral, Gemma) differ only in
/// [`TokenizerData::symbols`], [`TokenizerData::normalizer`] and whether there are [`TokenizerData::splits`]. WordPiece
/// (BERT) and Unigram (T5) cut words another way: [`TokenizerData::algorithm`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TokenizerData {
    /// The bytes that each token stands for.
    pub vocab: Vocab,
    /// How a word becomes tokens.
    pub algorithm: Algorithm,
    /// Which pairs of tokens join, and in which order; for [`Algorithm::Merges`].
    pub merges: MergeTable,
    /// What the smallest symbols are.
    pub symbols: Symbols,
    /// Token of each single byte, 256 entries ([`NO_TOKEN`] where there is none): the alphabet of
    /// [`Symbols::Bytes`], the fallback of [`Symbols::Chars`].
    pub byte_tokens: U32Array,
    /// Token for a symbol that the vocabulary lacks; without one such a symbol is dropped.
    pub unknown: Option<u32>,
    /// Whether a run of unknown symbols gives one token.
    pub fuse_unknown: bool,
    /// What happens to the text before it is split.
    pub normalizer: Normalizer,
    /// Splits into words, applied one after the other; merges never cross a split.
    pub splits: Vec<SplitPattern>,
    /// Whether a word that is itself in the vocabulary becomes that token without looking at the merges.
    pub whole_words: bool,
    /// Tokens that text can be looked up as (whole words, or single characters), sorted by their bytes.
    pub lexicon: U32Array,
    /// Tokens found in the text before everything else, longest text first.
    pub added: Vec<AddedToken>,
    /// Whether decoding a whole text drops one leading space (the one that [`Prefix`] added).
    pub strip_leading_space: bool,
    /// Whether decoding writes `word.` where the tokens say `word .`, as the texts of WordPiece come out.
    pub join_punctuation: bool,
}

/// How a word becomes tokens.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub enum Algorithm {
    /// Byte-pair encoding: symbols join in the order of [`TokenizerData::merges`].
    #[default]
    Merges,
    /// WordPiece: the longest token of the lexicon that the word begins with, then the longest that the rest begins with, and
    /// so on. A token that begins a word is stored with a space in front, one that continues it is not.
    LongestMatch {
        /// A word of more characters is unknown.
        max_chars: u32,
    },
    /// Unigram: the tokens of the lexicon whose scores (logarithms of probabilities) have the greatest sum.
    MostProbable {
        /// The score of every token, as the bits of an f32.
        scores: U32Array,
        /// The score of a character that no token covers.
        unknown: f32,
    },
}

/// Marks an entry of [`TokenizerData::byte_tokens`] without a token.
pub const NO_TOKEN: u32 = u32::MAX;

/// The smallest symbols, from which merges start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Symbols {
    /// Every byte of the text is a symbol.
    #[default]
    Bytes,
    /// Every character is a symbol; one that the vocabulary lacks falls back to its bytes.
    Chars,
}

/// What happens to each stretch of text between added tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Normalizer {
    /// Changes to the characters, in order.
    pub steps: Vec<NormalizeStep>,
    /// SentencePiece writes a space as U+2581. The vocabulary here holds real spaces, so that decoding needs no
    /// second pass; in return a literal U+2581 of the text is read as a space, as SentencePiece reads it.
    pub space_marker: bool,
    /// The space in front of the text.
    pub prefix: Prefix,
}

/// One change to the characters of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormalizeStep {
    /// Unicode normalisation form C.
    Nfc,
    /// Unicode normalisation form D.
    Nfd,
    /// Unicode normalisation form KC.
    Nfkc,
    /// Unicode normalisation form KD.
    Nfkd,
    /// Every character in lower case.
    Lowercase,
    /// Every match of a regular expression becomes another text.
    Replace {
        /// What is looked for.
        regex: String,
        /// What it becomes.
        with: String,
    },
    /// SentencePiece's own table of replacements.
    Charsmap(Charsmap),
    /// The same, as the tokenizers library reads it: by what Unicode takes for one character of a reader.
    Clusters(Charsmap),
}

/// Where SentencePiece's dummy space goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Prefix {
    /// Nowhere.
    #[default]
    None,
    /// Before every stretch of text between added tokens.
    Every,
    /// Before every stretch that does not begin with a space already.
    EveryUnlessSpace,
    /// Before the very beginning of the text only.
    First,
    /// As [`Prefix::EveryUnlessSpace`], but only at the very beginning of the text.
    FirstUnlessSpace,
    /// Before every word, once the text is split, that does not begin with a space already.
    EveryWord,
}

/// A token that is found in the text as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedToken {
    /// Its id.
    pub id: u32,
    /// The text that it matches.
    pub text: String,
    /// Control token: matched only on request, hidden from decoded text.
    pub special: bool,
    /// Matched in the normalised text instead of the text as written.
    pub normalized: bool,
    /// Takes the white space on its left with it.
    pub lstrip: bool,
    /// Takes the white space on its right with it.
    pub rstrip: bool,
}

/// The bytes of every token, end to end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Vocab {
    bytes: Bytes,
    ends: U32Array,
}

impl Vocab {
    /// Lays out the tokens in the order of their ids.
    pub fn new<T: AsRef<[u8]>>(tokens: impl IntoIterator<Item = T>) -> Result<Self, TextError> {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for token in tokens {
            bytes.extend_from_slice(token.as_ref());
            ends.push(u32::try_from(bytes.len()).map_err(|_| TextError::TooLarge { what: "vocabulary" })?);
        }
        Ok(Vocab { bytes: Bytes(bytes), ends: ends.into_iter().collect() })
    }

    /// The bytes of one token; `None` if there is no such token.
    pub fn get(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        let end = self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends.get(index - 1)? as usize };
        self.bytes.0.get(start..end)
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A byte string that is decoded as one block (serde takes a `Vec<u8>` byte by byte).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor;
        impl<'de> Visitor<'de> for BytesVisitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(BytesVisitor)
    }
}

/// An array of `u32`, kept as the little-endian bytes of the file and read in place. All values take as many bytes as the largest needs:
/// ids of most vocabularies fit into two or three, and they are most of the section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct U32Array {
    /// Bytes of a value, 1 to 4.
    width: u8,
    bytes: Bytes,
}

impl U32Array {
    /// The value at `index`, if it is inside.
    pub fn get(&self, index: usize) -> Option<u32> {
        let width = usize::from(self.width);
        let start = index.checked_mul(width)?;
        self.bytes.0.get(start..start.checked_add(width)?).map(value)
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.bytes.0.len() / usize::from(self.width)
    }

    /// Whether the array holds nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes.0.is_empty()
    }

    /// The values in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.bytes.0.chunks_exact(usize::from(self.width)).map(value)
    }
}

fn value(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

impl Default for U32Array {
    fn default() -> Self {
        U32Array { width: 1, bytes: Bytes::default() }
    }
}

impl FromIterator<u32> for U32Array {
    fn from_iter<I: IntoIterator<Item = u32>>(values: I) -> Self {
        let values: Vec<u32> = values.into_iter().collect();
        let bits = u32::BITS - values.iter().max().map_or(0, |largest| largest | 1).leading_zeros();
        let width = bits.div_ceil(8).max(1);
        let bytes = values.iter().flat_map(|v| v.to_le_bytes().into_iter().take(width as usize));
        U32Array { width: width as u8, bytes: Bytes(bytes.collect()) }
    }
}

impl<'de> Deserialize<'de> for U32Array {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (width, bytes) = <(u8, Bytes)>::deserialize(deserializer)?;
        if !(1..=4).contains(&width) || !bytes.0.len().is_multiple_of(usize::from(width)) {
            let len = bytes.0.len();
            return Err(D::Error::custom(format!("{len} bytes are no array of numbers of {width} bytes")));
        }
        Ok(U32Array { width, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_take_the_bytes_of_the_largest() {
        for (largest, width) in
            [(0, 1), (255, 1), (256, 2), (65_535, 2), (65_536, 3), (1 << 24, 4), (NO_TOKEN, 4)]
        {
            let values = [3, largest, 0, largest / 2];
            let array: U32Array = values.into_iter().collect();
            assert_eq!((array.width, array.bytes.0.len()), (width, 4 * usize::from(width)));
            assert!(array.iter().eq(values), "{largest}");
            assert_eq!((array.get(1), array.get(4), array.len()), (Some(largest), None, 4));
            let bytes = codec::encode(&array).unwrap();
            assert_eq!(codec::decode::<U32Array>("a", &bytes).unwrap(), array);
        }
        assert!(U32Array::default().is_empty() && U32Array::from_iter([]).is_empty());
    }

    #[test]
    fn bytes_that_are_no_values_are_refused() {
        for (width, bytes) in [(0u8, &[][..]), (5, &[1, 2, 3, 4, 5][..]), (2, &[1, 2, 3][..])] {
            let encoded = codec::encode(&(width, Bytes(bytes.to_vec()))).unwrap();
            assert!(codec::decode::<U32Array>("a", &encoded).is_err(), "{width}");
        }
    }
}
