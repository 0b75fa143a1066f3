//! A sequence: the blocks that hold its tokens, in order.

use super::StatePool;
use crate::error::RunError;
use bessemer_format::kv::TOKENS;
use std::fmt;
use std::sync::Arc;

/// The state of one text as far as it was processed: what a conversation, a beam or a draft continues from.
///
/// It belongs to the [`Worker`](crate::Worker) that made it, grows when tokens are
/// [forwarded](crate::Worker::forward) and frees its blocks when it is dropped.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bessemer_runtime::{Batch, Engine, Want, Worker, WorkerOptions};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/engines/gqa_tied.engine");
/// let engine = Engine::open(path)?;
/// let mut worker = Worker::new(&engine, WorkerOptions::default())?;
/// let mut prompt = worker.sequence();
/// let mut batch = Batch::new();
/// batch.push(&mut prompt, &[1, 2, 3], Want::None);
/// worker.forward(&mut batch)?;
///
/// let mut other = prompt.fork(); // shares the memory of the prompt
/// let mut batch = Batch::new();
/// batch.push(&mut prompt, &[4], Want::Last);
/// batch.push(&mut other, &[5], Want::Last);
/// let logits = worker.forward(&mut batch)?;
/// println!("{} against {}", logits.of(0)[0][7], logits.of(1)[0][7]);
/// other.truncate(2); // forgets the last two tokens
/// # Ok(())
/// # }
/// ```
pub struct Sequence {
    pool: Arc<StatePool>,
    blocks: Vec<u32>,
    len: usize,
}

impl Sequence {
    pub(crate) fn new(pool: &Arc<StatePool>) -> Self {
        Self { pool: Arc::clone(pool), blocks: Vec::new(), len: 0 }
    }

    /// A sequence of `len` tokens in blocks that are not filled yet.
    pub(super) fn with_len(pool: &Arc<StatePool>, len: usize) -> Result<Self, RunError> {
        let mut sequence = Self::new(pool);
        sequence.reserve(len)?;
        sequence.len = len;
        Ok(sequence)
    }

    /// Tokens processed.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was processed yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that it can still take before the model's context is full.
    pub fn room(&self) -> usize {
        self.pool.context.saturating_sub(self.len)
    }

    /// A second sequence with the same tokens. It costs no memory: blocks are shared until one of the two
    /// writes to them.
    pub fn fork(&self) -> Self {
        self.pool.share(&self.blocks);
        Self { pool: Arc::clone(&self.pool), blocks: self.blocks.clone(), len: self.len }
    }

    /// Forgets the tokens after the first `len`. Nothing happens if there are no more.
    ///
    /// A model that carries recurrent state has it at the end of each block of tokens: its sequences go back to there, which forgets up
    /// to 31 tokens more. [`Sequence::len`] tells, and they can be processed again.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = if self.pool.recurrent { len / TOKENS * TOKENS } else { len };
        }
        self.trim();
    }

    /// After a pass that may have written beyond the length: what was carried from there is lost.
    pub(crate) fn unsettle(&mut self) {
        if self.pool.recurrent {
            self.len = self.len / TOKENS * TOKENS;
        }
    }

    /// Frees the blocks beyond the length: what a [`Sequence::reserve`] took for tokens that did not come.
    pub(crate) fn trim(&mut self) {
        let keep = self.len.div_ceil(TOKENS);
        self.pool.give_back(self.blocks.drain(keep.min(self.blocks.len())..));
    }

    /// Makes room for `tokens` more, in blocks that nobody else holds.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<(), RunError> {
        if tokens == 0 {
            return Ok(());
        }
        // The block that the next token goes to, if it is there already.
        let last = self.len / TOKENS;
        if let Some(&shared) = self.blocks.get(last)
            && self.pool.is_shared(shared)
        {
            let at = self.blocks.len();
            self.pool.take(1, &mut self.blocks)?;
            let own = self.blocks.swap_remove(at);
            if let Err(e) = self.pool.memory().copy(shared, own) {
                self.pool.give_back([own]);
                return Err(e);
            }
            self.blocks[last] = own;
            self.pool.give_back([shared]);
        }
        let needed = (self.len + tokens).div_ceil(TOKENS).saturating_sub(self.blocks.len());
        self.pool.take(needed, &mut self.blocks)
    }

    /// Counts `tokens` that were processed.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
        debug_assert!(self.len <= self.blocks.len() * TOKENS);
    }

    pub(crate) fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    pub(crate) fn pool(&self) -> &Arc<StatePool> {
        &self.pool
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.pool.give_back(self.blocks.drain(..));
    }
}

impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sequence").field("len", &self.len).field("blocks", &self.blocks.len()).finish()
    }
}
