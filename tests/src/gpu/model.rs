//! A plan's launches on the shim: what a runtime does with them.

use super::shim::{Shim, ShimError};
use crate::models::Trace;
use bessemer_format::gpu::{GpuArg, GpuKernel, Launch, PASS_NUMBERS};
use bessemer_format::kv::TOKENS;
use bessemer_format::manifest::KvElem;
use bessemer_format::plan::{Arg, BufferId, Home, Input, Plan, Program, RowCount, StateDecl, StepKind};
use std::collections::BTreeMap;

/// Memories are numbered: weights (or their section), then states, inputs and buffers.
const STATES: u32 = 1 << 20;
const PASS: u32 = STATES + (1 << 16);
const FAULT: u32 = PASS + 1;
const INPUTS: u32 = PASS + 16;
const ARENA: u32 = (1 << 21) - 1;
const BUFFERS: u32 = ARENA + 1;

/// A plan's weights, and how memory is laid out.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// Each weight and each buffer in a memory of its own, so that an access outside of one is found.
    Apart(&'a [Vec<u8>]),
    /// As on a device: the WEIGHTS section in one piece, and buffers in the arena where the plan has put them. An arena is used again as
    /// soon as the plan allows, so that a kernel which reads or writes too late is found.
    Section(&'a [u8]),
}

/// One sequence of a model on the shim.
pub struct GpuModel<'a> {
    plan: &'a Plan,
    kernels: &'a [GpuKernel],
    programs: &'a [Vec<Launch>],
    device: Shim,
    apart: bool,
    blocks: usize,
    len: usize,
    /// Whether the program for the most rows serves every pass.
    pub widest: bool,
}

impl<'a> GpuModel<'a> {
    /// Uploads the weights and makes room for `tokens` tokens.
    pub fn new(
        plan: &'a Plan,
        weights: Weights<'_>,
        (kernels, programs): (&'a [GpuKernel], &'a [Vec<Launch>]),
        kv: KvElem,
        tokens: usize,
        mut device: Shim,
    ) -> Result<Self, ShimError> {
        match weights {
            Weights::Apart(weights) => {
                for (id, bytes) in weights.iter().enumerate() {
                    device.upload(id as u32, bytes)?;
                }
            }
            Weights::Section(bytes) => device.upload(0, bytes)?,
        }
        // One more than is needed: the first block is never used.
        let blocks = tokens.div_ceil(TOKENS) + 1;
        for (at, state) in plan.states.iter().enumerate() {
            let (elems, bits) = match state {
                StateDecl::Blocks { elems } => (*elems, kv.bits()),
                StateDecl::Recurrent { elems } => (*elems, 32),
            };
            device.alloc(STATES + at as u32, blocks * elems as usize * bits / 8)?;
        }
        let apart = matches!(weights, Weights::Apart(_));
        Ok(Self { plan, kernels, programs, device, apart, blocks, len: 0, widest: false })
    }

    /// Forgets the sequence.
    pub fn reset(&mut self) {
        self.len = 0;
    }

    /// In which order the threads of a workgroup, and workgroups, run.
    pub fn reverse(&mut self, reverse: bool) {
        self.device.reverse = reverse;
    }

    /// Appends tokens; the results of the rows that `wanted` holds, by row.
    pub fn forward(
        &mut self,
        tokens: &[u32],
        types: &[u8],
        wanted: &[usize],
    ) -> Result<Vec<Vec<f32>>, ShimError> {
        let (plan, rows) = (self.plan, tokens.len());
        let fits = |p: &Program| rows <= p.regime.max_rows as usize && !self.widest;
        let index = plan.programs.iter().position(fits).unwrap_or(plan.programs.len() - 1);
        let program = &plan.programs[index];
        self.upload_inputs(tokens, types, wanted)?;
        let (logits, bytes) = self.make_buffers(program, rows, wanted.len())?;
        for launch in &self.programs[index] {
            let grid = launch.grid.map(|groups| groups.count(rows as u64, wanted.len() as u64));
            let args: Vec<_> = launch.args.iter().map(|arg| self.place(program, *arg)).collect();
            self.device.launch(&self.kernels[launch.kernel as usize], grid, &args)?;
        }
        if self.device.read(FAULT, 0, 4)? != [0; 4] {
            return Err(ShimError("an index out of memory is out of bounds".into()));
        }
        self.len += rows;
        let floats = floats(&self.device.read(logits, 0, bytes)?);
        let width = plan.model.output_width() as usize;
        Ok(floats.chunks_exact(width).map(<[f32]>::to_vec).collect())
    }

    /// Appends tokens, step by step: what each step made, as [`crate::models::traced`] gives it.
    pub fn traced(&mut self, tokens: &[u32]) -> Result<Trace, ShimError> {
        let (plan, rows) = (self.plan, tokens.len());
        let wanted: Vec<usize> = (0..rows).collect();
        let index = plan.programs.iter().position(|p| rows <= p.regime.max_rows as usize).unwrap_or(0);
        let program = &plan.programs[index];
        self.upload_inputs(tokens, &[], &wanted)?;
        self.make_buffers(program, rows, rows)?;
        let mut trace = Trace::new();
        for (at, step) in program.steps.iter().enumerate() {
            for launch in self.programs[index].iter().filter(|launch| launch.step as usize == at) {
                let grid = launch.grid.map(|groups| groups.count(rows as u64, rows as u64));
                let args: Vec<_> = launch.args.iter().map(|arg| self.place(program, *arg)).collect();
                self.device.launch(&self.kernels[launch.kernel as usize], grid, &args)?;
            }
            let mut results = Vec::new();
            for id in outputs(plan, &step.kind) {
                let (memory, offset) = self.place(program, GpuArg::Buffer(id));
                let elems = rows * program.buffers[id as usize].row_elems as usize;
                results.push(floats(&self.device.read(memory, offset, 4 * elems)?));
            }
            trace.push((step.source.clone(), results));
        }
        self.len += rows;
        Ok(trace)
    }

