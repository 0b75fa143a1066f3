//! The text of kernels becomes code of the GPU: by the system's compiler, once. The code is kept in a file beside others of its kind, a
//! binary archive, which later starts take it from.

use super::memory::Gpu;
use crate::device::DeviceError;
use bessemer_format::gpu::GpuKernel;
use bessemer_format::manifest::Hash;
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSArray, NSError, NSString, NSURL};
use objc2_metal::{
    MTLBinaryArchive, MTLBinaryArchiveDescriptor, MTLCompileOptions, MTLComputePipelineDescriptor,
    MTLComputePipelineState, MTLDevice, MTLLibrary, MTLPipelineOption,
};
use std::path::{Path, PathBuf};

pub(super) type Pipeline = ProtocolObject<dyn MTLComputePipelineState>;
type Archive = ProtocolObject<dyn MTLBinaryArchive>;
type Descriptor = Option<Retained<MTLComputePipelineDescriptor>>;

fn refused(what: impl Into<String>) -> impl Fn(Retained<NSError>) -> DeviceError {
    let what = what.into();
    move |error| DeviceError::Driver { what: what.clone(), why: error.localizedDescription().to_string() }
}

/// A pipeline for each kernel that `used` says yes to. Code is looked for and kept in `folder`.
pub(super) fn compile(
    gpu: &Gpu,
    text: &str,
    kernels: &[GpuKernel],
    used: impl Fn(usize) -> bool,
    folder: Option<&Path>,
) -> Result<Vec<Option<Retained<Pipeline>>>, DeviceError> {
    let options = MTLCompileOptions::new();
    // Kernels do the operations of the nest language and no others. The property's successor is not there on every system that runs them.
    #[allow(deprecated)]
    options.setFastMathEnabled(false);
    let library = gpu.newLibraryWithSource_options_error(&NSString::from_str(text), Some(&options));
    let library = library.map_err(refused("compiling the kernels"))?;
    let descriptor = |(index, kernel): (usize, &GpuKernel)| -> Result<Descriptor, DeviceError> {
        if !used(index) {
            return Ok(None);
        }
        let function = library.newFunctionWithName(&NSString::from_str(&kernel.name));
        let function = function.ok_or_else(|| DeviceError::Driver {
            what: "finding a kernel".into(),
            why: format!("the text defines no {}", kernel.name),
        })?;
        let descriptor = MTLComputePipelineDescriptor::new();
        descriptor.setComputeFunction(Some(&function));
        Ok(Some(descriptor))
    };
    let descriptors = kernels.iter().enumerate().map(descriptor).collect::<Result<Vec<_>, _>>()?;
    let file = folder.map(|folder| {
        let name = format!("{}\0{text}", gpu.name());
        folder.join(format!("{}.metalarchive", Hash::of(name.as_bytes())))
    });
    let kept = file.as_deref().filter(|file| file.is_file()).and_then(|file| archive(gpu, Some(file)));
    if let Some(kept) = kept {
        let only = MTLPipelineOption::FailOnBinaryArchiveMiss;
        match build(gpu, &descriptors, kernels, Some(&kept), only) {
            Ok(pipelines) => return Ok(pipelines),
            // Another release of the system compiles anew.
            Err(why) => log::debug!("the kept kernels are not used: {why}"),
        }
    }
    let new = file.as_deref().and_then(|_| archive(gpu, None));
    let pipelines = build(gpu, &descriptors, kernels, new.as_deref(), MTLPipelineOption::None)?;
    if let (Some(file), Some(new)) = (file, new)
        && let Err(why) = keep(&new, &descriptors, &file)
    {
        log::debug!("the compiled kernels are not kept in {}: {why}", file.display());
    }
    Ok(pipelines)
}

/// The archive in a file, or a new one.
fn archive(gpu: &Gpu, file: Option<&Path>) -> Option<Retained<Archive>> {
    let descriptor = MTLBinaryArchiveDescriptor::new();
    descriptor.setUrl(file.and_then(url).as_deref());
    let opened = gpu.newBinaryArchiveWithDescriptor_error(&descriptor);
    opened.inspect_err(|e| log::debug!("no archive of kernels: {}", e.localizedDescription())).ok()
}

fn url(file: &Path) -> Option<Retained<NSURL>> {
    file.to_str().map(|path| NSURL::fileURLWithPath(&NSString::from_str(path)))
}

fn build(
    gpu: &Gpu,
    descriptors: &[Descriptor],
    kernels: &[GpuKernel],
    archive: Option<&Archive>,
    options: MTLPipelineOption,
) -> Result<Vec<Option<Retained<Pipeline>>>, DeviceError> {
    let archives = archive.map(|archive| NSArray::from_slice(&[archive]));
    let build = |(descriptor, kernel): (&Descriptor, &GpuKernel)| {
        let Some(descriptor) = descriptor else { return Ok(None) };
        descriptor.setBinaryArchives(archives.as_deref());
        let what = format!("preparing {}", kernel.name);
        let pipeline =
            gpu.newComputePipelineStateWithDescriptor_options_reflection_error(descriptor, options, None);
        let pipeline = pipeline.map_err(refused(what.clone()))?;
        let (width, most) = (pipeline.threadExecutionWidth(), pipeline.maxTotalThreadsPerThreadgroup());
        if width != 32 || most < kernel.threads as usize {
            let why =
                format!("{} threads in groups of 32 are needed, {most} of {width} there", kernel.threads);
            return Err(DeviceError::Driver { what, why });
        }
        Ok(Some(pipeline))
    };
    descriptors.iter().zip(kernels).map(build).collect()
}

/// Writes an archive of all pipelines beside `file` and renames it, so that nobody meets a half of it.
fn keep(archive: &Archive, descriptors: &[Descriptor], file: &Path) -> Result<(), String> {
    let words = |e: Retained<NSError>| e.localizedDescription().to_string();
    for descriptor in descriptors.iter().flatten() {
        archive.addComputePipelineFunctionsWithDescriptor_error(descriptor).map_err(words)?;
    }
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(|e| e.to_string())?;
    }
    let written: PathBuf = file.with_extension(format!("{}.new", std::process::id()));
    let to = url(&written).ok_or("the folder's name is no text")?;
    archive.serializeToURL_error(&to).map_err(words)?;
    std::fs::rename(&written, file).map_err(|e| e.to_string())
}
