//! What can go wrong between a checkpoint and an engine.

use crate::import::ImportError;
use std::path::PathBuf;

/// A compilation failed. Nothing is left behind: the engine appears under its name only when it is whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The source cannot be read, or is not supported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The tokenizer cannot be read, or is not supported.
    #[error("tokenizer: {0}")]
    Text(String),
    /// The tokenizer can give tokens that the model has no row for.
    #[error(
        "the tokenizer has {tokens} tokens, but the token embedding only {rows} rows; take the tokenizer that the model was \
         trained with, or remove the tokens from id {rows} on"
    )]
    Vocabulary {
        /// Tokens of the tokenizer: its highest id and one.
        tokens: usize,
        /// Rows of the token embedding.
        rows: u32,
    },
    /// A pass failed.
    #[error(transparent)]
    Pass(#[from] bessemer_passes::PassError),
    /// The graph does not become a plan.
    #[error(transparent)]
    Target(#[from] bessemer_targets::TargetError),
    /// Machine code cannot be generated.
    #[error(transparent)]
    Code(#[from] bessemer_targets::codegen::CodegenError),
    /// CUDA kernels do not become machine code.
    #[error(transparent)]
    Cuda(#[from] bessemer_targets::cuda::CudaError),
    /// A weight cannot be made.
    #[error("tensor {tensor}: {why}")]
    Weight {
        /// Its name.
        tensor: String,
        /// What is wrong.
        why: String,
    },
    /// The engine cannot be written.
    #[error("{}: {why}; the file was not written", path.display())]
    Output {
        /// Where it should have gone.
        path: PathBuf,
        /// What the operating system said.
        why: String,
    },
    /// The engine that was made is not one that the runtime accepts: our mistake.
    #[error("the engine does not pass its own validation: {0}; please report the model's configuration")]
    Format(#[from] bessemer_format::FormatError),
    /// The engine's hash is not the one that was demanded.
    #[error(
        "the engine's sha256 is {found}, expected {expected}; the source, the options or the version differ"
    )]
    Hash {
        /// Of the engine.
        found: String,
        /// Demanded.
        expected: String,
    },
    /// No choice of precisions holds the budget.
    #[error("no choice of precisions holds {asked}; the best reachable is {best}")]
    Budget {
        /// The budget.
        asked: String,
        /// What can be held.
        best: String,
    },
    /// Calibration or the measurement of quality failed.
    #[error("calibration: {0}")]
    Calibration(String),
    /// A file of statistics cannot be used.
    #[error(transparent)]
    Statistics(#[from] crate::calibrate::StatisticsError),
    /// A tuning cache cannot be used.
    #[error(transparent)]
    Tuning(#[from] crate::tuning::TuningError),
    /// The user or the system asked to stop.
    #[error("interrupted; nothing was written")]
    Interrupted,
}
