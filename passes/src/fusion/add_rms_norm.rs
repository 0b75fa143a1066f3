//! An addition and the norm of its result into one step with two results: the sum may have other readers.

use crate::error::Cause;
use crate::pattern::binary;
use crate::pipeline::Context;
use bessemer_ir::attr::BinaryKind;
use bessemer_ir::{Graph, Op, Value};

/// The pass.
pub fn run(graph: &mut Graph, _: &Context<'_>) -> Result<u32, Cause> {
    let mut rewrites = 0;
    for node in graph.order() {
        let Op::RmsNorm { eps } = *graph.op(node) else { continue };
        let [sum, w] = graph.operands(node)[..] else { continue };
        // Of two norms of one sum the first fuses; after it the sum is no addition any more.
        let Some([a, b]) = binary(graph, sum, BinaryKind::Add) else { continue };
        let name = graph.name(node).to_string();
        let fused = graph.add(name, Op::AddRmsNorm { eps }, &[a, b, w])?;
        graph.replace(sum, fused.result(0))?;
        graph.replace(Value::from(node), fused.result(1))?;
        rewrites += 1;
    }
    Ok(rewrites)
}
