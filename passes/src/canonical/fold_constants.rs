//! Folds what is known now: conversions that change no number, and signs that cancel.
//!
//! Constants are recipes, so folding shortens recipes; no bytes are read.

use crate::error::Cause;
use crate::pattern::unary;
use crate::pipeline::Context;
use bessemer_format::QuantScheme;
use bessemer_ir::attr::UnaryKind;
use bessemer_ir::recipe::Transform;
use bessemer_ir::{Graph, Op, Recipe};

/// The pass.
pub fn run(graph: &mut Graph, _: &Context<'_>) -> Result<u32, Cause> {
    let mut rewrites = 0;
    for node in graph.order() {
        if let Op::Const { recipe } = graph.op(node) {
            let folded = fold(recipe);
            if folded != *recipe {
                graph.set_op(node, Op::Const { recipe: folded })?;
                rewrites += 1;
            }
        } else if let Some(inner) = unary(graph, node.into(), UnaryKind::Neg)
            && let Some(x) = unary(graph, inner, UnaryKind::Neg)
        {
            graph.replace(node.into(), x)?;
            rewrites += 1;
        }
    }
    Ok(rewrites)
}

/// Leaves out conversions after which every number is what it was: to f32 on the way to another scheme (a conversion starts from f32
/// anyway), and to the floating-point encoding that the numbers are in.
fn fold(recipe: &Recipe) -> Recipe {
    let mut folded = Recipe { transforms: Vec::new(), ..recipe.clone() };
    for (i, t) in recipe.transforms.iter().enumerate() {
        let Transform::Convert(scheme) = t else {
            folded.transforms.push(t.clone());
            continue;
        };
        let last = i + 1 == recipe.transforms.len();
        let widens = *scheme == QuantScheme::F32 && !last;
        let repeats = scheme.elem.is_float() && *scheme == folded.scheme();
        if !widens && !repeats {
            folded.transforms.push(t.clone());
        }
    }
    folded
}
