//! Saving a sequence to bytes and loading it again.
//!
//! ```text
//!  0   8  magic "BESSEQ01"
//!  8   4  element type of the cache: 1 bf16, 2 f32, 3 int8, 4 fp8, 5 int4
//! 12   4  0
//! 16   8  tokens
//! 24   8  bytes of blocks
//! 32  32  hash of the engine
//! 64  32  hash of the bytes of blocks
//! 96      blocks in order; of each block every state in order
//! ```
//!
//! All integers are little endian.

use super::{Sequence, StatePool};
use crate::error::{RunError, SnapshotError};
use bessemer_format::manifest::{Hash, KvElem};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"BESSEQ01";
const HEADER: usize = 96;

const fn kv_number(kv: KvElem) -> u32 {
    match kv {
        KvElem::Bf16 => 1,
        KvElem::F32 => 2,
        KvElem::Int8 => 3,
        KvElem::Fp8 => 4,
        KvElem::Int4 => 5,
        KvElem::F16 => 6,
    }
}

impl Sequence {
    /// The whole state as bytes, to be [loaded](crate::Worker::load) by a worker of the same engine and cache type.
    /// It fails only where the blocks lie in a device that gives them up no more.
    pub fn save(&self) -> Result<Vec<u8>, RunError> {
        let pool = self.pool();
        let mut out = vec![0; HEADER];
        for block in self.blocks() {
            pool.memory().save(*block, &mut out)?;
        }
        let payload = (out.len() - HEADER) as u64;
        let hash = Hash::of(&out[HEADER..]);
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&kv_number(pool.kv).to_le_bytes());
        out[16..24].copy_from_slice(&(self.len() as u64).to_le_bytes());
        out[24..32].copy_from_slice(&payload.to_le_bytes());
        out[32..64].copy_from_slice(&pool.engine.0);
        out[64..96].copy_from_slice(&hash.0);
        Ok(out)
    }

    /// Loads what [`Sequence::save`] gave.
    pub(crate) fn load(pool: &Arc<StatePool>, bytes: &[u8]) -> Result<Self, SnapshotError> {
        let header = |why: &str| SnapshotError::Header { why: why.into() };
        let damaged = |why: String| SnapshotError::Damaged { why };
        let Some((head, payload)) = bytes.split_at_checked(HEADER) else {
            return Err(header("it is shorter than a header"));
        };
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        let hash = |at: usize| Hash(std::array::from_fn(|i| head[at + i]));
        if &head[..8] != MAGIC {
            return Err(header("it starts with other bytes"));
        }
        if hash(32) != pool.engine {
            let (found, expected) = (hash(32).to_string(), pool.engine.to_string());
            return Err(SnapshotError::Engine { found, expected });
        }
        let kv = KvElem::ALL.into_iter().find(|kv| u64::from(kv_number(*kv)) == word(8));
        let kv = kv.ok_or_else(|| header("its cache type is not known"))?;
        if kv != pool.kv {
            return Err(SnapshotError::Kv { found: kv.name(), expected: pool.kv.name() });
        }
        if word(24) != payload.len() as u64 {
            return Err(damaged(format!(
                "{} bytes of blocks where {} are expected",
                payload.len(),
                word(24)
            )));
        }
        if Hash::of(payload) != hash(64) {
            return Err(damaged("the hash of its blocks does not match".into()));
        }
        let context = pool.context;
        let len = usize::try_from(word(16)).unwrap_or(usize::MAX);
        if len > context {
            return Err(RunError::Context { entry: 0, len: 0, tokens: len, context }.into());
        }
        let sequence = Sequence::with_len(pool, len)?;
        let needed = sequence.blocks().len() * pool.block_bytes;
        if payload.len() != needed {
            let found = payload.len();
            let why = format!("{found} bytes of blocks where {len} tokens take {needed}");
            return Err(damaged(why));
        }
        for (block, bytes) in sequence.blocks().iter().zip(payload.chunks(pool.block_bytes.max(1))) {
            pool.memory().load(*block, bytes)?;
        }
        Ok(sequence)
    }
}
