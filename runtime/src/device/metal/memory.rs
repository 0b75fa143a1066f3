//! Pages of this process as Metal sees them.

use crate::device::DeviceError;
use crate::pool::{SharedBytes, SharedMemory};
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_metal::{MTLBuffer, MTLDevice, MTLResourceOptions};
use std::ffi::c_void;
use std::ptr::NonNull;

pub(super) type Gpu = ProtocolObject<dyn MTLDevice>;
pub(super) type Buffer = ProtocolObject<dyn MTLBuffer>;

/// Bytes of a page.
pub(super) fn page() -> usize {
    // SAFETY: the call reads a constant of the system.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // 16 KiB on every Mac whose GPU Apple made.
    usize::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(16 << 10)
}

/// `len` bytes of whole pages from `first` on as a buffer.
///
/// # Safety
/// `first` is the begin of a page, the pages are mapped, and they stay so for as long as the buffer is used. Where they are mapped to be read
/// only, no kernel stores through the buffer.
pub(super) unsafe fn wrap(gpu: &Gpu, first: *mut u8, len: usize) -> Result<Retained<Buffer>, DeviceError> {
    let refused = || DeviceError::Driver {
        what: format!("wrapping {len} bytes"),
        why: "Metal gives no buffer for them".into(),
    };
    let first = NonNull::new(first.cast::<c_void>()).ok_or_else(refused)?;
    let shared = MTLResourceOptions::StorageModeShared;
    // SAFETY: as the caller promises; without a deallocator the pages stay the caller's.
    let buffer = unsafe { gpu.newBufferWithBytesNoCopy_length_options_deallocator(first, len, shared, None) };
    buffer.ok_or_else(refused)
}

/// Memory of this process, and Metal's view of it.
pub(super) struct Pages {
    // Goes before the pages that it shows.
    buffer: Retained<Buffer>,
    memory: SharedMemory,
}

impl Pages {
    /// `len` bytes, all zero.
    pub(super) fn new(gpu: &Gpu, len: usize) -> Result<Self, DeviceError> {
        let len = len.max(1).next_multiple_of(page());
        let memory = SharedMemory::reserve(len).map_err(|e| DeviceError::Driver {
            what: format!("reserving {len} bytes"),
            why: e.to_string(),
        })?;
        // SAFETY: the memory begins at a page, has whole pages, and goes after the buffer.
        let buffer = unsafe { wrap(gpu, memory.bytes().as_ptr(), len)? };
        Ok(Self { buffer, memory })
    }

    pub(super) fn bytes(&self) -> SharedBytes<'_> {
        self.memory.bytes()
    }

    pub(super) fn buffer(&self) -> Retained<Buffer> {
        self.buffer.clone()
    }
}
