//! NVIDIA's GPUs, through the driver alone: its library is loaded when a worker asks for such a device, and building needs no CUDA.
//!
//! Everything that a pass touches lies in the GPU's memory at addresses that never change: weights, blocks of the cache, activations, the
//! numbers and arrays of the pass, results. A pass copies its arrays, launches kernels one behind the other on one stream and copies the
//! wanted rows back. Passes of few rows, which is what decoding is made of, are recorded once as a graph and replayed: one call
//! in place of hundreds.

mod driver;
mod memory;
mod part;

use super::program::{DeviceLaunch, DeviceOutput, DeviceProgram, Places};
use super::{Device, DeviceError, DevicePass, Room};
use crate::error::{EngineError, RunError};
use crate::exec::{Inputs, Profile, StepResult, Watch};
use bessemer_format::gpu::GpuCode;
use bessemer_format::plan::{Plan, StateId, WeightId};
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{
    CudaFunction, CudaGraph, CudaSlice, CudaStream, DriverError, LaunchConfig, PinnedHostSlice,
    PushKernelArg, result,
};
use cudarc::nvrtc::Ptx;
use driver::{Gpu, failed, is_full, refused};

pub(super) use driver::open;
pub(super) use memory::CudaBlocks;
use memory::{WeightPlaces, address};
use part::Part;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Passes of up to so many rows are recorded.
const RECORDED_ROWS: usize = 8;
/// Words in front of the results: the fault, on a line of its own.
const FAULT_WORDS: usize = 16;

/// What an engine holds for such a device.
pub(super) struct Model<'a> {
    pub(super) plan: &'a Plan,
    pub(super) code: &'a GpuCode,
    /// The WEIGHTS section.
    pub(super) weights: &'a [u8],
    /// The kernels: a cubin, or PTX without a NUL at its end.
    pub(super) binary: &'a [u8],
    pub(super) is_ptx: bool,
    /// The first layer that runs on the GPU.
    pub(super) first: usize,
    /// Whether other layers could run elsewhere.
    pub(super) divisible: bool,
}

/// A GPU with a model on it.
pub(super) struct Cuda {
    name: String,
    stream: Arc<CudaStream>,
    /// Launches are recorded here. It runs nothing.
    recorder: Arc<CudaStream>,
    // Before the kernels, which its launches refer to.
    graphs: Graphs,
    functions: Vec<Option<CudaFunction>>,
    programs: Vec<DeviceProgram<u64>>,
    /// Whether another device runs the first layers.
    part: bool,
    inputs: CudaSlice<i32>,
    results: CudaSlice<f32>,
    /// Pages that the driver copies from and to without a detour.
    sent: PinnedHostSlice<i32>,
    received: PinnedHostSlice<f32>,
    blocks: usize,
    // Kept for their addresses, which launches hold.
    _weights: CudaSlice<u8>,
    _arena: CudaSlice<u8>,
    _states: Arc<CudaBlocks>,
}

/// Recorded passes, by program, rows and wanted rows: what else differs between passes stands in memory.
#[derive(Default)]
struct Graphs(BTreeMap<(usize, usize, usize), CudaGraph>);

// SAFETY: a graph is used by one thread at a time, since it is reached through `&mut Cuda` only, and every call binds the context to
// its thread.
unsafe impl Send for Graphs {}

/// Where everything lies.
struct Addresses<'a> {
    weights: (&'a WeightPlaces, u64),
    states: &'a CudaBlocks,
    arena: u64,
    inputs: u64,
    /// The fault, and the results behind it.
    results: u64,
}

impl Places for Addresses<'_> {
    type Pointer = u64;

    fn weight(&self, id: WeightId) -> Option<u64> {
        let (places, base) = self.weights;
        places.address(base, id)
    }

    fn state(&self, id: StateId) -> Option<u64> {
        self.states.state(id as usize)
    }

    fn arena(&self, offset: u64) -> u64 {
        self.arena + offset
    }

    fn inputs(&self, offset: u64) -> u64 {
        self.inputs + offset
    }

    fn fault(&self) -> u64 {
        self.results
    }

    fn results(&self) -> u64 {
        self.results + 4 * FAULT_WORDS as u64
    }
}

