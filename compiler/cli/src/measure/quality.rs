//! How well a model predicts a text, and how far its predictions are from another's.

use crate::exit::Failure;
use bessemer_compiler::compile::prepare;
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::{CompileOptions, RunOptions};
use bessemer_eager::{Eager, EagerOptions, Logits, SequenceRows, Wanted};
use bessemer_ir::Phase;
use bessemer_runtime::Engine;
use std::path::Path;

/// Sums over the predicted tokens of a text.
#[derive(Default)]
pub struct Quality {
    /// Negative log probability of each token.
    surprise: Vec<f64>,
    /// The same by the base.
    base_surprise: Vec<f64>,
    /// KL divergence of the base's distribution from ours, for each token.
    divergence: Vec<f64>,
    agreements: usize,
}

impl Quality {
    /// Adds a prediction of `token`, and the base's.
    pub fn add(&mut self, logits: &[f32], token: u32, base: Option<&[f32]>) {
        let ours = log_softmax(logits);
        self.surprise.push(-ours.get(token as usize).copied().unwrap_or(f64::NEG_INFINITY));
        if let Some(base) = base {
            let theirs = log_softmax(base);
            self.base_surprise.push(-theirs.get(token as usize).copied().unwrap_or(f64::NEG_INFINITY));
            let kl: f64 =
                theirs.iter().zip(&ours).filter(|(p, _)| p.is_finite()).map(|(p, q)| p.exp() * (p - q)).sum();
            // Rounding may leave a tiny negative number where the two are the same.
            self.divergence.push(kl.max(0.0));
            self.agreements += usize::from(best(logits) == best(base));
        }
    }

    /// Tokens predicted.
    pub fn len(&self) -> usize {
        self.surprise.len()
    }

    /// Whether no token was predicted.
    pub fn is_empty(&self) -> bool {
        self.surprise.is_empty()
    }

    /// Perplexity.
    pub fn perplexity(&self) -> f64 {
        mean(&self.surprise).unwrap_or(0.0).exp()
    }

    /// Perplexity of the base.
    pub fn base_perplexity(&self) -> Option<f64> {
        mean(&self.base_surprise).map(f64::exp)
    }

    /// Mean KL divergence in nats.
    pub fn mean_kl(&self) -> Option<f64> {
        mean(&self.divergence)
    }

    /// The KL divergence that one token in a hundred exceeds.
    pub fn p99_kl(&self) -> Option<f64> {
        let mut sorted = self.divergence.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get((sorted.len() * 99 / 100).min(sorted.len().saturating_sub(1))).copied()
    }

    /// Share of tokens for which both have the same first choice.
    pub fn top1(&self) -> Option<f64> {
        (!self.divergence.is_empty()).then(|| self.agreements as f64 / self.divergence.len() as f64)
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = logits.iter().map(|x| f64::from(*x) - f64::from(top));
    let log_sum = shifted.clone().map(f64::exp).sum::<f64>().ln();
    shifted.map(|x| x - log_sum).collect()
}

/// The first of the highest logits.
fn best(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best })
}

/// A base under evaluation: its graph before fusion, node by node in f32.
pub struct Base {
    eager: Eager,
}

impl Base {
    /// The model in `source`, whose vocabulary must be the engine's.
    pub fn new(source: &Path, engine: &Engine, threads: usize) -> Result<Self, Failure> {
        let checkpoint = Checkpoint::open(source)?;
        let run = RunOptions { stop_after: Some(Phase::Canonical), ..RunOptions::default() };
        let prepared = prepare(&checkpoint, &CompileOptions::default(), &run)?;
        let (ours, theirs) = (engine.plan().model.vocab, prepared.facts.vocab);
        if ours != theirs {
            return Err(Failure::usage(format!(
                "{}: its vocabulary has {theirs} tokens and the engine's {ours}; give a base with the same tokeniser",
                source.display()
            )));
        }
        let options = EagerOptions { threads, ..EagerOptions::default() };
        Ok(Self { eager: Eager::new(&prepared.graph, &checkpoint, options)? })
    }

    /// Begins a new window.
    pub fn reset(&mut self) {
        self.eager.reset();
    }

    /// The logits of every token of a piece.
    pub fn forward(&mut self, tokens: &[u32]) -> Result<Logits, Failure> {
        Ok(self.eager.forward(&[SequenceRows { sequence: 0, tokens, types: &[], logits: Wanted::All }])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_predictions_do_not_diverge() {
        let mut quality = Quality::default();
        let logits = [1.0, 2.0, 0.5, -3.0];
        quality.add(&logits, 1, Some(&logits));
        assert_eq!((quality.mean_kl(), quality.top1()), (Some(0.0), Some(1.0)));
        assert_eq!(quality.base_perplexity(), Some(quality.perplexity()));
    }

    #[test]
    fn uniform_predictions_have_the_perplexity_of_the_vocabulary() {
        let mut quality = Quality::default();
        (0..8).for_each(|token| quality.add(&[0.25; 8], token, Some(&[0.0; 8])));
        assert!((quality.perplexity() - 8.0).abs() < 1e-12);
        let mut skewed = Quality::default();
        // p = (1/2, 1/2), q = (3/4, 1/4): KL(p, q) = 1/2 ln(2/3) + 1/2 ln 2.
        skewed.add(&[3.0_f32.ln(), 0.0], 0, Some(&[0.0, 0.0]));
        let expected = 0.5 * (2.0_f64 / 3.0).ln() + 0.5 * 2.0_f64.ln();
        assert!((skewed.mean_kl().unwrap() - expected).abs() < 1e-7);
    }
}
