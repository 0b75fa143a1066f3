//! Memory of the GPU: weights, which come through pinned pages, and blocks of the cache.

use super::driver::failed;
use crate::error::RunError;
use crate::state::BlockMemory;
use bessemer_format::plan::{WeightId, WeightSlice};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaSlice, CudaStream, DevicePtr, DriverError, PinnedHostSlice, result,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What begins at a multiple of this is aligned for every load.
const ALIGN: usize = 256;
/// Bytes of each of the two buffers that weights go through.
const STAGE: usize = 16 << 20;

/// The address of some memory of the GPU.
pub(super) fn address<T>(memory: &CudaSlice<T>) -> u64 {
    let (at, _) = memory.device_ptr(memory.stream());
    at
}

/// Where each weight lies, one behind the other.
pub(super) struct WeightPlaces {
    /// Offset of every weight that is used.
    at: Vec<Option<usize>>,
    pub(super) bytes: usize,
}

impl WeightPlaces {
    /// Places for the weights of `used`; two ids of the same bytes share one.
    pub(super) fn new(weights: &[WeightSlice], used: &BTreeSet<WeightId>) -> Self {
        let mut at = vec![None; weights.len()];
        let mut bytes = 0;
        for (id, weight) in weights.iter().enumerate() {
            if !used.contains(&(id as WeightId)) {
                continue;
            }
            let same = |other: &WeightSlice| (other.offset, other.len) == (weight.offset, weight.len);
            let twin = weights[..id].iter().position(same).and_then(|twin| at[twin]);
            at[id] = Some(twin.unwrap_or(bytes));
            if twin.is_none() {
                bytes = (bytes + weight.len as usize).next_multiple_of(ALIGN);
            }
        }
        Self { at, bytes }
    }

    /// Where a weight lies in memory that begins at `base`.
    pub(super) fn address(&self, base: u64, weight: WeightId) -> Option<u64> {
        Some(base + (*self.at.get(weight as usize)?)? as u64)
    }

    /// Copies the weights, which are slices of `section`, to the GPU.
    pub(super) fn upload(
        &self,
        stream: &Arc<CudaStream>,
        weights: &[WeightSlice],
        section: &[u8],
    ) -> Result<CudaSlice<u8>, DriverError> {
        let mut memory = stream.alloc_zeros::<u8>(self.bytes.max(ALIGN))?;
        let mut stager = Stager::new(stream.context(), self.bytes)?;
        let mut end = 0;
        for (weight, at) in weights.iter().zip(&self.at) {
            // A twin's bytes are there already.
            let Some(at) = at.filter(|at| *at >= end) else { continue };
            stager.skip(at - end);
            let bytes = &section[weight.offset as usize..(weight.offset + weight.len) as usize];
            stager.push(bytes, stream, &mut memory)?;
            end = at + bytes.len();
        }
        stager.flush(stream, &mut memory)?;
        stream.synchronize()?;
        Ok(memory)
    }
}

/// A stream of bytes to the GPU: one buffer is filled while the other is on its way.
struct Stager {
    buffers: [Buffer; 2],
    /// The buffer that is filled, and how far.
    current: usize,
    filled: usize,
    /// Where its bytes go.
    to: usize,
}

struct Buffer {
    pages: PinnedHostSlice<u8>,
    /// When its bytes have arrived.
    sent: Option<CudaEvent>,
}

impl Stager {
    fn new(context: &Arc<CudaContext>, total: usize) -> Result<Self, DriverError> {
        let buffer = || {
            // SAFETY: bytes are sent only after they were written.
            let pages = unsafe { context.alloc_pinned(STAGE.min(total).max(ALIGN)) }?;
            Ok(Buffer { pages, sent: None })
        };
        Ok(Self { buffers: [buffer()?, buffer()?], current: 0, filled: 0, to: 0 })
    }

    /// Goes over `gap` bytes, fewer than an alignment, that nobody reads.
    fn skip(&mut self, gap: usize) {
        self.filled += gap;
    }

