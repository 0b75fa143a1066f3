//! Generation as an iterator.

use crate::batch::CancelHandle;
use crate::error::RunError;
use crate::sample::{SampleError, Sampler, SamplerConfig};
use crate::session::Session;
use std::time::{Duration, Instant};

/// How to generate.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Generate {
    /// How tokens are chosen.
    pub sampler: SamplerConfig,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Tokens that end the text; they are not part of it.
    pub stop_tokens: Vec<u32>,
    /// Strings that end the text; they are not part of it. Only [`Session::generate_text`] looks for them.
    pub stop_strings: Vec<String>,
    /// Stops the generation from another thread.
    pub cancel: CancelHandle,
}

impl Generate {
    /// Up to `max_tokens` tokens, chosen as `sampler` says.
    pub fn new(sampler: SamplerConfig, max_tokens: usize) -> Self {
        let (stop_tokens, stop_strings, cancel) = Default::default();
        Self { sampler, max_tokens, stop_tokens, stop_strings, cancel }
    }

    /// Up to `max_tokens` tokens, always the most probable one.
    pub fn greedy(max_tokens: usize) -> Self {
        Self::new(SamplerConfig::greedy(), max_tokens)
    }

    /// Adds to [`Generate::stop_tokens`].
    pub fn stop_tokens(mut self, tokens: impl IntoIterator<Item = u32>) -> Self {
        self.stop_tokens.extend(tokens);
        self
    }

    /// Adds to [`Generate::stop_strings`].
    pub fn stop_strings(mut self, strings: impl IntoIterator<Item = String>) -> Self {
        self.stop_strings.extend(strings);
        self
    }

    /// Sets [`Generate::cancel`].
    pub fn cancel(self, handle: &CancelHandle) -> Self {
        Self { cancel: handle.clone(), ..self }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// A stop token or stop string came.
    Stop,
    /// All tokens that were asked for are there.
    Length,
    /// The model's context is full.
    Context,
    /// The handle was cancelled.
    Cancelled,
}

/// How long a generation took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Tokens that were processed before the first one could be chosen.
    pub prefill_tokens: usize,
    /// How long that took.
    pub prefill: Duration,
    /// Tokens processed after that, one by one.
    pub decode_tokens: usize,
    /// How long that took, choosing included.
    pub decode: Duration,
}

impl Timings {
    /// Tokens a second before the first choice; 0 if there were none.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prefill_tokens, self.prefill)
    }

    /// Tokens a second afterwards; 0 if there were none.
    pub fn decode_rate(&self) -> f64 {
        rate(self.decode_tokens, self.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 { 0.0 } else { tokens as f64 / time.as_secs_f64().max(1e-9) }
}

/// Why a generation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A forward pass failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// No token could be chosen.
    #[error(transparent)]
    Sample(#[from] SampleError),
}

/// Generates tokens; see [`Session::generate`].
///
/// Generated tokens become part of the session as they come, so that a dropped generation can be continued.
pub struct Generation<'s> {
    session: &'s mut Session,
    sampler: Sampler,
    options: Generate,
    generated: usize,
    finish: Option<Finish>,
    failed: bool,
    timings: Timings,
}

impl<'s> Generation<'s> {
    pub(crate) fn new(session: &'s mut Session, options: Generate) -> Result<Self, SampleError> {
        let mut sampler = Sampler::new(options.sampler.clone())?;
        session.tokens().iter().for_each(|token| sampler.accept(*token));
        let timings = Timings::default();
        Ok(Self { session, sampler, options, generated: 0, finish: None, failed: false, timings })
    }

    /// Why it ended; `None` before that, and after an error.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> usize {
        self.generated
    }

    /// How long it took so far.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// The next token, or why there is none.
    fn step(&mut self) -> Result<Result<u32, Finish>, GenerateError> {
        if self.generated == self.options.max_tokens {
            return Ok(Err(Finish::Length));
        }
        if self.generated > 0 && self.session.room() == 0 {
            return Ok(Err(Finish::Context));
        }
        let started = Instant::now();
        let processed = match self.session.process(Some(&self.options.cancel)) {
            Err(RunError::Cancelled) => return Ok(Err(Finish::Cancelled)),
            result => result?,
        };
        let token = self.session.use_logits(|logits| self.sampler.sample(logits))?;
        if self.generated == 0 {
            self.timings.prefill_tokens = processed;
            self.timings.prefill = started.elapsed();
        } else {
            self.timings.decode_tokens += processed;
            self.timings.decode += started.elapsed();
        }
        if self.options.stop_tokens.contains(&token) {
            return Ok(Err(Finish::Stop));
        }
        self.generated += 1;
        self.sampler.accept(token);
        self.session.push(token);
        Ok(Ok(token))
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<u32, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finish.is_some() || self.failed {
            return None;
        }
        match self.step() {
            Ok(Ok(token)) => Some(Ok(token)),
            Ok(Err(finish)) => {
                self.finish = Some(finish);
                None
            }
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}

#[cfg(feature = "text")]
pub use text::TextGeneration;

#[cfg(feature = "text")]
mod text {
    use super::*;
    use crate::text::{Detokenizer, StopMatch, StopMatcher, Tokenizer};

    /// Generates text; see [`Session::generate_text`]. A piece is never empty and never ends inside a character, and what
    /// may turn out to be a stop string is held back until that is clear.
    pub struct TextGeneration<'s> {
        tokens: Generation<'s>,
        detokenizer: Detokenizer,
        stop: StopMatcher,
        /// A stop string came.
        stopped: bool,
        flushed: bool,
    }

    impl<'s> TextGeneration<'s> {
        pub(crate) fn new(
            session: &'s mut Session,
            tokenizer: &Tokenizer,
            options: Generate,
        ) -> Result<Self, SampleError> {
            let detokenizer = match session.tokens() {
                [] => Detokenizer::new(tokenizer.clone()),
                _ => Detokenizer::continuing(tokenizer.clone()),
            };
            let stop = StopMatcher::new(options.stop_strings.iter().cloned(), []);
            let tokens = Generation::new(session, options)?;
            Ok(Self { tokens, detokenizer, stop, stopped: false, flushed: false })
        }

        /// Why it ended; `None` before that, and after an error.
        pub fn finish(&self) -> Option<Finish> {
            if self.stopped { Some(Finish::Stop) } else { self.tokens.finish() }
        }

        /// Tokens generated so far.
        pub fn generated(&self) -> usize {
            self.tokens.generated()
        }

        /// How long it took so far.
        pub fn timings(&self) -> Timings {
            self.tokens.timings()
        }

        /// The text that may be shown once `text` is there.
        fn push(&mut self, text: &str) -> String {
            match self.stop.push(text) {
                StopMatch::Text(text) => text,
                StopMatch::Stopped { text, .. } => {
                    self.stopped = true;
                    text
                }
            }
        }
    }

    impl Iterator for TextGeneration<'_> {
        type Item = Result<String, GenerateError>;

        fn next(&mut self) -> Option<Self::Item> {
            while !self.stopped {
                let text = match self.tokens.next() {
                    Some(Ok(token)) => {
                        let text = self.detokenizer.push(token);
                        self.push(&text)
                    }
                    Some(Err(error)) => return Some(Err(error)),
                    None if self.flushed => return None,
                    None => {
                        self.flushed = true;
                        let text = self.detokenizer.finish();
                        let mut text = self.push(&text);
                        if !self.stopped {
                            text.push_str(&self.stop.finish());
                        }
                        text
                    }
                };
                if !text.is_empty() {
                    return Some(Ok(text));
                }
            }
            None
        }
    }
}
