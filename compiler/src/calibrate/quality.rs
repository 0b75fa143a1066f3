//! What rounding costs: the predictions of a text with the engine's weights beside those with the source's.

use super::{Calibrate, Calibrated, Codes, eager, text};
use crate::error::CompileError;
use bessemer_eager::{Logits, Observer, Streamed};
use bessemer_format::manifest::Quality;
use bessemer_ir::{Graph, Op, Phase};
use bessemer_passes::pipeline::{apply, find};

impl Calibrate<'_> {
    /// Runs `source` and what `lowered`, once converted, is: both canonical graphs, in f32. `None` if nobody asked.
    pub fn quality(
        &self,
        source: &Graph,
        lowered: &Graph,
        codes: &Codes,
    ) -> Result<Option<Quality>, CompileError> {
        let Some(corpus) = &self.options.measure else { return Ok(None) };
        let mut rounded = lowered.clone();
        rounded.phase = Phase::Quantised;
        apply(find("quantise")?, &mut rounded, &self.context)?;
        let windows = corpus.cut(self.checkpoint)?;
        self.progress.start("measure quality", 2 * windows.len() as u64);
        let run = |graph: &Graph, observer: &mut dyn Observer| {
            let weights = Calibrated { checkpoint: self.checkpoint, codes };
            let streamed = Streamed::new(graph, &weights, self.run.threads).map_err(eager)?;
            streamed.run(&windows, observer).map_err(eager)?;
            self.progress.advance(windows.len() as u64);
            self.go_on()
        };
        let mut base = Base::default();
        run(source, &mut base)?;
        let mut compared = Compared { base: &base.logits, windows: &windows, sums: Sums::default() };
        run(&rounded, &mut compared)?;
        let sums = compared.sums;
        let count = sums.divergence.len().max(1) as f64;
        let mut sorted = sums.divergence.clone();
        sorted.sort_by(f64::total_cmp);
        Ok(Some(Quality {
            text: text::hash_of(&windows),
            tokens: sums.divergence.len() as u64,
            mean_kl: sums.divergence.iter().sum::<f64>() / count,
            p99_kl: sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(0.0),
            perplexity: libm::exp(sums.surprise / count),
            source_perplexity: libm::exp(sums.source_surprise / count),
            top1: sums.agreements as f64 / count,
            bits_per_weight: bits_per_weight(&rounded),
            weights: codes.errors.clone(),
        }))
    }
}

/// Logits of the source, window by window.
#[derive(Default)]
struct Base {
    logits: Vec<Logits>,
}

impl Observer for Base {
    fn wants_logits(&self) -> bool {
        true
    }
    fn logits(&mut self, _: usize, logits: Logits) {
        self.logits.push(logits);
    }
}

#[derive(Default)]
struct Sums {
    divergence: Vec<f64>,
    surprise: f64,
    source_surprise: f64,
    agreements: usize,
}

struct Compared<'a> {
    base: &'a [Logits],
    windows: &'a [Vec<u32>],
    sums: Sums,
}

impl Observer for Compared<'_> {
    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, window: usize, logits: Logits) {
        let next = self.windows[window].iter().skip(1);
        for ((ours, theirs), token) in logits.rows().zip(self.base[window].rows()).zip(next) {
            let (q, p) = (log_softmax(ours), log_softmax(theirs));
            let at = |p: &[f64]| p.get(*token as usize).copied().unwrap_or(f64::NEG_INFINITY);
            self.sums.surprise -= at(&q);
            self.sums.source_surprise -= at(&p);
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| libm::exp(*p) * (p - q)).sum();
            // Rounding may leave a tiny negative number where the two are the same.
            self.sums.divergence.push(kl.max(0.0));
            self.sums.agreements += usize::from(best(ours) == best(theirs));
        }
    }
}

/// In f64 by portable functions, since the result stands in the engine.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let top = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|x| libm::exp(f64::from(*x) - top)).sum();
    let log = top + libm::log(sum);
    logits.iter().map(|x| f64::from(*x) - log).collect()
}

/// The first of the highest logits.
fn best(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best })
}

/// Over all matrices.
fn bits_per_weight(graph: &Graph) -> f64 {
    let (mut bits, mut count) = (0.0, 0.0);
    for node in graph.order() {
        let Op::Const { recipe } = graph.op(node) else { continue };
        let (n, k) = recipe.matrix();
        if recipe.shape.len() == 2 {
            let elements = n as f64 * k as f64;
            bits += elements * recipe.scheme().bits_per_weight(k);
            count += elements;
        }
    }
    if count > 0.0 { bits / count } else { 0.0 }
}
