//! Gate and up projections into one segmented linear with a gated epilogue: `f(linear x) * linear x`.

use crate::error::Cause;
use crate::pattern::{Plain, any_linear, binary, join, joint_name, read_once, unary};
use crate::pipeline::Context;
use bessemer_format::plan::Gate;
use bessemer_ir::attr::{BinaryKind, Epilogue, UnaryKind};
use bessemer_ir::{Graph, Value};

/// The pass.
pub fn run(graph: &mut Graph, _: &Context<'_>) -> Result<u32, Cause> {
    let mut rewrites = 0;
    for node in graph.order() {
        let product = Value::from(node);
        let Some([a, b]) = binary(graph, product, BinaryKind::Mul) else { continue };
        let Some((linear, gate, name)) = find(graph, a, b).or_else(|| find(graph, b, a)) else { continue };
        let fused = linear.add(graph, name, Epilogue::Gated(gate), &[])?;
        graph.replace(product, fused)?;
        rewrites += 1;
    }
    Ok(rewrites)
}

fn find(graph: &Graph, activated: Value, up: Value) -> Option<(Plain, Gate, String)> {
    let gates = [Gate::Silu, Gate::Gelu, Gate::GeluTanh];
    let (function, gate) =
        gates.into_iter().find_map(|f| Some((f, unary(graph, activated, UnaryKind::from(f))?)))?;
    if ![activated, gate, up].into_iter().all(|v| read_once(graph, v)) {
        return None;
    }
    let parts = [gate, up].map(|v| any_linear(graph, v).filter(|l| l.segments.len() == 1));
    let linear = join(parts.into_iter().collect::<Option<_>>()?)?;
    Some((linear, function, joint_name(&[graph.name(gate.node), graph.name(up.node)])))
}
