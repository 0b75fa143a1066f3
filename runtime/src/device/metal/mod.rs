//! Apple's GPUs. Their memory is the process's, so nothing is copied: the mapped weights, the cache's blocks, activations, the arrays of a
//! pass and its results are pages of this process, given to Metal as they are.
//!
//! A pass is one command buffer with one encoder, whose launches run in order; the caller waits for its end and reads the results where
//! the kernels have put them.

mod ceiling;
mod memory;
mod pipelines;

use super::program::{DeviceLaunch, DeviceProgram, Places};
use super::windows::Windows;
use super::{Device, DeviceError, DevicePass, HostBlocks, Room};
use crate::engine::Engine;
use crate::error::{EngineError, RunError};
use crate::exec::{StepResult, Watch};
use bessemer_format::gpu::GpuCode;
use bessemer_format::header::SectionKind;
use bessemer_format::kv::TOKENS;
use bessemer_format::plan::{Plan, StateId, WeightId};
pub(super) use ceiling::measure;
use memory::{Buffer, Gpu, Pages, page, wrap};
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_metal::{
    MTLCommandBuffer, MTLCommandBufferStatus, MTLCommandEncoder, MTLCommandQueue, MTLComputeCommandEncoder,
    MTLCreateSystemDefaultDevice, MTLDevice, MTLGPUFamily, MTLSize,
};
use pipelines::Pipeline;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Name of the device in messages.
const NAME: &str = "metal";
/// [`MTLGPUFamily`] of Apple's GPUs, to which the number of the family is added.
const APPLE: isize = 1000;

/// What an engine holds for such a device.
pub(super) struct Model<'a> {
    pub(super) engine: &'a Engine,
    pub(super) plan: &'a Plan,
    pub(super) code: &'a GpuCode,
    /// The text of the kernels.
    pub(super) text: &'a str,
}

/// A GPU that is ready for a model.
pub(super) struct Opened {
    gpu: Retained<Gpu>,
}

/// Opens the system's GPU, which must be of a family that has what the kernels use.
pub(super) fn open(family: u32) -> Result<Opened, DeviceError> {
    let gpu = MTLCreateSystemDefaultDevice().ok_or(DeviceError::NoMetal)?;
    if !gpu.supportsFamily(MTLGPUFamily(APPLE + family as isize)) {
        return Err(DeviceError::MetalFamily { found: gpu.name().to_string(), needed: family });
    }
    Ok(Opened { gpu })
}

/// A GPU with a model on it.
pub(super) struct Metal {
    queue: Retained<ProtocolObject<dyn MTLCommandQueue>>,
    /// By kernel; those of programs that no pass takes are missing.
    pipelines: Vec<Option<Retained<Pipeline>>>,
    programs: Vec<DeviceProgram<At>>,
    /// What launches point into. They go before the pages that they show.
    buffers: Vec<Retained<Buffer>>,
    blocks: usize,
    arena: Pages,
    inputs: Pages,
    results: Pages,
    fault: Pages,
    _states: Arc<HostBlocks>,
    /// A copy of an engine that is not mapped.
    _copy: Option<Pages>,
    _engine: Engine,
}

// SAFETY: Metal's objects may be used from any thread, by one at a time: they are reached through `&mut Metal` only. The pages belong to
// this value or are shared by its rules.
unsafe impl Send for Metal {}

/// A place that a kernel is given: an offset in one of the buffers.
#[derive(Clone, Copy)]
struct At {
    buffer: usize,
    offset: usize,
}

/// Where things lie: weights in the first buffers, then states, then one buffer for each of the rest.
struct Layout {
    weights: Vec<(usize, usize)>,
    first_state: usize,
    states: usize,
}

impl Layout {
    fn behind_states(&self, at: usize, offset: u64) -> At {
        At { buffer: self.first_state + self.states + at, offset: offset as usize }
    }
}

impl Places for Layout {
    type Pointer = At;

    fn weight(&self, id: WeightId) -> Option<At> {
        self.weights.get(id as usize).map(|&(buffer, offset)| At { buffer, offset })
    }

    fn state(&self, id: StateId) -> Option<At> {
        let state = id as usize;
        (state < self.states).then(|| At { buffer: self.first_state + state, offset: 0 })
    }

    fn arena(&self, offset: u64) -> At {
        self.behind_states(0, offset)
    }

    fn inputs(&self, offset: u64) -> At {
        self.behind_states(1, offset)
    }

    fn results(&self) -> At {
        self.behind_states(2, 0)
    }

    fn fault(&self) -> At {
        self.behind_states(3, 0)
    }
}

impl Opened {
    /// What it is, for people.
    pub(super) fn describe(&self) -> String {
        format!("{NAME} ({})", self.gpu.name())
    }

