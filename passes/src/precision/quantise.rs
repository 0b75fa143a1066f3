//! Gives every constant the scheme that the engine will hold.

use super::{PrecisionPolicy, Use, is_router, role};
use crate::error::Cause;
use crate::pipeline::Context;
use bessemer_format::QuantScheme;
use bessemer_ir::{Graph, NodeId, Op};

/// The pass. A constant is converted once, however many read it: a tied table stays one table.
pub fn run(graph: &mut Graph, context: &Context<'_>) -> Result<u32, Cause> {
    let mut rewrites = 0;
    for node in graph.order() {
        let Op::Const { recipe } = graph.op(node) else { continue };
        let uses: Vec<Use> =
            graph.uses(node.into()).into_iter().map(|(reader, i)| role(graph, reader, i)).collect();
        let scheme = if uses.contains(&Use::Matrix) {
            let scheme = scheme_of(graph, node, context).unwrap_or(recipe.scheme());
            check(graph, node, context, &scheme)?;
            scheme
        } else if uses.contains(&Use::Bias) {
            // They are added to f32 sums.
            QuantScheme::F32
        } else if uses.contains(&Use::Lookup) && !recipe.scheme().elem.is_float() {
            // A dense table has no place for scales.
            QuantScheme::F32
        } else {
            continue;
        };
        if recipe.scheme() != scheme {
            let recipe = recipe.clone().converted(scheme);
            graph.set_op(node, Op::Const { recipe })?;
            rewrites += 1;
        }
    }
    Ok(rewrites)
}

/// The scheme that a matrix gets; `None` where it keeps its own, as a router does.
pub fn scheme_of(graph: &Graph, matrix: NodeId, context: &Context<'_>) -> Option<QuantScheme> {
    if makes_routes(graph, matrix) {
        return None;
    }
    let refine = &context.refine;
    match overridden(graph, matrix, context) {
        Some(precision) => precision.scheme(),
        None => match refine.assigned.and_then(|assigned| assigned.get(&matrix)) {
            Some(scheme) => Some(*scheme),
            None => context.precision.scheme(),
        },
    }
}

/// Whether a node is a matrix whose scheme nobody has named: one that can be chosen.
pub fn is_assignable(graph: &Graph, node: NodeId, context: &Context<'_>) -> bool {
    let matrix = |(reader, i)| role(graph, reader, i) == Use::Matrix;
    matches!(graph.op(node), Op::Const { .. })
        && graph.uses(node.into()).into_iter().any(matrix)
        && !makes_routes(graph, node)
        && overridden(graph, node, context).is_none()
}

fn overridden(graph: &Graph, node: NodeId, context: &Context<'_>) -> Option<PrecisionPolicy> {
    let name = graph.name(node);
    context.refine.overrides.iter().rev().find(|o| o.matches(name)).map(|o| o.precision)
}

/// Whether a matrix makes the logits of a router.
pub fn makes_routes(graph: &Graph, matrix: NodeId) -> bool {
    graph.uses(matrix.into()).into_iter().any(|(reader, _)| is_router(graph, reader))
}

fn check(graph: &Graph, node: NodeId, context: &Context<'_>, scheme: &QuantScheme) -> Result<(), Cause> {
    context.target.supports(scheme).map_err(|why| Cause::Scheme {
        weight: graph.name(node).into(),
        target: context.target.name(),
        scheme: Box::new(*scheme),
        why,
    })
}
