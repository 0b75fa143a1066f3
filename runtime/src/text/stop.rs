//! Ending a generation at given strings or tokens.

/// Watches generated text for stop strings and generated tokens for stop tokens.
///
/// Text that may be the beginning of a stop string is held back until it is clear; a stop string itself is never
/// given out, and neither is anything after it.
///
/// ```
/// use bessemer_runtime::text::{StopMatch, StopMatcher};
///
/// let mut stop = StopMatcher::new(["User:".to_owned()], [2]);
/// assert_eq!(stop.push("Fine.\nUs"), StopMatch::Text("Fine.\n".to_owned()));
/// assert_eq!(stop.push("er: and"), StopMatch::Stopped { text: String::new(), string: 0 });
/// assert!(stop.is_stop_token(2));
/// ```
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    strings: Vec<String>,
    tokens: Vec<u32>,
    held: String,
    stopped: bool,
}

/// What [`StopMatcher::push`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopMatch {
    /// Nothing yet; this text is safe to show.
    Text(String),
    /// The text before the stop string, and which string (in the order given) it was.
    Stopped {
        /// Last text to show.
        text: String,
        /// Index of the stop string.
        string: usize,
    },
}

impl StopMatcher {
    /// Watches for `strings` (empty ones are ignored) and `tokens`.
    pub fn new(strings: impl IntoIterator<Item = String>, tokens: impl IntoIterator<Item = u32>) -> Self {
        StopMatcher {
            strings: strings.into_iter().collect(),
            tokens: tokens.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Whether generation ends at this token. Its text is not to be pushed.
    pub fn is_stop_token(&self, id: u32) -> bool {
        self.tokens.contains(&id)
    }

    /// Takes the next text. After a stop string was found, everything is swallowed.
    pub fn push(&mut self, text: &str) -> StopMatch {
        if self.stopped {
            return StopMatch::Text(String::new());
        }
        self.held.push_str(text);
        let strings = self.strings.iter().enumerate().filter(|(_, s)| !s.is_empty());
        // The match that is complete first (so that it does not matter how the text was cut), of those the longest.
        let matches =
            strings.clone().filter_map(|(i, s)| self.held.find(s.as_str()).map(|at| (at + s.len(), at, i)));
        if let Some((_, at, string)) = matches.min() {
            self.stopped = true;
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return StopMatch::Stopped { text, string };
        }
        let hold = strings.map(|(_, s)| longest_prefix_at_end(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - hold);
        StopMatch::Text(std::mem::replace(&mut self.held, rest))
    }

    /// The end of generation: the text that was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest proper prefix of `pattern` that ends `text`.
fn longest_prefix_at_end(text: &str, pattern: &str) -> usize {
    let prefixes = pattern.char_indices().map(|(i, _)| i).rev();
    prefixes.take_while(|&i| i > 0).find(|&i| text.ends_with(&pattern[..i])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(strings: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(strings.iter().map(|s| s.to_string()), []);
        let mut all = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                StopMatch::Text(text) => all.push_str(&text),
                StopMatch::Stopped { text, string } => return (all + &text, Some(string)),
            }
        }
        (all + &matcher.finish(), None)
    }

    #[test]
    fn stops_across_pieces_and_hides_the_string() {
        assert_eq!(run(&["STOP"], &["go S", "T", "OP now"]), ("go ".into(), Some(0)));
        assert_eq!(run(&["STOP"], &["go S", "T", "O"]), ("go STO".into(), None));
        assert_eq!(run(&["aab"], &["aa", "a", "b"]), ("a".into(), Some(0)));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), ("caf".into(), Some(0)));
        assert_eq!(run(&[""], &["x"]), ("x".into(), None));
    }

    #[test]
    fn first_complete_match_wins() {
        assert_eq!(run(&["world", "lo w"], &["hello world"]), ("hel".into(), Some(1)));
        assert_eq!(run(&["abc", "ab"], &["xabc"]), ("x".into(), Some(1)));
        assert_eq!(run(&["abcd", "bc"], &["abcd"]), ("a".into(), Some(1)));
        assert_eq!(run(&["bc", "abc"], &["abc"]), ("".into(), Some(1)));
    }

    #[test]
    fn holds_back_no_more_than_it_must() {
        let mut matcher = StopMatcher::new(["\n\nUser".to_owned()], []);
        assert_eq!(matcher.push("yes\n"), StopMatch::Text("yes".into()));
        assert_eq!(matcher.push("no"), StopMatch::Text("\nno".into()));
    }

    #[test]
    fn stop_tokens() {
        let matcher = StopMatcher::new([], [2, 7]);
        assert!(matcher.is_stop_token(7) && !matcher.is_stop_token(3));
    }

    #[test]
    fn any_cutting_gives_the_same_result() {
        let text = "abababcabcabx<|end|>tail";
        let whole = run(&["abcabx<", "<|end|>"], &[text]);
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(run(&["abcabx<", "<|end|>"], &pieces), whole);
            }
        }
    }
}
