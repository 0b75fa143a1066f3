//! Rounding of weights by what their inputs are.
//!
//! All of it stands on one statistic: the second moment `H = mean(x x^T)` of a linear's input x. A weight row w that becomes w + e changes
//! its output by `e x`, on average by `e H e^T` squared, and that is what every method here makes small: [`awq`] by scaling columns before
//! they are rounded and by shrinking ranges, [`gptq`] by letting later columns make up for what earlier ones lost, [`refine`] by
//! going on from there. Only [`smooth`] looks at what rounding of the inputs loses.
//!
//! Arithmetic is defined to the bit (`bessemer_eager::defined`), so codes are a function of weights, text and options.

pub mod awq;
pub mod divergence;
pub mod gptq;
pub mod grid;
pub mod knapsack;
pub mod refine;
pub mod smooth;
pub mod statistics;

pub use divergence::Divergence;
pub use grid::Grid;
pub use statistics::{Gather, Moment, Reach};

/// How weights are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// To nearest.
    #[default]
    Rtn,
    /// To nearest, ranges shrunk where that loses less of the outputs.
    Weighted,
    /// Columns scaled by their activations, ranges shrunk where that loses less.
    Awq,
    /// Column by column, each making up for the errors before it.
    Gptq,
    /// The scales and ranges of the one, the codes of the other.
    AwqGptq,
    /// Columns scaled so that inputs and weights are about as hard to round as each other, then to nearest: for engines that round both.
    Smooth,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 6] =
        [Self::Rtn, Self::Weighted, Self::Awq, Self::Gptq, Self::AwqGptq, Self::Smooth];

    /// Whether it needs statistics.
    pub fn calibrates(self) -> bool {
        self != Self::Rtn
    }

    /// Whether columns are scaled.
    pub fn scales(self) -> bool {
        matches!(self, Self::Awq | Self::AwqGptq | Self::Smooth)
    }

    /// Whether ranges are shrunk.
    pub fn shrinks(self) -> bool {
        matches!(self, Self::Weighted | Self::Awq | Self::AwqGptq)
    }

    /// Whether later columns make up for earlier ones.
    pub fn compensates(self) -> bool {
        matches!(self, Self::Gptq | Self::AwqGptq)
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rtn => "rtn",
            Self::Weighted => "weighted",
            Self::Awq => "awq",
            Self::Gptq => "gptq",
            Self::AwqGptq => "awq+gptq",
            Self::Smooth => "smoothquant",
        })
    }
}

impl std::str::FromStr for Method {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|m| m.to_string() == s);
        let names = Self::ALL.map(|m| m.to_string()).join(", ");
        known.ok_or_else(|| format!("`{s}` is no method; known: {names}"))
    }
}
