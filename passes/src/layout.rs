//! Layout: every matrix as its kernel reads it. Packing happens when the engine is written; here it is stated.

use crate::error::Cause;
use crate::pipeline::Context;
use crate::precision::{Use, role};
use bessemer_ir::{Graph, Op};

/// The pass.
pub fn run(graph: &mut Graph, context: &Context<'_>) -> Result<u32, Cause> {
    let mut rewrites = 0;
    for node in graph.order() {
        let matrix =
            graph.uses(node.into()).into_iter().any(|(reader, i)| role(graph, reader, i) == Use::Matrix);
        if !matches!(graph.op(node), Op::Const { .. }) || !matrix {
            continue;
        }
        let ty = graph.ty(node.into());
        let (Some(n), Some(k)) = (ty.const_dim(0), ty.const_dim(1)) else { continue };
        let layout = context.target.weight_layout(&ty.scheme(), n, k);
        if ty.encoding.layout != layout {
            graph.set_layout(node, layout)?;
            rewrites += 1;
        }
    }
    Ok(rewrites)
}
