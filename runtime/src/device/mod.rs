//! Devices that run passes: the CPU, and GPUs behind their drivers.
//!
//! A worker knows its device by one small trait, [`Device`], and the cache's blocks by another, [`BlockMemory`]. Everything else
//! (sequences, batches, which rows are wanted, sampling) is the worker's and the same everywhere.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod host;
#[cfg(all(target_os = "macos", feature = "metal"))]
mod metal;
#[cfg(any(feature = "cuda", all(target_os = "macos", feature = "metal")))]
mod program;
#[cfg(feature = "cuda")]
mod split;
#[cfg(any(test, all(target_os = "macos", feature = "metal")))]
mod windows;

pub(crate) use host::HostBlocks;

use crate::engine::Engine;
use crate::error::{EngineError, RunError};
use crate::exec::{Inputs, Watch};
use crate::state::{BlockLayout, BlockMemory};
use crate::worker::WorkerOptions;
#[cfg(feature = "cuda")]
use bessemer_format::header::SectionKind;
use bessemer_format::kv::TOKENS;
use bessemer_format::plan::Plan;
use bessemer_format::variant::DeviceKind;
#[cfg(any(feature = "cuda", all(target_os = "macos", feature = "metal")))]
use bessemer_format::{file::VariantRef, gpu::GpuCode, manifest::KvElem};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What a worker needs of the device that runs its passes.
pub(crate) trait Device: Send {
    /// Threads of this process that compute, the caller's included.
    fn threads(&self) -> usize;

    /// Runs one pass: appends to the cache, and stores the results of the wanted rows.
    fn run(&mut self, pass: DevicePass<'_, '_>) -> Result<(), RunError>;
}

/// One pass over at most the rows that the device was started for.
pub(crate) struct DevicePass<'a, 'w> {
    pub(crate) inputs: &'a Inputs,
    /// `[wanted rows][output width]`
    pub(crate) logits: &'a mut [f32],
    /// Ends the pass early once it is set; a GPU looks at it less often than a CPU.
    pub(crate) cancel: Option<&'a AtomicBool>,
    pub(crate) watch: Option<&'a mut Watch<'w>>,
}

/// What a device must have room for.
pub(crate) struct Room {
    /// Rows of a pass.
    pub(crate) rows: usize,
    /// Blocks of the cache.
    pub(crate) blocks: usize,
    pub(crate) layout: BlockLayout,
    /// Bytes from the begin of each state's blocks that lie on the device: all of them, unless layers are divided between devices.
    pub(crate) held: Vec<usize>,
}

impl Room {
    /// What the options ask of `plan`.
    fn of(engine: &Engine, plan: &Plan, options: &WorkerOptions) -> Result<Self, EngineError> {
        let largest = plan.programs.last().map_or(0, |p| p.regime.max_rows as usize);
        let rows = if options.max_rows == 0 { largest } else { options.max_rows };
        if rows == 0 || rows > largest {
            let allowed = format!("1 to {largest}, the rows of the engine's largest program");
            return Err(EngineError::Option { what: "max_rows", found: rows, allowed });
        }
        let tokens = if options.max_tokens == 0 { plan.model.context as usize } else { options.max_tokens };
        let blocks = tokens.div_ceil(TOKENS);
        if blocks * TOKENS > i32::MAX as usize {
            let allowed = format!("at most {}", i32::MAX as usize / TOKENS * TOKENS);
            return Err(EngineError::Option { what: "max_tokens", found: tokens, allowed });
        }
        let needed = engine.memory(tokens, options.kv, rows).total();
        if let Some(limit) = options.max_memory
            && needed > limit
        {
            return Err(EngineError::MemoryLimit { needed, limit, tokens });
        }
        let layout = BlockLayout::new(plan, options.kv)
            .map_err(|why| EngineError::Unsupported { step: "the KV cache".into(), why })?;
        Ok(Self { rows, blocks, held: layout.block_bytes.clone(), layout })
    }
}

