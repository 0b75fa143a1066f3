//! The graph and the only ways to change it.

use crate::infer::infer;
use crate::op::Op;
use crate::phase::Phase;
use crate::types::{Layout, TensorType};
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;
use std::collections::BTreeSet;

/// A node of a [`Graph`]. Stays valid while the node lives; never reused for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(NodeIndex<u32>);

/// One result of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// The node.
    pub node: NodeId,
    /// Which of its results.
    pub result: u16,
}

/// What is wrong with a graph or a change of it: the node, and both sides.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{node}: {why}")]
pub struct GraphError {
    /// Name of the node.
    pub node: String,
    /// What is wrong.
    pub why: String,
}

#[derive(Clone, Debug)]
struct Node {
    op: Op,
    name: String,
    types: Vec<TensorType>,
}

/// Operand position at the consumer, and which result of the producer it takes.
#[derive(Clone, Copy, Debug)]
struct Edge {
    operand: u16,
    result: u16,
}

/// A graph of ops. Nodes have a name for people (unique names are not required) and the types of their results.
#[derive(Clone, Debug)]
pub struct Graph {
    nodes: StableDiGraph<Node, Edge>,
    /// How far it has come.
    pub phase: Phase,
}

impl Default for Graph {
    fn default() -> Self {
        Self { nodes: StableDiGraph::new(), phase: Phase::Imported }
    }
}

impl From<NodeId> for Value {
    /// The first result.
    fn from(node: NodeId) -> Self {
        Value { node, result: 0 }
    }
}

impl NodeId {
    /// The `i`-th result.
    pub fn result(self, i: u16) -> Value {
        Value { node: self, result: i }
    }
    /// A number for printing.
    pub fn number(self) -> usize {
        self.0.index()
    }
}

impl Graph {
    /// Adds a node; its types are inferred from the operands'.
    pub fn add(&mut self, name: impl Into<String>, op: Op, operands: &[Value]) -> Result<NodeId, GraphError> {
        let name = name.into();
        let types = operands.iter().map(|v| self.ty(*v).clone()).collect::<Vec<_>>();
        let types =
            infer(&op, &types).map_err(|why| GraphError { node: format!("{name} ({})", op.name()), why })?;
        let node = self.nodes.add_node(Node { op, name, types });
        for (i, v) in operands.iter().enumerate() {
            self.nodes.add_edge(v.node.0, node, Edge { operand: i as u16, result: v.result });
        }
        Ok(NodeId(node))
    }

    /// The op of a node.
    pub fn op(&self, node: NodeId) -> &Op {
        &self.nodes[node.0].op
    }

    /// The name of a node.
    pub fn name(&self, node: NodeId) -> &str {
        &self.nodes[node.0].name
    }

    /// The type of a value.
    pub fn ty(&self, value: Value) -> &TensorType {
        &self.nodes[value.node.0].types[value.result as usize]
    }

    /// The types of all results of a node.
    pub fn types(&self, node: NodeId) -> &[TensorType] {
        &self.nodes[node.0].types
    }

    /// The operands of a node in order.
    pub fn operands(&self, node: NodeId) -> Vec<Value> {
        let mut edges: Vec<_> = self
            .nodes
            .edges_directed(node.0, Direction::Incoming)
            .map(|e| (e.weight().operand, Value { node: NodeId(e.source()), result: e.weight().result }))
            .collect();
        edges.sort_unstable_by_key(|(operand, _)| *operand);
        edges.into_iter().map(|(_, v)| v).collect()
    }

    /// Who reads a value: consumer and operand position, in ascending order.
    pub fn uses(&self, value: Value) -> Vec<(NodeId, usize)> {
        let mut uses: Vec<_> = self
            .nodes
            .edges_directed(value.node.0, Direction::Outgoing)
            .filter(|e| e.weight().result == value.result)
            .map(|e| (NodeId(e.target()), e.weight().operand as usize))
            .collect();
        uses.sort_unstable();
        uses
    }

    /// The only reader of a value, if it has exactly one.
    pub fn only_use(&self, value: Value) -> Option<NodeId> {
        match self.uses(value)[..] {
            [(node, _)] => Some(node),
            _ => None,
        }
    }

