//! The CPU's taste. One ISA-neutral packed copy serves every CPU: kernel rows are chosen when an engine is loaded.

mod crossover;

use crate::error::TargetError;
use bessemer_format::act::Int8Layout;
use bessemer_format::manifest::CodeIsa;
use bessemer_format::variant::DeviceCode;
use bessemer_format::{Compute, PanelLayout, QuantScheme};
use bessemer_ir::{Layout, TargetInfo};

/// A CPU target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuTarget {
    name: String,
    features: Vec<String>,
}

/// The feature that multiplies tiles of bfloat16.
const AMX_BF16: &str = "amx-bf16";
/// Rows of a tile. A pass of fewer leaves rows of tiles empty, and waits for memory more than for products.
const TILE_ROWS: u32 = 16;

/// Names that [`CpuTarget::parse`] takes, with the CPU features that each demands of the host.
const TARGETS: &[(&str, &[&str])] = &[
    ("cpu", &[]),
    ("cpu:x86-64-v3", &["avx2", "fma"]),
    ("cpu:x86-64-v4+vnni", &["avx512f", "avx512bw", "avx512vl", "avx512vnni"]),
    (
        "cpu:x86-64-v4+amx",
        &[
            "avx512f",
            "avx512bw",
            "avx512vl",
            "avx512vnni",
            "avx512vbmi",
            "avx512bf16",
            "amx-tile",
            AMX_BF16,
            "amx-int8",
        ],
    ),
    ("cpu:aarch64", &["neon"]),
];

impl Default for CpuTarget {
    /// `cpu`: runs everywhere.
    fn default() -> Self {
        Self { name: "cpu".into(), features: Vec::new() }
    }
}

impl CpuTarget {
    /// The target that a user names. `cpu` runs everywhere; the others are refused by hosts that lack their features.
    pub fn parse(name: &str) -> Result<Self, TargetError> {
        let found = TARGETS
            .iter()
            .find(|(n, _)| *n == name)
            .ok_or_else(|| TargetError::UnknownTarget { found: name.into(), known: Self::names() })?;
        Ok(Self { name: name.into(), features: found.1.iter().map(ToString::to_string).collect() })
    }

    /// Every name that there is.
    pub fn names() -> String {
        TARGETS.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", ")
    }

    /// What an engine for this target asks of its host.
    pub fn device(&self) -> DeviceCode {
        DeviceCode::Cpu { features: self.features.clone() }
    }

    /// Whether every host multiplies tiles of bfloat16.
    fn has_tiles(&self) -> bool {
        self.features.iter().any(|f| f == AMX_BF16)
    }

    /// The instruction sets for which nests become machine code.
    pub fn code_isas(&self) -> &'static [CodeIsa] {
        match self.name.as_str() {
            "cpu" => &[CodeIsa::X86_64V3, CodeIsa::Aarch64],
            "cpu:aarch64" => &[CodeIsa::Aarch64],
            _ => &[CodeIsa::X86_64V3],
        }
    }
}

impl TargetInfo for CpuTarget {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn supports(&self, scheme: &QuantScheme) -> Result<(), String> {
        scheme.check()
    }

    fn weight_layout(&self, _: &QuantScheme, _: u64, _: u64) -> Layout {
        Layout::Panel
    }

    /// Weights that are multiples of a unit by integers compute with signed-byte activations by groups of 32 (16 where the weight groups are odd multiples of 16):
    /// the integer dot product is what makes them fast, and so fine a group keeps the rounding small.
    ///
    /// bf16 weights compute with bf16 activations: up to twice the rate where a CPU multiplies bf16, and one pass over the activations more
    /// elsewhere. It is what other runtimes do with such weights. SmolLM2-135M rounded to bf16 has a mean KL divergence from f32 of 1.4e-4
    /// then, beside 0.5e-4 with f32 activations and 3.9e-3 of its 4-bit form.
    fn default_compute(&self, scheme: &QuantScheme, k: u64) -> Compute {
        if scheme.elem.unit().is_none() {
            return if *scheme == QuantScheme::BF16 { Compute::Bf16 } else { Compute::F32 };
        }
        match PanelLayout::new(scheme, 1, k as usize) {
            Ok(layout) => {
                Compute::Int8 { group: Int8Layout::natural_group(layout.run(), layout.runs()) as u32 }
            }
            Err(_) => Compute::F32,
        }
    }

    /// Where AMX multiplies bf16. Elsewhere nothing is sure to be gained: without tiles Intel's CPUs multiply bf16 at half the rate of f32,
    /// AMD's at twice, and an engine for any CPU computes in the same however many rows a pass has.
    fn many_rows_attention(&self) -> Option<u32> {
        self.has_tiles().then_some(TILE_ROWS)
    }

    /// Weights with scales are dequantised to bfloat16 for passes of many rows where AMX multiplies it: ten times the rate of
    /// products of f32 and twice that of bytes, and activations round less than to bytes by 32. Few rows are not worth it.
    fn many_rows_compute(&self, scheme: &QuantScheme, k: u64) -> Option<(u32, Compute)> {
        let tiles = self.has_tiles() && scheme.scale.is_some();
        tiles.then(|| (crossover::from_rows(scheme, self.default_compute(scheme, k)), Compute::Bf16))
    }
}
