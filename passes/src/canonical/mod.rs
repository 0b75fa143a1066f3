//! Canonical form: nothing dead, nothing doubled, nothing that could have been folded.

pub mod common_subexpressions;
pub mod dead_code;
pub mod equalise;
pub mod fold_constants;