/// Where a worker runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The first GPU that the engine holds kernels for and that has room; else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
    /// The GPU of a Mac.
    Metal,
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let unknown = || format!("`{name}` is no device; there are auto, cpu, cuda, cuda:N and metal");
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => {
                let ordinal = name.strip_prefix("cuda:").ok_or_else(unknown)?;
                ordinal.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

/// The GPU of a Mac, and what it could do at best.
#[derive(Clone, Debug, PartialEq)]
pub struct MetalGpu {
    /// What it is called.
    pub name: String,
    /// Bytes that it should use at most.
    pub memory: u64,
    /// Bytes a second that it reads and writes when it copies memory, if that could be measured.
    pub copy: Option<f64>,
}

impl MetalGpu {
    /// Measures the system's GPU, which takes a second.
    #[cfg(all(target_os = "macos", feature = "metal"))]
    pub fn measure() -> Result<Self, DeviceError> {
        metal::measure()
    }

    /// There is none in this build.
    #[cfg(not(all(target_os = "macos", feature = "metal")))]
    pub fn measure() -> Result<Self, DeviceError> {
        Err(NO_METAL)
    }
}

/// What a build without Metal says.
#[cfg(not(all(target_os = "macos", feature = "metal")))]
const NO_METAL: DeviceError =
    DeviceError::NotBuilt { device: "Metal", remedy: "take one for macOS that has the feature `metal`" };

/// Why a device does not run an engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// This build has no runtime for it.
    #[error("this build of bessemer has no runtime for {device}; {remedy}")]
    NotBuilt {
        /// The kind of device.
        device: &'static str,
        /// Which build has.
        remedy: &'static str,
    },
    /// The engine holds no kernels for such a device.
    #[error("the engine holds no kernels for {device}; compile the model with `--target {target}`")]
    NoKernels {
        /// The kind of device.
        device: &'static str,
        /// A target that has them.
        target: &'static str,
    },
    /// Kernels are machine code, and nobody trusts it.
    #[error(
        "its kernels are machine code, which runs only where the engine is trusted; open it with --trust, or use `--device cpu`"
    )]
    Untrusted,
    /// Metal finds nothing.
    #[error("Metal finds no GPU here; use `--device cpu`")]
    NoMetal,
    /// The GPU lacks what the kernels use.
    #[error(
        "the GPU is {found}, and the engine's kernels need one of family Apple {needed} or later; use `--device cpu`"
    )]
    MetalFamily {
        /// The GPU's name.
        found: String,
        /// The family.
        needed: u32,
    },
    /// The driver's library does not load.
    #[error("there is no NVIDIA driver here (libcuda does not load); install it, or use `--device cpu`")]
    NoDriver,
    /// The driver is there and finds no device.
    #[error("the NVIDIA driver finds no GPU; make one visible to this process, or use `--device cpu`")]
    NoDevice,
    /// A number that no device has.
    #[error("there is no GPU {asked}: the driver finds {count}, numbered from 0")]
    Ordinal {
        /// The number asked for.
        asked: usize,
        /// Devices that there are.
        count: usize,
    },
    /// The driver does not run what the compiler writes.
    #[error(
        "the NVIDIA driver knows CUDA up to {found}, and the engine's kernels need {needed}; install a newer driver, or use `--device cpu`"
    )]
    OldDriver {
        /// The newest CUDA that it knows.
        found: String,
        /// What is needed.
        needed: String,
    },
    /// No kernels for this architecture.
    #[error(
        "the GPU is {found}, and the engine holds kernels for {held}; compile the model again with `--target cuda:{found}`"
    )]
    Architecture {
        /// The GPU's.
        found: String,
        /// Those of the engine.
        held: String,
    },
    /// Kernels for another element type of the cache.
    #[error(
        "the engine's kernels keep a {held} cache, and {asked} is asked for; ask for {held}, or use `--device cpu`"
    )]
    Cache {
        /// What the kernels were generated for.
        held: &'static str,
        /// What was asked for.
        asked: &'static str,
    },
    /// Not enough memory on the device.
    #[error(
        "{needed} bytes are needed ({weights} of weights, {cache} of cache) and {free} are free; {}ask for fewer tokens or rows, \
         compile at a lower precision, or use `--device cpu`",
        fitting(layers)
    )]
    Memory {
        /// Bytes needed in all.
        needed: u64,
        /// Of which weights.
        weights: u64,
        /// Of which the cache.
        cache: u64,
        /// Bytes that the driver says are free.
        free: u64,
        /// Layers that would fit, if others can run on the CPU.
        layers: Option<usize>,
    },
    /// Layers cannot be divided as it is asked for.
    #[error("`--gpu-layers {asked}`: {why}")]
    Layers {
        /// Layers asked for.
        asked: usize,
        /// Why not.
        why: String,
    },
    /// Something else that the driver refused.
    #[error("{what} failed: {why}")]
    Driver {
        /// What was asked of it.
        what: String,
        /// Its answer.
        why: String,
    },
}