    /// The arrays of a pass over `tokens`.
    fn upload_inputs(&mut self, tokens: &[u32], types: &[u8], wanted: &[usize]) -> Result<(), ShimError> {
        let (len, rows) = (self.len, tokens.len());
        // Blocks lie in reverse order, so that a kernel which takes no notice of the table is found out.
        let table: Vec<i32> =
            (0..(len + rows).div_ceil(TOKENS)).map(|b| (self.blocks - 1 - b) as i32).collect();
        let of_row = |f: &dyn Fn(usize) -> i32| (0..rows).map(f).collect::<Vec<i32>>();
        let slot = |at: usize| table[at / TOKENS] * TOKENS as i32 + (at % TOKENS) as i32;
        let inputs: BTreeMap<Input, Vec<i32>> = [
            (Input::Tokens, of_row(&|r| tokens[r] as i32)),
            (Input::Positions, of_row(&|r| (len + r) as i32)),
            (Input::Slots, of_row(&|r| slot(len + r))),
            (Input::Sequences, of_row(&|_| 0)),
            (Input::LogitRows, wanted.iter().map(|r| *r as i32).collect()),
            (Input::BlockTable, table.clone()),
            (Input::TableStarts, of_row(&|_| 0)),
            (Input::TokenTypes, of_row(&|r| types.get(r).copied().unwrap_or(0).into())),
            (Input::FirstRows, of_row(&|_| 0)),
            (Input::LastPositions, of_row(&|_| (len + rows - 1) as i32)),
            (Input::CarriedBlocks, of_row(&|_| len.checked_sub(1).map_or(0, |last| table[last / TOKENS]))),
        ]
        .into();
        let bytes = |values: &[i32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        for (input, values) in &inputs {
            self.device.upload(INPUTS + *input as u32, &bytes(values))?;
        }
        let pass: [i32; PASS_NUMBERS] = [rows, wanted.len(), 1, table.len(), self.blocks].map(|n| n as i32);
        self.device.upload(PASS, &bytes(&pass))?;
        self.device.upload(FAULT, &bytes(&[0]))
    }

    /// Memory for a pass, nothing in it; which one the results go to, and their bytes.
    fn make_buffers(
        &mut self,
        program: &Program,
        rows: usize,
        wanted: usize,
    ) -> Result<(u32, usize), ShimError> {
        if !self.apart {
            self.device.alloc(ARENA, program.arena_bytes as usize)?;
        }
        let mut results = None;
        for (id, buffer) in program.buffers.iter().enumerate() {
            let count = if buffer.rows == RowCount::Tokens { rows } else { wanted };
            let bytes = count * (buffer.row_elems * buffer.elem.bytes()) as usize;
            match buffer.home {
                Home::Logits => results = Some((BUFFERS + id as u32, bytes)),
                Home::Arena { .. } if self.apart => {}
                Home::Arena { .. } | Home::Input(_) => continue,
            }
            self.device.alloc(BUFFERS + id as u32, bytes)?;
        }
        results.ok_or_else(|| ShimError("the program gives no results".into()))
    }

    /// The memory that an argument stands for, and an offset in it.
    fn place(&self, program: &Program, arg: GpuArg) -> (u32, usize) {
        match arg {
            GpuArg::Weight(id) if self.apart => (id, 0),
            GpuArg::Weight(id) => (0, self.plan.weights[id as usize].offset as usize),
            GpuArg::State(id) => (STATES + id, 0),
            GpuArg::Pass => (PASS, 0),
            GpuArg::Fault => (FAULT, 0),
            GpuArg::Input(input) => (INPUTS + input as u32, 0),
            GpuArg::Buffer(id) => match program.buffers[id as usize].home {
                Home::Input(input) => (INPUTS + input as u32, 0),
                Home::Arena { offset } if !self.apart => (ARENA, offset as usize),
                Home::Arena { .. } | Home::Logits => (BUFFERS + id, 0),
            },
        }
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Buffers of activations that a step writes.
fn outputs(plan: &Plan, kind: &StepKind) -> Vec<BufferId> {
    match kind {
        StepKind::Embed { out, .. } => vec![*out],
        StepKind::Linear(linear) => vec![linear.out],
        StepKind::GroupedLinear(grouped) => vec![grouped.linear.out],
        StepKind::Attention(attention) => vec![attention.out],
        StepKind::Nest { nest, args, .. } => {
            let stored = args.iter().zip(&plan.nests[*nest as usize].views).filter(|(_, view)| view.store);
            stored.filter_map(|(arg, _)| if let Arg::Buffer(id) = arg { Some(*id) } else { None }).collect()
        }
        StepKind::Route(_) | StepKind::Copy { .. } => Vec::new(),
    }
}
