//! How BERT cleans a text and cuts it into words, whichever file describes it.

use bessemer_runtime::text::{NormalizeStep, TextError};

/// Inside a character class: what BERT takes for punctuation. All of ASCII that is no letter, digit or space, and Unicode's.
pub(super) const PUNCTUATION: &str = r"\p{P}$+<=>^`|~";

/// Inside a character class: the blocks of Chinese characters, each of which is a word. (2B920 for 2B820 is a slip of the
/// tokenizers library that models are trained with.)
const CHINESE: &str = r"\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{20000}-\x{2a6df}\x{2a700}-\x{2b73f}\x{2b740}-\x{2b81f}\x{2b920}-\x{2ceaf}\x{f900}-\x{faff}\x{2f800}-\x{2fa1f}";

/// Which parts of the cleaning a checkpoint asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct BertRules {
    pub clean_text: bool,
    pub split_chinese: bool,
    pub strip_accents: bool,
    pub lowercase: bool,
}

impl BertRules {
    pub(super) fn steps(self) -> Result<Vec<NormalizeStep>, TextError> {
        let mut steps = Vec::new();
        if self.clean_text {
            // White space among the control characters stays; words are cut there.
            steps.push(NormalizeStep::replace(r"[[\p{Cc}\p{Cf}\p{Co}\x{fffd}]--[\t\n\r]]+", "")?);
        }
        if self.strip_accents {
            steps.extend([NormalizeStep::Nfd, NormalizeStep::replace(r"\p{Mn}+", "")?]);
        }
        if self.lowercase {
            steps.push(NormalizeStep::Lowercase);
        }
        Ok(steps)
    }
}

/// The pattern of a word; what lies between words is white space.
pub(super) fn words(split_chinese: bool) -> String {
    let single = if split_chinese { CHINESE } else { "" };
    format!("[{PUNCTUATION}{single}]|[^\\s{PUNCTUATION}{single}]+")
}
