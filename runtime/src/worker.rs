//! A worker: the threads and the memory that run batches.

use crate::batch::{Batch, Logits};
use crate::device::{self, Device, DeviceChoice, DevicePass, Started};
use crate::engine::Engine;
use crate::error::{EngineError, RunError, SnapshotError};
use crate::exec::{Inputs, Profile, Span, StepResult, Watch};
use crate::state::{Sequence, StatePool};
use bessemer_format::kv::TOKENS;
use bessemer_format::manifest::KvElem;
use bessemer_format::plan::Plan;
use bessemer_format::variant::DeviceKind;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// How a worker is made. The default is one thread a core, the largest batches of the plan and a bf16 cache for as many
/// tokens as the model's context.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerOptions {
    /// Threads; 0 is one for each physical core that the process may use. Their number changes no result.
    pub threads: usize,
    /// Whether threads are bound to cores (that of the caller during a pass only). Turn it off where several workers or other
    /// busy processes share the machine: bound threads cannot move out of their way.
    pub pin: bool,
    /// Most rows of one pass; longer batches are cut. 0 is what the engine's largest program takes.
    pub max_rows: usize,
    /// Element type of the KV cache.
    pub kv: KvElem,
    /// Tokens that all sequences hold together at most; 0 is the model's context.
    pub max_tokens: usize,
    /// Bytes that the worker may take at most, as [`Engine::memory`] counts them.
    pub max_memory: Option<u64>,
    /// What runs loop nests.
    pub nests: Nests,
    /// Where passes run.
    pub device: DeviceChoice,
    /// How many layers run on the GPU, the last ones and the head; the others run on the CPU. `None`, or as many as the model has, is all of it.
    pub gpu_layers: Option<usize>,
    /// Folder that kernels are kept in once the system has compiled them, where it compiles them (Metal); none keeps nothing.
    pub kernel_cache: Option<PathBuf>,
}

/// What runs the loop nests of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nests {
    /// Generated code where the engine has it, fits this host and was opened with trust; else the nests themselves.
    #[default]
    Auto,
    /// The nests themselves.
    Interpreted,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            threads: 0,
            pin: true,
            max_rows: 0,
            kv: KvElem::DEFAULT,
            max_tokens: 0,
            max_memory: None,
            nests: Nests::Auto,
            device: DeviceChoice::Auto,
            gpu_layers: None,
            kernel_cache: None,
        }
    }
}

impl WorkerOptions {
    /// Sets [`WorkerOptions::threads`].
    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Sets [`WorkerOptions::pin`].
    pub fn pin(self, pin: bool) -> Self {
        Self { pin, ..self }
    }

    /// Sets [`WorkerOptions::max_rows`].
    pub fn max_rows(self, max_rows: usize) -> Self {
        Self { max_rows, ..self }
    }

    /// Sets [`WorkerOptions::kv`].
    pub fn kv(self, kv: KvElem) -> Self {
        Self { kv, ..self }
    }

    /// Sets [`WorkerOptions::max_tokens`].
    pub fn max_tokens(self, max_tokens: usize) -> Self {
        Self { max_tokens, ..self }
    }

    /// Sets [`WorkerOptions::max_memory`].
    pub fn max_memory(self, max_memory: u64) -> Self {
        Self { max_memory: Some(max_memory), ..self }
    }

    /// Sets [`WorkerOptions::nests`].
    pub fn nests(self, nests: Nests) -> Self {
        Self { nests, ..self }
    }

    /// Sets [`WorkerOptions::device`].
    pub fn device(self, device: DeviceChoice) -> Self {
        Self { device, ..self }
    }

    /// Sets [`WorkerOptions::gpu_layers`].
    pub fn gpu_layers(self, layers: usize) -> Self {
        Self { gpu_layers: Some(layers), ..self }
    }

    /// Sets [`WorkerOptions::kernel_cache`].
    pub fn kernel_cache(self, folder: impl Into<PathBuf>) -> Self {
        Self { kernel_cache: Some(folder.into()), ..self }
    }
}

/// Runs batches of an engine, one at a time, with its own threads, activations and KV cache.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bessemer_runtime::{Batch, Engine, Want, Worker, WorkerOptions};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/engines/gqa_tied.engine");
/// let engine = Engine::open(path)?;
/// let mut worker = Worker::new(&engine, WorkerOptions::default().threads(2))?;
/// let mut sequence = worker.sequence();
/// let mut batch = Batch::new();
/// batch.push(&mut sequence, &[1, 30, 62], Want::Last);
/// let logits = worker.forward(&mut batch)?;
/// assert_eq!(logits.of(0)[0].len(), engine.plan().model.vocab as usize);
/// assert_eq!(sequence.len(), 3);
/// # Ok(())
/// # }
/// ```
pub struct Worker {
    engine: Engine,
    device: Box<dyn Device>,
    kind: DeviceKind,
    on: String,
    state: Arc<StatePool>,
    max_rows: usize,
    // What follows is reused from pass to pass.
    inputs: Inputs,
    pieces: Vec<Piece>,
    logits: Vec<f32>,
    logit_entries: Vec<Range<usize>>,
}

