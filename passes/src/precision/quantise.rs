//! Gives every constant the scheme that the engine will hold.

use super::{Use, is_router, role};
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
            let router = graph.uses(node.into()).into_iter().any(|(reader, _)| is_router(graph, reader));
            let chosen = context.precision.scheme().filter(|_| !router);
            let scheme = chosen.unwrap_or(recipe.scheme());
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

fn check(graph: &Graph, node: NodeId, context: &Context<'_>, scheme: &QuantScheme) -> Result<(), Cause> {
    context.target.supports(scheme).map_err(|why| Cause::Scheme {
        weight: graph.name(node).into(),
        target: context.target.name(),
        scheme: Box::new(*scheme),
        why,
    })
}
