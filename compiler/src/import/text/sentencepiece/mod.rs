//! SentencePiece: how its two models cut a text, whichever file holds the pieces.

mod file;
mod protobuf;

pub(super) use file::{Surroundings, read};

use bessemer_runtime::text::{Algorithm, Charsmap, Merge, NormalizeStep, Normalizer, Prefix, TokenizerData};

use super::TextImportError;
use super::token_list::TokenList;

/// What SentencePiece takes off the worst score for a character that no piece covers.
pub(super) const UNKNOWN_PENALTY: f64 = 10.0;

/// The two models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cutting {
    /// Byte-pair encoding: the neighbours whose union has the best score join first.
    Merges,
    /// Unigram: the pieces with the best sum of scores.
    MostProbable,
}

/// What a model does to a text beside joining its pieces.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'a> {
    pub cutting: Cutting,
    /// The space that words begin with, where a text has none.
    pub prefix: Prefix,
    /// Whether spaces at both ends are dropped, and one stands for several.
    pub collapses_spaces: bool,
    /// Table of replacements; empty without one.
    pub charsmap: &'a [u8],
    /// The token of what no piece covers.
    pub unknown: Option<u32>,
}

impl Rules<'_> {
    /// The tables that follow from the rules, and the merges.
    pub(super) fn apply(&self, list: &TokenList) -> Result<(TokenizerData, Vec<Merge>), TextImportError> {
        let mut steps = Vec::new();
        if !self.charsmap.is_empty() {
            let wrong = || list.origin.inconsistent("precompiled_charsmap", "not a table of replacements");
            steps.push(NormalizeStep::Charsmap(Charsmap::new(self.charsmap).ok_or_else(wrong)?));
        }
        if self.collapses_spaces {
            for (spaces, with) in [("^ +| +$", ""), (" {2,}", " ")] {
                steps.push(NormalizeStep::replace(spaces, with).map_err(|e| list.origin.table(e))?);
            }
        }
        let mut data = TokenizerData {
            unknown: self.unknown,
            fuse_unknown: true,
            normalizer: Normalizer { steps, space_marker: true, prefix: self.prefix },
            strip_leading_space: self.prefix != Prefix::None,
            ..Default::default()
        };
        let merges = match self.cutting {
            Cutting::Merges => list.scored_merges()?,
            Cutting::MostProbable => {
                let (scores, worst) = list.probabilities()?;
                let unknown = (f64::from(worst) - UNKNOWN_PENALTY) as f32;
                data.algorithm = Algorithm::MostProbable { scores, unknown };
                Vec::new()
            }
        };
        Ok((data, merges))
    }
}
