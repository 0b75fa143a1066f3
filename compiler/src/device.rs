//! Code for GPUs: what a variant holds beside its plan, and the DEVICE section.
//!
//! Compiling CUDA kernels takes seconds, so their machine code is kept by what it was compiled from: text, architecture, options and the
//! compiler's release. A folder of it is a shortcut: losing it costs time, and what cannot be read or written counts as absent.

use crate::compile::{Amount, Progress};
use crate::error::CompileError;
use crate::options::RunOptions;
use crate::scratch::Scratch;
use bessemer_format::gpu::GpuCode;
use bessemer_format::manifest::{Hash, KvElem};
use bessemer_format::plan::Plan;
use bessemer_format::variant::{CodeSlice, CudaArch, CudaBinary, DeviceCode, KernelUsage};
use bessemer_targets::clike::{self, Dialect, Emitted};
use bessemer_targets::cuda::{self, Binary, CudaError, Nvrtc};
use bessemer_targets::{CudaTarget, Target};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Elements of the KV cache that kernels of GPUs are generated for.
const KV: KvElem = KvElem::Bf16;

/// The DEVICE section under construction.
#[derive(Default)]
pub(crate) struct Section(pub Vec<u8>);

impl Section {
    fn push(&mut self, part: &[u8]) -> CodeSlice {
        self.0.resize(self.0.len().next_multiple_of(64), 0);
        let slice = CodeSlice { offset: self.0.len() as u64, len: part.len() as u64 };
        self.0.extend(part);
        slice
    }
}

/// Whether code for the targets can be generated here. Asked before anything that takes long.
pub(crate) fn check<'a>(
    targets: impl IntoIterator<Item = &'a Target>,
    run: &RunOptions,
) -> Result<(), CompileError> {
    let cuda = targets.into_iter().any(|t| matches!(t, Target::Cuda(_)));
    if cuda && !run.toolchain.as_deref().is_some_and(Nvrtc::is_installed) {
        return Err(CudaError::Missing { folder: run.toolchain.clone() }.into());
    }
    Ok(())
}

/// What a target needs on its device, and the launches of its plan.
pub(crate) fn generate(
    target: &Target,
    plan: &Plan,
    run: &RunOptions,
    progress: &dyn Progress,
    section: &mut Section,
) -> Result<(DeviceCode, Option<GpuCode>), CompileError> {
    // Nothing else asks a compiler.
    let Target::Cuda(cuda) = target else { return estimate(target, plan, section) };
    let Emitted { text, code } = clike::emit(plan, KV, Dialect::Cuda)?;
    let binaries = compile(cuda, &text, run, progress)?;
    let binary = |(arch, binary): (CudaArch, Binary)| {
        let usage = usage(&binary, &code)?;
        Ok(CudaBinary { arch, code: section.push(&binary.bytes), usage })
    };
    let binaries: Result<_, CompileError> = binaries.into_iter().map(binary).collect();
    Ok((DeviceCode::Cuda { driver: cuda::DRIVER, binaries: binaries? }, Some(code)))
}

/// Bytes of machine code and of PTX for each byte of text, rather too many: a real model's come to 10 and 19.
const GROWTH: (usize, usize) = (12, 24);

/// As [`generate`] without asking a compiler: in place of machine code there are zeros, rather too many.
pub(crate) fn estimate(
    target: &Target,
    plan: &Plan,
    section: &mut Section,
) -> Result<(DeviceCode, Option<GpuCode>), CompileError> {
    match target {
        Target::Cpu(cpu) => Ok((cpu.device(), None)),
        Target::Cuda(cuda) => {
            let Emitted { text, code } = clike::emit(plan, KV, Dialect::Cuda)?;
            let binary = |arch: CudaArch| {
                let growth = if arch.ptx { GROWTH.1 } else { GROWTH.0 };
                let most = KernelUsage { registers: u32::MAX, stack: u32::MAX, spilled: u32::MAX };
                let usage = vec![most; code.kernels.len()];
                CudaBinary { arch, code: section.push(&vec![0; growth * text.len()]), usage }
            };
            let binaries = cuda.binaries().into_iter().map(binary).collect();
            Ok((DeviceCode::Cuda { driver: cuda::DRIVER, binaries }, Some(code)))
        }
        Target::Metal(metal) => {
            let Emitted { text, code } = clike::emit(plan, KV, Dialect::Metal)?;
            let text = section.push(text.as_bytes());
            Ok((DeviceCode::Metal { family: metal.family(), text }, Some(code)))
        }
    }
}

