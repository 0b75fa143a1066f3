//! Blocks: allocation, sharing, copying.

use super::BlockLayout;
use crate::error::RunError;
use bessemer_format::manifest::{Hash, KvElem};
use bessemer_format::plan::{Plan, StateDecl};
use std::sync::{Arc, Mutex, MutexGuard};

/// The memory that blocks lie in, on the device that reads them. A block is one piece of every state.
///
/// A call sees everything that passes and calls before it stored, whichever thread they came from.
pub(crate) trait BlockMemory: Send + Sync {
    /// Fills a block with zeros.
    fn clear(&self, block: u32) -> Result<(), RunError>;

    /// Copies a block to another one.
    fn copy(&self, from: u32, to: u32) -> Result<(), RunError>;

    /// Appends the bytes of a block, state by state.
    fn save(&self, block: u32, out: &mut Vec<u8>) -> Result<(), RunError>;

    /// Fills a block with what [`BlockMemory::save`] gave.
    fn load(&self, block: u32, bytes: &[u8]) -> Result<(), RunError>;
}

/// The state memory of a worker, shared with its sequences.
pub(crate) struct StatePool {
    /// The engine whose states these are.
    pub(crate) engine: Hash,
    pub(crate) kv: KvElem,
    /// Longest sequence.
    pub(crate) context: usize,
    /// Whether some layer carries state from token to token, which is known at the end of blocks and of sequences only.
    pub(crate) recurrent: bool,
    total: usize,
    /// Bytes of a block, all states together.
    pub(crate) block_bytes: usize,
    memory: Arc<dyn BlockMemory>,
    blocks: Mutex<Blocks>,
}

/// Who uses which block.
struct Blocks {
    /// Sequences that hold a block, for every block that was ever used.
    refs: Vec<u32>,
    /// Blocks that were used before and are free, the last one freed at the end: its pages are committed and warm.
    free: Vec<u32>,
}

impl StatePool {
    /// A pool of `total` blocks, laid out as `layout` says, that are zero in `memory`.
    pub(crate) fn new(
        plan: &Plan,
        engine: Hash,
        layout: &BlockLayout,
        total: usize,
        memory: Arc<dyn BlockMemory>,
    ) -> Self {
        Self {
            engine,
            kv: layout.kv,
            context: plan.model.context as usize,
            recurrent: plan.states.iter().any(|state| matches!(state, StateDecl::Recurrent { .. })),
            total,
            block_bytes: layout.block_bytes.iter().sum(),
            memory,
            // Room for every block at once: taking and giving back never allocates.
            blocks: Mutex::new(Blocks { refs: Vec::with_capacity(total), free: Vec::with_capacity(total) }),
        }
    }

    /// Where the blocks lie.
    pub(crate) fn memory(&self) -> &dyn BlockMemory {
        &*self.memory
    }

    /// Blocks that nobody holds.
    pub(crate) fn free(&self) -> usize {
        self.lock().available(self.total)
    }

    /// Appends `count` blocks to `blocks`, all or none.
    pub(crate) fn take(&self, count: usize, blocks: &mut Vec<u32>) -> Result<(), RunError> {
        let before = blocks.len();
        let reused = {
            let mut used = self.lock();
            let free = used.available(self.total);
            if count > free {
                return Err(RunError::CacheFull { needed: count, free, total: self.total });
            }
            let reused = count.min(used.free.len());
            for _ in 0..count {
                let block = match used.free.pop() {
                    Some(block) => {
                        used.refs[block as usize] = 1;
                        block
                    }
                    None => {
                        used.refs.push(1);
                        used.refs.len() as u32 - 1
                    }
                };
                blocks.push(block);
            }
            reused
        };
        // Nothing of a sequence may show in another, not even in saved bytes.
        let cleared = blocks[before..before + reused].iter().try_for_each(|block| self.memory.clear(*block));
        cleared.inspect_err(|_| self.give_back(blocks.drain(before..)))
    }

    /// One more sequence holds each of `blocks`.
    pub(crate) fn share(&self, blocks: &[u32]) {
        let mut used = self.lock();
        for block in blocks {
            used.refs[*block as usize] += 1;
        }
    }

    /// One sequence less holds each of `blocks`.
    pub(crate) fn give_back(&self, blocks: impl IntoIterator<Item = u32>) {
        let mut used = self.lock();
        for block in blocks {
            let refs = &mut used.refs[block as usize];
            *refs -= 1;
            if *refs == 0 {
                used.free.push(block);
            }
        }
    }

    /// Whether more than one sequence holds `block`.
    pub(crate) fn is_shared(&self, block: u32) -> bool {
        self.lock().refs[block as usize] > 1
    }

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Blocks {
    fn available(&self, total: usize) -> usize {
        total - self.refs.len() + self.free.len()
    }
}
