//! Answers from a model: one session that lives as long as the conversation.

use crate::exit::Failure;
use crate::measure::clock;
use bessemer_runtime::sample::SamplerConfig;
use bessemer_runtime::text::Tokenizer;
use bessemer_runtime::{CancelHandle, Finish, Generate, Session, Worker};
use serde::Serialize;
use std::io;
use std::sync::{Arc, Mutex};

/// A session, and how it generates.
pub struct Generator {
    session: Session,
    tokenizer: Tokenizer,
    sampler: SamplerConfig,
    stops: Vec<String>,
    context: usize,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The text, without stop strings.
    pub text: String,
    /// Its tokens, without the stop token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Times.
    pub timings: Timings,
}

/// Times of an answer.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of which the session held so many already.
    pub kept_tokens: usize,
    /// Processing the rest of the prompt, and choosing the first token.
    pub prefill_ms: f64,
    /// Tokens of the prompt that were processed a second.
    pub prefill_tok_s: f64,
    /// From the start of the process to the first text.
    pub first_token_ms: Option<f64>,
    /// All that followed.
    pub decode_ms: f64,
    /// Tokens after the first a second.
    pub decode_tok_s: f64,
}

impl Generator {
    /// Answers with `sampler`, and ends at `stops` and the model's own stop tokens. A sequence never exceeds `context` tokens.
    pub fn new(
        worker: Worker,
        tokenizer: Tokenizer,
        sampler: SamplerConfig,
        stops: Vec<String>,
        context: usize,
    ) -> Result<Self, Failure> {
        let session = Session::new(&Arc::new(Mutex::new(worker)))?;
        Ok(Self { session, tokenizer, sampler, stops, context })
    }

    /// Continues `prompt` with up to `limit` tokens. `show` gets the text as it comes.
    ///
    /// What the prompt has in common with the text before is not processed again.
    pub fn answer(
        &mut self,
        prompt: &[u32],
        limit: Option<usize>,
        cancel: &CancelHandle,
        show: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<Answer, Failure> {
        if prompt.is_empty() {
            return Err(Failure::usage("the prompt has no tokens; give some text"));
        }
        let Some(free) = self.context.checked_sub(prompt.len()) else {
            return Err(Failure::usage(format!(
                "the prompt has {} tokens and the context is {}; shorten it, or raise --ctx",
                prompt.len(),
                self.context
            )));
        };
        let kept_tokens = self.session.replace(prompt)?;
        // The last token of a full context is chosen, but not processed.
        let room = free + 1;
        let options = Generate::new(self.sampler.clone(), limit.map_or(room, |n| n.min(room)))
            .stop_tokens(self.tokenizer.stop_tokens().iter().copied())
            .stop_strings(self.stops.iter().cloned())
            .cancel(cancel);
        let mut generation = self.session.generate_text(&self.tokenizer, options)?;

        let (mut text, mut first_token_ms) = (String::new(), None);
        for piece in &mut generation {
            let piece = piece?;
            first_token_ms.get_or_insert_with(clock::since_start_ms);
            show(&piece)?;
            text.push_str(&piece);
        }
        let (finish, generated, times) = (generation.finish(), generation.generated(), generation.timings());
        let finish = match finish.unwrap_or(Finish::Cancelled) {
            Finish::Length if Some(generated) != limit => Finish::Context,
            other => other,
        };
        Ok(Answer {
            text,
            tokens: self.session.tokens()[prompt.len()..].to_vec(),
            finish,
            timings: Timings {
                prompt_tokens: prompt.len(),
                kept_tokens,
                prefill_ms: times.prefill.as_secs_f64() * 1e3,
                prefill_tok_s: times.prefill_rate(),
                first_token_ms,
                decode_ms: times.decode.as_secs_f64() * 1e3,
                decode_tok_s: times.decode_rate(),
            },
        })
    }
}

/// The name of a finish in JSON.
pub fn name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Context => "context",
        Finish::Cancelled => "cancelled",
        _ => "other",
    }
}
