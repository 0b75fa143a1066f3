//! The driver: whether it is there, what it runs, and its refusals in words.
//!
//! Its library is loaded when it is first asked for, and each of its functions when it is first called; one that is missing would end
//! the process. So nothing is called before the library was found and said that it is new enough to have them all.

use crate::device::{DeviceChoice, DeviceError};
use crate::error::RunError;
use cudarc::driver::{CudaContext, DriverError, sys};
use std::sync::Arc;

/// The oldest driver with every function that is called, as drivers count: 1000 for a major version, 10 for a minor one.
const OLDEST: i32 = 13000;

/// A GPU that is ready to be used.
pub(in crate::device) struct Gpu {
    pub(super) context: Arc<CudaContext>,
    /// The device's name on the command line.
    pub(super) device: String,
    name: String,
    capability: (u32, u32),
}

impl Gpu {
    /// Compute capability.
    pub(in crate::device) fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// What it is, for people.
    pub(in crate::device) fn describe(&self) -> String {
        format!("{} ({})", self.device, self.name)
    }
}

/// Opens the GPU with this number, if the driver is `needed` or newer.
pub(in crate::device) fn open(ordinal: usize, needed: u32) -> Result<Gpu, DeviceError> {
    // SAFETY: this loads the driver's library, whose initialisers set up nothing but its own state.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: the library is there, every release has this function, and it writes one number.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    asked.map_err(|e| refused("asking the driver for its version", e))?;
    let needed = i32::try_from(needed).unwrap_or(i32::MAX).max(OLDEST);
    if version < needed {
        let name = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
        return Err(DeviceError::OldDriver { found: name(version), needed: name(needed) });
    }
    let count = match CudaContext::device_count() {
        Ok(count) => count.max(0) as usize,
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
        Err(e) => return Err(refused("starting the driver", e)),
    };
    if count == 0 {
        return Err(DeviceError::NoDevice);
    }
    if ordinal >= count {
        return Err(DeviceError::Ordinal { asked: ordinal, count });
    }
    let context = CudaContext::new(ordinal).map_err(|e| refused("making a context", e))?;
    // SAFETY: everything that reads or writes memory runs on one stream, in order. A second stream only records launches.
    unsafe { context.disable_event_tracking() };
    let ask = |e| refused("asking the GPU what it is", e);
    let (major, minor) = context.compute_capability().map_err(ask)?;
    let name = context.name().map_err(ask)?;
    let capability = (major.max(0) as u32, minor.max(0) as u32);
    Ok(Gpu { context, device: DeviceChoice::Cuda(ordinal).to_string(), name, capability })
}

/// A refusal while the device is started.
pub(super) fn refused(what: &str, error: DriverError) -> DeviceError {
    DeviceError::Driver { what: what.into(), why: words(error) }
}

/// Whether a refusal means that the device's memory is full.
pub(super) fn is_full(error: &DriverError) -> bool {
    error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY
}

/// A failure while it runs.
pub(super) fn failed(device: &str, what: &'static str) -> impl Fn(DriverError) -> RunError {
    move |error| RunError::Device { device: device.into(), what, why: words(error) }
}

/// What the driver says about an error.
fn words(error: DriverError) -> String {
    match (error.error_string(), error.error_name()) {
        (Ok(text), Ok(name)) => format!("{} ({})", text.to_string_lossy(), name.to_string_lossy()),
        _ => format!("error {}", error.0 as u32),
    }
}
