//! The quality that a report states, for people.

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
