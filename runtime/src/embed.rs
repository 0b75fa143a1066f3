//! Vectors and scores of texts, from engines of encoders and of models that are pooled.

use crate::batch::{Batch, Want};
use crate::engine::Engine;
use crate::error::{EngineError, RunError};
use crate::state::Sequence;
#[cfg(feature = "text")]
use crate::text::{Frame, Special, TextError, Tokenizer};
use crate::worker::{Worker, WorkerOptions};
#[cfg(feature = "text")]
use bessemer_format::header::SectionKind;
use bessemer_format::kv::TOKENS;
use bessemer_format::manifest::KvElem;
use bessemer_format::plan::Output;

/// Why a text has no vector.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// The engine gives logits.
    #[error(
        "this engine gives logits of the next token, no vectors; generate text with it, or compile an embedding model"
    )]
    Logits,
    /// The tokens cannot be processed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The worker cannot be made.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine has no tokeniser.
    #[cfg(feature = "text")]
    #[error("this engine holds no tokeniser; give token ids, or compile a checkpoint with one")]
    NoTokenizer,
    /// The text cannot be tokenised.
    #[cfg(feature = "text")]
    #[error(transparent)]
    Text(#[from] TextError),
}

/// The tokens of a text, or of a pair of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmbedInput {
    /// Token ids, those that begin and end a text included.
    pub tokens: Vec<u32>,
    /// For a pair, whether each token belongs to the first text (0) or the second (1); else empty.
    pub types: Vec<u32>,
}

impl From<Vec<u32>> for EmbedInput {
    fn from(tokens: Vec<u32>) -> Self {
        Self { tokens, types: Vec::new() }
    }
}

/// Makes vectors of texts: each as the checkpoint pools and normalises it. For a model with a classification head they are its scores.
///
/// ```no_run
/// use bessemer_runtime::{Embedder, Engine, WorkerOptions};
///
/// let engine = Engine::open("all-MiniLM-L6-v2.engine")?;
/// let mut embedder = Embedder::new(&engine, WorkerOptions::default())?;
/// let vectors = embedder.embed(&["How do I melt iron?", "What does a crucible hold?"])?;
/// let cosine: f32 = vectors[0].iter().zip(&vectors[1]).map(|(a, b)| a * b).sum();
/// println!("{} numbers, similarity {cosine:.3}", vectors[0].len());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Embedder {
    worker: Worker,
    #[cfg(feature = "text")]
    tokenizer: Option<Tokenizer>,
}

impl Embedder {
    /// Starts a worker for `engine`. Where no state outlives a pass, its cache holds f32: a lower precision would save nothing.
    pub fn new(engine: &Engine, options: WorkerOptions) -> Result<Self, EmbedError> {
        let model = &engine.plan().model;
        if model.output == Output::Logits {
            return Err(EmbedError::Logits);
        }
        let mut options = if model.whole { options.kv(KvElem::F32) } else { options };
        if options.max_tokens == 0 {
            // Short texts are many in a pass, each in blocks of its own.
            options.max_tokens = (model.context as usize).max(TOKENS * TEXTS);
        }
        Ok(Self {
            worker: Worker::new(engine, options)?,
            #[cfg(feature = "text")]
            tokenizer: (!engine.section(SectionKind::Tokenizer).is_empty())
                .then(|| engine.tokenizer())
                .transpose()?,
        })
    }

    /// The worker.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Elements of a vector, or the number of scores.
    pub fn width(&self) -> usize {
        self.worker.engine().plan().model.output_width() as usize
    }

    /// A vector for each input, in order. Inputs share passes as far as they fit; that changes no vector.
    pub fn vectors(&mut self, inputs: &[EmbedInput]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut out = Vec::with_capacity(inputs.len());
        while out.len() < inputs.len() {
            let rest = &inputs[out.len()..];
            let (mut blocks, mut rows) = (self.worker.free_tokens() / TOKENS, self.worker.max_rows());
            let fitting = rest.iter().map_while(|input| {
                blocks = blocks.checked_sub(input.tokens.len().div_ceil(TOKENS))?;
                rows = rows.checked_sub(input.tokens.len())?;
                Some(())
            });
            // What fits into no pass goes alone: the worker cuts it, or says why it cannot.
            let count = fitting.count().max(1);
            let part = &rest[..count];
            let mut sequences: Vec<Sequence> = part.iter().map(|_| self.worker.sequence()).collect();
            let mut batch = Batch::new();
            for (sequence, input) in sequences.iter_mut().zip(part) {
                if input.tokens.is_empty() {
                    return Err(RunError::NoTokens.into());
                }
                batch.push_pair(sequence, &input.tokens, &input.types, Want::Last);
            }
            let results = self.worker.forward(&mut batch)?;
            out.extend(results.all().iter().map(<[f32]>::to_vec));
        }
        Ok(out)
    }
}

/// Texts for which a pass has room by default.
const TEXTS: usize = 64;

#[cfg(feature = "text")]
impl Embedder {
    /// A vector for each text, in order. What a text has beyond the model's context is not read.
    pub fn embed(&mut self, texts: &[impl AsRef<str>]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let inputs = texts.iter().map(|text| self.tokens(text.as_ref())).collect::<Result<Vec<_>, _>>()?;
        self.vectors(&inputs)
    }

    /// The scores of each pair of texts (a query and a passage, say), in order, before any activation.
    pub fn score(
        &mut self,
        pairs: &[(impl AsRef<str>, impl AsRef<str>)],
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        let inputs = pairs.iter().map(|(a, b)| self.pair(a.as_ref(), b.as_ref()));
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        self.vectors(&inputs)
    }

    /// The tokens of a text as the model reads it: between the tokens that begin and end one, cut to the context.
    pub fn tokens(&self, text: &str) -> Result<EmbedInput, EmbedError> {
        let (tokenizer, context) = self.reader()?;
        let mut tokens = tokenizer.encode(text, Special::AsText)?;
        let Frame { before, after, .. } = tokenizer.frame();
        tokens.truncate(context.saturating_sub(before.len() + after.len()));
        Ok([before.as_slice(), tokens.as_slice(), after.as_slice()].concat().into())
    }

    /// The tokens of a pair; the longer one is cut first.
    fn pair(&self, a: &str, b: &str) -> Result<EmbedInput, EmbedError> {
        let (tokenizer, context) = self.reader()?;
        let mut a = tokenizer.encode(a, Special::AsText)?;
        let mut b = tokenizer.encode(b, Special::AsText)?;
        let Frame { before, between, after } = tokenizer.frame();
        let room = context.saturating_sub(before.len() + between.len() + after.len());
        while a.len() + b.len() > room {
            if a.len() > b.len() {
                a.pop()
            } else {
                b.pop()
            };
        }
        let first = [before.as_slice(), a.as_slice(), between.as_slice()].concat();
        let second = [b.as_slice(), after.as_slice()].concat();
        let types = [vec![0; first.len()], vec![1; second.len()]].concat();
        Ok(EmbedInput { tokens: [first, second].concat(), types })
    }

    fn reader(&self) -> Result<(&Tokenizer, usize), EmbedError> {
        let tokenizer = self.tokenizer.as_ref().ok_or(EmbedError::NoTokenizer)?;
        Ok((tokenizer, self.worker.engine().plan().model.context as usize))
    }
}
