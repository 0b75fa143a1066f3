//! Lowering: a loop nest for every op of the table.
//!
//! What no hand-written kernel covers runs as one of these, so nothing ever fails for want of a kernel. For every op other than linear,
//! attention and embedding the nest is the only CPU implementation.

mod attention;
pub mod builder;
mod experts;
mod linear;
mod norm;
mod pointwise;
mod recurrent;
mod rope;
mod rows;

use crate::states::LayerState;
use bessemer_format::nest::{Index, Nest, ViewElem};
use bessemer_format::plan::{Input, ModelFacts, RowCount};
use bessemer_format::{Compute, Elem};
use bessemer_ir::attr::Computes;
use bessemer_ir::{Dim, Layout, Op, TensorType};

/// What the nests of linears and attention compute in.
const FLOATS: Computes = Computes { few: Compute::F32, many: None };

/// A nest, the rows it runs over, and what its views are bound to.
#[derive(Clone, Debug, PartialEq)]
pub struct Lowered {
    /// The nest.
    pub nest: Nest,
    /// Rows of axis 0.
    pub rows: RowCount,
    /// Bindings of the nest's views, in their order.
    pub args: Vec<NestArg>,
}

/// What a view of a lowered op is bound to.
#[derive(Clone, Debug, PartialEq)]
pub enum NestArg {
    /// An operand of the op.
    Operand(usize),
    /// A result of the op.
    Result(u16),
    /// An array of the forward pass that the op needs beyond its operands.
    Input(Input),
    /// Numbers that the op carries as an attribute.
    Constant(Vec<f32>),
    /// The KV cache.
    State,
}

/// Lowers `op` with operands of these types. `layer` is where the state operand lies, for ops that have one.
pub fn lower(
    op: &Op,
    operands: &[TensorType],
    layer: Option<LayerState>,
    facts: &ModelFacts,
) -> Result<Lowered, String> {
    let layer = || layer.ok_or_else(|| "has no state operand".to_string());
    match op {
        Op::Input { .. }
        | Op::State { .. }
        | Op::Latents { .. }
        | Op::Carried { .. }
        | Op::Const { .. }
        | Op::Output {} => Err("is a place, not a computation".into()),
        Op::Embed {} => rows::embed(&operands[0], &operands[1]),
        Op::RmsNorm { eps } => norm::rms_norm(*eps, &operands[0], &operands[1], false),
        Op::LayerNorm { eps, parts } => {
            norm::layer_norm(*eps, *parts, &operands[0], &operands[1], operands.get(2))
        }
        Op::AddRmsNorm { eps } => norm::rms_norm(*eps, &operands[0], &operands[2], true),
        Op::Linear { segments, epilogue, compute: FLOATS } => linear::linear(segments, *epilogue, operands),
        Op::Linear { compute, .. } => {
            Err(format!("computes in {compute:?}, which only the linear kernels do"))
        }
        Op::Route { .. } => Err("is an argmax, which nests lack: every device has a kernel for it".into()),
        Op::RouteWeights { score, renormalise, scale } => {
            experts::route_weights(*score, *renormalise, *scale, &operands[0], &operands[1])
        }
        Op::GroupedLinear { groups, slots, routed, segments, epilogue, compute: FLOATS } => {
            let (groups, slots) = (i64::from(*groups), i64::from(*slots));
            let grouped = experts::Grouped { groups, slots, routed: *routed, segments, epilogue: *epilogue };
            experts::grouped_linear(&grouped, operands)
        }
        Op::GroupedLinear { compute, .. } => {
            Err(format!("computes in {compute:?}, which only the linear kernels do"))
        }
        Op::Combine {} => experts::combine(&operands[0], &operands[1]),
        Op::ConcatHeads { heads } => experts::concat_heads(*heads, &operands[0], &operands[1]),
        Op::RopeTable { inv_freq, factor } => rope::table(inv_freq, *factor, &operands[0], facts),
        Op::Rope { style, heads } => rope::rope(*style, *heads, &operands[0], &operands[1]),
        Op::Append { kv_heads } => rope::append(*kv_heads, &operands[1], layer()?),
        Op::AppendLatent {} => rope::append_latent(&operands[1], layer()?),
        Op::RopeAppend { style, heads, kv_heads } => {
            rope::rope_append(*style, *heads, *kv_heads, operands, layer()?)
        }
        Op::Attention { compute: FLOATS, .. }
        | Op::FullAttention { compute: FLOATS, .. }
        | Op::LatentAttention { compute: FLOATS, .. } => attention::attention(op, operands, layer()?, facts),
        Op::Attention { compute, .. }
        | Op::FullAttention { compute, .. }
        | Op::LatentAttention { compute, .. } => {
            Err(format!("computes in {compute:?}, which only the attention kernels do"))
        }
        Op::History { taps } => recurrent::history(*taps, &operands[0], layer()?, facts),
        Op::Carry { width } => recurrent::carry(*width, &operands[1], layer()?, facts),
        Op::Depthwise {} => recurrent::depthwise(&operands[0], &operands[1]),
        Op::Unary { kind } => pointwise::unary(*kind, &operands[0]),
        Op::Binary { kind } => pointwise::binary(*kind, &operands[0]),
        Op::Pointwise { body } => pointwise::cluster(body, operands),
        Op::SelectRows {} => rows::select(&operands[0]),
        Op::Pool { kind } => rows::pool(*kind, &operands[0]),
    }
}

/// Rows and width of activations.
fn activation(ty: &TensorType) -> Result<(RowCount, i64), String> {
    let width = ty.const_dim(1).ok_or_else(|| format!("{ty} has no constant width"))?;
    Ok((row_count(ty)?, width as i64))
}

fn row_count(ty: &TensorType) -> Result<RowCount, String> {
    match ty.shape.first() {
        Some(Dim::Rows) => Ok(RowCount::Tokens),
        Some(Dim::LogitRows) => Ok(RowCount::Logits),
        _ => Err(format!("{ty} has no rows")),
    }
}

/// How a dense vector is viewed.
fn vector_elem(ty: &TensorType) -> Result<ViewElem, String> {
    match (ty.scheme().elem, ty.encoding.layout) {
        (Elem::F32, Layout::Dense) => Ok(ViewElem::F32),
        (Elem::F16, Layout::Dense) => Ok(ViewElem::F16),
        (Elem::Bf16, Layout::Dense) => Ok(ViewElem::Bf16),
        _ => Err(format!("{ty} is no dense vector of floats")),
    }
}

/// `base * width + axis`
fn element(base: Index, width: i64, axis: u8) -> Index {
    base * width + Index::axis(axis)
}

#[cfg(test)]
mod tests;
