//! Declares what every linear computes in, then what attention does: bf16 for many rows where the target gains by it and a linear rounds
//! activations at all, else f32. The segments of a linear share one conversion of its input, hence one compute.

use super::{is_router, weights};
use crate::error::Cause;
use crate::pipeline::Context;
use bessemer_format::{Compute, PanelLayout, QuantScheme, panel};
use bessemer_ir::attr::Computes;
use bessemer_ir::{Graph, NodeId, Op};

const COLUMNS: u64 = panel::COLUMNS as u64;
/// From how many elements on a group of activations is long: products in tiles save more than its sum costs.
const LONG: u32 = 256;

/// The pass.
pub fn run(graph: &mut Graph, context: &Context<'_>) -> Result<u32, Cause> {
    let (linears, others): (Vec<NodeId>, Vec<NodeId>) = graph
        .order()
        .into_iter()
        .partition(|node| matches!(graph.op(*node), Op::Linear { .. } | Op::GroupedLinear { .. }));
    let mut rewrites = 0;
    for &node in &linears {
        let chosen = if context.f32_activations { Compute::F32.into() } else { choose(graph, node, context) };
        rewrites += set(graph, node, chosen)?;
    }
    // A graph whose linears all compute in f32 stays as precise as it is.
    let rounds =
        |linear: &NodeId| graph.op(*linear).computes().is_some_and(|c| c.all().any(|c| c != Compute::F32));
    let many = context.target.many_rows_attention().filter(|_| linears.iter().any(rounds));
    let chosen = Computes { few: Compute::F32, many: many.map(|from| (from, Compute::Bf16)) };
    for node in others {
        rewrites += set(graph, node, chosen)?;
    }
    Ok(rewrites)
}

/// Declares what a node computes in, if it is one that says so; returns how many changed.
fn set(graph: &mut Graph, node: NodeId, chosen: Computes) -> Result<u32, Cause> {
    if graph.op(node).computes().is_none_or(|computes| computes == chosen) {
        return Ok(0);
    }
    let mut op = graph.op(node).clone();
    if let Some(computes) = op.computes_mut() {
        *computes = chosen;
    }
    graph.set_op(node, op)?;
    Ok(1)
}

/// What all segments can compute in: f32 as soon as they differ in kind (f32 reads any scheme), else bf16 if all do, else signed bytes by the largest group that
/// divides the groups of all (a finer group of activations fits wherever a coarser one does).
fn choose(graph: &Graph, linear: NodeId, context: &Context<'_>) -> Computes {
    let common = |a, b| match (a, b) {
        (Compute::Bf16, Compute::Bf16) => Compute::Bf16,
        (Compute::Int8 { group: a }, Compute::Int8 { group: b }) => Compute::Int8 { group: gcd(a, b) },
        _ => Compute::F32,
    };
    // Where the weights of a stack do not begin at a panel no kernel takes them, and nests compute in f32.
    if let Op::GroupedLinear { segments, .. } = graph.op(linear)
        && !segments.iter().all(|s| s.width.is_multiple_of(COLUMNS))
    {
        return Compute::F32.into();
    }
    // A rounding of what a router reads changes which experts run, and its matrix is small.
    if is_router(graph, linear) {
        return Compute::F32.into();
    }
    let weights: Vec<(QuantScheme, u64)> = weights(graph, linear)
        .into_iter()
        .map(|w| (graph.ty(w).scheme(), graph.ty(w).const_dim(1).unwrap_or(0)))
        .collect();
    let few = weights.iter().map(|(scheme, k)| context.target.default_compute(scheme, *k)).reduce(common);
    let few = few.unwrap_or(Compute::F32);
    if context.row_activations
        && let (Compute::Int8 { .. }, Some(group)) = (few, long_group(&weights))
    {
        return Compute::Int8 { group }.into();
    }
    let many = weights.iter().map(|(scheme, k)| context.target.many_rows_compute(scheme, *k));
    let many = many.reduce(|a, b| {
        let ((from_a, a), (from_b, b)) = a.zip(b)?;
        Some((from_a.max(from_b), common(a, b)))
    });
    // Few of a pass's rows go to an expert: it has few rows, however many the pass has.
    let many =
        many.flatten().filter(|(_, many)| *many != few && matches!(graph.op(linear), Op::Linear { .. }));
    Computes { few, many }
}

/// How many elements of a row can share a scale, where those of all weights do so far enough: all of them, or [`LONG`] and more.
fn long_group(weights: &[(QuantScheme, u64)]) -> Option<u32> {
    let group = |(scheme, k): &(QuantScheme, u64)| {
        let layout = PanelLayout::new(scheme, 1, *k as usize).ok()?;
        Some(match layout.runs() {
            1 => (layout.padded_k() as u32, true),
            _ => (layout.run() as u32, false),
        })
    };
    let groups: Vec<_> = weights.iter().map(group).collect::<Option<_>>()?;
    let common = groups.iter().map(|(group, _)| *group).reduce(gcd)?;
    (groups.iter().all(|(_, whole)| *whole) || common >= LONG).then_some(common)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
