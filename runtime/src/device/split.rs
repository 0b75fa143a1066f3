//! A model whose first layers run on the CPU and the others, with the head, on a GPU: for models that are larger than the GPU's memory.
//!
//! Both devices have a plan of their own for the same graph, and each program says where its layers begin ([`Cut`]). The CPU runs the steps
//! before the cut, hands over what lives across it (the residual stream, and what every layer reads), and the GPU runs the rest. Weights
//! are uploaded, and blocks of the cache lie, where their layers run.
//!
//! [`Cut`]: bessemer_format::plan::Cut

use super::cpu::Cpu;
use super::cuda::{Cuda, CudaBlocks};
use super::{Device, DeviceError, DevicePass, HostBlocks, Room, Started};
use crate::engine::Engine;
use crate::error::{EngineError, RunError};
use crate::state::BlockMemory;
use crate::worker::WorkerOptions;
use bessemer_format::plan::{Home, Plan, Program, RowCount, StateDecl};
use bessemer_format::variant::DeviceKind;
use std::mem::discriminant;
use std::sync::Arc;

/// Whether a GPU's plan says where its layers begin, and the engine has something for the CPU that could run the others.
pub(super) fn is_divisible(engine: &Engine, plan: &Plan) -> bool {
    let cuts = plan.programs.first().map_or(0, |p| p.cuts.len());
    cuts == plan.model.layers as usize && engine.variant(DeviceKind::Cpu).is_some()
}

/// The first layer that the GPU is given: all are its own unless the options say less.
pub(super) fn first_layer(
    engine: &Engine,
    plan: &Plan,
    options: &WorkerOptions,
) -> Result<usize, DeviceError> {
    let layers = plan.model.layers as usize;
    let Some(asked) = options.gpu_layers.filter(|asked| *asked < layers) else { return Ok(0) };
    let why = match is_divisible(engine, plan) {
        true => return Ok(layers - asked),
        false if engine.variant(DeviceKind::Cpu).is_some() => {
            "this model takes its sequences whole, or its layers do not follow each other; they all run on one device"
        }
        false => {
            "the engine holds nothing for the CPU, which would run the other layers; compile the model with `--target cpu` too"
        }
    };
    Err(DeviceError::Layers { asked, why: why.into() })
}

/// A GPU that has its layers.
pub(super) struct Begun<'a> {
    pub(super) device: Cuda,
    pub(super) memory: Arc<CudaBlocks>,
    /// Bytes of a block of each state that lie on it.
    pub(super) held: Vec<usize>,
    pub(super) plan: &'a Plan,
    /// Its first layer.
    pub(super) first: usize,
    /// What it is, for people.
    pub(super) on: String,
}

/// Why layers are not divided.
pub(super) enum Refusal {
    /// The CPU does not start.
    Engine(EngineError),
    /// The plans do not fit together.
    Layers(String),
}

impl From<EngineError> for Refusal {
    fn from(e: EngineError) -> Self {
        Self::Engine(e)
    }
}

/// Starts the CPU for the layers before those of the GPU.
pub(super) fn start(engine: &Engine, options: &WorkerOptions, gpu: Begun<'_>) -> Result<Started, Refusal> {
    let plan = engine.plan();
    let mut room = Room::of(engine, plan, options)?;
    let apart =
        || Refusal::Layers("CPU and GPU were not compiled for each other; compile the model again".into());
    room.held = rest(plan, &room.layout.block_bytes, gpu.plan, &gpu.held).ok_or_else(apart)?;
    let handed = handed(plan, gpu.plan, gpu.first).ok_or_else(apart)?;
    let parts =
        room.held.iter().zip(&room.layout.block_bytes).map(|(held, all)| (*held, all - held)).collect();
    let (cpu, host) = Cpu::new(engine, options, &room)?;
    let layers = plan.model.layers as usize;
    let on = format!(
        "{}, {} of {layers} layers; the first {} on cpu ({})",
        gpu.on,
        layers - gpu.first,
        gpu.first,
        engine.isa().name()
    );
    let memory = Arc::new(SplitBlocks { host, gpu: gpu.memory, parts });
    let device = Box::new(Split { cpu, gpu: gpu.device, handed });
    Ok(Started { device, memory, room, kind: DeviceKind::Cuda, on })
}

/// Bytes of each of the CPU's states that do not lie on the GPU, whose layers are the last ones.
fn rest(cpu: &Plan, block_bytes: &[usize], gpu: &Plan, held: &[usize]) -> Option<Vec<usize>> {
    let on_gpu = |kind: &StateDecl| -> usize {
        let same =
            gpu.states.iter().zip(held).filter(|(state, _)| discriminant(*state) == discriminant(kind));
        same.map(|(_, held)| held).sum()
    };
    let mut kinds: Vec<_> = cpu.states.iter().map(discriminant).collect();
    kinds.dedup();
    let one_each = kinds.len() == cpu.states.len();
    let states = cpu.states.iter().zip(block_bytes);
    states.map(|(state, bytes)| bytes.checked_sub(on_gpu(state)).filter(|_| one_each)).collect()
}

