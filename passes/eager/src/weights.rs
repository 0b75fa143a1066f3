//! Constants in memory, as f32 or bf16.

use crate::WeightFormat;
use bessemer_ir::{Recipe, WeightSource};
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Elements that are converted at a time, so that loading holds little beside the result.
const SLICE: usize = 1 << 20;

/// Numbers of a constant.
pub(crate) enum Numbers {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

/// A constant: `rows` rows (1 for a vector) of `k` numbers.
pub(crate) struct Matrix {
    pub rows: usize,
    pub k: usize,
    pub numbers: Numbers,
}

/// Some rows of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct MatrixRows<'a> {
    pub rows: usize,
    pub k: usize,
    pub numbers: NumberSlice<'a>,
}

/// Numbers of some rows.
#[derive(Clone, Copy)]
pub(crate) enum NumberSlice<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl Matrix {
    /// A range of rows.
    pub fn rows(&self, rows: Range<usize>) -> MatrixRows<'_> {
        let range = rows.start * self.k..rows.end * self.k;
        let numbers = match &self.numbers {
            Numbers::F32(v) => NumberSlice::F32(&v[range]),
            Numbers::Bf16(v) => NumberSlice::Bf16(&v[range]),
        };
        MatrixRows { rows: rows.len(), k: self.k, numbers }
    }

    /// Runs a recipe, a few rows at a time. Vectors stay f32: they are small, and norms are sensitive.
    pub fn load(recipe: &Recipe, source: &dyn WeightSource, format: WeightFormat) -> Result<Self, String> {
        let (rows, k) = recipe.matrix();
        let elements = rows.checked_mul(k).ok_or("is larger than memory")?;
        let numbers = match format {
            WeightFormat::Bf16 if recipe.shape.len() > 1 => {
                Numbers::Bf16(slices(recipe, source, vec![bf16::ZERO; elements], bf16::from_f32)?)
            }
            _ => Numbers::F32(slices(recipe, source, vec![0f32; elements], |v| v)?),
        };
        Ok(Self { rows, k, numbers })
    }

    /// A vector's numbers.
    pub fn vector(&self) -> Result<&[f32], String> {
        match &self.numbers {
            Numbers::F32(v) if self.rows == 1 => Ok(v),
            _ => Err("a matrix where a vector is expected".into()),
        }
    }

    /// All numbers, column by column.
    pub fn transposed(&self) -> Vec<f32> {
        let (mut row, mut out) = (vec![0.0; self.k], vec![0.0; self.rows * self.k]);
        for r in 0..self.rows {
            self.copy_row(r, &mut row);
            row.iter().enumerate().for_each(|(c, number)| out[c * self.rows + r] = *number);
        }
        out
    }

    /// Copies one row.
    #[inline(always)]
    pub fn copy_row(&self, r: usize, out: &mut [f32]) {
        let range = r * self.k..(r + 1) * self.k;
        match &self.numbers {
            Numbers::F32(v) => out.copy_from_slice(&v[range]),
            Numbers::Bf16(v) => widen(&v[range], out),
        }
    }
}

/// Fills `out` with the numbers of a recipe, a few rows at a time.
fn slices<T: Copy + Send>(
    recipe: &Recipe,
    source: &dyn WeightSource,
    mut out: Vec<T>,
    number: impl Fn(f32) -> T + Sync,
) -> Result<Vec<T>, String> {
    let (_, k) = recipe.matrix();
    let step = (SLICE / k.max(1)).max(1);
    out.par_chunks_mut((step * k).max(1)).enumerate().try_for_each(|(i, out)| {
        let values = recipe.rows(source, i * step..i * step + out.len() / k)?.values();
        out.iter_mut().zip(values).for_each(|(o, v)| *o = number(v));
        Ok::<(), String>(())
    })?;
    Ok(out)
}

/// bf16 to f32: the upper half of the bits.
#[inline(always)]
pub(crate) fn widen(from: &[bf16], to: &mut [f32]) {
    for (o, v) in to.iter_mut().zip(from) {
        *o = f32::from_bits(u32::from(v.to_bits()) << 16);
    }
}
