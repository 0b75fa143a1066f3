//! Memory that several threads of a job read and write.

use bessemer_kernels::Store;
use bessemer_kernels::linear::{Lane, Places};
use memmap2::{MmapOptions, MmapRaw};
use std::marker::PhantomData;
use std::ops::Range;

/// Zeroed memory straight from the operating system, which gives pages only when they are touched. (Windows counts all
/// of it against its commit limit from the start.)
pub(crate) struct SharedMemory {
    map: Option<MmapRaw>,
}

impl SharedMemory {
    /// Reserves `len` bytes, all zero, page aligned. Nothing is committed yet.
    pub(crate) fn reserve(len: usize) -> std::io::Result<Self> {
        let map = match len {
            0 => None,
            len => Some(MmapOptions::new().len(len).no_reserve_swap().map_anon()?.into()),
        };
        if let Some(map) = &map {
            prefer_huge_pages(map);
        }
        Ok(Self { map })
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> SharedBytes<'_> {
        let (ptr, len) = self
            .map
            .as_ref()
            .map_or((std::ptr::NonNull::dangling().as_ptr(), 0), |map| (map.as_mut_ptr(), map.len()));
        SharedBytes { ptr, len, writable: true, life: PhantomData }
    }
}

/// Activations and a cache of keys and values are read in strides that small pages make slow. Only a wish: an operating
/// system without huge pages has none to give.
#[cfg(target_os = "linux")]
fn prefer_huge_pages(map: &MmapRaw) {
    let _ = map.advise(memmap2::Advice::HugePage);
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages(_: &MmapRaw) {}

/// A range of memory that the threads of a job share.
///
/// # Disjointness
///
/// Between two barriers no thread touches a byte that another thread writes. The type cannot see barriers; the rule is
/// kept by those who use it, which is [`crate::exec`] and [`crate::nest`] for a worker's arena and inputs, and
/// [`crate::state`] for blocks of a cache:
///
/// * threads write to the rows, panels or blocks that a partition gave them, and partitions are disjoint ranges of
///   one counter;
/// * buffers that are live at the same time do not overlap: the plan's validation proves it;
/// * rows of a batch have different slots of the cache, and a block that several sequences share is not written to.
///
/// A reference that a method returns is used up before the next barrier. Bounds and alignment are checked here; the
/// feature `race-check` notes every access and compares the threads at each barrier.
#[derive(Clone, Copy)]
pub(crate) struct SharedBytes<'a> {
    ptr: *mut u8,
    len: usize,
    writable: bool,
    life: PhantomData<&'a std::cell::UnsafeCell<[u8]>>,
}

// SAFETY: plain memory; threads keep to the rule of disjointness above.
unsafe impl Send for SharedBytes<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedBytes<'_> {}

/// Plain numbers that any bytes are a value of.
pub(crate) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for i32 {}
impl Plain for f32 {}

impl<'a> SharedBytes<'a> {
    /// Memory that is only read.
    pub(crate) fn read_only<T: Plain>(data: &'a [T]) -> Self {
        Self {
            ptr: data.as_ptr().cast_mut().cast(),
            len: size_of_val(data),
            writable: false,
            life: PhantomData,
        }
    }

