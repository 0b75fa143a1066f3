//! Mixtures of experts, and heads that have a weight each.

use super::linear::linear;
use super::same;
use crate::oracle::Reading;
use crate::value::{Tensor, Val, Weight};
use bessemer_format::Compute;
use bessemer_format::plan::{Choice, Score};
use bessemer_ir::attr::{Epilogue, Segment};
use std::cmp::Ordering;
use std::sync::Arc;

/// Scores of all experts.
fn scores(score: Score, logits: &[f64]) -> Vec<f64> {
    match score {
        Score::Softmax => {
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let powers: Vec<f64> = logits.iter().map(|x| (x - max).exp()).collect();
            let total: f64 = powers.iter().sum();
            powers.into_iter().map(|p| p / total).collect()
        }
        Score::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
    }
}

/// The numbers from the one with the largest key down; of equal keys the smaller number first.
fn best_first(keys: &[f64], mut numbers: Vec<usize>) -> Vec<usize> {
    numbers.sort_by(|a, b| keys[*b].partial_cmp(&keys[*a]).unwrap_or(Ordering::Equal).then(a.cmp(b)));
    numbers
}

/// `route`: the experts of each row, best first.
pub fn route(choice: &Choice, logits: &Tensor, bias: Option<&Weight>) -> Result<Vec<u32>, String> {
    choice.check(logits.width as u64)?;
    if let Some(bias) = bias {
        same("bias", bias.data.len(), logits.width)?;
    }
    let size = logits.width / choice.groups as usize;
    let mut chosen = Vec::new();
    for row in logits.each_row() {
        let mut keys = scores(choice.score, row);
        if let Some(bias) = bias {
            keys.iter_mut().zip(&bias.data).for_each(|(key, b)| *key += f64::from(*b));
        }
        let members = |group: usize| (group * size..(group + 1) * size).collect::<Vec<_>>();
        let group_key = |group| {
            let best = best_first(&keys, members(group));
            best[..choice.group_keys as usize].iter().map(|e| keys[*e]).sum()
        };
        let group_keys: Vec<f64> = (0..choice.groups as usize).map(group_key).collect();
        let groups = best_first(&group_keys, (0..group_keys.len()).collect());
        let open = groups[..choice.best_groups as usize].iter().flat_map(|g| members(*g)).collect();
        chosen.extend(best_first(&keys, open)[..choice.top_k as usize].iter().map(|e| *e as u32));
    }
    Ok(chosen)
}

/// `route_weights`: what each chosen expert counts.
pub fn route_weights(
    score: Score,
    renormalise: bool,
    scale: f32,
    logits: &Tensor,
    chosen: &[u32],
) -> Result<Tensor, String> {
    let top_k = chosen.len().checked_div(logits.rows).unwrap_or(0);
    let mut out = Tensor::zeros(logits.rows, top_k);
    for r in 0..logits.rows {
        let scores = scores(score, logits.row(r));
        let row = out.row_mut(r);
        for (w, expert) in row.iter_mut().zip(&chosen[r * top_k..]) {
            *w = *scores.get(*expert as usize).ok_or_else(|| absent(*expert, scores.len()))?;
        }
        let divisor = if renormalise { row.iter().sum::<f64>() + 1e-20 } else { 1.0 };
        row.iter_mut().for_each(|w| *w *= f64::from(scale) / divisor);
    }
    Ok(out)
}

fn absent(expert: u32, experts: usize) -> String {
    format!("expert {expert} of {experts}")
}

/// The attributes of `grouped_linear`.
pub struct Grouped<'a> {
    /// Weights of a stack.
    pub groups: usize,
    /// Results of a row.
    pub slots: usize,
    /// Which weight each slot of each row takes; `None`: slot s takes weight s.
    pub chosen: Option<&'a [u32]>,
}

