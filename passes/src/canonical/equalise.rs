//! Folds scales between a linear's input and what makes it: `x / s` there, columns times `s` here. Exact but for the rounding of the
//! products; it makes a difference where weights are rounded afterwards, since what is scaled up is rounded finer.
//!
//! A pair is legal only where nothing else sees the scaled values: every reader of the input is a linear, and the constant that takes the
//! other half has one reader.

use crate::error::Cause;
use crate::pattern::binary;
use crate::pipeline::Context;
use crate::precision::weights;
use bessemer_ir::attr::{BinaryKind, Epilogue};
use bessemer_ir::recipe::{Axis, Transform};
use bessemer_ir::{Graph, NodeId, Op, Value};

/// A place where a scale can be folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The input that becomes smaller.
    pub input: Value,
    /// Weights of the linears that read it, whose columns become larger.
    pub readers: Vec<NodeId>,
    /// The constant that takes the division.
    pub writer: NodeId,
    /// Whether the writer is a matrix, divided by rows; else the vector of a norm.
    pub by_rows: bool,
    /// Different scales of the input: one for each of its elements, or for each of a key head, which several query heads share, or for each
    /// of a slot, which all slots share.
    pub scales: usize,
    /// Elements of a head or slot, where they share scales.
    head: Option<usize>,
}

/// A scale and the pair that it is for.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// As [`pairs`] has it.
    pub pair: Pair,
    /// Factor of the columns, [`Pair::scales`] numbers.
    pub by: Vec<f32>,
}

impl Pair {
    /// The scale of each of the `width` elements of the input.
    pub fn expand(&self, scales: &[f32], width: usize) -> Vec<f32> {
        (0..width).map(|i| scales[self.scale_of(i, width)]).collect()
    }

    /// Which scale element `i` of the input has.
    pub fn scale_of(&self, i: usize, width: usize) -> usize {
        match self.head {
            // Query head h reads key head h / (heads / kv_heads).
            Some(d) => i / d / (width / self.scales) * d + i % d,
            None => i,
        }
    }
}

/// The pass: folds the scales of the context.
pub fn run(graph: &mut Graph, context: &Context<'_>) -> Result<u32, Cause> {
    let mut rewrites = 0;
    for Scale { pair, by } in context.refine.scales {
        for &reader in &pair.readers {
            let (_, columns) = matrix(graph, reader);
            scale(graph, reader, Axis::Columns, pair.expand(by, columns))?;
        }
        let (rows, columns) = matrix(graph, pair.writer);
        let (axis, count) = if pair.by_rows { (Axis::Rows, rows) } else { (Axis::Columns, columns) };
        // The weights of a stack are scaled alike, so that it does not matter which of them a row chose.
        scale(graph, pair.writer, axis, by.iter().cycle().take(count).map(|s| 1.0 / s).collect())?;
        rewrites += 1;
    }
    Ok(rewrites)
}

/// Rows and columns of a constant.
fn matrix(graph: &Graph, constant: NodeId) -> (usize, usize) {
    match graph.op(constant) {
        Op::Const { recipe } => recipe.matrix(),
        _ => (0, 0),
    }
}

fn scale(graph: &mut Graph, constant: NodeId, axis: Axis, by: Vec<f32>) -> Result<(), Cause> {
    if let Op::Const { recipe } = graph.op(constant) {
        let mut recipe = recipe.clone();
        recipe.transforms.push(Transform::Scale { axis, by });
        graph.set_op(constant, Op::Const { recipe })?;
    }
    Ok(())
}

/// Every legal pair of a canonical graph, in execution order.
pub fn pairs(graph: &Graph) -> Vec<Pair> {
    graph.order().into_iter().filter_map(|node| pair(graph, node)).collect()
}