impl Gpu {
    /// Loads the kernels, uploads the weights and makes room for everything else.
    pub(super) fn start(
        self,
        model: &Model<'_>,
        room: &mut Room,
    ) -> Result<(Cuda, Arc<CudaBlocks>), EngineError> {
        let Model { plan, code, weights: section, binary, is_ptx, first, divisible } = model;
        let name = self.device.clone();
        let no = |why| EngineError::Device { device: name.clone(), why };
        let refuse = |what: &'static str| {
            let name = name.clone();
            move |e| EngineError::Device { device: name.clone(), why: refused(what, e) }
        };
        let context = &self.context;
        let mut bytes = binary.to_vec();
        if *is_ptx {
            bytes.push(0);
        }
        let module = context.load_module(Ptx::from_binary(bytes)).map_err(refuse("loading the kernels"))?;
        let part = Part::new(model, room, *first);
        let mut functions: Vec<Option<CudaFunction>> = vec![None; code.kernels.len()];
        for launch in part.launches(code) {
            let at = launch.kernel as usize;
            if let (Some(function @ None), Some(kernel)) = (functions.get_mut(at), code.kernels.get(at)) {
                let found = module.load_function(&kernel.name).map_err(refuse("finding a kernel"))?;
                *function = Some(found);
            }
        }
        // Memory that a worker gave back is free once somebody has waited.
        context.synchronize().map_err(refuse("waiting for the GPU"))?;
        let (free, _) = context.mem_get_info().map_err(refuse("asking for free memory"))?;
        let fitting = || {
            let more = (first + 1..plan.model.layers as usize).filter(|_| *divisible);
            let fits = |first: &usize| Part::new(model, room, *first).needed() <= free as u64;
            more.into_iter().find(fits).map(|first| plan.model.layers as usize - first)
        };
        let full = || DeviceError::Memory {
            needed: part.needed(),
            weights: part.weights.bytes as u64,
            cache: part.cache as u64,
            free: free as u64,
            layers: fitting(),
        };
        if part.needed() > free as u64 {
            return Err(no(full()));
        }
        let memory = |what: &'static str| {
            let (full, no) = (&full, &no);
            move |e: DriverError| no(if is_full(&e) { full() } else { refused(what, e) })
        };
        let stream = context.new_stream().map_err(refuse("making a stream"))?;
        let recorder = context.new_stream().map_err(refuse("making a stream"))?;
        let weights =
            part.weights.upload(&stream, &plan.weights, section).map_err(memory("uploading the weights"))?;
        let states = CudaBlocks::new(&stream, &name, &part.held, room.blocks);
        let states = Arc::new(states.map_err(memory("making room for the cache"))?);
        let received = FAULT_WORDS + RECORDED_ROWS * plan.model.output_width() as usize;
        let others = || -> Result<_, DriverError> {
            Ok((
                stream.alloc_zeros::<u8>(part.arena.max(1))?,
                stream.alloc_zeros::<i32>(part.words)?,
                stream.alloc_zeros::<f32>(part.results)?,
                // SAFETY: what is copied from or read in them was written before.
                unsafe { context.alloc_pinned_with_flags::<i32>(part.words, 0) }?,
                // SAFETY: as above.
                unsafe { context.alloc_pinned_with_flags::<f32>(part.results.min(received), 0) }?,
            ))
        };
        let (arena, inputs, results, sent, received) =
            others().map_err(memory("making room for activations"))?;
        let to = Addresses {
            weights: (&part.weights, address(&weights)),
            states: &states,
            arena: address(&arena),
            inputs: address(&inputs),
            results: address(&results),
        };
        let bind = |index| DeviceProgram::bind(plan, code, index, part::cut(plan, index, *first), &to);
        let programs = (0..part.first_steps.len())
            .map(bind)
            .collect::<Result<_, _>>()
            .map_err(|why| EngineError::Unsupported { step: name.clone(), why })?;
        let cuda = Cuda {
            name: self.device,
            stream,
            recorder,
            functions,
            programs,
            part: *first > 0,
            graphs: Graphs::default(),
            inputs,
            results,
            sent,
            received,
            blocks: room.blocks,
            _weights: weights,
            _arena: arena,
            _states: Arc::clone(&states),
        };
        room.held = part.held;
        Ok((cuda, states))
    }
}

