//! Splitting text into the words that merges never cross.

use regex_automata::meta::Regex;
use serde::{Deserialize, Serialize};

use super::TextError;

/// One pre-tokeniser pattern: a regular expression and the rule for runs of white space that ends nearly all of them.
///
/// Published patterns close with `\s+(?!\S)|\s+`: a run of white space leaves its last character to the word that
/// follows. That is the only look-around they use, so it is kept as a flag and the rest is a plain regular expression,
/// matched by finite automata in linear time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitPattern {
    /// The alternatives before the rule for white space.
    regex: String,
    /// Whether the pattern ends with `\s+(?!\S)|\s+`.
    space_rule: bool,
    /// Whether text between matches is kept (as words of its own) or dropped.
    keep_gaps: bool,
}

impl SplitPattern {
    /// Takes a pattern as tokenizer.json writes it; what automata cannot match is an error.
    pub fn new(pattern: &str, keep_gaps: bool) -> Result<Self, TextError> {
        let unsupported = |reason: String| TextError::Pattern { pattern: pattern.to_owned(), reason };
        // `\s+(?!\S)` alone leaves a lone space unmatched; as a gap it is a word all the same.
        let tails: &[&str] =
            if keep_gaps { &[r"|\s+(?!\S)|\s+", r"|\s+(?!\S)"] } else { &[r"|\s+(?!\S)|\s+"] };
        let head = tails.iter().find_map(|tail| pattern.strip_suffix(tail));
        let split =
            SplitPattern { regex: head.unwrap_or(pattern).to_owned(), space_rule: head.is_some(), keep_gaps };
        if has_possessive_quantifier(&split.regex) {
            return Err(unsupported("possessive quantifiers are not supported".to_owned()));
        }
        split.compile()?;
        Ok(split)
    }

    fn compile(&self) -> Result<Regex, TextError> {
        let mut patterns = vec![self.regex.as_str()];
        if self.space_rule {
            patterns.push(r"\s+");
        }
        Regex::new_many(&patterns).map_err(|e| {
            let reason = e.syntax_error().map_or_else(|| e.to_string(), ToString::to_string);
            TextError::Pattern { pattern: self.regex.clone(), reason }
        })
    }
}

/// Whether a quantifier is followed by `+`, which Oniguruma and PCRE read as "possessive" and our engine as "repeat".
fn has_possessive_quantifier(regex: &str) -> bool {
    let bytes = regex.as_bytes();
    let (mut escaped, mut in_class, mut in_name, mut after_quantifier) = (false, false, false, false);
    for (i, &byte) in bytes.iter().enumerate() {
        let plain = !escaped && !in_class;
        if plain && byte == b'+' && after_quantifier {
            return true;
        }
        // The brace of `\p{L}` closes a name; any other closes a repetition.
        after_quantifier = plain && (matches!(byte, b'*' | b'+' | b'?') || byte == b'}' && !in_name);
        match byte {
            _ if escaped => {}
            b'{' => {
                in_name = i >= 2 && bytes[i - 2] == b'\\' && matches!(bytes[i - 1], b'p' | b'P' | b'x' | b'u')
            }
            b'[' => in_class = true,
            b']' => in_class = false,
            _ => {}
        }
        escaped = !escaped && byte == b'\\';
    }
    false
}

/// The compiled patterns of one tokeniser.
pub(super) struct Splitter {
    stages: Vec<(Regex, bool)>,
}

impl Splitter {
    pub(super) fn new(patterns: &[SplitPattern]) -> Result<Self, TextError> {
        let stages = patterns.iter().map(|p| Ok((p.compile()?, p.keep_gaps)));
        Ok(Splitter { stages: stages.collect::<Result<_, TextError>>()? })
    }

    /// Calls `word` for every word of `text`, in order.
    pub(super) fn split<'t>(&self, text: &'t str, word: &mut dyn FnMut(&'t str)) {
        split_stages(&self.stages, text, word);
    }
}