/// What each kernel takes, in the order of the kernels. PTX says nothing.
fn usage(binary: &Binary, code: &GpuCode) -> Result<Vec<KernelUsage>, CompileError> {
    if binary.usage.is_empty() {
        return Ok(Vec::new());
    }
    let of = |name: &str| {
        let found = binary.usage.iter().find(|usage| usage.kernel == name);
        let missing = || CudaError::Compile {
            arch: binary.arch.clone(),
            why: format!("the compiler says nothing of kernel {name}"),
            log: String::new(),
        };
        let usage = found.ok_or_else(missing)?;
        Ok(KernelUsage { registers: usage.registers, stack: usage.stack, spilled: usage.spilled })
    };
    code.kernels.iter().map(|kernel| of(&kernel.name)).collect()
}

/// What turns text into machine code, as far as its bytes depend on it.
fn compiler() -> String {
    let (package, release) = cuda::NVRTC_PACKAGE;
    format!("{package} {release} {}", cuda::OPTIONS.join(" "))
}

/// The text for every architecture, those that are not kept on several threads: the compiler takes one for a text.
fn compile(
    target: &CudaTarget,
    text: &str,
    run: &RunOptions,
    progress: &dyn Progress,
) -> Result<Vec<(CudaArch, Binary)>, CompileError> {
    let archs = target.binaries();
    let kept = run.kernels.as_deref().and_then(|folder| Scratch::new(Some(folder), &compiler()).ok());
    let name = |arch: &CudaArch| format!("{}.{arch}", Hash::of(text.as_bytes()));
    let found: Vec<Option<Binary>> = archs
        .iter()
        .map(|arch| {
            kept.as_ref()?.get(&name(arch)).ok()?.and_then(|bytes| {
                let (body, _hash) = bytes.split_last_chunk::<32>()?;
                Binary::decode(&arch.to_string(), body)
            })
        })
        .collect();
    let missing: Vec<CudaArch> =
        archs.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(arch, _)| *arch).collect();
    let made = Mutex::new(Vec::new());
    if !missing.is_empty() {
        let folder = run.toolchain.as_deref();
        let nvrtc = Nvrtc::load(folder.ok_or(CudaError::Missing { folder: None })?)?;
        let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
        progress.start(&format!("compile kernels: {}", names.join(", ")), Amount::Pieces(missing.len()));
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(arch) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let binary = match progress.cancelled() {
                    true => Err(CompileError::Interrupted),
                    false => nvrtc.compile(text, &arch.to_string()).map_err(CompileError::from),
                };
                if let (Ok(binary), Some(kept)) = (&binary, &kept) {
                    // A folder that cannot be written to is not worth an error.
                    let _ = kept.put(&name(arch), &binary.encode());
                }
                progress.advance(1);
                made.lock().unwrap_or_else(|e| e.into_inner()).push((*arch, binary));
            }
        };
        let threads = match run.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        std::thread::scope(|scope| {
            (1..threads.min(missing.len())).for_each(|_| drop(scope.spawn(work)));
            work();
        });
    }
    let mut made = made.into_inner().unwrap_or_else(|e| e.into_inner());
    let all = archs.iter().zip(found).map(|(arch, found)| {
        let binary = match found {
            Some(binary) => binary,
            None => {
                let at = made.iter().position(|(of, _)| of == arch);
                // A thread that panicked has ended the scope with it.
                made.swap_remove(at.ok_or(CompileError::Interrupted)?).1?
            }
        };
        Ok((*arch, binary))
    });
    all.collect()
}