/// What to do where some layers fit.
fn fitting(layers: &Option<usize>) -> String {
    layers.map_or_else(String::new, |fit| format!("give it fewer layers with `--gpu-layers {fit}`, "))
}

/// A device that is ready for passes.
pub(crate) struct Started {
    pub(crate) device: Box<dyn Device>,
    pub(crate) memory: Arc<dyn BlockMemory>,
    pub(crate) room: Room,
    pub(crate) kind: DeviceKind,
    /// Which device, for people.
    pub(crate) on: String,
}

/// Starts the device that the options ask for.
pub(crate) fn start(engine: &Engine, options: &WorkerOptions) -> Result<Started, EngineError> {
    if options.gpu_layers == Some(0) {
        return start_cpu(engine, options, Some("no layer is given to a GPU".into()));
    }
    match options.device {
        DeviceChoice::Cpu => match options.gpu_layers {
            None => start_cpu(engine, options, None),
            Some(asked) => {
                let why = "the CPU is asked for, which has no layers of a GPU; name one with `--device`";
                let why = DeviceError::Layers { asked, why: why.into() };
                Err(EngineError::Device { device: DeviceChoice::Cpu.to_string(), why })
            }
        },
        DeviceChoice::Cuda(ordinal) => start_cuda(engine, options, ordinal),
        DeviceChoice::Metal => start_metal(engine, options),
        DeviceChoice::Auto => {
            let gpus: [&dyn Fn() -> Result<Started, EngineError>; 2] =
                [&|| start_metal(engine, options), &|| start_cuda(engine, options, 0)];
            let mut refusal = None;
            for start in gpus {
                match start() {
                    Err(EngineError::Device {
                        why: DeviceError::NotBuilt { .. } | DeviceError::NoKernels { .. },
                        ..
                    }) => {}
                    Err(EngineError::Device { device, why }) => refusal = Some((device, why)),
                    started => return started,
                }
            }
            match refusal {
                Some((device, why)) if engine.variant(DeviceKind::Cpu).is_none() => {
                    Err(EngineError::Device { device, why })
                }
                refusal => {
                    start_cpu(engine, options, refusal.map(|(device, why)| format!("{device}: {why}")))
                }
            }
        }
    }
}

/// The CPU, and why it is no other device.
fn start_cpu(engine: &Engine, options: &WorkerOptions, why: Option<String>) -> Result<Started, EngineError> {
    if engine.variant(DeviceKind::Cpu).is_none() {
        let targets: Vec<&str> = engine.variants().map(|v| v.target).collect();
        return Err(EngineError::Target { target: targets.join(", ") });
    }
    let room = Room::of(engine, engine.plan(), options)?;
    let (device, memory) = cpu::Cpu::new(engine, options, &room)?;
    let on = match why {
        None => format!("cpu ({})", engine.isa().name()),
        Some(why) => format!("cpu ({}), as {why}", engine.isa().name()),
    };
    Ok(Started { device: Box::new(device), memory, room, kind: DeviceKind::Cpu, on })
}

#[cfg(not(feature = "cuda"))]
fn start_cuda(_: &Engine, _: &WorkerOptions, ordinal: usize) -> Result<Started, EngineError> {
    let why = DeviceError::NotBuilt { device: "CUDA", remedy: "build it with the feature `cuda`" };
    Err(EngineError::Device { device: DeviceChoice::Cuda(ordinal).to_string(), why })
}

#[cfg(not(all(target_os = "macos", feature = "metal")))]
fn start_metal(_: &Engine, _: &WorkerOptions) -> Result<Started, EngineError> {
    Err(EngineError::Device { device: DeviceChoice::Metal.to_string(), why: NO_METAL })
}

