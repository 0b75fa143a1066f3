//! State that outlives a forward pass: the blocks of the KV cache and the sequences that own them.
//!
//! A [`StatePool`] says who holds which block; the bytes lie in a [`BlockMemory`] of the device that runs the worker. That of the CPU
//! reserves address space for all blocks that a worker may ever need; the operating system commits pages when a block is first
//! written, so memory grows with what is used. A block holds
//! [`kv::TOKENS`](bessemer_format::kv::TOKENS) tokens of every layer and belongs to one sequence, or to several that
//! were forked from each other. Shared blocks are never written: who appends to one gets a copy first.

mod layers;
mod pool;
mod sequence;
mod snapshot;

pub(crate) use layers::{BlockLayout, CacheLayer};
pub(crate) use pool::{BlockMemory, StatePool};
pub use sequence::Sequence;