    /// Lets every reader of `old` read `new` instead. Types must be equal: a rewrite that changes a type is refused.
    pub fn replace(&mut self, old: Value, new: Value) -> Result<(), GraphError> {
        if self.ty(old) != self.ty(new) {
            let why = format!(
                "{} is {}, its replacement {} is {}",
                self.name(old.node),
                self.ty(old),
                self.name(new.node),
                self.ty(new)
            );
            return Err(GraphError { node: self.name(old.node).to_string(), why });
        }
        let edges: Vec<_> = self
            .nodes
            .edges_directed(old.node.0, Direction::Outgoing)
            .filter(|e| e.weight().result == old.result && e.target() != new.node.0)
            .map(|e| (e.id(), e.target(), e.weight().operand))
            .collect();
        for (edge, target, operand) in edges {
            self.nodes.remove_edge(edge);
            self.nodes.add_edge(new.node.0, target, Edge { operand, result: new.result });
        }
        Ok(())
    }

    /// Changes an op in place, for passes that set attributes (compute, recipe). Result types may change in encoding only;
    /// consumers are checked against the new type.
    pub fn set_op(&mut self, node: NodeId, op: Op) -> Result<(), GraphError> {
        let error = |g: &Self, n: NodeId, why| GraphError {
            node: format!("{} ({})", g.name(n), g.op(n).name()),
            why,
        };
        let layouts: Vec<Layout> = self.types(node).iter().map(|t| t.encoding.layout).collect();
        let operands: Vec<_> = self.operands(node).iter().map(|v| self.ty(*v).clone()).collect();
        let mut types = infer(&op, &operands).map_err(|why| error(self, node, why))?;
        for (t, layout) in types.iter_mut().zip(layouts) {
            t.encoding.layout = layout;
        }
        let shapes = |t: &[TensorType]| t.iter().map(|t| (t.dtype, t.shape.clone())).collect::<Vec<_>>();
        if shapes(&types) != shapes(self.types(node)) {
            return Err(error(
                self,
                node,
                "a change of attributes must keep the shapes of the results".into(),
            ));
        }
        self.nodes[node.0].op = op;
        self.nodes[node.0].types = types;
        self.check_readers(node)
    }

    /// States in which layout a constant is stored.
    pub fn set_layout(&mut self, node: NodeId, layout: Layout) -> Result<(), GraphError> {
        for t in &mut self.nodes[node.0].types {
            t.encoding.layout = layout;
        }
        self.check_readers(node)
    }

    fn check_readers(&self, node: NodeId) -> Result<(), GraphError> {
        for reader in self.nodes.neighbors_directed(node.0, Direction::Outgoing) {
            let reader = NodeId(reader);
            let operands: Vec<_> = self.operands(reader).iter().map(|v| self.ty(*v).clone()).collect();
            infer(self.op(reader), &operands)
                .map_err(|why| GraphError { node: self.name(reader).to_string(), why })?;
        }
        Ok(())
    }

    /// Removes every node from which no `output` can be reached. Returns how many.
    pub fn remove_dead(&mut self) -> usize {
        let live: BTreeSet<NodeId> = self.order().into_iter().collect();
        let before = self.nodes.node_count();
        self.nodes.retain_nodes(|_, n| live.contains(&NodeId(n)));
        before - self.nodes.node_count()
    }

    /// All nodes in the order in which they were added.
    pub fn all(&self) -> Vec<NodeId> {
        self.nodes.node_indices().map(NodeId).collect()
    }

    /// The `output` node.
    pub fn output(&self) -> Option<NodeId> {
        self.all().into_iter().find(|n| matches!(self.op(*n), Op::Output {}))
    }

    /// The nodes that the output needs, operands before readers, depth first in operand order (the output's carried states before
    /// the others): the natural execution order, and the order in which weights are first used. Nodes on a cycle are left out (the verifier reports them).
    pub fn order(&self) -> Vec<NodeId> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        let Some(output) = self.output() else { return order };
        let mut wanted = self.operands(output);
        // What is carried on is wanted by the output alone. Stored at once, its rows take no memory until the end.
        wanted.sort_by_key(|v| !matches!(self.op(v.node), Op::Carry { .. }));
        // An explicit stack: graphs are deeper than a thread's stack may be.
        let mut stack = vec![(output, wanted, 0usize)];
        seen.insert(output);
        while let Some((node, operands, next)) = stack.pop() {
            match operands.get(next) {
                None => order.push(node),
                Some(v) => {
                    let child = v.node;
                    stack.push((node, operands, next + 1));
                    if seen.insert(child) {
                        let operands = self.operands(child);
                        stack.push((child, operands, 0));
                    }
                }
            }
        }
        order
    }
}
