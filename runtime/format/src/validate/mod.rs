//! Validation of a decoded plan: every static fact that execution relies on, checked once.
//!
//! After it, an executor indexes weights, buffers, nests and states of the plan without asking again. What remains for run time are
//! the *values* in the input arrays: tokens, positions, slots and blocks are bounded by whoever fills or uses them.
//!
//! * `weights`: slices of the WEIGHTS section, the manifest and the CODE section;
//! * `gpu`: kernels and launches, what devices must have, and the DEVICE section;
//! * `program`: buffers and regimes;
//! * `steps`: the operands of each step;
//! * `nest`: well-formed nests, and a proof that no index leaves its view;
//! * `memory`: lifetimes, overlap and barriers. It shares no code with the planner whose work it judges.
//!
//! Inside, a check returns the reason as text; the place is added once, on the way out.

mod gpu;
mod memory;
mod nest;
mod program;
mod steps;
mod weights;

use crate::error::FormatError;
use crate::manifest::Manifest;
use crate::plan::{Plan, StateDecl};
use crate::variant::{DeviceCode, VariantPlan};

/// Most programs of a plan.
pub const MAX_PROGRAMS: usize = 16;
/// Most rows of a forward pass.
pub const MAX_ROWS: u32 = 1 << 16;
/// Most buffers of a program.
pub const MAX_BUFFERS: usize = 1 << 16;
/// Most steps of a program.
pub const MAX_STEPS: usize = 1_000_000;
/// Most nests of a plan.
pub const MAX_NESTS: usize = 1 << 16;
/// Most heads of an attention, and most elements of a head.
pub const MAX_HEADS: u32 = 1 << 12;
/// Most weights of a stack, and most results that a row has of it.
pub const MAX_GROUPS: u64 = 1 << 12;
/// Most elements of a block, so that its bytes and any index into it stay far from overflow.
pub const MAX_STATE_ELEMS: u64 = 1 << 31;
/// Most kernels of a variant.
pub const MAX_KERNELS: usize = 1 << 16;
/// Most threads of a workgroup, on every device.
pub const MAX_THREADS: u32 = 1024;
/// Most pointers of a kernel: Metal has no more.
pub const MAX_PARAMS: u32 = 31;
/// Most launches of a program.
pub const MAX_LAUNCHES: usize = 4 * MAX_STEPS;
/// Most workgroups along x, y and z, on every device.
pub const MAX_GRID: [u64; 3] = [(1 << 31) - 1, 65535, 65535];
/// Most bytes of an arena.
pub const MAX_ARENA: u64 = 1 << 46;

type Check<T = ()> = Result<T, String>;

/// Adds the place to a reason.
trait At<T> {
    fn at(self, place: impl FnOnce() -> String) -> Result<T, FormatError>;
}

impl<T> At<T> for Check<T> {
    fn at(self, place: impl FnOnce() -> String) -> Result<T, FormatError> {
        self.map_err(|why| FormatError::Invalid { at: place(), why })
    }
}

/// Refuses with a formatted reason unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return Err(format!($($reason)+));
        }
    };
}
use ensure;

/// The sections that plans and manifest refer to.
#[derive(Clone, Copy, Debug)]
pub struct SectionBytes<'a> {
    /// Length of WEIGHTS.
    pub weights: u64,
    /// Length of CODE.
    pub code: u64,
    /// DEVICE itself.
    pub device: &'a [u8],
}

/// Checks the plan of every variant, the manifest and the sections that they refer to.
pub fn validate(
    plans: &[VariantPlan],
    manifest: &Manifest,
    sections: SectionBytes<'_>,
) -> Result<(), FormatError> {
    gpu::variants(plans, manifest).at(|| "variants".into())?;
    if let Some(first) = plans.first() {
        weights::slices(&first.plan, sections.weights)?;
    }
    weights::manifest(plans, manifest, sections.code)?;
    for (variant, VariantPlan { plan, gpu }) in manifest.variants.iter().zip(plans) {
        self::plan(plan).and_then(|()| gpu::code(plan, gpu.as_ref(), &variant.device)).map_err(
            |e| match e {
                // The CPU's is the plan that messages mean where they name none.
                FormatError::Invalid { at, why } if !matches!(variant.device, DeviceCode::Cpu { .. }) => {
                    FormatError::Invalid { at: format!("{}, {at}", variant.target), why }
                }
                other => other,
            },
        )?;
    }
    gpu::section(plans, manifest, sections.device)
}

fn plan(plan: &Plan) -> Result<(), FormatError> {
    model(plan).at(|| "model".into())?;
    for (id, state) in plan.states.iter().enumerate() {
        let (StateDecl::Blocks { elems } | StateDecl::Recurrent { elems }) = state;
        (1..=MAX_STATE_ELEMS)
            .contains(elems)
            .then_some(())
            .ok_or_else(|| format!("blocks of {elems} elements (1 to {MAX_STATE_ELEMS} are possible)"))
            .at(|| format!("state {id}"))?;
    }
    for (id, nest) in plan.nests.iter().enumerate() {
        nest::structure(nest).at(|| format!("nest {id} ({})", nest.name))?;
    }
    program::programs(plan)
}

fn model(plan: &Plan) -> Check {
    let crate::plan::ModelFacts { vocab, context, hidden, layers, output: _, whole: _ } = plan.model;
    let output = plan.model.output_width();
    for (what, value) in
        [("vocab", vocab), ("context", context), ("hidden", hidden), ("layers", layers), ("output", output)]
    {
        ensure!((1..=i32::MAX as u32).contains(&value), "{what} is {value} and must lie in 1..=2147483647");
    }
    ensure!(plan.nests.len() <= MAX_NESTS, "{} nests, at most {MAX_NESTS}", plan.nests.len());
    Ok(())
}