#[cfg(all(target_os = "macos", feature = "metal"))]
fn start_metal(engine: &Engine, options: &WorkerOptions) -> Result<Started, EngineError> {
    let no = |why| EngineError::Device { device: DeviceChoice::Metal.to_string(), why };
    let (held, code) = kernels(engine, DeviceKind::Metal).map_err(no)?;
    let bessemer_format::variant::DeviceCode::Metal { family, text } = held.device else {
        return Err(no(DeviceError::NoKernels { device: "Metal", target: "metal" }));
    };
    let kv = cache_of(held.plan, code, options).map_err(no)?;
    if let Some(asked) = options.gpu_layers.filter(|asked| *asked < held.plan.model.layers as usize) {
        let why = "the CPU and the GPU of a Mac share their memory, so all layers run on the GPU; leave the option out";
        return Err(no(DeviceError::Layers { asked, why: why.into() }));
    }
    let text = std::str::from_utf8(engine.file().device_code(*text))
        .map_err(|e| no(DeviceError::Driver { what: "reading the kernels".into(), why: e.to_string() }))?;
    let gpu = metal::open(*family).map_err(no)?;
    let room = Room::of(engine, held.plan, &options.clone().kv(kv))?;
    let on = gpu.describe();
    let model = metal::Model { engine, plan: held.plan, code, text };
    let (device, memory) = gpu.start(&model, &room, options.kernel_cache.as_deref())?;
    Ok(Started { device: Box::new(device), memory, room, kind: DeviceKind::Metal, on })
}

/// What a trusted engine holds for a GPU.
#[cfg(any(feature = "cuda", all(target_os = "macos", feature = "metal")))]
fn kernels(engine: &Engine, kind: DeviceKind) -> Result<(VariantRef<'_>, &GpuCode), DeviceError> {
    let none = || match kind {
        DeviceKind::Metal => DeviceError::NoKernels { device: "Metal", target: "metal" },
        _ => DeviceError::NoKernels { device: "CUDA", target: "cuda" },
    };
    let held = engine.variant(kind).ok_or_else(none)?;
    let code = held.gpu.ok_or_else(none)?;
    if !engine.is_trusted() {
        return Err(DeviceError::Untrusted);
    }
    Ok((held, code))
}

/// The elements of the cache, which are those that the kernels were generated for.
#[cfg(any(feature = "cuda", all(target_os = "macos", feature = "metal")))]
fn cache_of(plan: &Plan, code: &GpuCode, options: &WorkerOptions) -> Result<KvElem, DeviceError> {
    // Where nothing outlives a pass, nobody cares what its cache holds.
    if plan.model.whole || options.kv == code.kv {
        return Ok(code.kv);
    }
    Err(DeviceError::Cache { held: code.kv.name(), asked: options.kv.name() })
}

#[cfg(feature = "cuda")]
fn start_cuda(engine: &Engine, options: &WorkerOptions, ordinal: usize) -> Result<Started, EngineError> {
    use bessemer_format::variant::{DeviceCode, best_binary};
    let no = |why| EngineError::Device { device: DeviceChoice::Cuda(ordinal).to_string(), why };
    let (held, code) = kernels(engine, DeviceKind::Cuda).map_err(no)?;
    let DeviceCode::Cuda { driver, binaries } = held.device else {
        return Err(no(DeviceError::NoKernels { device: "CUDA", target: "cuda" }));
    };
    let kv = cache_of(held.plan, code, options).map_err(no)?;
    let first = split::first_layer(engine, held.plan, options).map_err(no)?;
    let gpu = cuda::open(ordinal, *driver).map_err(no)?;
    let binary = best_binary(binaries, gpu.capability()).map(|best| &binaries[best]).ok_or_else(|| {
        let (major, minor) = gpu.capability();
        let held: Vec<_> = binaries.iter().map(|b| b.arch.to_string()).collect();
        no(DeviceError::Architecture { found: format!("sm_{major}{minor}"), held: held.join(", ") })
    })?;
    let options = options.clone().kv(kv);
    let mut room = Room::of(engine, held.plan, &options)?;
    let model = cuda::Model {
        plan: held.plan,
        code,
        weights: engine.section(SectionKind::Weights),
        binary: engine.file().device_code(binary.code),
        is_ptx: binary.arch.ptx,
        first,
        divisible: split::is_divisible(engine, held.plan),
    };
    let on = format!("{} with kernels for {}", gpu.describe(), binary.arch);
    let (device, memory) = gpu.start(&model, &mut room)?;
    if first > 0 {
        let gpu = split::Begun { device, memory, held: room.held, plan: held.plan, first, on };
        return split::start(engine, &options, gpu).map_err(|why| match why {
            split::Refusal::Engine(e) => e,
            split::Refusal::Layers(why) => {
                no(DeviceError::Layers { asked: options.gpu_layers.unwrap_or_default(), why })
            }
        });
    }
    Ok(Started { device: Box::new(device), memory, room, kind: DeviceKind::Cuda, on })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_read_as_they_are_written() {
        use DeviceChoice::{Auto, Cpu, Cuda, Metal};
        for choice in [Auto, Cpu, Cuda(0), Cuda(12), Metal] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
    }
}
