//! A target for tests, whose taste the test chooses.

use bessemer_format::{Compute, Elem, QuantScheme};
use bessemer_ir::{Layout, TargetInfo};

/// A target that takes what it is told to take.
#[derive(Clone, Copy, Debug)]
pub struct TestTarget {
    /// Whether it holds integer weights.
    pub integers: bool,
    /// The layout that it likes for matrices.
    pub layout: Layout,
    /// Whether it multiplies tiles of bf16.
    pub tiles: bool,
}

impl Default for TestTarget {
    fn default() -> Self {
        Self { integers: true, layout: Layout::Panel, tiles: false }
    }
}

impl TargetInfo for TestTarget {
    fn name(&self) -> String {
        "test".into()
    }

    fn supports(&self, scheme: &QuantScheme) -> Result<(), String> {
        if !self.integers && !scheme.elem.is_float() {
            return Err("it has no integer arithmetic".into());
        }
        scheme.check()
    }

    fn weight_layout(&self, _: &QuantScheme, _: u64, _: u64) -> Layout {
        self.layout
    }

    fn many_rows_attention(&self) -> Option<u32> {
        self.tiles.then_some(3)
    }

    /// bf16 over bf16 weights; signed bytes over integer weights, by 32 where the weight's groups are multiples of 32, else by 16.
    fn default_compute(&self, scheme: &QuantScheme, k: u64) -> Compute {
        match scheme.elem.unit() {
            None if scheme.elem == Elem::Bf16 => Compute::Bf16,
            None => Compute::F32,
            Some(_) if scheme.group(k as usize).is_multiple_of(32) => Compute::Int8 { group: 32 },
            Some(_) => Compute::Int8 { group: 16 },
        }
    }
}