fn split_stages<'t>(stages: &[(Regex, bool)], text: &'t str, word: &mut dyn FnMut(&'t str)) {
    let Some(((regex, keep_gaps), rest)) = stages.split_first() else {
        if !text.is_empty() {
            word(text);
        }
        return;
    };
    let mut at = 0;
    let mut input = regex_automata::Input::new(text);
    while let Some(found) = regex.search(&input) {
        let mut end = found.end();
        if found.pattern().as_usize() == 1 && end < text.len() {
            // The white space rule: leave the last character to what follows, unless it is the only one.
            let last = text[found.range()].char_indices().next_back().map_or(0, |(i, _)| i);
            end = if last > 0 { found.start() + last } else { end };
        }
        if *keep_gaps {
            split_stages(rest, &text[at..found.start()], word);
        }
        split_stages(rest, &text[found.start()..end], word);
        at = end;
        if found.is_empty() {
            // No published pattern matches nothing; should one do, go on behind the next character.
            match text[end..].chars().next() {
                Some(c) => input.set_start(end + c.len_utf8()),
                None => break,
            }
        } else {
            input.set_start(end);
        }
    }
    if *keep_gaps {
        split_stages(rest, &text[at..], word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    fn words(patterns: &[(&str, bool)], text: &str) -> Vec<String> {
        let patterns: Vec<_> =
            patterns.iter().map(|(p, keep)| SplitPattern::new(p, *keep).unwrap()).collect();
        let mut words = Vec::new();
        Splitter::new(&patterns).unwrap().split(text, &mut |w| words.push(w.to_owned()));
        words
    }

    #[test]
    fn gpt2_words() {
        assert_eq!(
            words(&[(GPT2, true)], "I'll take 20  of\n\n them!? "),
            ["I", "'ll", " take", " 20", " ", " of", "\n\n", " them", "!?", " "]
        );
    }

    #[test]
    fn last_space_goes_to_the_next_word_unless_alone() {
        assert_eq!(words(&[(GPT2, true)], "a\t\tb"), ["a", "\t", "\t", "b"]);
        assert_eq!(words(&[(GPT2, true)], "a   "), ["a", "   "]);
        assert_eq!(
            words(&[(GPT2, true)], "a\u{3000}\u{3000}\u{3000}b"),
            ["a", "\u{3000}\u{3000}", "\u{3000}", "b"]
        );
        let without_last_alternative = GPT2.strip_suffix(r"|\s+").unwrap();
        assert_eq!(words(&[(without_last_alternative, true)], "a\t\tb"), ["a", "\t", "\t", "b"]);
    }

    #[test]
    fn stages_split_further() {
        assert_eq!(words(&[(r"\p{N}", true), (GPT2, true)], "in 1984"), ["in", " ", "1", "9", "8", "4"]);
    }

    #[test]
    fn gaps_are_kept_or_dropped() {
        assert_eq!(words(&[(r"\p{L}+", true)], "a-b c"), ["a", "-", "b", " ", "c"]);
        assert_eq!(words(&[(r"\p{L}+", false)], "a-b c"), ["a", "b", "c"]);
    }

    #[test]
    fn unsupported_patterns_are_errors() {
        for pattern in [r"a(?=b)|c", r"\p{L}++", r"[a-z]?+b", r"\d{1,3}+", "(", r"(\w)\1"] {
            assert!(matches!(SplitPattern::new(pattern, true), Err(TextError::Pattern { .. })), "{pattern}");
        }
        for pattern in [r"\p{L}+", r"[+?]+", r"\++", r"(?i:'s)|x+", r"\?+", r"\p{N}{1,3}|\p{L}+"] {
            assert!(SplitPattern::new(pattern, true).is_ok(), "{pattern}");
        }
    }

    #[test]
    fn empty_matches_end() {
        assert_eq!(words(&[("x*", true)], "axxb"), ["a", "xx", "b"]);
    }
}
