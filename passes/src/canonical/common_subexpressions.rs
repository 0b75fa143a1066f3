//! Merges nodes that compute the same from the same: rope tables, constants with equal recipes, and whatever reads them.

use crate::error::Cause;
use crate::pipeline::Context;
use bessemer_ir::{Graph, NodeId, Op, TensorType, Value};
use std::collections::BTreeMap;

/// All that a node's results depend on. Attributes compare as text: it names every bit of them, and floats have no order of their own.
type Key = (&'static str, String, Vec<Value>, Vec<TensorType>);

/// The pass. Operands come before readers, so one sweep finds equal trees of any depth.
pub fn run(graph: &mut Graph, _: &Context<'_>) -> Result<u32, Cause> {
    let mut first: BTreeMap<Key, NodeId> = BTreeMap::new();
    let mut rewrites = 0;
    for node in graph.order() {
        // A layer has one state; two would be an error, which merging would hide from the verifier.
        if graph.op(node).state_of().is_some() || matches!(graph.op(node), Op::Output {}) {
            continue;
        }
        let mut attrs = String::new();
        graph.op(node).print_attrs(&mut attrs);
        let key = (graph.op(node).name(), attrs, graph.operands(node), graph.types(node).to_vec());
        let kept = *first.entry(key).or_insert(node);
        if kept == node {
            continue;
        }
        for i in 0..graph.types(node).len() as u16 {
            graph.replace(node.result(i), kept.result(i))?;
        }
        rewrites += 1;
    }
    Ok(rewrites)
}
