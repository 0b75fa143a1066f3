//! Gate and up projections into one segmented linear with a SwiGLU epilogue: `silu(linear x) * linear x`.

use crate::error::Cause;
use crate::pattern::{Plain, binary, join, joint_name, plain_linear, read_once, unary};
use crate::pipeline::Context;
use bessemer_ir::attr::{BinaryKind, Epilogue, UnaryKind};
use bessemer_ir::{Graph, Value};

/// The pass.
pub fn run(graph: &mut Graph, _: &Context<'_>) -> Result<u32, Cause> {
    let mut rewrites = 0;
    for node in graph.order() {
        let product = Value::from(node);
        let Some([a, b]) = binary(graph, product, BinaryKind::Mul) else { continue };
        let Some((linear, name)) = find(graph, a, b).or_else(|| find(graph, b, a)) else { continue };
        let fused = linear.add(graph, name, Epilogue::SwiGlu, &[])?;
        graph.replace(product, fused)?;
        rewrites += 1;
    }
    Ok(rewrites)
}

fn find(graph: &Graph, activated: Value, up: Value) -> Option<(Plain, String)> {
    let gate = unary(graph, activated, UnaryKind::Silu)?;
    if ![activated, gate, up].into_iter().all(|v| read_once(graph, v)) {
        return None;
    }
    let parts = [gate, up].map(|v| plain_linear(graph, v).filter(|l| l.segments.len() == 1));
    let linear = join(parts.into_iter().collect::<Option<_>>()?)?;
    Some((linear, joint_name(&[graph.name(gate.node), graph.name(up.node)])))
}
