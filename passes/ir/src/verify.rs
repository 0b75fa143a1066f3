//! The verifier: runs after every pass, in tests and in release builds.

use crate::graph::{Graph, GraphError, NodeId};
use crate::infer::infer;
use crate::op::Op;
use crate::types::TensorType;
use std::collections::BTreeMap;

/// Checks the whole graph: one output, no cycles, every type as inferred (layouts apart, which are chosen, not inferred),
/// every op legal in the graph's phase, each layer's state read and appended in one line.
pub fn verify(graph: &Graph) -> Result<(), GraphError> {
    let error = |n: NodeId, why: String| {
        Err(GraphError { node: format!("%{} {} ({})", n.number(), graph.name(n), graph.op(n).name()), why })
    };
    let outputs = graph.all().into_iter().filter(|n| matches!(graph.op(*n), Op::Output {})).count();
    if outputs != 1 {
        return Err(GraphError { node: "graph".into(), why: format!("has {outputs} outputs, expected one") });
    }
    let order = graph.order();
    let position: BTreeMap<NodeId, usize> = order.iter().enumerate().map(|(i, n)| (*n, i)).collect();
    let mut layers = BTreeMap::new();
    for &node in &order {
        let operands = graph.operands(node);
        for v in &operands {
            if position.get(&v.node).is_none_or(|p| *p >= position[&node]) {
                return error(node, format!("reads {} on a cycle", graph.name(v.node)));
            }
            if usize::from(v.result) >= graph.types(v.node).len() {
                return error(node, format!("reads result {} of {}", v.result, graph.name(v.node)));
            }
        }
        let types: Vec<_> = operands.iter().map(|v| graph.ty(*v).clone()).collect();
        let mut inferred = match infer(graph.op(node), &types) {
            Ok(types) => types,
            Err(why) => return error(node, why),
        };
        let stated: &[TensorType] = graph.types(node);
        for (i, s) in inferred.iter_mut().zip(stated) {
            if matches!(graph.op(node), Op::Const { .. }) {
                i.encoding.layout = s.encoding.layout;
            }
        }
        if inferred != stated {
            return error(node, format!("states types {stated:?}, inferred are {inferred:?}"));
        }
        if !graph.phase.allows(graph.op(node)) {
            return error(node, format!("is not legal in phase {}", graph.phase));
        }
        if let Some(layer) = graph.op(node).state_of()
            && let Some(other) = layers.insert(layer, node)
        {
            return error(node, format!("layer {layer} has another state, {}", graph.name(other)));
        }
        // Appending writes in place: whoever reads the old version must not run later, so nobody may.
        // The exception is a reader whose result is what the append takes: it comes first.
        let op = graph.op(node);
        if op.state_of().is_some() || op.advances_state() {
            let state = node.result(graph.types(node).len() as u16 - 1);
            let uses = graph.uses(state);
            let (appends, readers): (Vec<NodeId>, Vec<NodeId>) =
                uses.iter().map(|(n, _)| *n).partition(|n| graph.op(*n).advances_state());
            let comes_first = |reader: &NodeId| {
                appends.iter().all(|a| graph.operands(*a).iter().any(|v| v.node == *reader))
            };
            if appends.len() > 1 || !readers.iter().all(comes_first) {
                return error(node, "a state that is appended to has another reader".into());
            }
        }
    }
    Ok(())
}
