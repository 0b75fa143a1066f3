//! What a GPU does for the steps of a plan: launches of generated kernels.
//!
//! A plan says what is computed, for every device alike. For a GPU each of its steps becomes one or more [`Launch`]es of [`GpuKernel`]s,
//! whose text or machine code stands beside them; weights, buffers and states are those of the plan. Launches run one after another, so
//! a launch sees everything that those before it stored.

use crate::manifest::KvElem;
use crate::plan::{BufferId, Input, RowCount, StateId, WeightId};
use serde::{Deserialize, Serialize};

/// The launches for a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuCode {
    /// Elements of the KV cache that the kernels were generated for: no other runs on this device.
    pub kv: KvElem,
    /// Kernels, by the order in which they stand in the text.
    pub kernels: Vec<GpuKernel>,
    /// For each program of the plan, its launches in the order of its steps, of which each has at least one.
    pub programs: Vec<Vec<Launch>>,
}

/// A kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuKernel {
    /// Its name in the text.
    pub name: String,
    /// Threads of a workgroup, a multiple of 32.
    pub threads: u32,
    /// Pointers that it takes: [`Launch::args`] of each of its launches.
    pub params: u32,
}

/// A kernel runs over a grid of workgroups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The step of the program that it is a part of.
    pub step: u32,
    /// Index into [`GpuCode::kernels`].
    pub kernel: u32,
    /// Workgroups along x, y and z. None run where one of them is 0.
    pub grid: [Groups; 3],
    /// What each pointer of the kernel is bound to.
    pub args: Vec<GpuArg>,
}

/// A number of workgroups: `ceil(rows / per) * times`, where rows count as 1 if there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// Which rows.
    pub rows: Option<RowCount>,
    /// Rows that a workgroup takes, at least 1.
    pub per: u32,
    /// Workgroups for those rows.
    pub times: u32,
}

impl Groups {
    /// A fixed number.
    pub const fn fixed(times: u32) -> Self {
        Self { rows: None, per: 1, times }
    }

    /// One for `per` rows.
    pub const fn of_rows(rows: RowCount, per: u32) -> Self {
        Self { rows: Some(rows), per, times: 1 }
    }

    /// The number for a pass with so many token rows and wanted rows.
    pub fn count(&self, tokens: u64, wanted: u64) -> u64 {
        let rows = match self.rows {
            None => 1,
            Some(RowCount::Tokens) => tokens,
            Some(RowCount::Logits) => wanted,
        };
        rows.div_ceil(u64::from(self.per.max(1))) * u64::from(self.times)
    }
}

/// What a pointer of a kernel is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GpuArg {
    /// A buffer of the program.
    Buffer(BufferId),
    /// A weight.
    Weight(WeightId),
    /// A state pool.
    State(StateId),
    /// An array of the forward pass, whether or not the program has a buffer for it.
    Input(Input),
    /// `i32[PASS_NUMBERS]`: the numbers of this forward pass. They lie in memory, so that a recorded sequence of launches serves passes
    /// of different lengths.
    Pass,
    /// `i32[1]`: set to another number than 0 by a kernel that met an index out of bounds.
    Fault,
}

/// Numbers of [`GpuArg::Pass`]: the [`Sym`](crate::nest::Sym)s in their order, and how many blocks the state pool has.
pub const PASS_NUMBERS: usize = 5;