/// The part of a batch's entry that one pass takes.
#[derive(Clone, Copy)]
struct Piece {
    entry: usize,
    /// First token, counted in the entry.
    first: usize,
    tokens: usize,
}

impl Worker {
    /// Starts the threads and reserves memory for `engine`. Nothing is committed before it is used.
    pub fn new(engine: &Engine, options: WorkerOptions) -> Result<Self, EngineError> {
        let Started { device, memory, room, kind, on } = device::start(engine, &options)?;
        log::debug!("worker on {on}: {} rows, {} blocks of {TOKENS} tokens", room.rows, room.blocks);
        let state = StatePool::new(engine.plan(), engine.hash(), &room.layout, room.blocks, memory);
        let max_rows = room.rows;
        Ok(Self {
            device,
            kind,
            on,
            state: Arc::new(state),
            max_rows,
            inputs: Inputs {
                staged_slots: (0..max_rows).map(|row| (row % TOKENS) as i32).collect(),
                ..Inputs::default()
            },
            pieces: Vec::new(),
            logits: Vec::new(),
            logit_entries: Vec::new(),
            engine: engine.clone(),
        })
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What it executes: the engine's plan for the device.
    pub fn plan(&self) -> &Plan {
        self.engine.variant(self.kind).map_or(self.engine.plan(), |variant| variant.plan)
    }

    /// The kind of device that it runs on.
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// The device that it runs on, and why that one, for people.
    pub fn device(&self) -> &str {
        &self.on
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.device.threads()
    }

    /// Most rows of one pass.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Tokens that fit into blocks that no sequence holds.
    pub fn free_tokens(&self) -> usize {
        self.state.free() * TOKENS
    }

    /// A sequence without tokens.
    pub fn sequence(&self) -> Sequence {
        Sequence::new(&self.state)
    }

    /// Loads a sequence that was [saved](Sequence::save) under the same engine and cache type.
    pub fn load(&self, bytes: &[u8]) -> Result<Sequence, SnapshotError> {
        Sequence::load(&self.state, bytes)
    }

    /// Processes the tokens of a batch: appends them to their sequences and gives the logits that are wanted.
    ///
    /// The result of an entry does not depend on the others, nor on the number of threads. If it fails before
    /// anything was computed, nothing has changed; if it is cancelled or fails later, sequences hold the tokens of
    /// the passes that were completed (of models that carry recurrent state, up to the end of a block of them).
    pub fn forward(&mut self, batch: &mut Batch<'_>) -> Result<Logits<'_>, RunError> {
        self.forward_watched(batch, None)
    }

    /// [`forward`](Self::forward) that shows what every step computed: on the calling thread, while the others wait.
    pub fn forward_traced(
        &mut self,
        batch: &mut Batch<'_>,
        see: &mut (dyn FnMut(&StepResult<'_>) + Send),
    ) -> Result<Logits<'_>, RunError> {
        self.forward_watched(batch, Some(Watch::Results(see)))
    }

    /// [`forward`](Self::forward) that adds the times of its steps to `profile`, which belongs to this worker. Looking
    /// at the clock costs some tens of nanoseconds a step and thread.
    pub fn forward_profiled(
        &mut self,
        batch: &mut Batch<'_>,
        profile: &mut Profile,
    ) -> Result<Logits<'_>, RunError> {
        self.forward_watched(batch, Some(Watch::Times(profile)))
    }

    fn forward_watched(
        &mut self,
        batch: &mut Batch<'_>,
        mut watch: Option<Watch<'_>>,
    ) -> Result<Logits<'_>, RunError> {
        self.check(batch)?;
        let result = self.reserve(batch).and_then(|()| self.passes(batch, &mut watch));
        for entry in &mut batch.entries {
            entry.sequence.trim();
        }
        result?;
        let width = self.width();
        let rows = self.logit_entries.last().map_or(0, |r| r.end);
        Ok(Logits { data: &self.logits[..rows * width], width, entries: &self.logit_entries })
    }

    /// Elements of a row of results.
    fn width(&self) -> usize {
        self.engine.plan().model.output_width() as usize
    }

    /// Everything that a caller can get wrong, before anything is changed.
    fn check(&mut self, batch: &Batch<'_>) -> Result<(), RunError> {
        let model = &self.engine.plan().model;
        self.logit_entries.clear();
        let mut logits = 0;
        for (entry, e) in batch.entries.iter().enumerate() {
            if !Arc::ptr_eq(e.sequence.pool(), &self.state) {
                return Err(RunError::Foreign { entry });
            }
            let (len, tokens, context) = (e.sequence.len(), e.tokens.len(), model.context as usize);
            if tokens > context.saturating_sub(len) {
                return Err(RunError::Context { entry, len, tokens, context });
            }
            if let Some((index, &token)) = e.tokens.iter().enumerate().find(|(_, t)| **t >= model.vocab) {
                return Err(RunError::Token { token, entry, index, vocab: model.vocab });
            }
            if model.whole && (len > 0 || tokens > self.max_rows) {
                return Err(RunError::Whole { entry, len, tokens, rows: self.max_rows });
            }
            if !e.types.is_empty() && (e.types.len() != tokens || e.types.iter().any(|t| *t > 1)) {
                return Err(RunError::Types { entry, found: e.types.len(), tokens });
            }
            if let crate::batch::Want::Mask(mask) = e.want
                && mask.len() != tokens
            {
                return Err(RunError::Mask { entry, found: mask.len(), tokens });
            }
            let count = e.want.count(tokens);
            self.logit_entries.push(logits..logits + count);
            logits += count;
        }
        Ok(())
    }

    fn reserve(&mut self, batch: &mut Batch<'_>) -> Result<(), RunError> {
        for entry in &mut batch.entries {
            entry.sequence.reserve(entry.tokens.len())?;
        }
        let rows = self.logit_entries.last().map_or(0, |r| r.end);
        if self.logits.len() < rows * self.width() {
            self.logits.resize(rows * self.width(), 0.0);
        }
        Ok(())
    }

    /// Cuts the batch into passes of at most `max_rows` rows and runs them.
    fn passes(&mut self, batch: &mut Batch<'_>, watch: &mut Option<Watch<'_>>) -> Result<(), RunError> {
        let whole = self.engine.plan().model.whole;
        let (mut entry, mut first, mut logits) = (0, 0, 0);
        loop {
            self.pieces.clear();
            let mut room = self.max_rows;
            while room > 0
                && let Some(e) = batch.entries.get(entry)
            {
                let tokens = room.min(e.tokens.len() - first);
                if whole && tokens < e.tokens.len() {
                    break; // It fits into the next pass: `check` made sure.
                }
                if tokens > 0 {
                    self.pieces.push(Piece { entry, first, tokens });
                }
                room -= tokens;
                first += tokens;
                if first == e.tokens.len() {
                    (entry, first) = (entry + 1, 0);
                }
            }
            if self.pieces.is_empty() {
                return Ok(());
            }
            self.inputs.fill(batch, &self.pieces);
            if let Err(error) = self.pass(batch, logits, watch) {
                for piece in &self.pieces {
                    batch.entries[piece.entry].sequence.unsettle();
                }
                return Err(error);
            }
            logits += self.inputs.logit_rows.len();
            for piece in &self.pieces {
                batch.entries[piece.entry].sequence.advance(piece.tokens);
            }
        }
    }

    /// Runs the pass that the inputs describe; its logits go behind the first `done` rows.
    fn pass(
        &mut self,
        batch: &Batch<'_>,
        done: usize,
        watch: &mut Option<Watch<'_>>,
    ) -> Result<(), RunError> {
        let (width, inputs) = (self.width(), &self.inputs);
        let logits = &mut self.logits[done * width..(done + inputs.logit_rows.len()) * width];
        let cancel = batch.cancel.as_ref().map(|c| c.flag());
        self.device.run(DevicePass { inputs, logits, cancel, watch: watch.as_mut() })
    }
}

impl Inputs {
    /// The arrays of a pass over `pieces` of a batch.
    fn fill(&mut self, batch: &Batch<'_>, pieces: &[Piece]) {
        for array in [
            &mut self.tokens,
            &mut self.positions,
            &mut self.slots,
            &mut self.sequences,
            &mut self.logit_rows,
            &mut self.block_table,
            &mut self.table_starts,
            &mut self.token_types,
            &mut self.first_rows,
            &mut self.last_positions,
            &mut self.carried_blocks,
        ] {
            array.clear();
        }
        self.spans.clear();
        let blocks = |p: &Piece| batch.entries[p.entry].sequence.blocks();
        self.table_stride = pieces.iter().map(|p| blocks(p).len()).max().unwrap_or(0);
        for (sequence, piece) in pieces.iter().enumerate() {
            let entry = &batch.entries[piece.entry];
            let position = entry.sequence.len();
            let table = blocks(piece);
            let first_row = self.tokens.len();
            let carried = position.checked_sub(1).map_or(0, |last| table[last / TOKENS]);
            self.spans.push(Span { first_row, rows: piece.tokens, sequence, position });
            for i in 0..piece.tokens {
                self.last_positions.push((position + piece.tokens - 1) as i32);
                let position = position + i;
                self.tokens.push(entry.tokens[piece.first + i] as i32);
                self.positions.push(position as i32);
                // Blocks are counted in tokens below 2^31: `Worker::new` made sure.
                self.slots.push((table[position / TOKENS] as usize * TOKENS + position % TOKENS) as i32);
                self.sequences.push(sequence as i32);
                self.table_starts.push((sequence * self.table_stride) as i32);
                self.token_types.push(entry.types.get(piece.first + i).copied().unwrap_or(0) as i32);
                self.first_rows.push(first_row as i32);
                self.carried_blocks.push(carried as i32);
                if entry.want.of(piece.first + i, entry.tokens.len()) {
                    self.logit_rows.push((first_row + i) as i32);
                }
            }
            self.block_table.extend(table.iter().map(|b| *b as i32));
            self.block_table.resize((sequence + 1) * self.table_stride, 0);
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("engine", &self.engine)
            .field("threads", &self.threads())
            .field("max_rows", &self.max_rows)
            .finish_non_exhaustive()
    }
}