    /// Compiles the kernels, or takes them from `folder`, and gives Metal the memory that they use.
    pub(super) fn start(
        self,
        model: &Model<'_>,
        room: &Room,
        folder: Option<&Path>,
    ) -> Result<(Metal, Arc<HostBlocks>), EngineError> {
        let Model { engine, plan, code, text } = *model;
        let no = |why| EngineError::Device { device: NAME.into(), why };
        let resource = |what: &str| {
            let what = what.to_string();
            move |source| EngineError::Resource { what, source }
        };
        let gpu = &*self.gpu;
        // Programs for more rows than a pass may have are left out, and kernels that only they use.
        let count = plan.programs.iter().position(|p| p.regime.max_rows as usize >= room.rows);
        let programs = &plan.programs[..count.map_or(plan.programs.len(), |last| last + 1)];
        let largest = programs.last().map_or(0, |p| p.regime.max_rows as usize);
        let used: Vec<bool> = (0..code.kernels.len() as u32)
            .map(|k| code.programs.iter().take(programs.len()).flatten().any(|l| l.kernel == k))
            .collect();
        let pipelines = pipelines::compile(gpu, text, &code.kernels, |k| used[k], folder).map_err(no)?;

        let (windows, copy) = map_weights(gpu, engine, plan).map_err(no)?;
        let states = HostBlocks::reserve(room);
        let states = Arc::new(states.map_err(resource("memory for the KV cache"))?);
        let arena = programs.iter().map(|p| p.arena_bytes).max().unwrap_or(0) as usize;
        let stride = room.blocks.min((plan.model.context as usize).div_ceil(TOKENS)).max(1);
        let words = super::program::InputLayout::new(largest).words(stride);
        let width = plan.model.output_width() as usize;
        let pages = |bytes| Pages::new(gpu, bytes).map_err(no);
        let arena = pages(arena)?;
        let inputs = pages(4 * words)?;
        let results = pages(4 * largest * width)?;
        let fault = pages(4)?;

        let first_state = windows.buffers.len();
        let mut buffers = windows.buffers;
        for state in 0..plan.states.len() {
            let bytes = states.state(state);
            let len = bytes.len().max(1).next_multiple_of(page());
            // SAFETY: the cache begins at a page of its own mapping, which lives as long as the buffers.
            buffers.push(unsafe { wrap(gpu, bytes.as_ptr(), len) }.map_err(no)?);
        }
        buffers.extend([&arena, &inputs, &results, &fault].map(Pages::buffer));
        let layout = Layout { weights: windows.places, first_state, states: plan.states.len() };
        let bind = |index| DeviceProgram::bind(plan, code, index, None, &layout);
        let programs = (0..programs.len()).map(bind).collect::<Result<_, _>>();
        let programs = programs.map_err(|why| EngineError::Unsupported { step: NAME.into(), why })?;
        let queue = gpu.newCommandQueue().ok_or_else(|| no(failure("making a queue")))?;
        let metal = Metal {
            queue,
            pipelines,
            programs,
            buffers,
            blocks: room.blocks,
            arena,
            inputs,
            results,
            fault,
            _states: Arc::clone(&states),
            _copy: copy,
            _engine: engine.clone(),
        };
        Ok((metal, states))
    }
}

fn failure(what: &str) -> DeviceError {
    DeviceError::Driver { what: what.into(), why: "Metal gives none".into() }
}

/// The weights as buffers, and each one's place in them.
struct MappedWeights {
    buffers: Vec<Retained<Buffer>>,
    places: Vec<(usize, usize)>,
}

/// Gives Metal the pages of the engine's file that hold weights; of an engine in memory, which begins anywhere, those of a copy.
fn map_weights(
    gpu: &Gpu,
    engine: &Engine,
    plan: &Plan,
) -> Result<(MappedWeights, Option<Pages>), DeviceError> {
    let file = engine.bytes();
    let section = engine.section(SectionKind::Weights);
    let section_at = section.as_ptr() as usize - file.as_ptr() as usize;
    let (first, copy) = match (file.as_ptr() as usize).is_multiple_of(page()) {
        true => (file.as_ptr().cast_mut(), None),
        false => {
            let copy = Pages::new(gpu, file.len())?;
            copy.bytes().get_mut::<u8>(0..file.len()).copy_from_slice(file);
            (copy.bytes().as_ptr(), Some(copy))
        }
    };
    let slices = plan.weights.iter().map(|w| {
        let start = section_at + w.offset as usize;
        start..start + w.len as usize
    });
    let windows =
        Windows::cut(slices, page(), gpu.maxBufferLength()).map_err(|slice| DeviceError::Driver {
            what: "mapping the weights".into(),
            why: format!("one has {} bytes, and a buffer at most {}", slice.len(), gpu.maxBufferLength()),
        })?;
    let wrap = |range: &std::ops::Range<usize>| {
        // SAFETY: a mapping ends with a page, as the copy does; both live as long as the buffers. No kernel stores through a weight.
        unsafe { wrap(gpu, first.add(range.start), range.len()) }
    };
    let buffers = windows.ranges.iter().map(wrap).collect::<Result<_, _>>()?;
    Ok((MappedWeights { buffers, places: windows.places }, copy))
}