/// What is handed over in a program of the CPU.
struct Handed {
    /// Its first step that is the GPU's.
    step: usize,
    /// Offset in the arena, bytes of a row, and which rows.
    live: Vec<(usize, usize, RowCount)>,
}

/// For each program of the CPU what it hands over before a layer, if every program of the GPU that serves as many rows expects just that.
fn handed(cpu: &Plan, gpu: &Plan, layer: usize) -> Option<Vec<Handed>> {
    let named = |p: &Program| -> Option<Vec<_>> {
        let buffers = p.cuts.get(layer)?.live.iter().map(|id| p.buffers.get(*id as usize));
        buffers.map(|b| b.map(|b| (b.name.clone(), b.elem, b.rows, b.row_elems))).collect()
    };
    let meet = |a: &Program, b: &Program| {
        a.regime.min_rows <= b.regime.max_rows && b.regime.min_rows <= a.regime.max_rows
    };
    let program = |p: &Program| {
        let cut = p.cuts.get(layer)?;
        let own = named(p)?;
        if gpu.programs.iter().any(|other| meet(p, other) && named(other).as_ref() != Some(&own)) {
            return None;
        }
        let place = |id: &u32| {
            let buffer = p.buffers.get(*id as usize)?;
            let Home::Arena { offset } = buffer.home else { return None };
            Some((offset as usize, (buffer.row_elems * buffer.elem.bytes()) as usize, buffer.rows))
        };
        Some(Handed { step: cut.step as usize, live: cut.live.iter().map(place).collect::<Option<_>>()? })
    };
    cpu.programs.iter().map(program).collect()
}

/// The two devices.
struct Split {
    cpu: Cpu,
    gpu: Cuda,
    /// By program of the CPU.
    handed: Vec<Handed>,
}

impl Device for Split {
    fn threads(&self) -> usize {
        self.cpu.threads()
    }

    fn run(&mut self, pass: DevicePass<'_, '_>) -> Result<(), RunError> {
        let DevicePass { inputs, logits, cancel, mut watch } = pass;
        let before = DevicePass { inputs, logits: &mut [], cancel, watch: watch.as_deref_mut() };
        let program = self.cpu.run_before(before, |program| self.handed[program].step)?;
        let (rows, wanted) = (inputs.tokens.len(), inputs.logit_rows.len());
        let places: Vec<u64> = self.gpu.expects(rows).iter().map(|live| live.at).collect();
        for ((offset, row_bytes, count), to) in self.handed[program].live.iter().zip(places) {
            let rows = if *count == RowCount::Tokens { rows } else { wanted };
            self.gpu.take(to, self.cpu.activations(*offset..offset + rows * row_bytes))?;
        }
        self.gpu.run(DevicePass { inputs, logits, cancel, watch })
    }
}

/// Blocks whose first layers lie in this process's memory and the others on the GPU.
struct SplitBlocks {
    host: Arc<HostBlocks>,
    gpu: Arc<CudaBlocks>,
    /// Bytes of each state of the CPU's plan here and there: saved, they lie as they would on one device.
    parts: Vec<(usize, usize)>,
}

impl BlockMemory for SplitBlocks {
    fn clear(&self, block: u32) -> Result<(), RunError> {
        self.host.clear(block)?;
        self.gpu.clear(block)
    }

    fn copy(&self, from: u32, to: u32) -> Result<(), RunError> {
        self.host.copy(from, to)?;
        self.gpu.copy(from, to)
    }

    fn save(&self, block: u32, out: &mut Vec<u8>) -> Result<(), RunError> {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        self.host.save(block, &mut here)?;
        self.gpu.save(block, &mut there)?;
        let (mut here, mut there) = (&here[..], &there[..]);
        for (ours, theirs) in &self.parts {
            for (bytes, len) in [(&mut here, ours), (&mut there, theirs)] {
                let (now, later) = bytes.split_at(*len);
                out.extend_from_slice(now);
                *bytes = later;
            }
        }
        Ok(())
    }

    fn load(&self, block: u32, bytes: &[u8]) -> Result<(), RunError> {
        let (mut here, mut there, mut rest) = (Vec::new(), Vec::new(), bytes);
        for (ours, theirs) in &self.parts {
            for (to, len) in [(&mut here, ours), (&mut there, theirs)] {
                let (now, later) = rest.split_at(*len);
                to.extend_from_slice(now);
                rest = later;
            }
        }
        self.host.load(block, &here)?;
        self.gpu.load(block, &there)
    }
}
