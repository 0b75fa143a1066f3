//! Removes nodes whose results reach no output.

use crate::error::Cause;
use crate::pipeline::Context;
use bessemer_ir::Graph;

/// The pass.
pub fn run(graph: &mut Graph, _: &Context<'_>) -> Result<u32, Cause> {
    Ok(graph.remove_dead() as u32)
}
