//! What a GPU could do at best.

use super::memory::Gpu;
use crate::device::DeviceError;
use objc2::rc::autoreleasepool;
use objc2_metal::{
    MTLBlitCommandEncoder, MTLCommandBuffer, MTLCommandEncoder, MTLCommandQueue,
    MTLCreateSystemDefaultDevice, MTLDevice, MTLResourceOptions,
};

/// Bytes of the memory that is copied: more than any cache holds.
const BYTES: usize = 512 << 20;
/// Copies of which the fastest counts.
const ROUNDS: usize = 8;

/// The system's GPU.
pub(in crate::device) fn measure() -> Result<crate::device::MetalGpu, DeviceError> {
    let gpu = MTLCreateSystemDefaultDevice().ok_or(DeviceError::NoMetal)?;
    Ok(crate::device::MetalGpu {
        name: gpu.name().to_string(),
        memory: gpu.recommendedMaxWorkingSetSize(),
        copy: copy(&gpu),
    })
}

/// Bytes that it reads and writes a second when it copies memory.
fn copy(gpu: &Gpu) -> Option<f64> {
    let private = MTLResourceOptions::StorageModePrivate;
    let (from, to) =
        (gpu.newBufferWithLength_options(BYTES, private)?, gpu.newBufferWithLength_options(BYTES, private)?);
    let queue = gpu.newCommandQueue()?;
    let round = || {
        autoreleasepool(|_| {
            let commands = queue.commandBuffer()?;
            let encoder = commands.blitCommandEncoder()?;
            // SAFETY: both buffers have so many bytes.
            unsafe {
                encoder.copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size(&from, 0, &to, 0, BYTES)
            };
            encoder.endEncoding();
            commands.commit();
            commands.waitUntilCompleted();
            Some(commands.GPUEndTime() - commands.GPUStartTime()).filter(|seconds| *seconds > 0.0)
        })
    };
    (0..ROUNDS).filter_map(|_| round()).min_by(f64::total_cmp).map(|seconds| 2.0 * BYTES as f64 / seconds)
}