/// `grouped_linear`: by its meaning, a linear for each slot of each row; those that meet the same weight run as one.
pub fn grouped_linear(
    grouped: Grouped<'_>,
    segments: &[Segment],
    epilogue: Epilogue,
    compute: Compute,
    x: &Tensor,
    weights: &[&Val],
    reading: Reading,
) -> Result<Tensor, String> {
    let Grouped { groups, slots, chosen } = grouped;
    let first = weights.first().ok_or("a weight is missing")?.weight()?;
    let k = first.k;
    if x.width != k && x.width != k * slots {
        return Err(format!("rows of {} elements for {slots} slots of {k}", x.width));
    }
    if let Some(chosen) = chosen {
        same("choices", chosen.len(), x.rows * slots)?;
    }
    let mut out = Tensor::default();
    for group in 0..groups {
        let takes = |row: usize, slot: usize| match chosen {
            Some(chosen) => chosen[row * slots + slot] as usize,
            None => slot,
        };
        let here: Vec<(usize, usize)> = (0..x.rows)
            .flat_map(|r| (0..slots).map(move |s| (r, s)))
            .filter(|(r, s)| takes(*r, *s) == group)
            .collect();
        let mut input = Tensor::zeros(here.len(), k);
        for (i, (row, slot)) in here.iter().enumerate() {
            let part = if x.width == k { 0 } else { slot * k };
            input.row_mut(i).copy_from_slice(&x.row(*row)[part..part + k]);
        }
        let weights = weights.iter().map(|w| Ok(Val::Weight(Arc::new(one(w.weight()?, group, groups)?))));
        let weights = weights.collect::<Result<Vec<_>, String>>()?;
        let input = Val::Tensor(input);
        let operands: Vec<&Val> = std::iter::once(&input).chain(&weights).collect();
        let result = linear(segments, epilogue, compute, &operands, reading)?;
        if group == 0 {
            out = Tensor::zeros(x.rows, slots * result.width);
        }
        for ((row, slot), result_row) in here.iter().zip(result.each_row()) {
            out.row_mut(*row)[slot * result.width..][..result.width].copy_from_slice(result_row);
        }
    }
    let known = chosen.is_none_or(|c| c.iter().all(|e| (*e as usize) < groups));
    if known { Ok(out) } else { Err(format!("a choice beyond the {groups} weights")) }
}

/// Weight `group` of a stack, or its part of a vector.
fn one(stack: &Weight, group: usize, groups: usize) -> Result<Weight, String> {
    let part = stack.data.len() / groups.max(1);
    same("a stack and its parts", part * groups, stack.data.len())?;
    let rows = if stack.rows == 1 { 1 } else { stack.rows / groups };
    let k = if stack.rows == 1 { part } else { stack.k };
    Ok(Weight { rows, k, data: stack.data[group * part..(group + 1) * part].to_vec() })
}

/// `combine`: the weighted sum of the slots of each row.
pub fn combine(y: &Tensor, weights: &Tensor) -> Result<Tensor, String> {
    same("rows", y.rows, weights.rows)?;
    let width = y.width.checked_div(weights.width).unwrap_or(0);
    same("slots", width * weights.width, y.width)?;
    let mut out = Tensor::zeros(y.rows, width);
    for r in 0..y.rows {
        for (w, part) in weights.row(r).iter().zip(y.row(r).chunks_exact(width)) {
            out.row_mut(r).iter_mut().zip(part).for_each(|(o, y)| *o += w * y);
        }
    }
    Ok(out)
}

/// `concat_heads`: each head of a, then the same head of b.
pub fn concat_heads(heads: u32, a: &Tensor, b: &Tensor) -> Result<Tensor, String> {
    same("rows", a.rows, b.rows)?;
    let heads = heads as usize;
    let parts = [a.width, b.width].map(|w| w.checked_div(heads).unwrap_or(0));
    same("heads of a", parts[0] * heads, a.width)?;
    same("heads of b", parts[1] * heads, b.width)?;
    let head = |r, h: usize| [&a.row(r)[h * parts[0]..][..parts[0]], &b.row(r)[h * parts[1]..][..parts[1]]];
    let data = (0..a.rows).flat_map(|r| (0..heads).flat_map(move |h| head(r, h).concat())).collect();
    Ok(Tensor { rows: a.rows, width: a.width + b.width, data })
}
