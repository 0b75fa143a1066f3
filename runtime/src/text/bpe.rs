//! Byte-pair merging: the table of merges and the loop that applies them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use serde::{Deserialize, Serialize};

use super::TextError;
use super::section::U32Array;

/// Two tokens that join, and what they become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    /// Left token.
    pub left: u32,
    /// Right token.
    pub right: u32,
    /// The token that stands for both.
    pub merged: u32,
    /// Lower joins first; among equals the leftmost pair of the text does.
    pub rank: u32,
}

/// The merges in compressed rows: row `left` lists its right partners in ascending order.
///
/// Looking a pair up is one range and a short binary search; nothing is built when an engine is opened.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MergeTable {
    rows: U32Array,
    right: U32Array,
    rank: U32Array,
    merged: U32Array,
}

impl MergeTable {
    /// Builds the table for a vocabulary of `vocab` tokens. Of two merges of the same pair the last one counts.
    pub fn new(vocab: usize, mut merges: Vec<Merge>) -> Result<Self, TextError> {
        let outside = |id: u32| id as usize >= vocab;
        if let Some(m) = merges.iter().find(|m| outside(m.left) || outside(m.right) || outside(m.merged)) {
            return Err(TextError::MergeOutside { left: m.left, right: m.right, merged: m.merged, vocab });
        }
        if u32::try_from(merges.len()).is_err() {
            return Err(TextError::TooLarge { what: "merge list" });
        }
        merges.reverse();
        merges.sort_by_key(|m| (m.left, m.right));
        merges.dedup_by_key(|m| (m.left, m.right));
        let mut next = 0;
        let rows = (0..=vocab).map(|left| {
            while merges.get(next).is_some_and(|m| (m.left as usize) < left) {
                next += 1;
            }
            next as u32
        });
        Ok(MergeTable {
            rows: rows.collect(),
            right: merges.iter().map(|m| m.right).collect(),
            rank: merges.iter().map(|m| m.rank).collect(),
            merged: merges.iter().map(|m| m.merged).collect(),
        })
    }

    /// Number of merges.
    pub fn len(&self) -> usize {
        self.right.len()
    }

    /// Whether nothing ever merges.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rank and result of joining two tokens, if they join.
    pub fn get(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let mut low = self.rows.get(left as usize)? as usize;
        let mut high = self.rows.get(left as usize + 1)? as usize;
        while low < high {
            let middle = low.midpoint(high);
            match self.right.get(middle)?.cmp(&right) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some((self.rank.get(middle)?, self.merged.get(middle)?)),
            }
        }
        None
    }
}

/// Applies merges to one word after the other; keeps its buffers between words.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    /// (rank, index of the left symbol, merged token): the order in which merges happen.
    queue: BinaryHeap<Reverse<(u32, u32, u32)>>,
}

/// A token of the word, linked to its neighbours. `None` marks a symbol that went into its left neighbour.
struct Symbol {
    token: Option<u32>,
    prev: Option<u32>,
    next: Option<u32>,
}

impl Merger {
    /// Appends a symbol to the word.
    pub(super) fn push(&mut self, token: u32) {
        let index = self.symbols.len() as u32;
        let prev = index.checked_sub(1);
        if let Some(last) = self.symbols.last_mut() {
            last.next = Some(index);
        }
        self.symbols.push(Symbol { token: Some(token), prev, next: None });
    }

    /// Merges the word and appends its tokens to `out`, leaving the merger empty.
    pub(super) fn finish(&mut self, merges: &MergeTable, out: &mut Vec<u32>) {
        for left in 1..self.symbols.len() as u32 {
            self.enqueue(merges, left - 1);
        }
        while let Some(Reverse((_, left, merged))) = self.queue.pop() {
            // A pair that changed since it was queued covers more text now, so it gives another token or none.
            let Some((right, pair)) = self.pair(left) else { continue };
            if merges.get(pair.0, pair.1).is_none_or(|(_, token)| token != merged) {
                continue;
            }
            let after = self.symbols[right as usize].next;
            self.symbols[right as usize].token = None;
            self.symbols[left as usize].token = Some(merged);
            self.symbols[left as usize].next = after;
            if let Some(after) = after {
                self.symbols[after as usize].prev = Some(left);
                self.enqueue(merges, left);
            }
            if let Some(before) = self.symbols[left as usize].prev {
                self.enqueue(merges, before);
            }
        }
        out.extend(self.symbols.drain(..).filter_map(|s| s.token));
    }

