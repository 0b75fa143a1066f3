//! A plan's launches on the shim: what a runtime does with them, with a memory of its own for every buffer, so that an access
//! outside of one is found.

use super::shim::{Shim, ShimError};
use bessemer_format::gpu::{GpuArg, GpuKernel, Launch, PASS_NUMBERS};
use bessemer_format::kv::TOKENS;
use bessemer_format::manifest::KvElem;
use bessemer_format::plan::{Home, Input, Plan, Program, RowCount, StateDecl};
use std::collections::BTreeMap;

/// Memories are numbered: weights, then states, inputs and buffers.
const STATES: u32 = 1 << 20;
const PASS: u32 = STATES + 16;
const FAULT: u32 = PASS + 1;
const INPUTS: u32 = PASS + 16;
const BUFFERS: u32 = 1 << 21;

/// One sequence of a model on the shim.
pub struct GpuModel<'a> {
    plan: &'a Plan,
    kernels: &'a [GpuKernel],
    programs: &'a [Vec<Launch>],
    device: Shim,
    blocks: usize,
    len: usize,
    /// Whether the program for the most rows serves every pass.
    pub widest: bool,
}

impl<'a> GpuModel<'a> {
    /// Uploads the weights and makes room for `tokens` tokens.
    pub fn new(
        plan: &'a Plan,
        weights: impl IntoIterator<Item = &'a [u8]>,
        (kernels, programs): (&'a [GpuKernel], &'a [Vec<Launch>]),
        kv: KvElem,
        tokens: usize,
        mut device: Shim,
    ) -> Result<Self, ShimError> {
        for (id, bytes) in weights.into_iter().enumerate() {
            device.upload(id as u32, bytes)?;
        }
        // One more than is needed: the first block is never used.
        let blocks = tokens.div_ceil(TOKENS) + 1;
        for (at, state) in plan.states.iter().enumerate() {
            let StateDecl::Blocks { elems } = state;
            device.alloc(STATES + at as u32, blocks * *elems as usize * kv.bits() / 8)?;
        }
        Ok(Self { plan, kernels, programs, device, blocks, len: 0, widest: false })
    }

    /// Forgets the sequence.
    pub fn reset(&mut self) {
        self.len = 0;
    }

    /// In which order the threads of a workgroup run.
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
        let program = plan.programs.iter().position(fits).unwrap_or(plan.programs.len() - 1);
        // Blocks lie in reverse order, so that a kernel which takes no notice of the table is found out.
        let table: Vec<i32> =
            (0..(self.len + rows).div_ceil(TOKENS)).map(|b| (self.blocks - 1 - b) as i32).collect();
        let of_row = |f: &dyn Fn(usize) -> i32| (0..rows).map(f).collect::<Vec<i32>>();
        let len = self.len;
        let inputs: BTreeMap<Input, Vec<i32>> = [
            (Input::Tokens, of_row(&|r| tokens[r] as i32)),
            (Input::Positions, of_row(&|r| (len + r) as i32)),
            (
                Input::Slots,
                of_row(&|r| table[(len + r) / TOKENS] * TOKENS as i32 + ((len + r) % TOKENS) as i32),
            ),
            (Input::Sequences, of_row(&|_| 0)),
            (Input::LogitRows, wanted.iter().map(|r| *r as i32).collect()),
            (Input::BlockTable, table.clone()),
            (Input::TableStarts, of_row(&|_| 0)),
            (Input::TokenTypes, of_row(&|r| types.get(r).copied().unwrap_or(0).into())),
            (Input::FirstRows, of_row(&|_| 0)),
            (Input::LastPositions, of_row(&|_| (len + rows - 1) as i32)),
        ]
        .into();
        let bytes = |values: &[i32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        for (input, values) in &inputs {
            self.device.upload(INPUTS + *input as u32, &bytes(values))?;
        }
        let pass: [i32; PASS_NUMBERS] = [rows, wanted.len(), 1, table.len(), self.blocks].map(|n| n as i32);
        self.device.upload(PASS, &bytes(&pass))?;
        self.device.upload(FAULT, &bytes(&[0]))?;
        let buffers = &plan.programs[program].buffers;
        let count = |rows_of: RowCount| if rows_of == RowCount::Tokens { rows } else { wanted.len() };
        let mut logits = None;
        for (id, buffer) in buffers.iter().enumerate() {
            let bytes = count(buffer.rows) * (buffer.row_elems * buffer.elem.bytes()) as usize;
            if buffer.home == Home::Logits {
                logits = Some((BUFFERS + id as u32, bytes));
            }
            self.device.alloc(BUFFERS + id as u32, bytes)?;
        }
        for launch in &self.programs[program] {
            let grid = launch.grid.map(|groups| groups.count(rows as u64, wanted.len() as u64));
            let args: Vec<u32> = launch
                .args
                .iter()
                .map(|arg| match arg {
                    GpuArg::Weight(id) => *id,
                    GpuArg::State(id) => STATES + id,
                    GpuArg::Pass => PASS,
                    GpuArg::Fault => FAULT,
                    GpuArg::Input(input) => INPUTS + *input as u32,
                    GpuArg::Buffer(id) => match buffers[*id as usize].home {
                        Home::Input(input) => INPUTS + input as u32,
                        _ => BUFFERS + id,
                    },
                })
                .collect();
            self.device.launch(&self.kernels[launch.kernel as usize], grid, &args)?;
        }
        if self.device.read(FAULT, 4)? != [0; 4] {
            return Err(ShimError("an index out of memory is out of bounds".into()));
        }
        self.len += rows;
        let (id, bytes) = logits.expect("a program gives results");
        let read = self.device.read(id, bytes)?;
        let floats: Vec<f32> =
            read.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let width = plan.model.output_width() as usize;
        Ok(floats.chunks_exact(width).map(<[f32]>::to_vec).collect())
    }
}
