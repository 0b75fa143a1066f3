//! How far predictions are from those of another model. In f64 by portable functions, so that what an engine states of itself is the same
//! wherever it was compiled.

use bessemer_ir::exec::Logits;
use rayon::prelude::*;

/// One predicted token.
struct Token {
    kl: f64,
    surprise: f64,
    base_surprise: f64,
    agrees: bool,
}

/// Predictions of a text, token by token.
#[derive(Default)]
pub struct Divergence {
    tokens: Vec<Token>,
}

impl Divergence {
    /// Adds the predictions of a stretch of text beside those of the base; `next` are the tokens that followed.
    pub fn add(&mut self, ours: &Logits, base: &Logits, next: &[u32]) {
        let rows: Vec<_> = ours.rows().zip(base.rows()).zip(next).collect();
        self.tokens.par_extend(rows.into_par_iter().map(|((ours, base), next)| {
            let (q, p) = (log_softmax(ours), log_softmax(base));
            let at = |p: &[f64]| p.get(*next as usize).copied().unwrap_or(f64::NEG_INFINITY);
            let terms = p.iter().zip(&q).filter(|(p, _)| p.is_finite());
            let kl: f64 = terms.map(|(p, q)| libm::exp(*p) * (p - q)).sum();
            Token {
                // Rounding may leave a tiny negative number where the two are the same.
                kl: kl.max(0.0),
                surprise: -at(&q),
                base_surprise: -at(&p),
                agrees: best(ours) == best(base),
            }
        }));
    }

    /// Tokens predicted.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether nothing was predicted.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Mean KL divergence of the base's predictions from ours, in nats.
    pub fn mean_kl(&self) -> f64 {
        self.mean(|t| t.kl)
    }

    /// The divergence that one token in a hundred exceeds.
    pub fn p99_kl(&self) -> f64 {
        let mut sorted: Vec<f64> = self.tokens.iter().map(|t| t.kl).collect();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(0.0)
    }

    /// Perplexity of the text.
    pub fn perplexity(&self) -> f64 {
        libm::exp(self.mean(|t| t.surprise))
    }

    /// The base's perplexity of the text.
    pub fn base_perplexity(&self) -> f64 {
        libm::exp(self.mean(|t| t.base_surprise))
    }

    /// Share of tokens for which both have the same first choice.
    pub fn top1(&self) -> f64 {
        self.mean(|t| f64::from(u8::from(t.agrees)))
    }

    fn mean(&self, of: impl Fn(&Token) -> f64) -> f64 {
        self.tokens.iter().map(of).sum::<f64>() / self.tokens.len().max(1) as f64
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_distributions_have_their_known_divergence() {
        let logits = |p: &[f32]| Logits { vocab: 2, values: p.iter().map(|p| p.ln()).collect() };
        let (ours, base) = (logits(&[0.5, 0.5, 0.9, 0.1]), logits(&[0.8, 0.2, 0.9, 0.1]));
        let mut sums = Divergence::default();
        sums.add(&ours, &base, &[0, 1]);
        let first = 0.8 * (0.8f64 / 0.5).ln() + 0.2 * (0.2f64 / 0.5).ln();
        assert!((sums.mean_kl() - first / 2.0).abs() < 1e-6 && (sums.p99_kl() - first).abs() < 1e-6);
        assert!((sums.perplexity() - (0.5f64 * 0.1).powf(-0.5)).abs() < 1e-5);
        assert!((sums.base_perplexity() - (0.8f64 * 0.1).powf(-0.5)).abs() < 1e-5);
        assert_eq!((sums.len(), sums.top1()), (2, 1.0));
    }
}
