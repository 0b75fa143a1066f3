//! Metal: kernels' text ([`crate::clike`]) goes into the engine as it is. Apple's compiler, which only Macs have, takes it when an engine is
//! loaded.

use crate::error::TargetError;
use bessemer_format::{Compute, QuantScheme};
use bessemer_ir::{Layout, TargetInfo};

/// Families of Apple's GPUs whose machines run the text: M1 and A14, M2 and A15, M3 and A17, M4. It uses what the first has.
const FAMILIES: [u32; 4] = [7, 8, 9, 10];

/// GPUs of Apple.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetalTarget {
    family: u32,
}

impl MetalTarget {
    /// The target that a user names: `metal` is the oldest family.
    pub fn parse(name: &str) -> Result<Self, TargetError> {
        let unknown = || TargetError::UnknownTarget { found: name.into(), known: Self::names() };
        match name.split_once(':') {
            None if name == "metal" => Ok(Self { family: FAMILIES[0] }),
            Some(("metal", family)) => {
                let known = FAMILIES.into_iter().find(|number| family == format!("apple{number}"));
                known.map(|family| Self { family }).ok_or_else(unknown)
            }
            _ => Err(unknown()),
        }
    }

    /// Every name that there is.
    pub fn names() -> String {
        let families = FAMILIES.map(|family| format!("metal:apple{family}"));
        format!("metal, {}", families.join(", "))
    }

    /// The oldest family that it is for.
    pub fn family(&self) -> u32 {
        self.family
    }

    /// Adds another target's GPUs: what serves the older family serves both.
    pub(crate) fn merge(&mut self, other: Self) {
        self.family = self.family.min(other.family);
    }
}

impl TargetInfo for MetalTarget {
    fn name(&self) -> String {
        format!("metal:apple{}", self.family)
    }

    fn supports(&self, scheme: &QuantScheme) -> Result<(), String> {
        scheme.check()
    }

    /// As the CPU's: the panels' lines are loads of 16 bytes for neighbouring threads.
    fn weight_layout(&self, _: &QuantScheme, _: u64, _: u64) -> Layout {
        Layout::Panel
    }

    /// The generated kernels multiply in f32.
    fn default_compute(&self, _: &QuantScheme, _: u64) -> Compute {
        Compute::F32
    }
}
