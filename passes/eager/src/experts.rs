//! Mixtures of experts: rows that meet the same weights are brought together and multiplied as one matrix.

use crate::linear::Linear;
use crate::vector::exp;
use crate::weights::Matrix;
use bessemer_format::plan::{Choice, Score};

/// Scores of all experts of a row.
fn scores(score: Score, logits: &[f32]) -> Vec<f32> {
    match score {
        Score::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = logits.iter().map(|x| exp(x - max)).collect();
            let total: f32 = powers.iter().sum();
            powers.into_iter().map(|p| p / total).collect()
        }
        Score::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + exp(-x))).collect(),
    }
}

/// The open number with the largest key; of equal keys the smallest.
fn best(keys: &[f32], open: impl Iterator<Item = usize>) -> usize {
    open.reduce(|best, i| if keys[i] > keys[best] { i } else { best }).unwrap_or(0)
}

/// The `count` best of some numbers, best first.
fn best_of(keys: &[f32], numbers: impl Iterator<Item = usize> + Clone, count: u32) -> Vec<usize> {
    let mut chosen = Vec::with_capacity(count as usize);
    for _ in 0..count {
        chosen.push(best(keys, numbers.clone().filter(|i| !chosen.contains(i))));
    }
    chosen
}

pub(crate) fn route(choice: &Choice, logits: &[f32], rows: usize, bias: Option<&[f32]>) -> Vec<u32> {
    let experts = logits.len().checked_div(rows).unwrap_or(0);
    let size = experts / choice.groups as usize;
    let mut out = Vec::with_capacity(rows * choice.top_k as usize);
    for row in logits.chunks_exact(experts.max(1)) {
        let mut keys = scores(choice.score, row);
        if let Some(bias) = bias {
            keys.iter_mut().zip(bias).for_each(|(key, b)| *key += b);
        }
        let members = |group: usize| group * size..(group + 1) * size;
        let group_key = |g| best_of(&keys, members(g), choice.group_keys).iter().map(|e| keys[*e]).sum();
        let group_keys: Vec<f32> = (0..choice.groups as usize).map(group_key).collect();
        let groups = best_of(&group_keys, 0..group_keys.len(), choice.best_groups);
        let open = (0..experts).filter(|e| groups.contains(&(e / size)));
        out.extend(best_of(&keys, open, choice.top_k).into_iter().map(|e| e as u32));
    }
    out
}

pub(crate) fn route_weights(
    score: Score,
    renormalise: bool,
    scale: f32,
    logits: &[f32],
    chosen: &[u32],
    rows: usize,
) -> Vec<f32> {
    let [experts, top_k] = [logits.len(), chosen.len()].map(|n| n.checked_div(rows).unwrap_or(0).max(1));
    let mut out = Vec::with_capacity(chosen.len());
    for (logits, chosen) in logits.chunks_exact(experts).zip(chosen.chunks_exact(top_k)) {
        let scores = scores(score, logits);
        let total: f32 = chosen.iter().map(|e| scores[*e as usize]).sum();
        let factor = if renormalise { scale / (total + 1e-20) } else { scale };
        out.extend(chosen.iter().map(|e| scores[*e as usize] * factor));
    }
    out
}

/// Slot s of row r times weight `chosen[r][s]` of the stack `w`.
pub(crate) fn grouped_linear(
    groups: usize,
    slots: usize,
    chosen: &[u32],
    x: &[f32],
    w: &Matrix,
    bias: Option<&[f32]>,
    linear: Linear,
) -> Result<Vec<f32>, String> {
    let (rows, n, k) = (chosen.len() / slots, w.rows / groups, w.k);
    let shared = x.len() == rows * k;
    let mut here: Vec<Vec<usize>> = vec![Vec::new(); groups];
    for (at, group) in chosen.iter().enumerate() {
        here.get_mut(*group as usize).ok_or_else(|| format!("choice {group} of {groups}"))?.push(at);
    }
    let mut out = vec![0f32; chosen.len() * n];
    for (group, here) in here.iter().enumerate().filter(|(_, here)| !here.is_empty()) {
        let from = |at: usize| if shared { at / slots } else { at } * k;
        let input: Vec<f32> = here.iter().flat_map(|at| &x[from(*at)..][..k]).copied().collect();
        let weights = group * n..(group + 1) * n;
        let bias = bias.map(|b| &b[weights.clone()]);
        let result = linear(&input, here.len(), w.rows(weights), bias);
        for (at, result) in here.iter().zip(result.chunks_exact(n)) {
            out[at * n..][..n].copy_from_slice(result);
        }
    }
    Ok(out)
}

pub(crate) fn combine(y: &[f32], weights: &[f32], rows: usize) -> Vec<f32> {
    let slots = weights.len().checked_div(rows).unwrap_or(0).max(1);
    let width = y.len().checked_div(weights.len()).unwrap_or(0).max(1);
    let mut out = vec![0f32; rows * width];
    for ((out, y), weights) in
        out.chunks_exact_mut(width).zip(y.chunks_exact(slots * width)).zip(weights.chunks_exact(slots))
    {
        for (w, y) in weights.iter().zip(y.chunks_exact(width)) {
            out.iter_mut().zip(y).for_each(|(o, y)| *o += w * y);
        }
    }
    out
}

/// `heads` counts the heads of all rows.
pub(crate) fn concat_heads(a: &[f32], b: &[f32], heads: usize) -> Vec<f32> {
    let [n, m] = [a.len(), b.len()].map(|len| len.checked_div(heads).unwrap_or(0).max(1));
    a.chunks_exact(n).zip(b.chunks_exact(m)).flat_map(|(a, b)| a.iter().chain(b)).copied().collect()
}