impl Metal {
    /// Runs launches as one command buffer and waits for its end. Gives how long the GPU was busy.
    fn submit<'a>(
        &self,
        launches: impl Iterator<Item = &'a DeviceLaunch<At>>,
        (rows, wanted): (usize, usize),
    ) -> Result<Duration, String> {
        let size = |width: u32, height: u32, depth: u32| MTLSize {
            width: width as usize,
            height: height as usize,
            depth: depth as usize,
        };
        autoreleasepool(|_| {
            let commands = self.queue.commandBuffer().ok_or("Metal gives no command buffer")?;
            let encoder = commands.computeCommandEncoder().ok_or("Metal gives no encoder")?;
            for launch in launches {
                let (Some((x, y, z)), Some(pipeline)) =
                    (launch.grid(rows, wanted), &self.pipelines[launch.kernel])
                else {
                    continue;
                };
                encoder.setComputePipelineState(pipeline);
                for (index, at) in launch.pointers.iter().enumerate() {
                    // SAFETY: the buffer lives as long as `self`, and the pass is over before this returns. Behind the offset lies what
                    // the plan says, which was checked when the engine was opened. Kernels run only from engines that the caller trusts.
                    unsafe {
                        encoder.setBuffer_offset_atIndex(Some(&self.buffers[at.buffer]), at.offset, index)
                    };
                }
                encoder.dispatchThreadgroups_threadsPerThreadgroup(size(x, y, z), size(launch.threads, 1, 1));
            }
            encoder.endEncoding();
            commands.commit();
            commands.waitUntilCompleted();
            if commands.status() != MTLCommandBufferStatus::Completed {
                let error = commands.error().map(|e| e.localizedDescription().to_string());
                return Err(error.unwrap_or_else(|| "the command buffer did not complete".into()));
            }
            let busy = commands.GPUEndTime() - commands.GPUStartTime();
            Ok(Duration::try_from_secs_f64(busy).unwrap_or_default())
        })
    }

    /// Runs the steps of a program, one by one where somebody watches.
    fn steps(&self, index: usize, rows: (usize, usize), watch: Option<&mut Watch<'_>>) -> Result<(), String> {
        let program = &self.programs[index];
        match watch {
            None => self.submit(program.steps().flat_map(|(_, step)| &step.launches), rows).map(drop),
            Some(Watch::Times(profile)) => {
                profile.begin(index, 1, program.len());
                for (at, step) in program.steps() {
                    profile.add(index, at, self.submit(step.launches.iter(), rows)?);
                }
                Ok(())
            }
            Some(Watch::Results(see)) => {
                for (_, step) in program.steps() {
                    self.submit(step.launches.iter(), rows)?;
                    let floats = step.outputs.iter().map(|output| {
                        let pages = match output.at.buffer + 4 - self.buffers.len() {
                            0 => &self.arena,
                            _ => &self.results,
                        };
                        let first = output.at.offset / size_of::<f32>();
                        pages.bytes().get::<f32>(first..first + output.elems(rows.0, rows.1))
                    });
                    see(&StepResult { source: &step.source, outputs: floats.collect() });
                }
                Ok(())
            }
        }
    }
}

impl Device for Metal {
    fn threads(&self) -> usize {
        1
    }

    fn run(&mut self, pass: DevicePass<'_, '_>) -> Result<(), RunError> {
        let DevicePass { inputs, logits, cancel, watch } = pass;
        // A pass is short: it is not interrupted once it has begun.
        if cancel.is_some_and(|c| c.load(Ordering::Relaxed)) {
            return Err(RunError::Cancelled);
        }
        let rows = (inputs.tokens.len(), inputs.logit_rows.len());
        let Some(index) = self.programs.iter().position(|p| p.rows >= rows.0) else { return Ok(()) };
        let words = self.inputs.bytes();
        let words = words.get_mut::<i32>(0..words.len() / size_of::<i32>());
        self.programs[index].layout.fill(words, inputs, self.blocks);
        self.fault.bytes().get_mut::<i32>(0..1)[0] = 0;
        self.steps(index, rows, watch).map_err(|why| RunError::Device {
            device: NAME.into(),
            what: "running a pass",
            why,
        })?;
        if self.fault.bytes().get::<i32>(0..1) != [0] {
            return Err(RunError::Index {
                step: format!("program {index} on {NAME}"),
                why: "an index that lies in memory is out of bounds".into(),
            });
        }
        logits.copy_from_slice(self.results.bytes().get::<f32>(0..logits.len()));
        Ok(())
    }
}
