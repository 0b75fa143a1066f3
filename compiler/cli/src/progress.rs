//! How far long work has come: a bar on a terminal, a line every ten seconds elsewhere, always on stderr.

use crate::size::Size;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Without a terminal, a line is printed so often.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Work that is done sooner shows no bar.
const PATIENCE: Duration = Duration::from_millis(300);

/// Watches one stretch of work after the other.
pub struct Meter {
    is_terminal: bool,
    unit: Unit,
    state: Mutex<State>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    #[cfg_attr(not(feature = "compile"), expect(dead_code, reason = "only compiling counts bytes"))]
    Bytes,
    /// Anything else.
    Items,
    /// What only its share of the whole says something about.
    #[cfg_attr(not(feature = "compile"), expect(dead_code, reason = "only compiling weighs its work"))]
    Work,
}

struct State {
    what: String,
    done: u64,
    total: u64,
    unit: Unit,
    started: Instant,
    printed: Instant,
    bar: Option<ProgressBar>,
}

impl Meter {
    /// A meter that counts in `unit`.
    pub fn new(unit: Unit) -> Self {
        let now = Instant::now();
        let state =
            State { what: String::new(), done: 0, total: 0, unit, started: now, printed: now, bar: None };
        Self { is_terminal: std::io::stderr().is_terminal(), unit, state: Mutex::new(state) }
    }

    /// Begins a stretch of work.
    pub fn start(&self, what: &str, total: u64) {
        self.start_in(what, total, self.unit);
    }

    fn start_in(&self, what: &str, total: u64, unit: Unit) {
        let mut state = self.lock();
        state.finish();
        let now = Instant::now();
        *state = State { what: what.into(), done: 0, total, unit, started: now, printed: now, bar: None };
    }

    /// So much more is done.
    pub fn advance(&self, by: u64) {
        let mut state = self.lock();
        state.done += by;
        if self.is_terminal {
            if state.bar.is_none() && state.started.elapsed() > PATIENCE && state.done < state.total {
                state.bar = Some(self.bar(&state));
            }
            if let Some(bar) = &state.bar {
                bar.set_position(state.done);
            }
        } else if state.printed.elapsed() > LINE_EVERY {
            state.printed = Instant::now();
            let percent = 100.0 * state.done as f64 / state.total.max(1) as f64;
            let left = left(state.started.elapsed(), state.done, state.total);
            let amount = match state.unit {
                Unit::Bytes => format!("{} of {}, ", Size(state.done), Size(state.total)),
                Unit::Items => format!("{} of {}, ", state.done, state.total),
                Unit::Work => String::new(),
            };
            eprintln!("{}: {percent:.0} % ({amount}{left} left)", state.what);
        }
    }

    fn bar(&self, state: &State) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(state.total), ProgressDrawTarget::stderr());
        let amount = match state.unit {
            Unit::Bytes => "{binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}",
            Unit::Items => "{pos} of {len}",
            Unit::Work => "{percent} %",
        };
        // indicatif leaves colours out by itself when NO_COLOR is set.
        let template = format!("{{msg:14}} {{bar:30.cyan/blue}} {amount}, {{eta}} left");
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(state.what.clone());
        bar
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// How long the rest takes if it goes on as it went: the mean over all of it, which few slow pieces do not sway.
fn left(elapsed: Duration, done: u64, total: u64) -> String {
    let seconds = elapsed.as_secs_f64() * total.saturating_sub(done) as f64 / done.max(1) as f64;
    match seconds {
        s if s < 99.5 => format!("{s:.0} s"),
        s if s < 5970.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

impl State {
    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.lock().finish();
    }
}

#[cfg(feature = "compile")]
impl bessemer_compiler::Progress for Meter {
    fn start(&self, what: &str, total: bessemer_compiler::Amount) {
        let (total, unit) = match total {
            bessemer_compiler::Amount::Bytes(bytes) => (bytes, Unit::Bytes),
            bessemer_compiler::Amount::Pieces(pieces) => (pieces as u64, Unit::Items),
            bessemer_compiler::Amount::Work(work) => (work, Unit::Work),
        };
        self.start_in(what, total, unit);
    }

    fn advance(&self, by: u64) {
        Meter::advance(self, by);
    }

    fn cancelled(&self) -> bool {
        crate::interrupt::requested()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_goes_on_as_it_went() {
        assert_eq!(left(Duration::from_secs(10), 1, 4), "30 s");
        assert_eq!(left(Duration::from_secs(100), 25, 100), "5 min");
        assert_eq!(left(Duration::from_secs(3600), 1, 3), "2.0 h");
        assert_eq!(left(Duration::from_secs(5), 7, 7), "0 s");
    }
}
