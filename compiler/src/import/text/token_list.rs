//! Tokens as SentencePiece and GGUF list them: by id a name, a score and a kind.

use std::collections::BTreeMap;

use bessemer_runtime::text::{AddedToken, Merge, Normalizer, SPACE_MARKER, U32Array};

use super::{Origin, TextImportError};

/// What a token is, by the numbers that SentencePiece gave the kinds and GGUF took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Ordinary text.
    Normal,
    /// Stands for text that nothing else covers.
    Unknown,
    /// Control token.
    Control,
    /// Found whole in the text.
    UserDefined,
    /// In the vocabulary, never in text.
    Unused,
    /// A single byte, named `<0xNN>`.
    Byte,
}

impl TokenKind {
    pub(super) fn from_code(code: i64) -> Option<Self> {
        use TokenKind::{Byte, Control, Normal, Unknown, Unused, UserDefined};
        Some(match code {
            1 => Normal,
            2 => Unknown,
            3 => Control,
            4 => UserDefined,
            5 => Unused,
            6 => Byte,
            _ => return None,
        })
    }
}

/// The list. Scores and kinds are as many as names, or none.
#[derive(Debug, Clone, Copy)]
pub(super) struct TokenList<'a> {
    pub origin: Origin<'a>,
    pub names: &'a [String],
    /// The higher, the earlier or the more probable.
    pub scores: &'a [f32],
    pub kinds: &'a [TokenKind],
}

impl<'a> TokenList<'a> {
    pub(super) fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Normal)
    }

    /// The first token of a kind.
    pub(super) fn of_kind(&self, kind: TokenKind) -> Option<u32> {
        (0..).zip(self.kinds).find(|(_, k)| **k == kind).map(|(id, _)| id)
    }

    /// The first token of this name.
    pub(super) fn named(&self, name: &str) -> Option<u32> {
        (0..).zip(self.names).find(|(_, token)| *token == name).map(|(id, _)| id)
    }

    /// Tokens that text becomes piece by piece; of equal names the last one counts.
    fn ordinary(&self) -> impl Iterator<Item = (&'a str, u32)> {
        let named = self.names.iter().map(String::as_str).zip(0..);
        named.filter(|(_, id)| !matches!(self.kind(*id), TokenKind::Control | TokenKind::UserDefined))
    }

    /// Tokens whose names spell their text: the ordinary ones, and users' own ones that are written with the marker for spaces.
    pub(super) fn spelled(&self) -> impl Iterator<Item = (&'a str, u32)> {
        let named = self.names.iter().map(String::as_str).zip(0..);
        named.filter(|(name, id)| match self.kind(*id) {
            TokenKind::Control => false,
            TokenKind::UserDefined => name.contains(SPACE_MARKER),
            _ => true,
        })
    }

    /// Tokens that are found whole. Users' own ones are looked for in what the normaliser made, where `in_normalized` says so or their
    /// names hold its marker for spaces.
    pub(super) fn added(
        &self,
        normalizer: &Normalizer,
        in_normalized: bool,
    ) -> Result<Vec<AddedToken>, TextImportError> {
        let mut added = Vec::new();
        for (id, name) in (0..).zip(self.names) {
            let special = match self.kind(id) {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                _ => continue,
            };
            let marked = normalizer.space_marker && name.contains(SPACE_MARKER);
            let wanted = !special && (marked || in_normalized);
            // One that the normaliser would change is never found behind it.
            let survives = || Ok(normalizer.characters(name).map_err(|e| self.origin.table(e))? == *name);
            let normalized = wanted && (marked || survives()?);
            let text = if normalized { name.replace(SPACE_MARKER, " ") } else { name.clone() };
            added.push(AddedToken { id, text, special, normalized, lstrip: false, rstrip: false });
        }
        Ok(added)
    }

    /// SentencePiece joins the pair whose piece has the highest score: every way to cut a piece in two pieces is a
    /// merge, ranked by the piece's score.
    pub(super) fn scored_merges(&self) -> Result<Vec<Merge>, TextImportError> {
        self.check_scores()?;
        let pieces: BTreeMap<&str, u32> =
            self.ordinary().filter(|(_, id)| self.kind(*id) == TokenKind::Normal).collect();
        let score = |id: u32| self.scores[id as usize];
        let mut scores: Vec<f32> = pieces.values().map(|&id| score(id)).collect();
        scores.sort_by(|a, b| b.total_cmp(a));
        scores.dedup();
        let mut merges = Vec::new();
        for (name, &merged) in &pieces {
            let rank = scores.partition_point(|&s| s > score(merged)) as u32;
            for (at, _) in name.char_indices().skip(1) {
                if let (Some(&left), Some(&right)) = (pieces.get(&name[..at]), pieces.get(&name[at..])) {
                    merges.push(Merge { left, right, merged, rank });
                }
            }
        }
        Ok(merges)
    }

    /// The scores as logarithms of probabilities, and the worst one that an ordinary token has.
    pub(super) fn probabilities(&self) -> Result<(U32Array, f32), TextImportError> {
        self.check_scores()?;
        let normal = (0..).zip(self.scores).filter(|(id, _)| self.kind(*id) == TokenKind::Normal);
        let worst = normal.map(|(_, score)| *score).fold(f32::MAX, f32::min);
        Ok((self.scores.iter().map(|score| score.to_bits()).collect(), worst))
    }

    fn check_scores(&self) -> Result<(), TextImportError> {
        if self.scores.len() != self.names.len() {
            let detail = format!("{} for {} tokens", self.scores.len(), self.names.len());
            return Err(self.origin.inconsistent("scores", detail));
        }
        match self.scores.iter().position(|score| !score.is_finite()) {
            Some(id) => Err(self.origin.inconsistent("scores", format!("that of token {id} is no number"))),
            None => Ok(()),
        }
    }
}
