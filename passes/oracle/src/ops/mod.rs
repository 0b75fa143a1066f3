//! One function an op, a file a family.

pub mod attention;
pub mod elementwise;
pub mod experts;
pub mod linear;
pub mod norm;
pub mod recurrent;
pub mod rope;
pub mod rows;

use crate::kv::Caches;
use crate::oracle::Reading;
use crate::value::{Tensor, Val};
use attention::More;
use bessemer_ir::Op;
use bessemer_ir::exec::Batch;

/// What an op needs beside its operands.
pub struct Context<'a> {
    /// Which rounding applies.
    pub reading: Reading,
    /// Positions and sequences of the rows.
    pub batch: &'a Batch,
    /// What states stand for.
    pub caches: &'a mut Caches,
}

/// Runs one op on its operands: THE definition. `Const` has no operands to run on; its value is its recipe's.
pub fn run_node(op: &Op, operands: &[&Val], cx: &mut Context<'_>) -> Result<Vec<Val>, String> {
    let at = |i: usize| operands.get(i).copied().ok_or_else(|| format!("operand {i} is missing"));
    let tensor = |i: usize| at(i)?.tensor();
    let weight = |i: usize| at(i)?.weight();
    let one = |t: Tensor| vec![t];
    let rows = cx.batch.rows() as u32;
    let results = match op {
        Op::Input { input } => {
            let rows = cx.batch.input(*input).ok_or("this input speaks of memory that only a plan has")?;
            return Ok(vec![Val::Index(rows.to_vec())]);
        }
        Op::State { layer, .. } | Op::Latents { layer, .. } | Op::Carried { layer, .. } => {
            return Ok(vec![Val::State(*layer)]);
        }
        Op::Const { .. } => return Err("a constant is run by its recipe".into()),
        Op::Output {} => return Ok(Vec::new()),
        Op::Append { kv_heads } => {
            let layer = at(0)?.state()?;
            attention::append(layer, *kv_heads, tensor(1)?, tensor(2)?, cx)?;
            return Ok(vec![Val::State(layer)]);
        }
        Op::Carry { width } => {
            let layer = at(0)?.state()?;
            recurrent::carry(layer, *width, tensor(1)?, cx)?;
            return Ok(vec![Val::State(layer)]);
        }
        Op::History { taps } => one(recurrent::history(*taps, tensor(0)?, at(1)?.state()?, cx)?),
        Op::Depthwise {} => one(recurrent::depthwise(tensor(0)?, weight(1)?)?),
        Op::AppendLatent {} => {
            let layer = at(0)?.state()?;
            attention::append_latent(layer, tensor(1)?, cx)?;
            return Ok(vec![Val::State(layer)]);
        }
        Op::RopeAppend { style, heads, kv_heads } => {
            let layer = at(2)?.state()?;
            let q = attention::rope_append(*style, *heads, *kv_heads, tensor(0)?, tensor(1)?, layer, cx)?;
            return Ok(vec![Val::Tensor(q.stored(cx.reading)), Val::State(layer)]);
        }
        Op::Embed {} => one(rows::embed(at(0)?.index()?, weight(1)?)?),
        Op::SelectRows {} => one(rows::select(tensor(0)?, at(1)?.index()?)?),
        Op::Pool { kind } => one(rows::pool(*kind, tensor(0)?, at(1)?.index()?, cx.batch)?),
        Op::RmsNorm { eps } => one(norm::rms_norm(tensor(0)?, weight(1)?, *eps)?),
        Op::LayerNorm { eps, parts } => {
            let b = if operands.len() > 2 { Some(weight(2)?) } else { None };
            one(norm::layer_norm(tensor(0)?, weight(1)?, b, *eps, *parts)?)
        }
        Op::AddRmsNorm { eps } => {
            let sum = elementwise::binary(bessemer_ir::attr::BinaryKind::Add, tensor(0)?, tensor(1)?)?;
            // The sum is a result, hence stored, and the norm reads what is stored.
            let sum = sum.stored(cx.reading);
            let normed = norm::rms_norm(&sum, weight(2)?, *eps)?;
            vec![sum, normed]
        }
        Op::Linear { segments, epilogue, compute } => {
            one(linear::linear(segments, *epilogue, compute.at(rows), operands, cx.reading)?)
        }
        Op::Route { choice } => {
            let bias = operands.get(1).map(|b| b.weight()).transpose()?;
            return Ok(vec![Val::Index(experts::route(choice, tensor(0)?, bias)?)]);
        }
        Op::RouteWeights { score, renormalise, scale } => {
            one(experts::route_weights(*score, *renormalise, *scale, tensor(0)?, at(1)?.index()?)?)
        }
        Op::GroupedLinear { groups, slots, routed, segments, epilogue, compute } => {
            let chosen = if *routed { Some(at(1)?.index()?) } else { None };
            let grouped = experts::Grouped { groups: *groups as usize, slots: *slots as usize, chosen };
            let weights = operands.get(1 + usize::from(*routed)..).unwrap_or_default();
            let (x, compute) = (tensor(0)?, compute.at(rows));
            one(experts::grouped_linear(grouped, segments, *epilogue, compute, x, weights, cx.reading)?)
        }
        Op::Combine {} => one(experts::combine(tensor(0)?, tensor(1)?)?),
        Op::ConcatHeads { heads } => one(experts::concat_heads(*heads, tensor(0)?, tensor(1)?)?),
        Op::RopeTable { inv_freq, factor } => one(rope::table(at(0)?.index()?, inv_freq, *factor)),
        Op::Rope { style, heads } => one(rope::rotate(*style, *heads, tensor(0)?, tensor(1)?)?),
        Op::Attention { heads, kv_heads, scale, window, softcap, compute } => {
            let plain = attention::Scores::scaled(*scale, compute.at(rows));
            let scores = attention::Scores { window: *window, softcap: *softcap, ..plain };
            let more = if operands.len() > 2 { More::Sinks(weight(2)?) } else { More::Nothing };
            one(attention::attention(*heads, *kv_heads, scores, tensor(0)?, at(1)?.state()?, more, cx)?)
        }
        Op::FullAttention { heads, kv_heads, scale, reach, compute } => {
            let window = reach.map(|reach| reach.saturating_add(1));
            let plain = attention::Scores::scaled(*scale, compute.at(rows));
            let scores = attention::Scores { window, full: true, ..plain };
            let more = if operands.len() > 2 { More::Distances(weight(2)?) } else { More::Nothing };
            one(attention::attention(*heads, *kv_heads, scores, tensor(0)?, at(1)?.state()?, more, cx)?)
        }
        Op::LatentAttention { heads, value, scale, compute } => {
            let latent = Some(*value as usize);
            let plain = attention::Scores::scaled(*scale, compute.at(rows));
            let scores = attention::Scores { latent, ..plain };
            one(attention::attention(*heads, 1, scores, tensor(0)?, at(1)?.state()?, More::Nothing, cx)?)
        }
        Op::Unary { kind } => one(elementwise::unary(*kind, tensor(0)?)),
        Op::Binary { kind } => one(elementwise::binary(*kind, tensor(0)?, tensor(1)?)?),
        Op::Pointwise { body } => {
            let inputs = operands.iter().map(|o| o.tensor()).collect::<Result<Vec<_>, _>>()?;
            one(elementwise::pointwise(body, &inputs)?)
        }
    };
    Ok(results.into_iter().map(|t| Val::Tensor(t.stored(cx.reading))).collect())
}

/// Holds two extents to each other.
fn same(what: &str, a: usize, b: usize) -> Result<(), String> {
    if a == b { Ok(()) } else { Err(format!("{what}: {a} and {b} differ")) }
}

/// Elements of each of `heads` heads.
fn head_dim(width: usize, heads: u32) -> Result<usize, String> {
    let heads = heads as usize;
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(format!("{width} elements do not divide into {heads} heads"));
    }
    Ok(width / heads)
}
