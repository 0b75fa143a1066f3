//! The quality that a report states, for people.

use crate::size::Size;
use bessemer_format::manifest::Quality;

/// One line of it. `asked`: whether it was to be measured.
pub fn line(quality: Option<&Quality>, asked: bool) -> String {
    match quality {
        Some(q) => format!(
            "quality: KL {:.2e} on average, {:.2e} at 99 %; perplexity {:.4} beside {:.4}; same first choice {:.1} %; {} tokens",
            q.mean_kl,
            q.p99_kl,
            q.perplexity,
            q.source_perplexity,
            100.0 * q.top1,
            q.tokens
        ),
        None if asked => "quality: not measured".into(),
        None => {
            "quality: not measured; the weights are the source's, or there is no text to measure on".into()
        }
    }
}

/// About what `--quality balanced` comes to: what most models need for it.
const BALANCED_BITS: f64 = 5.5;

/// Says what a quality would save, if that is worth a word.
pub fn hint(bytes: u64, bits_per_weight: f64) {
    if bits_per_weight > 1.2 * BALANCED_BITS {
        let saved = bytes as f64 * (1.0 - BALANCED_BITS / bits_per_weight);
        eprintln!("hint: `--quality balanced` would save about {}", Size(saved as u64));
    }
}
