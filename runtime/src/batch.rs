//! What goes into a forward pass and what comes out.

use crate::state::Sequence;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The tokens of a forward pass, for any mix of sequences: a part of a long prompt beside single decode steps is the
/// same thing as either alone, and gives each sequence the same result.
#[derive(Default)]
pub struct Batch<'a> {
    pub(crate) entries: Vec<Entry<'a>>,
    pub(crate) cancel: Option<CancelHandle>,
}

/// Some tokens of one sequence.
pub(crate) struct Entry<'a> {
    pub(crate) sequence: &'a mut Sequence,
    pub(crate) tokens: &'a [u32],
    /// Which part of a pair each token belongs to; empty where there is no pair.
    pub(crate) types: &'a [u32],
    pub(crate) want: Want<'a>,
}

/// Which tokens' logits are wanted. The logits of a token predict the one after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want<'a> {
    /// None: the tokens only go into the cache.
    None,
    /// Of the last token.
    Last,
    /// Of every token. A row of logits is as long as the vocabulary (or as what else the model gives).
    All,
    /// Of the tokens whose flag is set; a flag for each token.
    Mask(&'a [bool]),
}

impl Want<'_> {
    pub(crate) fn of(&self, index: usize, tokens: usize) -> bool {
        match self {
            Want::None => false,
            Want::Last => index + 1 == tokens,
            Want::All => true,
            Want::Mask(mask) => mask[index],
        }
    }

    pub(crate) fn count(&self, tokens: usize) -> usize {
        match self {
            Want::None => 0,
            Want::Last => tokens.min(1),
            Want::All => tokens,
            Want::Mask(mask) => mask.iter().filter(|m| **m).count(),
        }
    }
}

impl<'a> Batch<'a> {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `tokens` that follow what `sequence` holds. Gives the number of the entry, which [`Logits::of`] takes.
    pub fn push(&mut self, sequence: &'a mut Sequence, tokens: &'a [u32], want: Want<'a>) -> usize {
        self.push_pair(sequence, tokens, &[], want)
    }

    /// As [`Batch::push`] for a pair of texts: `types` says for each token whether it belongs to the first (0) or the second (1).
    pub fn push_pair(
        &mut self,
        sequence: &'a mut Sequence,
        tokens: &'a [u32],
        types: &'a [u32],
        want: Want<'a>,
    ) -> usize {
        self.entries.push(Entry { sequence, tokens, types, want });
        self.entries.len() - 1
    }

    /// Lets `handle` stop the forward pass.
    pub fn cancel_with(&mut self, handle: &CancelHandle) {
        self.cancel = Some(handle.clone());
    }

    /// Tokens of all entries.
    pub fn rows(&self) -> usize {
        self.entries.iter().map(|e| e.tokens.len()).sum()
    }
}

/// Stops a forward pass or a generation from another thread, even inside a long prefill.
#[derive(Clone, Debug, Default)]
pub struct CancelHandle(Arc<AtomicBool>);

impl CancelHandle {
    /// A handle that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops whatever runs with this handle, now or later, until [`CancelHandle::reset`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Makes the handle fit for the next run.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.0
    }
}

/// The results of a forward pass (logits, or what else the model gives), borrowed from the worker until the next one.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) width: usize,
    pub(crate) entries: &'a [Range<usize>],
}

impl<'a> Logits<'a> {
    /// The rows of an entry of the batch, in the order of its tokens; empty if none were wanted.
    ///
    /// # Panics
    /// If the batch had no such entry.
    pub fn of(&self, entry: usize) -> Rows<'a> {
        let Range { start, end } = self.entries[entry];
        Rows { data: &self.data[start * self.width..end * self.width], width: self.width }
    }

    /// Rows of all entries.
    pub fn all(&self) -> Rows<'a> {
        Rows { data: self.data, width: self.width }
    }
}

/// Rows of results, of logits each as long as the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rows<'a> {
    data: &'a [f32],
    width: usize,
}

impl<'a> Rows<'a> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.data.len() / self.width
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The last row.
    pub fn last(&self) -> Option<&'a [f32]> {
        self.iter().next_back()
    }

    /// Row after row.
    pub fn iter(&self) -> std::slice::ChunksExact<'a, f32> {
        self.data.chunks_exact(self.width)
    }

    /// All rows, one behind the other.
    pub fn as_slice(&self) -> &'a [f32] {
        self.data
    }
}

impl std::ops::Index<usize> for Rows<'_> {
    type Output = [f32];
    fn index(&self, row: usize) -> &[f32] {
        &self.data[row * self.width..(row + 1) * self.width]
    }
}

impl<'a> IntoIterator for Rows<'a> {
    type Item = &'a [f32];
    type IntoIter = std::slice::ChunksExact<'a, f32>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
