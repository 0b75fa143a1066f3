//! Blocks: allocation, sharing, copying.

use super::BlockLayout;
use crate::error::RunError;
use crate::pool::{SharedBytes, SharedMemory};
use bessemer_format::manifest::{Hash, KvElem};
use bessemer_format::plan::Plan;
use std::sync::{Mutex, MutexGuard};

/// The state memory of a worker, shared with its sequences.
pub(crate) struct StatePool {
    /// The engine whose states these are.
    pub(crate) engine: Hash,
    pub(crate) kv: KvElem,
    /// Longest sequence.
    pub(crate) context: usize,
    total: usize,
    states: Vec<State>,
    pub(crate) layout: BlockLayout,
    blocks: Mutex<Blocks>,
}

struct State {
    memory: SharedMemory,
    block_bytes: usize,
}

/// Who uses which block.
struct Blocks {
    /// Sequences that hold a block, for every block that was ever used.
    refs: Vec<u32>,
    /// Blocks that were used before and are free, the last one freed at the end: its pages are committed and warm.
    free: Vec<u32>,
}

impl StatePool {
    /// Reserves room for `total` blocks of each state of the plan, laid out as `blocks` says.
    pub(crate) fn reserve(
        plan: &Plan,
        engine: Hash,
        kv: KvElem,
        blocks: BlockLayout,
        total: usize,
    ) -> std::io::Result<Self> {
        let state = |&block_bytes: &usize| {
            let too_large =
                || std::io::Error::new(std::io::ErrorKind::OutOfMemory, "more than can be addressed");
            let memory = SharedMemory::reserve(block_bytes.checked_mul(total).ok_or_else(too_large)?)?;
            Ok(State { memory, block_bytes })
        };
        Ok(Self {
            engine,
            kv,
            context: plan.model.context as usize,
            total,
            states: blocks.block_bytes.iter().map(state).collect::<std::io::Result<_>>()?,
            layout: blocks,
            // Room for every block at once: taking and giving back never allocates.
            blocks: Mutex::new(Blocks { refs: Vec::with_capacity(total), free: Vec::with_capacity(total) }),
        })
    }

    /// All blocks of a state, from block 0.
    pub(crate) fn state(&self, id: usize) -> SharedBytes<'_> {
        self.states[id].memory.bytes()
    }

    /// One block of a state.
    pub(crate) fn block(&self, state: usize, block: usize) -> SharedBytes<'_> {
        let State { memory, block_bytes } = &self.states[state];
        memory.bytes().slice(block * block_bytes..(block + 1) * block_bytes)
    }

    /// One block of every state, in order.
    pub(crate) fn block_of_each(&self, block: u32) -> impl Iterator<Item = SharedBytes<'_>> {
        (0..self.states.len()).map(move |state| self.block(state, block as usize))
    }

    /// Blocks that nobody holds.
    pub(crate) fn free(&self) -> usize {
        self.lock().available(self.total)
    }

    /// Appends `count` blocks to `blocks`, all or none.
    pub(crate) fn take(&self, count: usize, blocks: &mut Vec<u32>) -> Result<(), RunError> {
        let mut used = self.lock();
        let free = used.available(self.total);
        if count > free {
            return Err(RunError::CacheFull { needed: count, free, total: self.total });
        }
        for _ in 0..count {
            let block = match used.free.pop() {
                Some(block) => {
                    used.refs[block as usize] = 1;
                    // Nothing of a sequence may show in another, not even in saved bytes.
                    self.block_of_each(block).for_each(|b| b.get_mut::<u8>(0..b.len()).fill(0));
                    block
                }
                None => {
                    used.refs.push(1);
                    used.refs.len() as u32 - 1
                }
            };
            blocks.push(block);
        }
        Ok(())
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

    /// Copies every state of `from` to `to`, which only the caller holds.
    pub(crate) fn copy(&self, from: u32, to: u32) {
        for (from, to) in self.block_of_each(from).zip(self.block_of_each(to)) {
            to.get_mut::<u8>(0..to.len()).copy_from_slice(from.get(0..from.len()));
        }
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
