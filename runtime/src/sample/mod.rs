//! Choosing the next token from the logits.
//!
//! The steps, in this order:
//!
//! 1. penalties over the window of recent tokens (repetition, then presence and frequency);
//! 2. temperature 0: the highest logit wins, and nothing below is looked at;
//! 3. top-k;
//! 4. division by the temperature, softmax;
//! 5. top-p: the fewest most probable tokens whose probabilities reach `p`;
//! 6. min-p: tokens with at least `p` times the probability of the best one;
//! 7. one draw from what is left, in proportion to probability.
//!
//! Ties are broken by the lower token id, so a choice depends on the logits, the configuration, the seed and the
//! tokens before, and on nothing else. The generator of random numbers is [`Pcg32`]; greedy choices draw nothing.

mod pcg;

pub use pcg::Pcg32;

use std::cmp::Ordering;

/// How the next token is chosen. The default is greedy and without penalties.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SamplerConfig {
    /// Logits are divided by it; 0 takes the most probable token.
    pub temperature: f32,
    /// Keep so many of the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most probable tokens up to this total probability; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens below this share of the best one's probability; 0 keeps all.
    pub min_p: f32,
    /// Recent tokens' positive logits are divided by it, negative ones multiplied; 1 changes nothing.
    pub repeat_penalty: f32,
    /// Taken off the logit of every recent token; 0 changes nothing.
    pub presence_penalty: f32,
    /// Taken off the logit of a recent token as often as it occurs; 0 changes nothing.
    pub frequency_penalty: f32,
    /// How many recent tokens the penalties look at.
    pub penalty_window: usize,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        SamplerConfig {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 64,
            seed: 0,
        }
    }
}

impl SamplerConfig {
    /// The most probable token, always.
    pub fn greedy() -> Self {
        Self::default()
    }

    /// Sets [`SamplerConfig::temperature`].
    pub fn temperature(self, temperature: f32) -> Self {
        SamplerConfig { temperature, ..self }
    }

    /// Sets [`SamplerConfig::top_k`].
    pub fn top_k(self, top_k: usize) -> Self {
        SamplerConfig { top_k, ..self }
    }

    /// Sets [`SamplerConfig::top_p`].
    pub fn top_p(self, top_p: f32) -> Self {
        SamplerConfig { top_p, ..self }
    }

    /// Sets [`SamplerConfig::min_p`].
    pub fn min_p(self, min_p: f32) -> Self {
        SamplerConfig { min_p, ..self }
    }

    /// Sets [`SamplerConfig::repeat_penalty`].
    pub fn repeat_penalty(self, repeat_penalty: f32) -> Self {
        SamplerConfig { repeat_penalty, ..self }
    }

    /// Sets [`SamplerConfig::presence_penalty`].
    pub fn presence_penalty(self, presence_penalty: f32) -> Self {
        SamplerConfig { presence_penalty, ..self }
    }

    /// Sets [`SamplerConfig::frequency_penalty`].
    pub fn frequency_penalty(self, frequency_penalty: f32) -> Self {
        SamplerConfig { frequency_penalty, ..self }
    }

    /// Sets [`SamplerConfig::penalty_window`].
    pub fn penalty_window(self, penalty_window: usize) -> Self {
        SamplerConfig { penalty_window, ..self }
    }

    /// Sets [`SamplerConfig::seed`].
    pub fn seed(self, seed: u64) -> Self {
        SamplerConfig { seed, ..self }
    }

    fn validate(&self) -> Result<(), SampleError> {
        let check = |name, value: f32, allowed: bool, range| {
            if allowed { Ok(()) } else { Err(SampleError::Config { name, value, range }) }
        };
        let finite = |x: f32| x.is_finite();
        check(
            "temperature",
            self.temperature,
            finite(self.temperature) && self.temperature >= 0.0,
            "0 or more",
        )?;
        check("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0, at most 1")?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "0 to 1")?;
        let repeat = self.repeat_penalty;
        check("repeat_penalty", repeat, finite(repeat) && repeat > 0.0, "above 0")?;
        check("presence_penalty", self.presence_penalty, finite(self.presence_penalty), "a finite number")?;
        check("frequency_penalty", self.frequency_penalty, finite(self.frequency_penalty), "a finite number")
    }

    fn penalises(&self) -> bool {
        self.penalty_window > 0
            && (self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0)
    }
}

/// Why no token could be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// A setting is outside its range.
    #[error("{name} is {value}; it must be {range}")]
    Config {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f32,
        /// What is allowed.
        range: &'static str,
    },
    /// There are no logits.
    #[error("there are no logits to choose from")]
    Empty,
    /// A logit is not a number, or positive infinity.
    #[error(
        "the logit of token {token} is {value}: the model's arithmetic broke down (damaged weights, or overflow)"
    )]
    BadLogit {
        /// The token.
        token: u32,
        /// Its logit.
        value: f32,
    },
    /// Every token has probability 0.
    #[error("every logit is negative infinity: no token can be chosen")]
    NothingLeft,
}

