//! An addition behind a linear into the linear's epilogue.

use crate::error::Cause;
use crate::pattern::{binary, plain_linear, read_once};
use crate::pipeline::Context;
use bessemer_ir::attr::{BinaryKind, Epilogue};
use bessemer_ir::{Graph, Value};

/// The pass. Where both operands are linears the first one takes the other's result.
pub fn run(graph: &mut Graph, _: &Context<'_>) -> Result<u32, Cause> {
    let mut rewrites = 0;
    for node in graph.order() {
        let sum = Value::from(node);
        let Some([a, b]) = binary(graph, sum, BinaryKind::Add) else { continue };
        let candidate = |product: Value, residual: Value| {
            let linear = plain_linear(graph, product).filter(|_| read_once(graph, product))?;
            Some((linear, graph.name(product.node).to_string(), residual))
        };
        let Some((linear, name, residual)) = candidate(a, b).or_else(|| candidate(b, a)) else { continue };
        let fused = linear.add(graph, name, Epilogue::Residual, &[residual])?;
        graph.replace(sum, fused)?;
        rewrites += 1;
    }
    Ok(rewrites)
}