impl Cuda {
    /// What another device hands over before a pass of so many rows.
    pub(super) fn expects(&self, rows: usize) -> &[DeviceOutput<u64>] {
        self.programs.iter().find(|p| p.rows >= rows).map_or(&[], |p| &p.live)
    }

    /// Copies activations of another device to their place. They have left `bytes` when this returns.
    pub(super) fn take(&mut self, to: u64, bytes: &[u8]) -> Result<(), RunError> {
        let copy = || {
            self.stream.context().bind_to_thread()?;
            // SAFETY: `to` is the place of activations that are as large (`expects`); pages that are not pinned are read before the
            // driver returns.
            unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }
        };
        copy().map_err(failed(&self.name, "taking over activations"))
    }

    /// Copies the arrays of a pass to the GPU.
    fn send(&mut self, program: usize, inputs: &Inputs) -> Result<(), DriverError> {
        let words = self.sent.as_mut_slice()?;
        let used = self.programs[program].layout.fill(words, inputs, self.blocks);
        self.stream.memcpy_htod(&self.sent.as_slice()?[..used], &mut self.inputs)
    }

    /// Launches a kernel.
    fn launch(
        &self,
        launch: &DeviceLaunch<u64>,
        (rows, wanted): (usize, usize),
        stream: &CudaStream,
    ) -> Result<(), DriverError> {
        let (Some(grid_dim), Some(function)) = (launch.grid(rows, wanted), &self.functions[launch.kernel])
        else {
            return Ok(());
        };
        let mut call = stream.launch_builder(function);
        for pointer in &launch.pointers {
            call.arg(pointer);
        }
        let config = LaunchConfig { grid_dim, block_dim: (launch.threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the kernel takes as many pointers as there are (checked when the engine was opened); each is that of memory which is as
        // large as the plan says and lives as long as `self`. Kernels run only from engines that the caller trusts.
        unsafe { call.launch(config) }.map(drop)
    }

    /// Launches all kernels of a program.
    fn launch_all(
        &self,
        program: usize,
        rows: (usize, usize),
        stream: &CudaStream,
    ) -> Result<(), DriverError> {
        let mut launches = self.programs[program].steps().flat_map(|(_, step)| &step.launches);
        launches.try_for_each(|launch| self.launch(launch, rows, stream))
    }

    /// Runs a recorded pass, which is recorded first if it is new.
    fn replay(&mut self, program: usize, (rows, wanted): (usize, usize)) -> Result<(), DriverError> {
        let key = (program, rows, wanted);
        if !self.graphs.0.contains_key(&key) {
            // Calls of other threads, such as those of sequences, are no part of it.
            self.recorder.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
            let launched = self.launch_all(program, (rows, wanted), &self.recorder);
            let graph = self.recorder.end_capture(CUgraphInstantiate_flags(0));
            launched?;
            let Some(graph) = graph? else { return Ok(()) };
            self.graphs.0.insert(key, graph);
        }
        self.stream.context().bind_to_thread()?;
        // SAFETY: the graph is kept as long as `self`, as is the memory that its launches refer to.
        unsafe { result::graph::launch(self.graphs.0[&key].cu_graph_exec(), self.stream.cu_stream()) }
    }

    /// One pass. Gives whether a kernel met an index out of bounds.
    fn pass(&mut self, program: usize, pass: DevicePass<'_, '_>) -> Result<bool, DriverError> {
        self.send(program, pass.inputs)?;
        let rows = (pass.inputs.tokens.len(), pass.inputs.logit_rows.len());
        match pass.watch {
            Some(Watch::Results(see)) => self.trace(program, rows, *see)?,
            Some(Watch::Times(profile)) => self.profile(program, rows, profile)?,
            None if rows.0 <= RECORDED_ROWS => self.replay(program, rows)?,
            None => self.launch_all(program, rows, &self.stream)?,
        }
        self.receive(pass.logits)
    }

    /// Copies the wanted rows back. Gives whether a kernel met an index out of bounds.
    fn receive(&mut self, logits: &mut [f32]) -> Result<bool, DriverError> {
        let all = FAULT_WORDS + logits.len();
        let faulty = if all <= self.received.len() {
            let pages = &mut self.received.as_mut_slice()?[..all];
            self.stream.memcpy_dtoh(&self.results.slice(..all), pages)?;
            self.stream.synchronize()?;
            let pages = self.received.as_slice()?;
            logits.copy_from_slice(&pages[FAULT_WORDS..all]);
            pages[0].to_bits() != 0
        } else {
            let mut fault = [0.0f32];
            self.stream.memcpy_dtoh(&self.results.slice(..1), &mut fault)?;
            self.stream.memcpy_dtoh(&self.results.slice(FAULT_WORDS..all), logits)?;
            self.stream.synchronize()?;
            fault[0].to_bits() != 0
        };
        if faulty {
            self.stream.memset_zeros(&mut self.results.slice_mut(..FAULT_WORDS))?;
        }
        Ok(faulty)
    }

    /// Runs a pass step by step and shows what each of them computed.
    fn trace(
        &self,
        program: usize,
        (rows, wanted): (usize, usize),
        see: &mut (dyn FnMut(&StepResult<'_>) + Send),
    ) -> Result<(), DriverError> {
        for (_, step) in self.programs[program].steps() {
            step.launches.iter().try_for_each(|launch| self.launch(launch, (rows, wanted), &self.stream))?;
            let mut outputs = Vec::with_capacity(step.outputs.len());
            for output in &step.outputs {
                let mut host = vec![0.0f32; output.elems(rows, wanted)];
                if !host.is_empty() {
                    // SAFETY: the buffer has room for all rows of a pass, and the stream is waited for below.
                    unsafe { result::memcpy_dtoh_async(&mut host, output.at, self.stream.cu_stream()) }?;
                }
                outputs.push(host);
            }
            self.stream.synchronize()?;
            see(&StepResult { source: &step.source, outputs: outputs.iter().map(Vec::as_slice).collect() });
        }
        Ok(())
    }

    /// Runs a pass and measures each step by the GPU's own clock.
    fn profile(
        &self,
        program: usize,
        rows: (usize, usize),
        profile: &mut Profile,
    ) -> Result<(), DriverError> {
        let now = || self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let mut events = vec![now()?];
        for (_, step) in self.programs[program].steps() {
            step.launches.iter().try_for_each(|launch| self.launch(launch, rows, &self.stream))?;
            events.push(now()?);
        }
        self.stream.synchronize()?;
        // Where another device runs the first steps, it has begun.
        if !self.part {
            profile.begin(program, 1, self.programs[program].len());
        }
        for ((step, _), pair) in self.programs[program].steps().zip(events.windows(2)) {
            let milliseconds = pair[0].elapsed_ms(&pair[1])?.max(0.0);
            profile.add(program, step, Duration::from_secs_f32(milliseconds / 1e3));
        }
        Ok(())
    }
}

impl Device for Cuda {
    fn threads(&self) -> usize {
        1
    }

    fn run(&mut self, pass: DevicePass<'_, '_>) -> Result<(), RunError> {
        // A pass is short: it is not interrupted once it has begun.
        if pass.cancel.is_some_and(|c| c.load(Ordering::Relaxed)) {
            return Err(RunError::Cancelled);
        }
        let rows = pass.inputs.tokens.len();
        let Some(program) = self.programs.iter().position(|p| p.rows >= rows) else { return Ok(()) };
        match self.pass(program, pass) {
            Ok(false) => Ok(()),
            Ok(true) => Err(RunError::Index {
                step: format!("program {program} on {}", self.name),
                why: "an index that lies in memory is out of bounds".into(),
            }),
            Err(e) => Err(failed(&self.name, "running a pass")(e)),
        }
    }
}
