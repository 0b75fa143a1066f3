//! Cutting a word into tokens of a lexicon: WordPiece and Unigram.

use super::section::{TokenizerData, U32Array};

impl TokenizerData {
    /// The token whose bytes are exactly `text`, among those in the lexicon.
    pub(super) fn look_up(&self, text: &[u8]) -> Option<u32> {
        let mut found = None;
        let at = self.lower_bound(0, self.lexicon.len(), |token| token < text);
        if let Some(id) = self.lexicon.get(at)
            && self.vocab.get(id)? == text
        {
            found = Some(id);
        }
        found
    }

    /// The tokens of the lexicon that `text` begins with, short ones first: length and token.
    ///
    /// The lexicon is sorted, so that the tokens that share a beginning lie together: each byte narrows the range.
    pub(super) fn beginnings<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, u32)> + 'a {
        let (mut low, mut high) = (0, self.lexicon.len());
        let mut len = 0;
        std::iter::from_fn(move || {
            while low < high && len < text.len() {
                let byte = text[len];
                let at = |token: &[u8]| token.get(len).copied();
                low = self.lower_bound(low, high, |token| at(token).is_none_or(|b| b < byte));
                high = self.lower_bound(low, high, |token| at(token) == Some(byte));
                len += 1;
                // Of those that are left, a token that ends here comes first.
                if low < high
                    && let Some(id) = self.lexicon.get(low)
                    && self.vocab.get(id).is_some_and(|token| token.len() == len)
                {
                    return Some((len, id));
                }
            }
            None
        })
    }

    /// The first index of the lexicon in `low..high` whose token is not `before`; the range is sorted by that.
    fn lower_bound(&self, mut low: usize, mut high: usize, before: impl Fn(&[u8]) -> bool) -> usize {
        while low < high {
            let middle = low.midpoint(high);
            let token = self.lexicon.get(middle).and_then(|id| self.vocab.get(id)).unwrap_or_default();
            if before(token) { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// WordPiece: appends the tokens of `word`, or nothing and `false` if some part of it is no token.
    pub(super) fn longest_match(&self, word: &str, out: &mut Vec<u32>) -> bool {
        let (len, mut rest) = (out.len(), word.as_bytes());
        while !rest.is_empty() {
            let Some((used, id)) = self.beginnings(rest).last() else {
                out.truncate(len);
                return false;
            };
            out.push(id);
            rest = &rest[used..];
        }
        true
    }

    /// Unigram: the cuts of `word` whose tokens' scores have the greatest sum; the first found among equals, as in
    /// SentencePiece. `None` stands for a character that no token covers.
    pub(super) fn most_probable<'t>(
        &self,
        scores: &U32Array,
        unknown: f32,
        word: &'t str,
        best: &mut Vec<BestCut>,
    ) -> Vec<(Option<u32>, &'t str)> {
        best.clear();
        best.resize(word.len() + 1, BestCut::default());
        best[0].score = Some(0.0);
        for (start, first) in word.char_indices() {
            let Some(here) = best[start].score else { continue };
            let mut reach = |len: usize, token: Option<u32>, score: f32| {
                let end = &mut best[start + len];
                let score = here + f64::from(score);
                if end.score.is_none_or(|s| score > s) {
                    *end = BestCut { score: Some(score), start, token };
                }
            };
            let mut covers_char = false;
            for (len, id) in self.beginnings(&word.as_bytes()[start..]) {
                if word.is_char_boundary(start + len) {
                    let score = scores.get(id as usize).map_or(unknown, f32::from_bits);
                    reach(len, Some(id), score);
                    covers_char |= len == first.len_utf8();
                }
            }
            if !covers_char {
                reach(first.len_utf8(), None, unknown);
            }
        }
        let mut cuts = Vec::new();
        let mut end = word.len();
        while end > 0 {
            let BestCut { start, token, .. } = best[end];
            cuts.push((token, &word[start..end]));
            end = start;
        }
        cuts.reverse();
        cuts
    }
}

/// The best way to cut a word's beginning up to some byte: its score, and where its last token begins.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BestCut {
    score: Option<f64>,
    start: usize,
    token: Option<u32>,
}