    /// The symbol right of `left`, and both tokens.
    fn pair(&self, left: u32) -> Option<(u32, (u32, u32))> {
        let symbol = &self.symbols[left as usize];
        let right = symbol.next?;
        Some((right, (symbol.token?, self.symbols[right as usize].token?)))
    }

    fn enqueue(&mut self, merges: &MergeTable, left: u32) {
        if let Some((_, (a, b))) = self.pair(left)
            && let Some((rank, merged)) = merges.get(a, b)
        {
            self.queue.push(Reverse((rank, left, merged)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(rank: u32, left: u32, right: u32, merged: u32) -> Merge {
        Merge { left, right, merged, rank }
    }

    fn apply(merges: &MergeTable, word: &[u32]) -> Vec<u32> {
        let (mut merger, mut out) = (Merger::default(), Vec::new());
        word.iter().for_each(|&t| merger.push(t));
        merger.finish(merges, &mut out);
        out
    }

    #[test]
    fn table_finds_every_pair_and_no_other() {
        let list = vec![merge(0, 3, 1, 4), merge(1, 0, 2, 5), merge(2, 3, 0, 6), merge(3, 3, 2, 7)];
        let table = MergeTable::new(8, list.clone()).unwrap();
        for left in 0..9 {
            for right in 0..9 {
                let expected =
                    list.iter().find(|m| (m.left, m.right) == (left, right)).map(|m| (m.rank, m.merged));
                assert_eq!(table.get(left, right), expected);
            }
        }
        assert!(MergeTable::new(7, list).is_err(), "token 7 is outside");
    }

    #[test]
    fn last_merge_of_a_pair_counts() {
        let table = MergeTable::new(4, vec![merge(0, 0, 1, 2), merge(5, 0, 1, 3)]).unwrap();
        assert_eq!(table.get(0, 1), Some((5, 3)));
    }

    #[test]
    fn lowest_rank_first_then_leftmost() {
        // a=0 b=1 c=2 ab=3 bc=4 aa=5
        let table =
            MergeTable::new(6, vec![merge(0, 1, 2, 4), merge(1, 0, 1, 3), merge(2, 0, 0, 5)]).unwrap();
        assert_eq!(apply(&table, &[0, 1, 2]), [0, 4], "bc has the lower rank");
        assert_eq!(apply(&table, &[0, 0, 0]), [5, 0], "equal ranks join from the left");
        assert_eq!(apply(&table, &[0, 1, 0, 1, 2]), [3, 0, 4]);
        assert_eq!(apply(&table, &[]), []);
    }

    /// The definition of BPE: look for the best pair in the whole word, join it, repeat.
    fn by_definition(merges: &MergeTable, word: &[u32]) -> Vec<u32> {
        let mut word = word.to_vec();
        loop {
            let pairs = word.windows(2).enumerate();
            let best =
                pairs.filter_map(|(i, p)| merges.get(p[0], p[1]).map(|(rank, token)| (rank, i, token))).min();
            let Some((_, i, token)) = best else { return word };
            word.splice(i..i + 2, [token]);
        }
    }

    #[test]
    fn queue_agrees_with_the_definition() {
        // Random vocabularies over three letters. Tokens are texts, so that a merge is concatenation, as it must be.
        let mut state = 1u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        for _ in 0..300 {
            let mut tokens: Vec<Vec<u8>> = vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()];
            let mut list = Vec::new();
            for rank in 0..random(12) {
                let (left, right) = (random(tokens.len()), random(tokens.len()));
                let text = [tokens[left].clone(), tokens[right].clone()].concat();
                let merged = tokens.iter().position(|t| *t == text).unwrap_or_else(|| {
                    tokens.push(text);
                    tokens.len() - 1
                });
                list.push(merge(rank as u32, left as u32, right as u32, merged as u32));
            }
            let table = MergeTable::new(tokens.len(), list).unwrap();
            let word: Vec<u32> = (0..random(40)).map(|_| random(3) as u32).collect();
            assert_eq!(apply(&table, &word), by_definition(&table, &word));
        }
    }
}
