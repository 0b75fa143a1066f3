//! Phases of compilation and which ops are legal in each.

use crate::op::Op;
use std::fmt;

/// How far a graph has come. Later phases are larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// As the architecture file built it.
    Imported,
    /// Folded, without dead or doubled nodes. Still one weight a linear.
    Canonical,
    /// Fused.
    Fused,
    /// Every weight has the scheme that the engine will hold.
    Quantised,
    /// Every weight has the layout that its kernel reads.
    Packed,
}

impl Phase {
    /// All phases in order.
    pub const ALL: [Phase; 5] =
        [Phase::Imported, Phase::Canonical, Phase::Fused, Phase::Quantised, Phase::Packed];

    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Imported => "imported",
            Phase::Canonical => "canonical",
            Phase::Fused => "fused",
            Phase::Quantised => "quantised",
            Phase::Packed => "packed",
        }
    }

    /// The legality table: whether `op` may stand in a graph of this phase. Fused forms appear from `Fused` on; nothing else is
    /// ever taken away, since a pass may be switched off.
    pub fn allows(self, op: &Op) -> bool {
        match op {
            Op::AddRmsNorm { .. } | Op::RopeAppend { .. } | Op::Pointwise { .. } => self >= Phase::Fused,
            Op::Linear { segments, epilogue, .. } | Op::GroupedLinear { segments, epilogue, .. } => {
                self >= Phase::Fused || (segments.len() == 1 && *epilogue == crate::attr::Epilogue::None)
            }
            _ => true,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Phase {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Phase::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|p| p.name() == s)
            .ok_or_else(|| format!("`{s}` is no phase; phases: {}", names()))
    }
}
