//! What rounding costs: the predictions of a text with the engine's weights beside those with the source's.

use super::{Calibrate, Calibrated, Codes, eager, text};
use crate::compile::Amount;
use crate::error::CompileError;
use crate::scratch::{self, Scratch};
use bessemer_calibrate::Divergence;
use bessemer_eager::{Logits, Observer, Streamed};
use bessemer_format::codec;
use bessemer_format::manifest::{KvElem, Quality};
use bessemer_ir::{Graph, Op, Phase};
use bessemer_passes::pipeline::{apply, find};

/// A text, and what the source predicts of it.
pub(crate) struct Base {
    windows: Vec<Vec<u32>>,
    logits: Vec<Logits>,
}

impl Base {
    /// The quality of weights like the source's.
    pub fn nothing_lost(&self) -> Quality {
        let next = |w: &Vec<u32>| w.len().saturating_sub(1) as u64;
        Quality {
            text: text::hash_of(&self.windows),
            tokens: self.windows.iter().map(next).sum(),
            mean_kl: 0.0,
            p99_kl: 0.0,
            perplexity: 0.0,
            source_perplexity: 0.0,
            top1: 1.0,
            bits_per_weight: 0.0,
            weights: Vec::new(),
            default_kv: KvElem::DEFAULT,
            kv: Vec::new(),
        }
    }
}

impl Calibrate<'_> {
    /// Runs `source`, a canonical graph, over `windows`.
    pub(super) fn base(&self, source: &Graph, windows: Vec<Vec<u32>>) -> Result<Base, CompileError> {
        let mut logits = Vec::with_capacity(windows.len());
        self.predict(source, &Codes::default(), KvElem::F32, &windows, &mut |_, found| logits.push(found))?;
        Ok(Base { windows, logits })
    }

    /// How far from the base is what `lowered`, once converted, predicts: a canonical graph that may read `codes`. In f32.
    pub(super) fn divergence(
        &self,
        base: &Base,
        lowered: &Graph,
        codes: &Codes,
    ) -> Result<(Divergence, f64), CompileError> {
        let mut rounded = lowered.clone();
        rounded.phase = Phase::Quantised;
        apply(find("quantise")?, &mut rounded, &self.context)?;
        Ok((self.beside(base, &rounded, codes, KvElem::F32)?, bits_per_weight(&rounded)))
    }

    /// How far from the base is what `graph` predicts with a cache of `kv`.
    fn beside(
        &self,
        base: &Base,
        graph: &Graph,
        codes: &Codes,
        kv: KvElem,
    ) -> Result<Divergence, CompileError> {
        let mut sums = Divergence::default();
        self.predict(graph, codes, kv, &base.windows, &mut |window, logits| {
            sums.add(&logits, &base.logits[window], base.windows[window].get(1..).unwrap_or_default());
        })?;
        Ok(sums)
    }

    /// What each narrower cache costs by itself. `source` is the graph whose predictions `base` holds: with its own weights a cache of few
    /// bits stands out from nothing else.
    pub fn caches(&self, source: &Graph, base: &Base) -> Result<Vec<(KvElem, f64)>, CompileError> {
        // Without a state nothing is cached.
        if !source.all().iter().any(|n| matches!(source.op(*n), Op::State { .. } | Op::Latents { .. })) {
            return Ok(Vec::new());
        }
        // The same for every precision: a scratch that stays keeps it.
        let scratch = match &self.run.scratch {
            Some(root) => {
                let inputs = format!("caches\n{}\n{}", bessemer_format::PRODUCER, self.source()?);
                Some(Scratch::new(Some(root), &inputs)?)
            }
            None => None,
        };
        let name = text::hash_of(&base.windows).to_string();
        if let Some(kept) = scratch.as_ref().and_then(|scratch| scratch.get(&name).transpose()).transpose()?
            && let Ok(found) = codec::decode("caches", scratch::body(&kept))
        {
            return Ok(found);
        }
        let narrower = KvElem::ALL.into_iter().filter(|kv| *kv != KvElem::F32);
        self.progress.start("measure caches", Amount::Pieces(narrower.clone().count()));
        let cost = |kv| {
            let found = self.beside(base, source, &Codes::default(), kv)?.mean_kl();
            self.progress.advance(1);
            Ok((kv, found))
        };
        let found: Vec<(KvElem, f64)> = narrower.map(cost).collect::<Result<_, CompileError>>()?;
        if let Some(scratch) = scratch {
            scratch.put(&name, &codec::encode(&found)?)?;
        }
        Ok(found)
    }

    fn predict(
        &self,
        graph: &Graph,
        codes: &Codes,
        kv: KvElem,
        windows: &[Vec<u32>],
        sink: &mut (dyn FnMut(usize, Logits) + Send),
    ) -> Result<(), CompileError> {
        let weights = Calibrated { checkpoint: self.checkpoint, codes };
        let streamed = Streamed::new(graph, &weights, self.run.threads).map_err(eager)?.cache(kv);
        streamed.run(windows, &mut Predictions(sink)).map_err(eager)?;
        self.go_on()
    }

    /// What the source predicts of the text that is to be measured. `None` if nobody asked.
    pub fn held_out(&self, source: &Graph) -> Result<Option<Base>, CompileError> {
        let Some(corpus) = &self.options.measure else { return Ok(None) };
        let windows = corpus.cut(self.checkpoint)?;
        self.progress.start("measure the source", Amount::Pieces(1));
        let base = self.base(source, windows)?;
        self.progress.advance(1);
        Ok(Some(base))
    }

    /// What `lowered` loses on a text.
    pub fn quality(&self, base: &Base, lowered: &Graph, codes: &Codes) -> Result<Quality, CompileError> {
        self.progress.start("measure quality", Amount::Pieces(1));
        let (sums, bits_per_weight) = self.divergence(base, lowered, codes)?;
        self.progress.advance(1);
        Ok(Quality {
            tokens: sums.len() as u64,
            mean_kl: sums.mean_kl(),
            p99_kl: sums.p99_kl(),
            perplexity: sums.perplexity(),
            source_perplexity: sums.base_perplexity(),
            top1: sums.top1(),
            bits_per_weight,
            weights: codes.errors.clone(),
            ..base.nothing_lost()
        })
    }
}

/// Hands on the logits of each window.
struct Predictions<'a>(&'a mut (dyn FnMut(usize, Logits) + Send));

impl Observer for Predictions<'_> {
    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, window: usize, logits: Logits) {
        (self.0)(window, logits);
    }
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
