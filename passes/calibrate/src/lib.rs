//! Rounding of weights by what their inputs are.
//!
//! All of it stands on one statistic: the second moment `H = mean(x x^T)` of a linear's input x. A weight row w that becomes w + e changes
//! its output by `e x`, on average by `e H e^T` squared, and that is what every method here makes small: [`awq`] by scaling columns before
//! they are rounded and by shrinking ranges, [`gptq`] by letting later columns make up for what earlier ones lost.
//!
//! Arithmetic is defined to the bit (`bessemer_eager::defined`), so codes are a function of weights, text and options.

pub mod awq;
pub mod divergence;
pub mod gptq;
pub mod grid;
pub mod knapsack;
pub mod statistics;

pub use divergence::Divergence;
pub use grid::Grid;
pub use statistics::{Gather, Moment};

/// How weights are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// To nearest.
    #[default]
    Rtn,
    /// Columns scaled by their activations, ranges shrunk where that loses less.
    Awq,
    /// Column by column, each making up for the errors before it.
    Gptq,
    /// The scales and ranges of the one, the codes of the other.
    AwqGptq,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 4] = [Self::Rtn, Self::Awq, Self::Gptq, Self::AwqGptq];

    /// Whether it needs statistics.
    pub fn calibrates(self) -> bool {
        self != Self::Rtn
    }

    /// Whether columns are scaled and ranges shrunk.
    pub fn scales(self) -> bool {
        matches!(self, Self::Awq | Self::AwqGptq)
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
            Self::Awq => "awq",
            Self::Gptq => "gptq",
            Self::AwqGptq => "awq+gptq",
        })
    }
}

impl std::str::FromStr for Method {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|m| m.to_string() == s);
        known.ok_or_else(|| format!("`{s}` is no method; known: rtn, awq, gptq, awq+gptq"))
    }
}