    /// Memory that was borrowed for the job.
    pub(crate) fn read_write<T: Plain>(data: &'a mut [T]) -> Self {
        Self { ptr: data.as_mut_ptr().cast(), len: size_of_val(data), writable: true, life: PhantomData }
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of the first byte, for generated code.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// The bytes of `range`. Panics if it reaches beyond the end.
    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} bytes", self.len);
        // SAFETY: the start lies within the memory or at its end.
        let ptr = unsafe { self.ptr.add(range.start) };
        Self { ptr, len: range.len(), ..*self }
    }

    /// Elements of type `T`, to be read before the next barrier. Panics if they are not all inside.
    #[inline]
    pub(crate) fn get<T: Plain>(&self, range: Range<usize>) -> &'a [T] {
        let (ptr, len) = self.locate::<T>(&range);
        #[cfg(feature = "race-check")]
        if self.writable {
            super::ledger::note(ptr as usize, len * size_of::<T>(), false);
        }
        // SAFETY: `locate` checked bounds and alignment, any bytes are a `T`, and by the rule of disjointness no
        // thread writes to the range while it is read.
        unsafe { std::slice::from_raw_parts(ptr, len) }
    }

    /// Elements of type `T`, to be written before the next barrier. Panics if they are not all inside or are
    /// read-only.
    #[inline]
    #[allow(clippy::mut_from_ref, reason = "exclusive by the rule of disjointness")]
    pub(crate) fn get_mut<T: Plain>(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(self.writable, "this memory is only read");
        let (ptr, len) = self.locate::<T>(&range);
        #[cfg(feature = "race-check")]
        super::ledger::note(ptr as usize, len * size_of::<T>(), true);
        // SAFETY: `locate` checked bounds and alignment, any bytes are a `T`, the memory is writable, and by the rule
        // of disjointness no other reference to the range is in use.
        unsafe { std::slice::from_raw_parts_mut(ptr, len) }
    }

    /// Stores a tile in `columns` of the rows that begin at `places`, after adding what `residual` holds there (which may be this
    /// memory): see [`Store`]. Panics if they are not all inside, or this is read-only.
    pub(crate) fn store(
        &self,
        store: &Store,
        (tile, bias): (&[Lane], Option<&Lane>),
        residual: Option<SharedBytes<'_>>,
        places: Places<'_>,
        columns: Range<usize>,
    ) {
        assert!(self.writable, "this memory is only read");
        let place = |row| places.at(row) + columns.start..places.at(row) + columns.end;
        // Every place, or, where they ascend, the last.
        let checked = match places {
            Places::Every { .. } => tile.len().saturating_sub(1)..tile.len(),
            Places::Listed { .. } => 0..tile.len(),
        };
        for row in checked {
            for memory in [Some(*self), residual].into_iter().flatten() {
                memory.locate::<f32>(&place(row));
            }
        }
        #[cfg(feature = "race-check")]
        for row in 0..tile.len() {
            if let Some(residual) = residual {
                residual.get::<f32>(place(row));
            }
            self.get_mut::<f32>(place(row));
        }
        let start = |memory: &SharedBytes<'_>| memory.ptr.cast::<f32>().wrapping_add(columns.start);
        // SAFETY: all places are inside of the memory, which is aligned and can be written; by the rule of disjointness no other
        // thread touches them before the next barrier.
        unsafe {
            let residual = residual.map(|residual| start(&residual).cast_const());
            store.tile(tile, bias, residual, places, columns.len(), start(self));
        }
    }

    #[inline]
    fn locate<T>(&self, range: &Range<usize>) -> (*mut T, usize) {
        let size = size_of::<T>();
        assert!(
            range.start <= range.end && range.end <= self.len / size,
            "{range:?} of {} elements",
            self.len / size
        );
        // SAFETY: the start lies within the memory or at its end.
        let ptr = unsafe { self.ptr.add(range.start * size) }.cast::<T>();
        assert!(ptr.is_aligned(), "memory of {size}-byte elements is not aligned");
        (ptr, range.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_starts_at_zero_and_keeps_what_is_written() {
        let memory = SharedMemory::reserve(4096).unwrap();
        let bytes = memory.bytes().slice(64..128);
        assert!(bytes.get::<f32>(0..16).iter().all(|v| *v == 0.0));
        bytes.get_mut::<f32>(2..4).copy_from_slice(&[1.0, 2.0]);
        assert_eq!(memory.bytes().get::<f32>(17..20), [0.0, 1.0, 2.0]);
        assert_eq!(SharedMemory::reserve(0).unwrap().bytes().len(), 0);
    }

    #[test]
    #[should_panic(expected = "of 16 elements")]
    fn beyond_the_end_panics() {
        SharedMemory::reserve(64).unwrap().bytes().get::<i32>(10..17);
    }

    #[test]
    #[should_panic(expected = "only read")]
    fn weights_are_not_written() {
        SharedBytes::read_only(&[1.0f32]).get_mut::<f32>(0..1);
    }
}
