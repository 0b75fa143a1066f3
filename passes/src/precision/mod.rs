//! Precision: the scheme of every weight, then what every linear and attention computes in.

pub mod compute;
mod policy;
pub mod quantise;

pub use policy::{Override, PrecisionPolicy};
pub use quantise::{is_assignable, makes_routes, scheme_of};

use bessemer_format::plan::Input;
use bessemer_ir::{Graph, NodeId, Op, Value};

/// How a constant is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// As the weight of a linear or the table of an embedding.
    Matrix,
    /// As numbers that are added in f32: the bias of a linear, the sinks of attention.
    Bias,
    /// As a table of positions or of types of tokens: small, and read by a nest.
    Lookup,
    /// As anything else: the weight of a norm.
    Other,
}

/// How operand `index` of `reader` is read.
pub fn role(graph: &Graph, reader: NodeId, index: usize) -> Use {
    match graph.op(reader) {
        Op::Embed {} if index == 1 => match graph.op(graph.operands(reader)[0].node) {
            Op::Input { input: Input::Tokens } => Use::Matrix,
            _ => Use::Lookup,
        },
        op @ (Op::Linear { segments, .. } | Op::GroupedLinear { segments, .. }) => {
            let mut next = 1 + usize::from(matches!(op, Op::GroupedLinear { routed: true, .. }));
            for s in segments {
                if index == next {
                    return Use::Matrix;
                }
                if s.bias && index == next + 1 {
                    return Use::Bias;
                }
                next += 1 + usize::from(s.bias);
            }
            Use::Other
        }
        // Sinks join f32 scores, numbers for distances are added to them.
        Op::Attention { .. } | Op::FullAttention { .. } if index == 2 => Use::Bias,
        // Added to f32 scores.
        Op::Route { .. } if index == 1 => Use::Bias,
        _ => Use::Other,
    }
}

/// Whether a linear makes the logits of a router: a small matrix, and a rounding of it changes which experts run.
pub fn is_router(graph: &Graph, linear: NodeId) -> bool {
    graph.uses(linear.into()).into_iter().any(|(reader, _)| matches!(graph.op(reader), Op::Route { .. }))
}

/// Weights of a linear, one a segment.
pub fn weights(graph: &Graph, linear: NodeId) -> Vec<Value> {
    let operands = graph.operands(linear).into_iter().enumerate();
    operands.filter(|(i, _)| role(graph, linear, *i) == Use::Matrix).map(|(_, v)| v).collect()
}
