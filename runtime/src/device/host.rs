//! Blocks of the cache in this process's memory.

use super::Room;
use crate::error::RunError;
use crate::pool::{SharedBytes, SharedMemory};
use crate::state::{BlockLayout, BlockMemory};
use std::io;

/// Room for the blocks of every state, zero at first. Nothing is committed before it is used.
pub(crate) struct HostBlocks {
    pub(crate) layout: BlockLayout,
    states: Vec<SharedMemory>,
    /// Bytes from the begin of each state's blocks that are used.
    held: Vec<usize>,
}

impl HostBlocks {
    /// Reserves the room.
    pub(super) fn reserve(room: &Room) -> io::Result<Self> {
        let too_large = || io::Error::new(io::ErrorKind::OutOfMemory, "more than can be addressed");
        let state =
            |bytes: &usize| SharedMemory::reserve(bytes.checked_mul(room.blocks).ok_or_else(too_large)?);
        let states = room.layout.block_bytes.iter().map(state).collect::<io::Result<_>>()?;
        Ok(Self { states, layout: room.layout.clone(), held: room.held.clone() })
    }

    /// All blocks of a state, from block 0.
    pub(crate) fn state(&self, id: usize) -> SharedBytes<'_> {
        self.states[id].bytes()
    }

    /// One block of a state.
    pub(crate) fn block(&self, state: usize, block: usize) -> SharedBytes<'_> {
        let bytes = self.layout.block_bytes[state];
        self.states[state].bytes().slice(block * bytes..(block + 1) * bytes)
    }

    /// What is used of one block of every state, in order.
    fn block_of_each(&self, block: u32) -> impl Iterator<Item = SharedBytes<'_>> {
        let held = self.held.iter().enumerate();
        held.map(move |(state, held)| self.block(state, block as usize).slice(0..*held))
    }
}

impl BlockMemory for HostBlocks {
    fn clear(&self, block: u32) -> Result<(), RunError> {
        self.block_of_each(block).for_each(|b| b.get_mut::<u8>(0..b.len()).fill(0));
        Ok(())
    }

    fn copy(&self, from: u32, to: u32) -> Result<(), RunError> {
        for (from, to) in self.block_of_each(from).zip(self.block_of_each(to)) {
            to.get_mut::<u8>(0..to.len()).copy_from_slice(from.get(0..from.len()));
        }
        Ok(())
    }

    fn save(&self, block: u32, out: &mut Vec<u8>) -> Result<(), RunError> {
        self.block_of_each(block).for_each(|b| out.extend_from_slice(b.get(0..b.len())));
        Ok(())
    }

    fn load(&self, block: u32, bytes: &[u8]) -> Result<(), RunError> {
        let mut rest = bytes;
        for b in self.block_of_each(block) {
            let (now, later) = rest.split_at(b.len());
            b.get_mut(0..b.len()).copy_from_slice(now);
            rest = later;
        }
        Ok(())
    }
}