    fn push(
        &mut self,
        mut bytes: &[u8],
        stream: &Arc<CudaStream>,
        memory: &mut CudaSlice<u8>,
    ) -> Result<(), DriverError> {
        while !bytes.is_empty() {
            if self.filled >= self.buffers[self.current].pages.len() {
                self.flush(stream, memory)?;
            }
            let pages = self.buffers[self.current].pages.as_mut_slice()?;
            let (now, later) = bytes.split_at(bytes.len().min(pages.len() - self.filled));
            pages[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
        }
        Ok(())
    }

    /// Sends what the current buffer holds, and goes on with the other one once that has arrived.
    fn flush(&mut self, stream: &Arc<CudaStream>, memory: &mut CudaSlice<u8>) -> Result<(), DriverError> {
        let Buffer { pages, sent } = &mut self.buffers[self.current];
        let len = self.filled.min(pages.len());
        stream.memcpy_htod(&pages.as_slice()?[..len], &mut memory.slice_mut(self.to..self.to + len))?;
        *sent = Some(stream.record_event(None)?);
        self.to += len;
        self.filled -= len;
        self.current = 1 - self.current;
        match self.buffers[self.current].sent.take() {
            Some(sent) => sent.synchronize(),
            None => Ok(()),
        }
    }
}

/// Blocks of the states that the GPU's layers have.
pub(in crate::device) struct CudaBlocks {
    stream: Arc<CudaStream>,
    device: String,
    states: Vec<Option<State>>,
}

struct State {
    memory: CudaSlice<u8>,
    block_bytes: usize,
}

impl CudaBlocks {
    /// Room for `total` blocks of so many bytes of each state, all zero.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        device: &str,
        block_bytes: &[usize],
        total: usize,
    ) -> Result<Self, DriverError> {
        let state = |&block_bytes: &usize| match block_bytes * total {
            0 => Ok(None),
            bytes => Ok(Some(State { memory: stream.alloc_zeros(bytes)?, block_bytes })),
        };
        Ok(Self {
            stream: Arc::clone(stream),
            device: device.into(),
            states: block_bytes.iter().map(state).collect::<Result<_, DriverError>>()?,
        })
    }

    /// Where block 0 of a state lies.
    pub(super) fn state(&self, state: usize) -> Option<u64> {
        self.states.get(state)?.as_ref().map(|s| address(&s.memory))
    }

    /// Lets `each` work on the address and the length of one block of every state.
    fn each(
        &self,
        block: u32,
        what: &'static str,
        mut each: impl FnMut(u64, usize) -> Result<(), DriverError>,
    ) -> Result<(), RunError> {
        let mut work = || {
            self.stream.context().bind_to_thread()?;
            self.states.iter().flatten().try_for_each(|State { memory, block_bytes }| {
                let at = block as usize * block_bytes;
                assert!(at + block_bytes <= memory.len(), "block {block} of {} bytes", memory.len());
                each(address(memory) + at as u64, *block_bytes)
            })
        };
        work().map_err(failed(&self.device, what))
    }
}

impl BlockMemory for CudaBlocks {
    fn clear(&self, block: u32) -> Result<(), RunError> {
        self.each(block, "clearing a block", |at, len| {
            // SAFETY: `each` checked that the block lies in its state's memory.
            unsafe { result::memset_d8_async(at, 0, len, self.stream.cu_stream()) }
        })
    }

    fn copy(&self, from: u32, to: u32) -> Result<(), RunError> {
        let mut sources = Vec::with_capacity(self.states.len());
        self.each(from, "copying a block", |at, _| {
            sources.push(at);
            Ok(())
        })?;
        let mut sources = sources.into_iter();
        self.each(to, "copying a block", |at, len| match sources.next() {
            // SAFETY: `each` checked that both blocks lie in the memory of the same state; they are different blocks.
            Some(from) => unsafe { result::memcpy_dtod_async(at, from, len, self.stream.cu_stream()) },
            None => Ok(()),
        })
    }

    fn save(&self, block: u32, out: &mut Vec<u8>) -> Result<(), RunError> {
        self.each(block, "reading a block", |at, len| {
            let start = out.len();
            out.resize(start + len, 0);
            // SAFETY: `each` checked that the block lies in its state's memory, and the bytes stay where they are until they came.
            unsafe { result::memcpy_dtoh_async(&mut out[start..], at, self.stream.cu_stream()) }?;
            self.stream.synchronize()
        })
    }

    fn load(&self, block: u32, bytes: &[u8]) -> Result<(), RunError> {
        let mut rest = bytes;
        self.each(block, "writing a block", |at, len| {
            let (now, later) = rest.split_at(len);
            rest = later;
            // SAFETY: `each` checked that the block lies in its state's memory, and the bytes stay where they are until they went.
            unsafe { result::memcpy_htod_async(at, now, self.stream.cu_stream()) }?;
            self.stream.synchronize()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bessemer_format::QuantScheme;
    use bessemer_format::plan::WeightLayout;

    #[test]
    fn weights_have_places_of_their_own_unless_they_are_the_same() {
        let slice = |offset, len| WeightSlice {
            offset,
            len,
            n: 1,
            k: 1,
            scheme: QuantScheme::F32,
            layout: WeightLayout::Dense,
        };
        let weights = [slice(0, 300), slice(320, 64), slice(0, 300), slice(384, 10), slice(448, 8)];
        let places = WeightPlaces::new(&weights, &[0, 2, 3, 4].into());
        let at = |id| places.address(1 << 20, id).map(|at| at - (1 << 20));
        assert_eq!([at(0), at(1), at(2), at(3), at(4)], [Some(0), None, Some(0), Some(512), Some(768)]);
        assert_eq!((places.bytes, at(5)), (1024, None));
    }
}
