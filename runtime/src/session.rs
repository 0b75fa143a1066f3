//! A session: one text that grows, on a worker that may serve others too.

use crate::batch::{Batch, CancelHandle, Want};
use crate::error::RunError;
use crate::generate::{Generate, Generation};
use crate::state::Sequence;
use crate::worker::Worker;
use bessemer_format::plan::Output;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

/// One text on a shared [`Worker`]: its tokens, their state and the logits of the last one.
///
/// Sessions on several threads take turns at the worker, a forward pass at a time. Whoever wants them in one
/// batch uses [`Worker::forward`] with [`Sequence`]s instead.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bessemer_runtime::{Engine, Generate, Session, Worker, WorkerOptions};
/// use std::sync::{Arc, Mutex};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/engines/gqa_tied.engine");
/// let engine = Engine::open(path)?;
/// let worker = Arc::new(Mutex::new(Worker::new(&engine, WorkerOptions::default())?));
/// let mut session = Session::new(&worker)?;
/// session.feed(&[1, 30, 62])?;
/// let mut generation = session.generate(Generate::greedy(16))?;
/// for token in &mut generation {
///     println!("{}", token?);
/// }
/// println!("{:?}", generation.finish());
/// # Ok(())
/// # }
/// ```
pub struct Session {
    worker: Arc<Mutex<Worker>>,
    sequence: Sequence,
    /// All tokens; those beyond the sequence's length wait to be processed.
    tokens: Vec<u32>,
    /// Of the last processed token; empty while they are not known.
    logits: Vec<f32>,
}

impl Session {
    /// A session without tokens.
    pub fn new(worker: &Arc<Mutex<Worker>>) -> Result<Self, RunError> {
        let sequence = {
            let worker = lock(worker)?;
            if worker.engine().plan().model.output != Output::Logits {
                return Err(RunError::NoLogits);
            }
            worker.sequence()
        };
        Ok(Self { worker: Arc::clone(worker), sequence, tokens: Vec::new(), logits: Vec::new() })
    }

    /// All tokens so far, those that are still to be processed included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Appends tokens. They are processed when logits are asked for.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<(), RunError> {
        let (context, len) = (self.sequence.len() + self.sequence.room(), self.tokens.len());
        if tokens.len() > context - len.min(context) {
            return Err(RunError::Context { entry: 0, len, tokens: tokens.len(), context });
        }
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Makes `tokens` the whole text. What they have in common with the text so far is not processed again: its
    /// length is returned.
    pub fn replace(&mut self, tokens: &[u32]) -> Result<usize, RunError> {
        let common = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        self.truncate(common);
        self.feed(&tokens[common..])?;
        Ok(common)
    }

    /// Forgets the tokens after the first `len`.
    pub fn truncate(&mut self, len: usize) {
        if len < self.tokens.len() {
            self.tokens.truncate(len);
            self.sequence.truncate(len);
            self.logits.clear();
        }
    }

    /// Processes what waits and gives the logits of the last token, of which there must be one.
    pub fn logits(&mut self) -> Result<&[f32], RunError> {
        self.process(None)?;
        Ok(&self.logits)
    }

    /// As [`Session::logits`]; ends with [`RunError::Cancelled`] soon after `cancel` was cancelled.
    pub fn logits_or_cancel(&mut self, cancel: &CancelHandle) -> Result<&[f32], RunError> {
        self.process(Some(cancel))?;
        Ok(&self.logits)
    }

    /// A session with the same tokens that goes its own way. It shares memory until the two differ.
    pub fn fork(&self) -> Self {
        Self {
            worker: Arc::clone(&self.worker),
            sequence: self.sequence.fork(),
            tokens: self.tokens.clone(),
            logits: self.logits.clone(),
        }
    }

    /// The state of the processed tokens.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Generates tokens that follow the text, one for each step of the iterator.
    pub fn generate(&mut self, options: Generate) -> Result<Generation<'_>, crate::sample::SampleError> {
        Generation::new(self, options)
    }

    /// Generates text that follows, a piece for each step of the iterator.
    #[cfg(feature = "text")]
    pub fn generate_text(
        &mut self,
        tokenizer: &crate::text::Tokenizer,
        options: Generate,
    ) -> Result<crate::generate::TextGeneration<'_>, crate::sample::SampleError> {
        crate::generate::TextGeneration::new(self, tokenizer, options)
    }

    pub(crate) fn room(&self) -> usize {
        self.sequence.room()
    }

    pub(crate) fn push(&mut self, token: u32) {
        self.tokens.push(token);
    }

    /// Lets `choose` work on the logits of the last token. It may change them, so they are used up by it.
    pub(crate) fn use_logits<T>(&mut self, choose: impl FnOnce(&mut [f32]) -> T) -> T {
        let result = choose(&mut self.logits);
        self.logits.clear();
        result
    }

    /// Processes what waits, so that the logits of the last token are known. Gives the number of tokens.
    pub(crate) fn process(&mut self, cancel: Option<&CancelHandle>) -> Result<usize, RunError> {
        if self.sequence.len() == self.tokens.len() {
            if !self.logits.is_empty() {
                return Ok(0);
            }
            // The last token again: its logits went with what followed it.
            self.sequence.truncate(self.tokens.len().saturating_sub(1));
        }
        if self.tokens.is_empty() {
            return Err(RunError::NoTokens);
        }
        self.logits.clear();
        let tokens = &self.tokens[self.sequence.len()..];
        let processed = tokens.len();
        let mut batch = Batch::new();
        batch.push(&mut self.sequence, tokens, Want::Last);
        if let Some(cancel) = cancel {
            batch.cancel_with(cancel);
        }
        let mut worker = lock(&self.worker)?;
        self.logits.extend_from_slice(worker.forward(&mut batch)?.all().as_slice());
        Ok(processed)
    }
}

fn lock(worker: &Mutex<Worker>) -> Result<MutexGuard<'_, Worker>, RunError> {
    worker.lock().map_err(|_| RunError::WorkerLost)
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("tokens", &self.tokens.len()).finish_non_exhaustive()
    }
}
