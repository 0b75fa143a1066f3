//! What the inputs of linears are on a text: second moments and mean magnitudes, gathered segment by segment.

use bessemer_eager::{Observer, defined::add_second_moment};
use bessemer_ir::{Graph, NodeId, Value};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Sums over the rows of one input.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    /// Its width.
    pub k: usize,
    /// Rows seen.
    pub rows: u64,
    /// Mean magnitude of each element. A sum while rows are added.
    pub magnitudes: Vec<f32>,
    /// Largest magnitude of each element.
    pub maxima: Vec<f32>,
    /// `[k][k]`, of which the upper triangle is kept.
    products: Vec<f32>,
    reach: Reach,
}

/// Which products of elements count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All: codes that make up for each other need them.
    Whole,
    /// Those within stretches of [`NEAR`] elements, others being taken for zero: by far most of what errors that are independent of each
    /// other lose, for a fraction of the work where rows are long.
    Near,
}

/// Elements of a stretch whose products are made for [`Reach::Near`]. Groups of scales do not straddle two.
pub const NEAR: usize = 768;

impl Reach {
    /// Elements of a stretch of rows of `k`.
    pub fn stretch(self, k: usize) -> usize {
        if self == Self::Near { NEAR.min(k) } else { k }
    }
}

impl Moment {
    /// Of no row.
    pub fn new(k: usize, reach: Reach) -> Self {
        let (magnitudes, maxima, products) = (vec![0.0; k], vec![0.0; k], vec![0.0; k * k]);
        Self { k, rows: 0, magnitudes, maxima, products, reach }
    }

    /// Adds rows.
    pub fn add(&mut self, x: &[f32]) {
        let rows = x.len() / self.k.max(1);
        let before = self.rows as f32;
        self.rows += rows as u64;
        let after = (self.rows as f32).max(1.0);
        add_second_moment(x, rows, self.k, self.reach.stretch(self.k), &mut self.products);
        let mut sums = vec![0f32; self.k];
        for row in x.chunks_exact(self.k.max(1)) {
            sums.iter_mut().zip(row).for_each(|(s, v)| *s += v.abs());
            self.maxima.iter_mut().zip(row).for_each(|(m, v)| *m = m.max(v.abs()));
        }
        self.magnitudes.iter_mut().zip(sums).for_each(|(mean, sum)| *mean = (*mean * before + sum) / after);
    }

    /// The mean of `x x^T`, whole and symmetric.
    pub fn full(&self) -> Vec<f32> {
        let (k, rows) = (self.k, (self.rows as f32).max(1.0));
        let mut full = vec![0f32; k * k];
        full.par_chunks_mut(k.max(1)).enumerate().for_each(|(i, out)| {
            let (below, above) = out.split_at_mut(i);
            below.iter_mut().enumerate().for_each(|(j, o)| *o = self.products[j * k + i] / rows);
            above.iter_mut().zip(&self.products[i * k + i..]).for_each(|(o, v)| *o = v / rows);
        });
        full
    }

    /// The moment of the input divided by `scales`.
    pub fn divided(mut self, scales: &[f32]) -> Self {
        for of in [&mut self.magnitudes, &mut self.maxima] {
            of.iter_mut().zip(scales).for_each(|(m, s)| *m /= s);
        }
        self.products.par_chunks_mut(self.k.max(1)).zip(scales).for_each(|(row, s)| {
            row.iter_mut().zip(scales).for_each(|(v, t)| *v /= s * t);
        });
        self
    }

    /// The moment of the input and of noise beside it, of as much power in each element.
    pub fn plus_diagonal(mut self, power: f32) -> Self {
        let (k, sum) = (self.k, power * self.rows as f32);
        (0..k).for_each(|i| self.products[i * k + i] += sum);
        self
    }

    /// As bytes: width, rows, magnitudes, maxima, and the upper triangle of the products.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + 8 * self.k + 2 * self.k * (self.k + 1));
        out.extend((self.k as u64).to_le_bytes());
        out.extend(self.rows.to_le_bytes());
        self.magnitudes.iter().chain(&self.maxima).for_each(|v| out.extend(v.to_le_bytes()));
        for i in 0..self.k {
            self.products[i * self.k + i..(i + 1) * self.k].iter().for_each(|v| out.extend(v.to_le_bytes()));
        }
        out
    }

    /// The moment at the start of `bytes`, and the rest of them; `None` if they end too early.
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let (k, rows) = (usize::try_from(number(0)?).ok()?, number(8)?);
        let floats = k.checked_mul(k.checked_add(1)?)?.checked_div(2)?.checked_add(k.checked_mul(2)?)?;
        let rest = bytes.get(16..)?;
        let (numbers, rest) = rest.split_at_checked(floats.checked_mul(4)?)?;
        let mut numbers = numbers.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let mut moment = Self::new(k, Reach::Whole);
        moment.rows = rows;
        moment.magnitudes.iter_mut().chain(&mut moment.maxima).zip(&mut numbers).for_each(|(m, v)| *m = v);
        for i in 0..k {
            moment.products[i * k + i..(i + 1) * k].iter_mut().zip(&mut numbers).for_each(|(p, v)| *p = v);
        }
        Some((moment, rest))
    }
}

/// Gathers the moments of all linears' inputs; each segment's go to `sink` when it is done.
pub struct Gather<'a> {
    inputs: BTreeMap<NodeId, Value>,
    gathered: BTreeMap<Value, (NodeId, Moment)>,
    reach: Reach,
    sink: Sink<'a>,
}

/// Takes the moments of a segment: how many segments are done and there are, and of each input its first reader.
pub type Sink<'a> = &'a mut (dyn FnMut(usize, usize, Vec<(Value, Moment)>) -> Result<(), String> + Send);

impl<'a> Gather<'a> {
    /// For the linears of `graph`, but for inputs whose moments are `held` already.
    pub fn new(graph: &Graph, held: &dyn Fn(Value) -> bool, reach: Reach, sink: Sink<'a>) -> Self {
        let input = |n: NodeId| graph.operands(n).first().map(|x| (n, *x));
        let inputs = graph.all().into_iter().filter_map(input).filter(|(_, x)| !held(*x)).collect();
        Self { inputs, gathered: BTreeMap::new(), reach, sink }
    }
}

impl Observer for Gather<'_> {
    fn linear(&mut self, linear: NodeId, x: &[f32], k: usize) {
        let Some(input) = self.inputs.get(&linear) else { return };
        let (first, moment) =
            self.gathered.entry(*input).or_insert_with(|| (linear, Moment::new(k, self.reach)));
        // Linears that share an input see the same rows.
        if *first == linear {
            moment.add(x);
        }
    }

    fn segment(&mut self, done: usize, of: usize) -> Result<(), String> {
        let moments = std::mem::take(&mut self.gathered);
        (self.sink)(done, of, moments.into_iter().map(|(input, (_, moment))| (input, moment)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_come_back_from_bytes_and_survive_no_cut() {
        let mut moment = Moment::new(5, Reach::Whole);
        moment.add(&[1.0, -2.0, 3.0, 0.5, 0.0, 2.0, 1.0, -1.0, 4.0, 0.25]);
        let bytes = moment.encode();
        let (back, rest) = Moment::decode(&bytes).unwrap();
        assert!(rest.is_empty());
        assert_eq!((back.full(), &back.magnitudes, back.rows), (moment.full(), &moment.magnitudes, 2));
        assert_eq!(back.maxima, [2.0, 2.0, 3.0, 4.0, 0.25]);
        assert!(Moment::decode(&bytes[..bytes.len() - 1]).is_none());
    }
}
