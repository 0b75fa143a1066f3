//! Clusters of scalar functions into one pass over the elements.

use crate::error::Cause;
use crate::pattern::joint_name;
use crate::pipeline::Context;
use bessemer_ir::attr::Scalar;
use bessemer_ir::{Graph, NodeId, Op, Value};
use std::collections::BTreeMap;

/// The pass. A node belongs to the cluster of its readers when they all belong to one: then no value of the cluster but the last is
/// seen outside, and nothing outside can lie between two of its nodes.
pub fn run(graph: &mut Graph, _: &Context<'_>) -> Result<u32, Cause> {
    let order = graph.order();
    let mut root: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    for &node in order.iter().rev().filter(|n| is_scalar(graph, **n)) {
        let mut readers = graph.uses(node.into()).into_iter().map(|(reader, _)| root.get(&reader).copied());
        let first = readers.next().flatten();
        let cluster = first.filter(|_| readers.all(|r| r == first)).unwrap_or(node);
        root.insert(node, cluster);
    }
    let mut clusters: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    for node in order.iter().filter(|n| root.contains_key(n)) {
        clusters.entry(root[node]).or_default().push(*node);
    }
    let mut rewrites = 0;
    // In execution order, so that a cluster reads the fused form of the one before.
    for node in order {
        let Some(members) = clusters.get(&node).filter(|m| m.len() > 1) else { continue };
        fuse(graph, node, members)?;
        rewrites += 1;
    }
    Ok(rewrites)
}

fn is_scalar(graph: &Graph, node: NodeId) -> bool {
    matches!(graph.op(node), Op::Unary { .. } | Op::Binary { .. })
}

/// Replaces `members` (operands before readers, the last one is `root`) with one node.
fn fuse(graph: &mut Graph, root: NodeId, members: &[NodeId]) -> Result<(), Cause> {
    let mut operands: Vec<Value> = Vec::new();
    for v in members.iter().flat_map(|m| graph.operands(*m)) {
        if !members.contains(&v.node) && !operands.contains(&v) {
            operands.push(v);
        }
    }
    let number = |v: Value| {
        let member = || members.iter().position(|m| *m == v.node).map(|i| operands.len() + i);
        operands.iter().position(|o| *o == v).or_else(member).unwrap_or(usize::MAX) as u32
    };
    let body = members
        .iter()
        .filter_map(|m| match (graph.op(*m), &graph.operands(*m)[..]) {
            (Op::Unary { kind }, [a]) => Some(Scalar::Unary(*kind, number(*a))),
            (Op::Binary { kind }, [a, b]) => Some(Scalar::Binary(*kind, number(*a), number(*b))),
            _ => None,
        })
        .collect();
    let name = joint_name(&members.iter().map(|m| graph.name(*m)).collect::<Vec<_>>());
    let fused = graph.add(name, Op::Pointwise { body }, &operands)?;
    graph.replace(root.into(), fused.into())?;
    Ok(())
}
