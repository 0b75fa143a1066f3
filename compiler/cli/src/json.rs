//! JSON for machines. Keys are part of the interface: add, never rename.

use crate::exit::{Code, Failure};
use serde::Serialize;
use std::io::Write;

/// Prints one object on stdout.
pub fn print<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::new(Code::Internal, e))?;
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}
