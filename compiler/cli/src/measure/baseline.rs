//! Holding a measurement to an earlier one of the same machine.

use crate::exit::{Code, Failure};
use serde_json::Value;
use std::path::Path;
use std::str::FromStr;

/// What counts as worse: `slower>10%`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// The share of speed that may be lost.
    slower: f64,
}

impl FromStr for Tolerance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}`: expected `slower>N%`, such as `slower>10%`");
        let number = text.strip_prefix("slower>").and_then(|t| t.strip_suffix('%')).ok_or_else(wrong)?;
        let percent: f64 = number.trim().parse().map_err(|_| wrong())?;
        if !(0.0..100.0).contains(&percent) {
            return Err(wrong());
        }
        Ok(Self { slower: percent / 100.0 })
    }
}

/// What must be equal for two speeds to be comparable.
const SAME: [&str; 7] = ["threads", "kernels", "nests", "load", "target", "cpu", "device"];
/// What is compared.
const SPEEDS: [&str; 2] = ["/prefill/tok_s", "/decode/tok_s"];

/// Reads the JSON of an earlier `bench -o json`.
pub fn read(path: &Path) -> Result<Value, Failure> {
    let named = |why: String| Failure::usage(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| named(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| named(format!("is no result of `bench -o json`: {e}")))
}

/// Ratios of now over before (one for each speed), or why they cannot be had.
pub fn ratios(before: &Value, now: &Value) -> Result<Vec<(&'static str, f64)>, Failure> {
    for key in SAME {
        if before.get(key) != now.get(key) {
            let text = |v: &Value| v.get(key).map_or("absent".into(), Value::to_string);
            return Err(Failure::usage(format!(
                "the baseline was measured with another `{key}`: {} there, {} here; measure a baseline on this machine with these options",
                text(before),
                text(now)
            )));
        }
    }
    let speed = |v: &Value, at: &str| v.pointer(at).and_then(Value::as_f64).filter(|s| *s > 0.0);
    SPEEDS
        .iter()
        // Who reads whole texts generates none, then as now.
        .filter(|at| before.pointer(at).is_some() || now.pointer(at).is_some())
        .map(|at| match (speed(before, at), speed(now, at)) {
            (Some(before), Some(now)) => Ok((&at[1..at.len() - "/tok_s".len()], now / before)),
            _ => Err(Failure::usage(format!("the baseline lacks {at}"))),
        })
        .collect()
}

/// Fails if a ratio is below what is tolerated.
pub fn check(ratios: &[(&'static str, f64)], tolerance: Tolerance) -> Result<(), Failure> {
    let slow: Vec<_> = ratios.iter().filter(|(_, ratio)| *ratio < 1.0 - tolerance.slower).collect();
    if slow.is_empty() {
        return Ok(());
    }
    let named = slow.iter().map(|(name, ratio)| format!("{name} at {ratio:.2}x of the baseline"));
    let named = named.collect::<Vec<_>>().join(", ");
    Err(Failure::new(
        Code::Budget,
        format!("slower than allowed (more than {:.0} %): {named}", 100.0 * tolerance.slower),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn result(prefill: f64, decode: f64, threads: u32) -> Value {
        json!({"threads": threads, "prefill": {"tok_s": prefill}, "decode": {"tok_s": decode}})
    }

    #[test]
    fn a_loss_beyond_the_tolerance_fails() {
        let before = result(100.0, 10.0, 2);
        let tolerance: Tolerance = "slower>10%".parse().unwrap();
        let outcome = |now: Value| check(&ratios(&before, &now).unwrap(), tolerance);
        assert!(outcome(result(91.0, 9.1, 2)).is_ok());
        assert!(outcome(result(200.0, 20.0, 2)).is_ok());
        let failure = outcome(result(120.0, 8.0, 2)).unwrap_err();
        assert_eq!(failure.code, Code::Budget);
        assert!(failure.to_string().contains("decode at 0.80x"), "{failure}");
    }

    #[test]
    fn another_set_up_is_not_compared() {
        let failure = ratios(&result(1.0, 1.0, 2), &result(1.0, 1.0, 1)).unwrap_err();
        assert!(failure.to_string().contains("`threads`: 2 there, 1 here"), "{failure}");
    }

    #[test]
    fn tolerances_are_parsed_strictly() {
        for wrong in ["10%", "slower>10", "slower>-1%", "slower>100%", "slower>x%"] {
            assert!(wrong.parse::<Tolerance>().is_err(), "{wrong}");
        }
        assert_eq!("slower>2.5%".parse(), Ok(Tolerance { slower: 0.025 }));
    }
}
