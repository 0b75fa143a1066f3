//! State and what reads it.

use super::{Context, head_dim, linear::to_bf16, rope, same};
use crate::oracle::Reading;
use crate::value::{Tensor, Weight};
use bessemer_format::manifest::KvElem;
use bessemer_format::{Compute, kv};
use bessemer_ir::attr::RopeStyle;
use std::f64::consts::LN_2;

/// How a cache of some type holds the elements of a head.
type Stored = fn(KvElem, &mut [f32]);

/// A row of keys or values as the cache holds it, heads of `d` elements.
fn cached(row: &[f64], d: usize, reading: Reading, stored: Stored) -> Vec<f64> {
    match reading {
        Reading::Exact => row.to_vec(),
        // By way of f32, which is what an append is given.
        Reading::Declared { kv } => {
            let mut row: Vec<f32> = row.iter().map(|x| *x as f32).collect();
            row.chunks_mut(d).for_each(|head| stored(kv, head));
            row.into_iter().map(f64::from).collect()
        }
    }
}

/// The scales that the cache stores beside the heads of a row; none where nothing is rounded.
fn scales(row: &[f64], d: usize, reading: Reading) -> Vec<f32> {
    let Reading::Declared { kv } = reading else { return Vec::new() };
    let scale = |head: &[f64]| kv::scale(kv, &head.iter().map(|x| *x as f32).collect::<Vec<_>>());
    row.chunks(d).map(scale).collect()
}

/// `append`: each row's key and value enter at its position.
pub fn append(layer: u32, kv_heads: u32, k: &Tensor, v: &Tensor, cx: &mut Context<'_>) -> Result<(), String> {
    let d = head_dim(k.width, kv_heads)?;
    same("width of keys and values", k.width, v.width)?;
    same("rows of keys and values", k.rows, v.rows)?;
    same("rows of the batch", cx.batch.rows(), k.rows)?;
    let reading = cx.reading;
    for (r, (k, v)) in k.each_row().zip(v.each_row()).enumerate() {
        let (sequence, position) = (cx.batch.sequences[r], cx.batch.positions[r]);
        let scales = scales(v, d, reading);
        let (k, v) = (cached(k, d, reading, kv::stored_key), cached(v, d, reading, kv::stored));
        cx.caches.append(layer, sequence, position, k, v, scales)?;
    }
    Ok(())
}

/// `append_latent`: each row's vector enters at its position, as a key; values are read from it.
pub fn append_latent(layer: u32, x: &Tensor, cx: &mut Context<'_>) -> Result<(), String> {
    same("rows of the batch", cx.batch.rows(), x.rows)?;
    for (r, row) in x.each_row().enumerate() {
        let scales = scales(row, row.len(), cx.reading);
        let stored = cached(row, row.len(), cx.reading, kv::stored);
        cx.caches.append(layer, cx.batch.sequences[r], cx.batch.positions[r], stored, Vec::new(), scales)?;
    }
    Ok(())
}

/// `rope_append`: by its parts, `rope` of queries and keys and `append`. Returns the queries.
pub fn rope_append(
    style: RopeStyle,
    heads: u32,
    kv_heads: u32,
    qkv: &Tensor,
    table: &Tensor,
    layer: u32,
    cx: &mut Context<'_>,
) -> Result<Tensor, String> {
    let d = head_dim(qkv.width, heads.saturating_add(kv_heads.saturating_mul(2)))?;
    let (q_width, kv_width) = (heads as usize * d, kv_heads as usize * d);
    let q = rope::rotate(style, heads, &columns(qkv, 0, q_width), table)?;
    let k = rope::rotate(style, kv_heads, &columns(qkv, q_width, kv_width), table)?;
    let v = columns(qkv, q_width + kv_width, kv_width);
    append(layer, kv_heads, &k, &v, cx)?;
    Ok(q)
}

/// `width` columns from `start` on.
fn columns(x: &Tensor, start: usize, width: usize) -> Tensor {
    let data = x.each_row().flat_map(|row| row[start..start + width].iter().copied()).collect();
    Tensor { rows: x.rows, width, data }
}

/// What is done to the product of a query and a key.
#[derive(Clone, Copy)]
pub struct Scores {
    /// It is scaled,
    pub scale: f32,
    /// then capped: `softcap * tanh(s / softcap)`.
    pub softcap: Option<f32>,
    /// How many positions a row sees, its own included.
    pub window: Option<u32>,
    /// Whether a row sees as many behind its own as before it, not only those before.
    pub full: bool,
    /// Where there is, so many first elements of a key are its value.
    pub latent: Option<usize>,
    /// What products are of.
    pub compute: Compute,
}

impl Scores {
    /// Scaled, and nothing else.
    pub fn scaled(scale: f32, compute: Compute) -> Self {
        Self { scale, softcap: None, window: None, full: false, latent: None, compute }
    }

