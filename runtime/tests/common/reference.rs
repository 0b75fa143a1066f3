//! What the test model means, in f64 and without any cleverness.

use super::{Matrix, Model};
use bessemer_format::scheme::{quantise_int8, round_bf16, widen_bf16};
use bessemer_format::{Compute, kv};
use bessemer_runtime::KvElem;
use std::f64::consts::LN_2;

/// Runs one sequence token by token.
pub struct Reference<'a> {
    model: &'a Model,
    kv: KvElem,
    /// For each layer and token: keys, then values, of all heads.
    cache: Vec<Vec<(Vec<f64>, Vec<f64>)>>,
}

impl<'a> Reference<'a> {
    pub fn new(model: &'a Model, kv: KvElem) -> Self {
        Self { model, kv, cache: vec![Vec::new(); model.layers.len()] }
    }

    /// The logits of all `tokens`, one row behind the other.
    pub fn logits(&mut self, tokens: &[u32]) -> Vec<f64> {
        tokens.iter().flat_map(|t| self.step(*t)).collect()
    }

    fn step(&mut self, token: u32) -> Vec<f64> {
        let s = &self.model.shape;
        let table = &self.model.table;
        let mut x: Vec<f64> = (0..s.hidden()).map(|k| f64::from(table.value(token as usize, k))).collect();
        for (layer, cache) in self.model.layers.iter().zip(&mut self.cache) {
            let q = linear(&layer.q, &x, s.compute);
            let store = |v: Vec<f64>, stored: fn(KvElem, &mut [f32])| -> Vec<f64> {
                let mut v: Vec<f32> = v.into_iter().map(|v| v as f32).collect();
                v.chunks_mut(s.head_dim).for_each(|head| stored(self.kv, head));
                v.into_iter().map(f64::from).collect()
            };
            let (k, v) = (linear(&layer.k, &x, s.compute), linear(&layer.v, &x, s.compute));
            cache.push((store(k, kv::stored_key), store(v, kv::stored)));
            let mut out = vec![0.0; s.hidden()];
            for h in 0..s.heads {
                let (d, g) = (s.head_dim, h / (s.heads / s.kv_heads));
                let q = queries(&q[h * d..][..d], s.attention, self.kv);
                let seen = &cache[cache.len() - layer.window.unwrap_or(usize::MAX).min(cache.len())..];
                let scores: Vec<f64> = seen
                    .iter()
                    .map(|(k, _)| {
                        q.iter().zip(&k[g * d..]).map(|(q, k)| q * k).sum::<f64>() / (d as f64).sqrt()
                    })
                    .map(|s| layer.softcap.map(f64::from).map_or(s, |cap| cap * (s / cap).tanh()))
                    .collect();
                let sink = layer.sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[h]));
                let mut max = scores.iter().fold(sink, |m, s| m.max(*s));
                if s.attention == Compute::Bf16 {
                    max = (max / LN_2).ceil() * LN_2;
                }
                let mut weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum::<f64>() + (sink - max).exp();
                if s.attention == Compute::Bf16 {
                    weights.iter_mut().for_each(|w| *w = to_bf16(*w));
                }
                for (w, (_, v)) in weights.iter().zip(seen) {
                    for i in 0..d {
                        out[h * d + i] += w / sum * v[g * d + i];
                    }
                }
            }
            add(&mut x, &linear(&layer.o, &out, s.compute));
            let gate = linear(&layer.gate, &x, s.compute);
            let up = linear(&layer.up, &x, s.compute);
            let hidden: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            add(&mut x, &linear(&layer.down, &hidden, s.compute));
        }
        linear(&self.model.head, &x, s.compute)
    }
}

fn to_bf16(x: f64) -> f64 {
    f64::from(widen_bf16(round_bf16(x as f32)))
}

/// The queries of a head as their products with keys read them.
fn queries(q: &[f64], compute: Compute, kv: KvElem) -> Vec<f64> {
    assert!(
        compute == Compute::F32 || !kv.is_scaled(),
        "the reference rounds neither turned queries nor scaled weights"
    );
    q.iter().map(|q| if compute == Compute::Bf16 { to_bf16(*q) } else { *q }).collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn linear(matrix: &Matrix, x: &[f64], compute: Compute) -> Vec<f64> {
    let mut out = product(&matrix.rows, x, compute);
    if let Some(bias) = &matrix.bias {
        out.iter_mut().zip(bias).for_each(|(o, b)| *o += f64::from(*b));
    }
    out
}

fn product(rows: &bessemer_format::rows::Rows, x: &[f64], compute: Compute) -> Vec<f64> {
    let x: Vec<f64> = match compute {
        Compute::F32 => x.to_vec(),
        Compute::Bf16 => x.iter().map(|v| to_bf16(*v)).collect(),
        Compute::Int8 { group } => x
            .chunks(group as usize)
            .flat_map(|x| {
                let x: Vec<f32> = x.iter().map(|v| *v as f32).collect();
                let mut codes = vec![0; x.len()];
                let scale = quantise_int8(&x, &mut codes);
                codes.into_iter().map(move |c| f64::from(c) * f64::from(scale))
            })
            .collect(),
    };
    (0..rows.rows).map(|n| x.iter().enumerate().map(|(k, x)| x * f64::from(rows.value(n, k))).sum()).collect()
}

/// Blocks that `tokens` take.
pub fn blocks(tokens: usize) -> usize {
    tokens.div_ceil(kv::TOKENS)
}