fn pair(graph: &Graph, node: NodeId) -> Option<Pair> {
    let input = Value::from(node);
    let readers = graph.uses(input).into_iter().map(|(reader, i)| {
        // The input of a linear is its first operand; nothing else of it may be scaled.
        let weight = plain(graph, reader).filter(|_| i == 0)?;
        own_matrix(graph, weight)
    });
    let readers: Vec<NodeId> = readers.collect::<Option<_>>()?;
    if readers.is_empty() {
        return None;
    }
    let operands = graph.operands(node);
    let width = graph.ty(input).const_dim(1)? as usize;
    let read = |columns: usize| readers.iter().all(|r| matrix(graph, *r).1.is_multiple_of(columns.max(1)));
    let whole = |writer, by_rows| Pair {
        input,
        readers: readers.clone(),
        writer,
        by_rows,
        scales: width,
        head: None,
    };
    match graph.op(node) {
        Op::RmsNorm { .. } => {
            let weight = operands.get(1)?.node;
            // A norm of each head shares its weight among heads.
            let whole_rows = graph.ty(weight.into()).const_dim(0)? as usize == width;
            let own = graph.only_use(weight.into()).is_some();
            (whole_rows && own && read(width)).then(|| whole(weight, false))
        }
        Op::Binary { .. } => {
            // Of a gate and an up projection, the one that is linear: the gate went through a function.
            let [a, b] = binary(graph, input, BinaryKind::Mul)?;
            let up = |v: Value| {
                let weight =
                    own_matrix(graph, plain(graph, v.node).filter(|_| graph.only_use(v).is_some())?)?;
                let slots = match graph.op(v.node) {
                    Op::GroupedLinear { slots, .. } => *slots as usize,
                    _ => 1,
                };
                let scales = width / slots.max(1);
                let fits = without_bias(graph, v.node) && read(scales);
                fits.then(|| Pair { scales, head: (slots > 1).then_some(scales), ..whole(weight, true) })
            };
            up(b).or_else(|| up(a))
        }
        Op::Attention { heads, .. } => {
            let append = operands.get(1)?.node;
            let Op::Append { kv_heads } = graph.op(append) else { return None };
            // The output keeps the state for later passes, whose values are scaled alike.
            let mut readers = graph.uses(append.into());
            readers.retain(|(n, _)| !matches!(graph.op(*n), Op::Output {}));
            if readers.len() != 1 {
                return None;
            }
            let value = *graph.operands(append).get(2)?;
            let weight =
                own_matrix(graph, plain(graph, value.node).filter(|_| graph.only_use(value).is_some())?)?;
            let scales = graph.ty(value).const_dim(1)? as usize;
            let d = width.checked_div(*heads as usize)?;
            // Values as wide as queries, and no sharing that is not by whole heads.
            let fits = d > 0 && scales == d * *kv_heads as usize && width.is_multiple_of(scales);
            (fits && without_bias(graph, value.node)).then(|| Pair {
                scales,
                head: Some(d),
                ..whole(weight, true)
            })
        }
        _ => None,
    }
}

/// The weight of a linear, or the stack of one that has several, of one segment without an epilogue.
fn plain(graph: &Graph, linear: NodeId) -> Option<NodeId> {
    match graph.op(linear) {
        Op::Linear { segments, epilogue: Epilogue::None, .. }
        | Op::GroupedLinear { segments, epilogue: Epilogue::None, .. }
            if segments.len() == 1 =>
        {
            weights(graph, linear).first().map(|w| w.node)
        }
        _ => None,
    }
}

/// A constant that only one operand reads.
fn own_matrix(graph: &Graph, weight: NodeId) -> Option<NodeId> {
    (matches!(graph.op(weight), Op::Const { .. }) && graph.only_use(weight.into()).is_some())
        .then_some(weight)
}

fn without_bias(graph: &Graph, linear: NodeId) -> bool {
    matches!(
        graph.op(linear),
        Op::Linear { segments, .. } | Op::GroupedLinear { segments, .. } if segments.iter().all(|s| !s.bias)
    )
}
