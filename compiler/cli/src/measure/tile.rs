//! The tile loop of an engine's prompts where nothing keeps it waiting: its weights and activations lie in a core's own cache.

use bessemer_format::plan::{Linear, RowCount, StepKind, WeightLayout, WeightSlice};
use bessemer_format::{Compute, PanelLayout, panel};
use bessemer_kernels::KernelSet;
use bessemer_kernels::linear::{LinearBf16, Product, TILE_ROWS};
use bessemer_runtime::Engine;
use std::collections::BTreeMap;

/// Bytes of packed weights that are multiplied again and again: a part of any second-level cache that also holds the activations.
const WEIGHT_BYTES: usize = 128 << 10;

/// Some panels of an engine's own weights, as many rows of noise as its kernels take at once, and the kernel that multiplies them.
pub struct Tile {
    product: Product,
    weight: Vec<u8>,
    panels: usize,
    multiply_adds: u64,
}

impl Tile {
    /// Of the shape whose linears multiply most in the program for the longest prompts. `None` where the engine has no such program
    /// for a CPU.
    pub fn of(engine: &Engine) -> Option<Self> {
        let plan = engine.plan();
        let linears = plan.programs.last()?.steps.iter().filter_map(|step| match &step.kind {
            StepKind::Linear(linear) => Some(linear),
            StepKind::GroupedLinear(grouped) => Some(&grouped.linear),
            _ => None,
        });
        let weight = |linear: &Linear| {
            let id = linear.segments.first()?.weight;
            let slice = plan.weights.get(id as usize)?;
            (slice.layout == WeightLayout::Panel).then_some((id, slice))
        };
        // Linears of all layers that multiply alike count together.
        let mut most = BTreeMap::<_, (u64, u32, &WeightSlice, Compute)>::new();
        for linear in linears.filter(|linear| linear.rows == RowCount::Tokens) {
            let Some((id, slice)) = weight(linear) else { continue };
            let of_this = most.entry((slice.scheme, slice.k)).or_insert((0, id, slice, linear.compute));
            of_this.0 += linear.segments.len() as u64 * u64::from(slice.n) * u64::from(slice.k);
        }
        let (_, id, slice, compute) = most.into_values().max_by_key(|(count, ..)| *count)?;
        let (n, k) = (slice.n as usize, slice.k as usize);
        let whole = PanelLayout::new(&slice.scheme, n, k).ok()?;
        // Two at least, since kernels take pairs.
        let panels = (WEIGHT_BYTES / whole.panel_bytes()).clamp(2, whole.panels().max(2)) & !1;
        let weight = engine.file().weight(id).get(..panels * whole.panel_bytes())?.to_vec();
        let layout = PanelLayout::new(&slice.scheme, panels * panel::COLUMNS, k).ok()?;
        let kernels = KernelSet::for_isa(engine.isa())?;
        let rows = match kernels.linear_bf16(&layout) {
            LinearBf16::Native(linear) if compute == Compute::Bf16 => linear.tile_rows(),
            _ => TILE_ROWS,
        };
        let x: Vec<f32> = noise().take(rows * k).collect();
        let product = Product::new(kernels, &layout, compute, &x).ok()?;
        let multiply_adds = (rows * panels * panel::COLUMNS * k) as u64;
        Some(Self { product, weight, panels, multiply_adds })
    }

    /// Multiplies all rows with all panels, on this thread. Gives how many multiply-adds that were.
    pub fn run(&self) -> u64 {
        self.product.run(&self.weight, 0..self.panels);
        self.multiply_adds
    }
}

/// Numbers between -1 and 1 that look random, the same ones always.
fn noise() -> impl Iterator<Item = f32> {
    let mut state = 0x1234_5678_u32;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as i32 as f32 / i32::MAX as f32
    })
}