/// Chooses tokens.
///
/// ```
/// use bessemer_runtime::sample::{Sampler, SamplerConfig};
///
/// let config = SamplerConfig::default().temperature(0.8).top_k(40).top_p(0.95).seed(7);
/// let mut sampler = Sampler::new(config)?;
/// let token = sampler.sample(&mut [0.1, 9.0, -3.0])?;
/// sampler.accept(token);
/// assert_eq!(token, 1);
/// # Ok::<(), bessemer_runtime::sample::SampleError>(())
/// ```
///
/// Keeps the recent tokens for the penalties and the state of the random numbers.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplerConfig,
    random: Pcg32,
    /// The last `penalty_window` tokens, oldest first.
    recent: std::collections::VecDeque<u32>,
    /// The recent tokens in ascending order, with repeats; a buffer of [`Sampler::sample`].
    sorted: Vec<u32>,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    /// The logit, later the probability (not normalised: the best one has 1).
    weight: f32,
}

/// Highest weight first, equal weights by token id.
fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

impl Sampler {
    /// A sampler with this configuration, or what is wrong with it.
    pub fn new(config: SamplerConfig) -> Result<Self, SampleError> {
        config.validate()?;
        let random = Pcg32::new(config.seed);
        Ok(Sampler { config, random, recent: Default::default(), sorted: Vec::new(), candidates: Vec::new() })
    }

    /// Its configuration.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Notes a token of the text, for the penalties: those of the prompt, and each one that was chosen.
    pub fn accept(&mut self, token: u32) {
        if !self.config.penalises() {
            return;
        }
        if self.recent.len() == self.config.penalty_window {
            self.recent.pop_front();
        }
        self.recent.push_back(token);
    }

    /// Chooses a token from its logits, which the penalties may change. The caller notes it with
    /// [`Sampler::accept`] if it becomes part of the text.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32, SampleError> {
        self.penalise(logits);
        let (best, top) = argmax(logits)?;
        if self.config.temperature == 0.0 {
            return Ok(best);
        }
        self.candidates.clear();
        let all = (0..).zip(logits.iter()).map(|(token, &weight)| Candidate { token, weight });
        self.candidates.extend(all.filter(|c| c.weight != f32::NEG_INFINITY));
        self.keep_top_k();
        for candidate in &mut self.candidates {
            candidate.weight = ((candidate.weight - top) / self.config.temperature).exp();
        }
        self.keep_top_p();
        // The best candidate's weight is exp(0) = 1, so min-p is the threshold itself.
        self.candidates.retain(|c| c.weight >= self.config.min_p);
        Ok(self.draw().unwrap_or(best))
    }

    fn penalise(&mut self, logits: &mut [f32]) {
        if self.recent.is_empty() {
            return;
        }
        self.sorted.clear();
        self.sorted.extend(self.recent.iter());
        self.sorted.sort_unstable();
        for same in self.sorted.chunk_by(|a, b| a == b) {
            let Some(logit) = logits.get_mut(same[0] as usize) else { continue };
            let penalty = self.config.repeat_penalty;
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            *logit -= self.config.presence_penalty + self.config.frequency_penalty * same.len() as f32;
        }
    }

    fn keep_top_k(&mut self) {
        let k = self.config.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, best_first);
            self.candidates.truncate(k);
        }
    }

    /// Finds the boundary with partial selections of growing size, so that the usual case sorts a few dozen
    /// candidates instead of the vocabulary.
    fn keep_top_p(&mut self) {
        if self.config.top_p >= 1.0 {
            return;
        }
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let wanted = f64::from(self.config.top_p) * total;
        let (mut sorted, mut sum, mut step) = (0, 0.0, 64);
        while sorted < self.candidates.len() {
            let rest = &mut self.candidates[sorted..];
            let count = step.min(rest.len());
            if count < rest.len() {
                rest.select_nth_unstable_by(count - 1, best_first);
            }
            rest[..count].sort_unstable_by(best_first);
            for (i, candidate) in rest[..count].iter().enumerate() {
                sum += f64::from(candidate.weight);
                if sum >= wanted {
                    self.candidates.truncate(sorted + i + 1);
                    return;
                }
            }
            sorted += count;
            step *= 8;
        }
    }

    /// One draw in proportion to the weights. In the order of token ids, so that the outcome does not depend on how
    /// the selections above left the candidates.
    fn draw(&mut self) -> Option<u32> {
        self.candidates.sort_unstable_by_key(|c| c.token);
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let mut left = self.random.next_f64() * total;
        for candidate in &self.candidates {
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                return Some(candidate.token);
            }
        }
        // Rounding may leave a sliver at the end.
        self.candidates.last().map(|c| c.token)
    }
}

/// The first of the highest logits, once all of them are known to be numbers.
fn argmax(logits: &[f32]) -> Result<(u32, f32), SampleError> {
    // Lanes that do not depend on each other, so that the compiler can use vectors.
    const LANES: usize = 32;
    let (mut lanes, mut sound) = ([f32::NEG_INFINITY; LANES], true);
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks.iter().map(<[f32; LANES]>::as_slice).chain([rest]) {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
            // False for NaN as well.
            sound &= logit < f32::INFINITY;
        }
    }
    if !sound
        && let Some((token, &value)) = (0..).zip(logits).find(|(_, x)| x.is_nan() || **x == f32::INFINITY)
    {
        return Err(SampleError::BadLogit { token, value });
    }
    let top = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    match (0..).zip(logits).find(|(_, x)| **x == top) {
        None => Err(SampleError::Empty),
        Some(_) if top == f32::NEG_INFINITY => Err(SampleError::NothingLeft),
        Some((token, _)) => Ok((token, top)),
    }
}

#[cfg(test)]
mod tests;
