//! Rows of a weight in a neutral form, between the layout they came in and the layout they go to.
//!
//! Readers of source formats produce [`Rows`], quantisers turn floats into [`Rows`], packers consume them. They are
//! made in slices of a few rows, so that nothing holds a whole model.

use crate::scheme::{Elem, QuantScheme};

/// `rows` rows of `k` elements: codes as numbers, and a scale and an offset a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// What the codes mean.
    pub scheme: QuantScheme,
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub k: usize,
    /// `[rows][k]`: the numbers that codes stand for, or the floating-point values themselves.
    pub codes: Vec<f32>,
    /// `[rows][groups]`: scales as they are stored, of the inner level where there are two; empty for floating-point elements.
    pub scales: Vec<f32>,
    /// `[rows][groups]`: offsets or zero points as they are stored; empty unless the scheme has them.
    pub offsets: Vec<f32>,
    /// `[rows][outer groups]`: scales of the outer level; empty unless the scheme has one.
    pub outer_scales: Vec<f32>,
    /// `[rows][outer groups]`: offsets of the outer level; empty unless the scheme has one.
    pub outer_offsets: Vec<f32>,
}

impl Rows {
    /// Rows without their numbers, which the caller fills in.
    pub fn empty(scheme: QuantScheme, rows: usize, k: usize) -> Self {
        Self {
            scheme,
            rows,
            k,
            codes: Vec::new(),
            scales: Vec::new(),
            offsets: Vec::new(),
            outer_scales: Vec::new(),
            outer_offsets: Vec::new(),
        }
    }

    /// Rows of plain floats, rounded to what `elem` (a floating-point element) can hold.
    pub fn floats(elem: Elem, rows: usize, k: usize, mut values: Vec<f32>) -> Self {
        debug_assert!(elem.is_float() && values.len() == rows * k);
        match elem {
            Elem::F16 => values.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32()),
            Elem::Bf16 => values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32()),
            _ => {}
        }
        Self { codes: values, ..Self::empty(QuantScheme::float(elem), rows, k) }
    }

    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.k.div_ceil(self.scheme.group(self.k))
    }

    /// Groups of the outer level of a row (1 without one).
    pub fn outer_groups(&self) -> usize {
        self.k.div_ceil(self.scheme.outer_group(self.k))
    }

    /// The scale and offset of `(row, k)`, by [`QuantScheme::combine`].
    pub fn scale_offset(&self, row: usize, k: usize) -> (f32, f32) {
        let at = row * self.groups() + k / self.scheme.group(self.k);
        let outer = row * self.outer_groups() + k / self.scheme.outer_group(self.k);
        let number = |of: &[f32], at: usize, none: f32| of.get(at).copied().unwrap_or(none);
        self.scheme.combine(
            number(&self.scales, at, 1.0),
            number(&self.outer_scales, outer, 1.0),
            number(&self.offsets, at, 0.0),
            number(&self.outer_offsets, outer, 1.0),
        )
    }

    /// The value of `(row, k)` by [`QuantScheme::dequant`].
    pub fn value(&self, row: usize, k: usize) -> f32 {
        let (scale, offset) = self.scale_offset(row, k);
        self.scheme.dequant(self.codes[row * self.k + k], scale, offset)
    }

    /// All values, `[rows][k]`.
    pub fn values(&self) -> Vec<f32> {
        if self.scheme.elem.is_float() {
            return self.codes.clone();
        }
        let group = self.scheme.group(self.k);
        let mut out = Vec::with_capacity(self.codes.len());
        for (r, row) in self.codes.chunks_exact(self.k).enumerate() {
            for (g, codes) in row.chunks(group).enumerate() {
                let (scale, offset) = self.scale_offset(r, g * group);
                out.extend(codes.iter().map(|&c| self.scheme.dequant(c, scale, offset)));
            }
        }
        out
    }
}
