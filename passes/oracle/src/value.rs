//! Values between ops.

use crate::oracle::Reading;
use std::sync::Arc;

/// Activations: `rows` rows of `width` numbers.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Tensor {
    /// Rows.
    pub rows: usize,
    /// Numbers of a row.
    pub width: usize,
    /// `[rows][width]`.
    pub data: Vec<f64>,
}

impl Tensor {
    /// Zeros.
    pub fn zeros(rows: usize, width: usize) -> Self {
        Self { rows, width, data: vec![0.0; rows * width] }
    }

    /// From `[rows][width]` numbers; `data` must hold whole rows.
    pub fn from_f32(width: usize, data: &[f32]) -> Self {
        let rows = data.len() / width.max(1);
        Self { rows, width, data: data[..rows * width].iter().map(|v| f64::from(*v)).collect() }
    }

    /// One row.
    pub fn row(&self, r: usize) -> &[f64] {
        &self.data[r * self.width..(r + 1) * self.width]
    }

    /// One row.
    pub fn row_mut(&mut self, r: usize) -> &mut [f64] {
        &mut self.data[r * self.width..(r + 1) * self.width]
    }

    /// All rows.
    pub fn each_row(&self) -> impl Iterator<Item = &[f64]> {
        (0..self.rows).map(|r| self.row(r))
    }

    /// Each number as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        self.data.iter().map(|v| *v as f32).collect()
    }

    /// The result as a reading stores it: `Declared` engines hold f32 between ops.
    pub(crate) fn stored(mut self, reading: Reading) -> Self {
        if let Reading::Declared { .. } = reading {
            self.data.iter_mut().for_each(|v| *v = f64::from(*v as f32));
        }
        self
    }
}

/// A constant, dequantised: `rows` rows (1 for a vector) of `k` numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Rows.
    pub rows: usize,
    /// Numbers of a row.
    pub k: usize,
    /// `[rows][k]`.
    pub data: Vec<f32>,
}

impl Weight {
    /// One row.
    pub fn row(&self, r: usize) -> &[f32] {
        &self.data[r * self.k..(r + 1) * self.k]
    }
}

/// A value: an operand or result of an op.
#[derive(Clone, Debug, PartialEq)]
pub enum Val {
    /// Activations.
    Tensor(Tensor),
    /// Indices.
    Index(Vec<u32>),
    /// A constant.
    Weight(Arc<Weight>),
    /// The cache of a layer, held in [`Caches`](crate::Caches).
    State(u32),
}

impl Val {
    /// As activations.
    pub fn tensor(&self) -> Result<&Tensor, String> {
        match self {
            Val::Tensor(t) => Ok(t),
            other => Err(format!("{} where activations are expected", other.kind())),
        }
    }

    /// As indices.
    pub fn index(&self) -> Result<&[u32], String> {
        match self {
            Val::Index(i) => Ok(i),
            other => Err(format!("{} where indices are expected", other.kind())),
        }
    }

    /// As a constant.
    pub fn weight(&self) -> Result<&Weight, String> {
        match self {
            Val::Weight(w) => Ok(w),
            other => Err(format!("{} where a constant is expected", other.kind())),
        }
    }

    /// As a state: the layer.
    pub fn state(&self) -> Result<u32, String> {
        match self {
            Val::State(layer) => Ok(*layer),
            other => Err(format!("{} where a state is expected", other.kind())),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Val::Tensor(_) => "activations",
            Val::Index(_) => "indices",
            Val::Weight(_) => "a constant",
            Val::State(_) => "a state",
        }
    }
}