    fn of(&self, product: f64) -> f64 {
        let score = product * f64::from(self.scale);
        self.softcap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh())
    }

    /// The type of the cache, where a reading rounds what meets its keys and values.
    fn rounds(&self, reading: Reading) -> Option<KvElem> {
        match reading {
            Reading::Declared { kv } if self.compute == Compute::Bf16 => Some(kv),
            _ => None,
        }
    }

    /// A query as its product with keys reads it: rounded, where keys are turned as they lie in the cache.
    fn query(&self, query: &[f64], reading: Reading) -> Vec<f64> {
        let Some(kv) = self.rounds(reading) else { return query.to_vec() };
        let turned = kv.is_scaled() && self.latent.is_none();
        let mut query: Vec<f32> = query.iter().map(|x| *x as f32).collect();
        if turned {
            kv::turn_back(&mut query);
        }
        query.iter_mut().for_each(|x| *x = to_bf16(*x));
        if turned {
            kv::turn(&mut query);
        }
        query.into_iter().map(f64::from).collect()
    }
}

/// What joins the scores.
#[derive(Clone, Copy)]
pub enum More<'a> {
    /// Nothing.
    Nothing,
    /// One more score a head, whose value is zero.
    Sinks(&'a Weight),
    /// For each head a number that is added by the distance of the two positions, the middle row for a row's own.
    Distances(&'a Weight),
}

/// `attention`: for each row and head, the values up to the row's own position (and within the window), weighted by the softmax of
/// their scores.
pub fn attention(
    heads: u32,
    kv_heads: u32,
    shape: Scores,
    q: &Tensor,
    layer: u32,
    more: More<'_>,
    cx: &Context<'_>,
) -> Result<Tensor, String> {
    let d = head_dim(q.width, heads)?;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(format!("{heads} query heads do not divide among {kv_heads} key heads"));
    }
    let queries_per_kv_head = (heads / kv_heads) as usize;
    same("rows of the batch", cx.batch.rows(), q.rows)?;
    let value = shape.latent.unwrap_or(d).min(d);
    let mut out = Tensor::zeros(q.rows, heads as usize * value);
    for r in 0..q.rows {
        let (sequence, mut seen) = (cx.batch.sequences[r], cx.batch.positions[r] as usize + 1);
        let held = cx.caches.get(layer, sequence).filter(|held| held.keys.len() >= seen);
        let held = held.ok_or_else(|| {
            format!("layer {layer} of sequence {sequence} holds fewer than {seen} positions")
        })?;
        let window = shape.window.map_or(usize::MAX, |window| window as usize);
        let first = seen.saturating_sub(window);
        if shape.full {
            seen = held.keys.len().min((seen - 1).saturating_add(window));
        }
        same("width of keys", held.keys[0].len(), kv_heads as usize * d)?;
        for (h, out) in out.row_mut(r).chunks_exact_mut(value).enumerate() {
            let query = shape.query(&q.row(r)[h * d..][..d], cx.reading);
            let head = (h / queries_per_kv_head) * d..(h / queries_per_kv_head + 1) * d;
            let dot = |key: &Vec<f64>| query.iter().zip(&key[head.clone()]).map(|(a, b)| a * b).sum::<f64>();
            let mut scores: Vec<f64> = held.keys[first..seen].iter().map(|k| shape.of(dot(k))).collect();
            let mut sink = f64::NEG_INFINITY;
            match more {
                More::Nothing => {}
                More::Sinks(sinks) => sink = f64::from(sinks.data[h]),
                More::Distances(bias) => {
                    let own = cx.batch.positions[r] as usize;
                    let (middle, last) = (bias.rows / 2, first.max(seen - 1));
                    if own - first.min(own) > middle || last - last.min(own) > middle {
                        return Err(format!(
                            "a bias of {} distances for position {own} of {seen}",
                            bias.rows
                        ));
                    }
                    for (position, score) in (first..).zip(&mut scores) {
                        *score += f64::from(bias.row(middle + position - own)[h]);
                    }
                }
            }
            let mut base = scores.iter().copied().fold(sink, f64::max);
            let rounds = shape.rounds(cx.reading).is_some();
            if rounds {
                base = (base / LN_2).ceil() * LN_2;
            }
            let mut weights: Vec<f64> = scores.iter().map(|s| (s - base).exp()).collect();
            let total = weights.iter().sum::<f64>() + (sink - base).exp();
            if rounds {
                for (weight, scales) in weights.iter_mut().zip(&held.scales[first..]) {
                    let scale = f64::from(scales[h / queries_per_kv_head]);
                    // A value whose scale is zero is zero.
                    if scale != 0.0 {
                        *weight = f64::from(to_bf16((*weight * scale) as f32)) / scale;
                    }
                }
            }
            let values = if shape.latent.is_some() { &held.keys } else { &held.values };
            for (weight, value) in weights.iter().zip(&values[first..]) {
                for (o, v) in out.iter_mut().zip(&value[head.clone()]) {
                    *o += weight / total * v;
                }
            }
        }
    }
    Ok(out)
}
