//! Why an engine is not run, or a run did not finish.

use crate::device::DeviceError;
use crate::pool::JobPanicked;
use bessemer_format::FormatError;
use std::io;

/// Why an engine cannot be opened, or a worker not be made for it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The file is no engine that this version reads.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The engine was compiled for another kind of machine.
    #[error(
        "the engine is for target `{target}`, which this runtime does not run; compile the model again with \
         `--target cpu`"
    )]
    Target {
        /// Target of the engine.
        target: String,
    },
    /// The CPU lacks what every kernel of the plan needs.
    #[error(
        "the engine (target `{target}`) needs the CPU features {}, which this host lacks; compile the model again \
         with `--target cpu`",
        missing.join(", ")
    )]
    CpuFeatures {
        /// Target of the engine.
        target: String,
        /// What is missing.
        missing: Vec<String>,
    },
    /// The plan asks for something that this runtime does not do.
    #[error("step `{step}`: {why}; compile the model again with this version of bessemer")]
    Unsupported {
        /// The step's source node.
        step: String,
        /// What is asked for.
        why: String,
    },
    /// The CODE section cannot be made executable.
    #[error("the generated code cannot be used: {why}; open the engine without trust to run its nests")]
    Code {
        /// What went wrong.
        why: String,
    },
    /// The device does not run it.
    #[error("{device}: {why}")]
    Device {
        /// The device asked for.
        device: String,
        /// Why not.
        #[source]
        why: DeviceError,
    },
    /// Memory or threads cannot be had.
    #[error("{what}: {source}; ask for fewer tokens, rows or threads")]
    Resource {
        /// What was asked for.
        what: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The options ask for more memory than they allow.
    #[error(
        "{needed} bytes are needed at most for {tokens} tokens and {limit} are allowed; allow more, ask for fewer \
         tokens, or use a bf16 cache"
    )]
    MemoryLimit {
        /// Bytes needed at most.
        needed: u64,
        /// Bytes allowed.
        limit: u64,
        /// Tokens asked for.
        tokens: usize,
    },
    /// A number of rows or tokens that no worker can have.
    #[error("{what} is {found}; it must be {allowed}")]
    Option {
        /// Which option.
        what: &'static str,
        /// What was asked for.
        found: usize,
        /// What is possible.
        allowed: String,
    },
}

/// Why a forward pass did not finish. Sequences keep what was computed before: `Sequence::len` says how much.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A token id that the vocabulary does not have.
    #[error("token {token} (entry {entry}, index {index}) is not below the vocabulary size {vocab}")]
    Token {
        /// The token.
        token: u32,
        /// Entry of the batch.
        entry: usize,
        /// Index in the entry's tokens.
        index: usize,
        /// Size of the vocabulary.
        vocab: u32,
    },
    /// The sequence would become longer than the model's context.
    #[error(
        "{len} tokens and {tokens} more exceed the model's context of {context} (entry {entry}); truncate the \
         sequence or start a new one"
    )]
    Context {
        /// Entry of the batch.
        entry: usize,
        /// Tokens of the sequence.
        len: usize,
        /// Tokens to be appended.
        tokens: usize,
        /// Longest sequence.
        context: usize,
    },
    /// No block of the KV cache is left.
    #[error(
        "the KV cache is full: {needed} more blocks are needed and {free} of {total} are free; drop or truncate \
         sequences, or make the worker with more `max_tokens`"
    )]
    CacheFull {
        /// Blocks needed.
        needed: usize,
        /// Blocks free.
        free: usize,
        /// Blocks of the cache.
        total: usize,
    },
    /// A sequence of another worker.
    #[error("entry {entry} is a sequence of another worker; save it there and load it into this one")]
    Foreign {
        /// Entry of the batch.
        entry: usize,
    },
    /// A mask of another length than the tokens.
    #[error("the logits mask of entry {entry} has {found} flags for {tokens} tokens")]
    Mask {
        /// Entry of the batch.
        entry: usize,
        /// Flags.
        found: usize,
        /// Tokens.
        tokens: usize,
    },
    /// A model that takes whole sequences was given a part of one, or one that is too long for a pass.
    #[error(
        "entry {entry} brings {tokens} tokens to a sequence of {len}, and this model takes sequences whole, of up to {rows} tokens;          start a new sequence, shorten the text, or make the worker with more `max_rows`"
    )]
    Whole {
        /// Entry of the batch.
        entry: usize,
        /// Tokens of the sequence.
        len: usize,
        /// Tokens to be appended.
        tokens: usize,
        /// Most rows of a pass.
        rows: usize,
    },
    /// Types of tokens that are not 0 or 1, or not one for each token.
    #[error("entry {entry} has {found} types for {tokens} tokens; each token takes one, 0 or 1")]
    Types {
        /// Entry of the batch.
        entry: usize,
        /// Types.
        found: usize,
        /// Tokens.
        tokens: usize,
    },
    /// A step met an index outside its bounds.
    #[error("step `{step}`: {why}; the engine was not made by a correct compiler")]
    Index {
        /// The step's source node.
        step: String,
        /// What was wrong.
        why: String,
    },
    /// The device failed: it was lost, or a kernel touched memory that it must not touch.
    #[error("{device}: {what} failed: {why}; make a new worker")]
    Device {
        /// The device.
        device: String,
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        why: String,
    },
    /// Logits were asked for where there is no token that they could follow.
    #[error(
        "there is no token yet that a next one could follow; feed a prompt (at least the BOS token) first"
    )]
    NoTokens,
    /// Text was to be generated by a model that gives no logits.
    #[error(
        "this engine gives no logits of a next token, so it generates no text; make vectors or scores of texts (`bessemer embed`, or `Embedder` in the library)"
    )]
    NoLogits,
    /// The handle of the batch was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A thread panicked: a bug of this crate.
    #[error("{0}; this is a bug of bessemer")]
    Panicked(#[from] JobPanicked),
    /// A session's worker was lost to a panic of another session.
    #[error("the worker was lost when another thread panicked while using it; make a new one")]
    WorkerLost,
}

/// Why a saved sequence cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Not a saved sequence.
    #[error("not a saved sequence: {why}")]
    Header {
        /// What is wrong.
        why: String,
    },
    /// Saved under another engine.
    #[error("the sequence was saved with engine {found}, and this is {expected}; process its tokens again")]
    Engine {
        /// Engine of the bytes.
        found: String,
        /// This engine.
        expected: String,
    },
    /// Saved with another element type of the cache.
    #[error("the sequence was saved with a {found} cache, and this worker's is {expected}")]
    Kv {
        /// Type in the bytes.
        found: &'static str,
        /// Type of the worker.
        expected: &'static str,
    },
    /// Bytes missing, too many or changed.
    #[error("the saved sequence is damaged: {why}")]
    Damaged {
        /// What is wrong.
        why: String,
    },
    /// There is no room for it.
    #[error(transparent)]
    Run(#[from] RunError),
}
