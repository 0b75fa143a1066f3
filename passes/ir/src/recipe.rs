//! Constants as recipes: where the numbers come from and what is done to them. Only the writer of an engine, the oracle and the eager
//! executor run recipes, a few rows at a time.

pub use crate::quantise::quantise;
use crate::rounded;
use crate::stored::{Packed, Stored};
use bessemer_format::rows::Rows;
use bessemer_format::{Elem, QuantScheme};
use std::borrow::Cow;
use std::ops::Range;

/// Bytes of a checkpoint's tensors.
pub trait WeightSource: Sync {
    /// The stored bytes of a tensor, row-major; `None` if there is no such tensor.
    fn tensor(&self, name: &str) -> Option<&[u8]>;

    /// Rows that calibration has rounded, by key, as [`crate::rounded`] lays them out; `None` if there are none.
    fn rounded(&self, _key: &str) -> Option<&[u8]> {
        None
    }
}

/// A source without tensors, for graphs whose constants are random or literal.
pub struct NoSource;

impl WeightSource for NoSource {
    fn tensor(&self, _: &str) -> Option<&[u8]> {
        None
    }
}

/// Where a constant's numbers come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// A tensor of the checkpoint.
    Tensor {
        /// Its name there.
        name: String,
        /// Its encoding there.
        stored: Stored,
        /// Which of its elements.
        part: Part,
    },
    /// A matrix that a checkpoint stores in several tensors, quantised before.
    Packed {
        /// The name that the matrix would have as one tensor.
        name: String,
        /// How it is stored.
        packed: Packed,
        /// Which of its rows; columns cannot be taken.
        part: Part,
        /// Its rows.
        of: u64,
    },
    /// Matrices of equal shape that lie somewhere in the checkpoint, one below the other.
    Stack {
        /// The matrices, top to bottom.
        pieces: Vec<Piece>,
        /// The encoding of all of them there.
        stored: Stored,
    },
    /// Uniform pseudo-random numbers in `-scale..scale`, for tests and for shapes without weights.
    Random {
        /// Seed.
        seed: u64,
        /// Bound.
        scale: f32,
    },
    /// Literal numbers.
    Values(Vec<f32>),
    /// A matrix that calibration has rounded: codes that no rule gives from the tensor alone.
    Rounded {
        /// Names of the tensors that it came from, one below the other.
        names: Vec<String>,
        /// Under which the source holds its codes.
        key: String,
        /// What the codes mean.
        scheme: QuantScheme,
    },
}

/// Along which axis a transform's numbers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// A number a row.
    Rows,
    /// A number a column; of a vector, an element.
    Columns,
}

/// A tensor, or a part of one, that is one of the matrices of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Name in the checkpoint.
    pub name: String,
    /// Which of its elements.
    pub part: Part,
}

/// Which elements of a stored tensor a constant is. Fused projections are cut apart here, and what is stored transposed is turned.
/// Of a vector, elements count as rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// All, as they lie.
    #[default]
    Whole,
    /// Row `r` is stored row `first + r / block * stride + r % block`: a slice, or one of several matrices whose rows alternate in blocks.
    Rows {
        /// Stored row of row 0.
        first: u64,
        /// Consecutive rows.
        block: u64,
        /// Stored rows from the start of a block to that of the next.
        stride: u64,
    },
    /// Row `r` is a stored column, counted in the same way. Columns beyond the width begin so many rows further down: the second of
    /// several matrices of h rows begins at column `h * width`.
    Columns {
        /// Stored column of row 0.
        first: u64,
        /// Consecutive columns.
        block: u64,
        /// Stored columns from the start of a block to that of the next.
        stride: u64,
        /// Elements of a stored row.
        width: u64,
    },
}

impl Part {
    /// `count` rows from `first` on.
    pub const fn rows(first: u64, count: u64) -> Self {
        Self::Rows { first, block: count, stride: count }
    }

    /// `count` columns from `first` on of stored rows of `width`.
    pub const fn columns(first: u64, count: u64, width: u64) -> Self {
        Self::Columns { first, block: count, stride: count, width }
    }

    /// The stored row (or column) that row `row` is.
    fn stored_row(self, row: usize) -> Option<usize> {
        let (first, block, stride) = match self {
            Self::Whole => return Some(row),
            Self::Rows { first, block, stride } | Self::Columns { first, block, stride, .. } => {
                (first, block.max(1), stride)
            }
        };
        let row = row as u64;
        (row / block).checked_mul(stride)?.checked_add(row % block)?.checked_add(first)?.try_into().ok()
    }

    /// The stored bytes of rows `rows` of `k` elements, row-major; `None` where `bytes` does not hold them.
    fn take<'a>(
        self,
        bytes: &'a [u8],
        stored: Stored,
        k: usize,
        rows: Range<usize>,
    ) -> Result<Cow<'a, [u8]>, String> {
        let outside = || format!("{} bytes do not hold {self:?} of {k} elements", bytes.len());
        let blocks = || format!("rows of {k} elements do not divide into {} blocks", stored.name());
        let row_bytes = stored.row_bytes(k).ok_or_else(blocks)?;
        let slice = |row: Option<usize>, count: usize, len: usize| {
            let start = row?.checked_mul(len)?;
            bytes.get(start..start.checked_add(count.checked_mul(len)?)?)
        };
        match self {
            Self::Whole => {
                slice(Some(rows.start), rows.len(), row_bytes).map(Cow::Borrowed).ok_or_else(outside)
            }
            Self::Rows { .. } => {
                let mut out = Vec::with_capacity(rows.len() * row_bytes);
                for row in rows {
                    out.extend_from_slice(slice(self.stored_row(row), 1, row_bytes).ok_or_else(outside)?);
                }
                Ok(Cow::Owned(out))
            }
            Self::Columns { width, .. } => {
                let (1, size) = stored.block() else {
                    return Err(format!("{stored:?} blocks cannot be transposed"));
                };
                let mut out = vec![0; rows.len() * row_bytes];
                for (r, row) in rows.enumerate() {
                    let column = self.stored_row(row);
                    for i in 0..k {
                        let element = column.and_then(|c| i.checked_mul(width as usize)?.checked_add(c));
                        let from = slice(element, 1, size).ok_or_else(outside)?;
                        out[r * row_bytes + i * size..][..size].copy_from_slice(from);
                    }
                }
                Ok(Cow::Owned(out))
            }
        }
    }
}

/// A change of the numbers on the way into the engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Transform {
    /// Dequantise to f32, then round to this scheme ([`quantise`]).
    Convert(QuantScheme),
    /// Dequantise to f32, then add a number: some norms are stored as their distance from one.
    Add(f32),
    /// Dequantise to f32, then multiply each row or column by its number: half of a scale that is folded into two constants.
    Scale {
        /// Of what there is a number.
        axis: Axis,
        /// The numbers.
        by: Vec<f32>,
    },
}

/// A constant: origin, shape (outermost first), and what is done to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Where the numbers come from.
    pub origin: Origin,
    /// Shape: one or two extents.
    pub shape: Vec<u64>,
    /// What is done to them, in order.
    pub transforms: Vec<Transform>,
}

impl Recipe {
    /// A tensor as it stands in the checkpoint.
    pub fn tensor(name: impl Into<String>, stored: Stored, shape: &[u64]) -> Self {
        Self::part(name, stored, Part::Whole, shape)
    }

    /// Rows of a tensor from `first_row` on, as many as `shape` says.
    pub fn tensor_rows(name: impl Into<String>, stored: Stored, first_row: u64, shape: &[u64]) -> Self {
        let count = shape.first().copied().unwrap_or(0);
        Self::part(name, stored, Part::rows(first_row, count), shape)
    }

    /// A part of a tensor, of shape `shape`.
    pub fn part(name: impl Into<String>, stored: Stored, part: Part, shape: &[u64]) -> Self {
        Self {
            origin: Origin::Tensor { name: name.into(), stored, part },
            shape: shape.to_vec(),
            transforms: Vec::new(),
        }
    }

    /// Matrices of one encoding below each other, as one matrix of shape `shape`.
    pub fn stack(pieces: Vec<Piece>, stored: Stored, shape: &[u64]) -> Self {
        Self { origin: Origin::Stack { pieces, stored }, shape: shape.to_vec(), transforms: Vec::new() }
    }

    /// The same numbers, each with `number` added.
    pub fn plus(mut self, number: f32) -> Self {
        self.transforms.push(Transform::Add(number));
        self
    }

    /// A matrix that was quantised before, as it stands in the checkpoint.
    pub fn packed(name: impl Into<String>, packed: Packed, shape: &[u64]) -> Self {
        let of = shape.first().copied().unwrap_or(0);
        Self::packed_part(name, packed, Part::Whole, of, shape)
    }

    /// Some rows of such a matrix of `of` rows, of shape `shape`.
    pub fn packed_part(name: impl Into<String>, packed: Packed, part: Part, of: u64, shape: &[u64]) -> Self {
        let origin = Origin::Packed { name: name.into(), packed, part, of };
        Self { origin, shape: shape.to_vec(), transforms: Vec::new() }
    }

    /// Literal numbers as a vector.
    pub fn values(values: Vec<f32>) -> Self {
        Self { shape: vec![values.len() as u64], origin: Origin::Values(values), transforms: Vec::new() }
    }

    /// The scheme of the result.
    pub fn scheme(&self) -> QuantScheme {
        match (self.transforms.last(), &self.origin) {
            (Some(Transform::Convert(scheme)), _) => *scheme,
            (Some(Transform::Add(_) | Transform::Scale { .. }), _) => QuantScheme::F32,
            (None, Origin::Rounded { scheme, .. }) => *scheme,
            (None, Origin::Tensor { stored, .. } | Origin::Stack { stored, .. }) => stored.scheme(),
            (None, Origin::Packed { packed, .. }) => packed.scheme(),
            (None, _) => QuantScheme::F32,
        }
    }

    /// The same numbers converted to `scheme`; unchanged when they are in it already.
    pub fn converted(mut self, scheme: QuantScheme) -> Self {
        if self.scheme() != scheme {
            self.transforms.push(Transform::Convert(scheme));
        }
        self
    }

    /// Names of the tensors it comes from.
    pub fn source_names(&self) -> impl Iterator<Item = &str> {
        let (names, pieces) = match &self.origin {
            Origin::Tensor { name, .. } | Origin::Packed { name, .. } => {
                (std::slice::from_ref(name), &[][..])
            }
            Origin::Rounded { names, .. } => (&names[..], &[][..]),
            Origin::Stack { pieces, .. } => (&[][..], &pieces[..]),
            Origin::Random { .. } | Origin::Values(_) => (&[][..], &[][..]),
        };
        names.iter().chain(pieces.iter().map(|piece| &piece.name)).map(String::as_str)
    }

    /// Rows (1 for a vector) and elements of a row.
    pub fn matrix(&self) -> (usize, usize) {
        match self.shape[..] {
            [k] => (1, k as usize),
            [n, k] => (n as usize, k as usize),
            _ => (0, 0),
        }
    }

    /// Runs the recipe for a range of rows.
    pub fn rows(&self, source: &dyn WeightSource, rows: Range<usize>) -> Result<Rows, String> {
        let (n, k) = self.matrix();
        if rows.end > n || rows.start > rows.end {
            return Err(format!("rows {rows:?} of a constant of {n}"));
        }
        let mut out = match &self.origin {
            Origin::Tensor { name, stored, part } => {
                // A part of a vector is cut by elements; as a constant it is one row all the same.
                let one_row = self.shape.len() == 1 && *part != Part::Whole;
                let (rows, width) = if one_row { (0..k, 1) } else { (rows.clone(), k) };
                stored_rows(source, name, *stored, *part, (width, rows), k)?
            }
            Origin::Stack { pieces, stored } => {
                let height = n / pieces.len().max(1);
                if height * pieces.len() != n {
                    return Err(format!("{n} rows do not divide into {} matrices", pieces.len()));
                }
                let mut out: Option<Rows> = None;
                for (i, piece) in pieces.iter().enumerate() {
                    let (first, end) = (i * height, (i + 1) * height);
                    let rows = rows.start.clamp(first, end) - first..rows.end.clamp(first, end) - first;
                    if rows.is_empty() {
                        continue;
                    }
                    let found = stored_rows(source, &piece.name, *stored, piece.part, (k, rows), k)?;
                    match &mut out {
                        None => out = Some(found),
                        Some(all) => {
                            all.rows += found.rows;
                            all.codes.extend(found.codes);
                            all.scales.extend(found.scales);
                            all.offsets.extend(found.offsets);
                            all.outer_scales.extend(found.outer_scales);
                            all.outer_offsets.extend(found.outer_offsets);
                        }
                    }
                }
                out.unwrap_or_else(|| Rows::floats(Elem::F32, 0, k, Vec::new()))
            }
            Origin::Packed { part: Part::Columns { .. }, .. } => {
                return Err("columns of a matrix that was quantised before".into());
            }
            Origin::Packed { name, packed, part, of } => {
                let outside = || format!("`{name}` of {of} rows has no {part:?}");
                let row = |row| part.stored_row(row).filter(|row| *row < *of as usize).ok_or_else(outside);
                let rows = rows.clone().map(row).collect::<Result<Vec<_>, String>>()?;
                packed.rows(source, name, (*of as usize, k), &rows)?
            }
            Origin::Random { seed, scale } => {
                let value = |i: usize| uniform(*seed, i as u64) * scale;
                Rows::floats(Elem::F32, rows.len(), k, (rows.start * k..rows.end * k).map(value).collect())
            }
            Origin::Values(values) => {
                let slice =
                    values.get(rows.start * k..rows.end * k).ok_or("fewer values than the shape says")?;
                Rows::floats(Elem::F32, rows.len(), k, slice.to_vec())
            }
            Origin::Rounded { names, key, scheme } => {
                let bytes = source.rounded(key);
                let bytes =
                    bytes.ok_or_else(|| format!("{names:?}: their rounded codes `{key}` are not at hand"))?;
                rounded::decode(scheme, k, bytes, rows.clone()).map_err(|why| format!("{names:?}: {why}"))?
            }
        };
        for transform in &self.transforms {
            let mut values = out.values();
            match transform {
                Transform::Convert(scheme) => {
                    out = quantise(scheme, out.rows, out.k, &values);
                    check_finite(&out, &values, rows.start)?;
                }
                Transform::Add(number) => {
                    values.iter_mut().for_each(|v| *v += number);
                    out = Rows::floats(Elem::F32, out.rows, out.k, values);
                }
                Transform::Scale { axis, by } => {
                    let expected = if *axis == Axis::Rows { n } else { k };
                    if by.len() != expected {
                        return Err(format!("{} scales where {expected} are needed", by.len()));
                    }
                    for (r, row) in values.chunks_exact_mut(k.max(1)).enumerate() {
                        match axis {
                            Axis::Rows => row.iter_mut().for_each(|v| *v *= by[rows.start + r]),
                            Axis::Columns => row.iter_mut().zip(by).for_each(|(v, s)| *v *= s),
                        }
                    }
                    out = Rows::floats(Elem::F32, out.rows, out.k, values);
                }
            }
        }
        Ok(out)
    }

    /// All values in f32, row-major.
    pub fn values_f32(&self, source: &dyn WeightSource) -> Result<Vec<f32>, String> {
        Ok(self.rows(source, 0..self.matrix().0)?.values())
    }
}

/// Rows of a part of a stored tensor, whose rows have `width` elements there, as rows of `k` elements.
fn stored_rows(
    source: &dyn WeightSource,
    name: &str,
    stored: Stored,
    part: Part,
    (width, rows): (usize, Range<usize>),
    k: usize,
) -> Result<Rows, String> {
    let bytes = source.tensor(name).ok_or_else(|| format!("the source has no tensor `{name}`"))?;
    let error = |why| format!("`{name}`: {why}");
    let taken = part.take(bytes, stored, width, rows).map_err(error)?;
    stored.rows(&taken, k).map_err(error)
}

/// The `i`-th number of a stream in -1..1: splitmix64, top 24 bits.
pub fn uniform(seed: u64, i: u64) -> f32 {
    let mut z = seed
        .wrapping_mul(0xd134_2543_de82_ef95)
        .wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    ((z >> 40) as i64 - (1 << 23)) as f32 / (1 << 23) as f32
}

/// No group of integers can hold a NaN or an infinity, nor numbers beyond the reach of its scale: `converted`, which came from
/// `values`, would stand for something else. `first` is the number of the first row.
fn check_finite(converted: &Rows, values: &[f32], first: usize) -> Result<(), String> {
    let (scheme, k) = (&converted.scheme, converted.k.max(1));
    if scheme.elem.is_float() {
        return Ok(());
    }
    let remedy = "the checkpoint is damaged, or needs `--precision source`";
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        let (row, element) = (first + at / k, at % k);
        return Err(format!(
            "row {row}, element {element}: {} has no place in {scheme}; {remedy}",
            values[at]
        ));
    }
    let c = converted;
    for numbers in [&c.scales, &c.offsets, &c.outer_scales, &c.outer_offsets] {
        if let Some(at) = numbers.iter().position(|v| !v.is_finite()) {
            let row = first + at * converted.rows / numbers.len();
            return Err(format!("row {row}: its numbers are too large for the scales of {scheme}; {remedy}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_scale_reaches_is_an_error_that_names_the_row() {
        let with = |scheme: &str, at: usize, value: f32| {
            let mut values = vec![1.0; 4 * 64];
            values[at] = value;
            let recipe = Recipe { shape: vec![4, 64], ..Recipe::values(values) };
            recipe.converted(scheme.parse().unwrap()).rows(&NoSource, 1..4).map(drop)
        };
        for scheme in ["s8:f16x32", "u4:f32x32+f32", "u4:f16x32-8"] {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let error = with(scheme, 2 * 64 + 40, value).unwrap_err();
                assert!(error.contains("row 2, element 40") && error.contains(scheme), "{error}");
            }
        }
        // Finite, but not with a scale in f16; with one in f32 it is.
        let error = with("s8:f16x32", 3 * 64 + 40, 1e30).unwrap_err();
        assert!(error.contains("row 3") && error.contains("too large"), "{error}");
        with("s8:f32x32", 3 * 64 + 40, 1e30).unwrap();
        with("bf16", 100, f32::NAN).unwrap();
    }

    /// Tensors `a` and `b` of numbers that count up from 0 and from 100.
    struct Counting(Vec<u8>, Vec<u8>);

    impl WeightSource for Counting {
        fn tensor(&self, name: &str) -> Option<&[u8]> {
            match name {
                "a" => Some(&self.0),
                "b" => Some(&self.1),
                _ => None,
            }
        }
    }

    #[test]
    fn stacks_give_their_rows_in_any_stretches() {
        let numbers = |first: u8| (first..first + 12).flat_map(|n| f32::from(n).to_le_bytes()).collect();
        let source = Counting(numbers(0), numbers(100));
        let piece = |name: &str, part| Piece { name: name.into(), part };
        let stack = |pieces: &[Piece], shape: &[u64]| Recipe::stack(pieces.to_vec(), Stored::F32, shape);
        // Each tensor is 4 x 3; every other row, from the second on.
        let part = Part::Rows { first: 1, block: 1, stride: 2 };
        let odd = stack(&[piece("a", part), piece("b", part)], &[4, 3]);
        let expected = [3., 4., 5., 9., 10., 11., 103., 104., 105., 109., 110., 111.];
        assert_eq!(odd.values_f32(&source).unwrap(), expected);
        // Tensor a is two matrices of 2 x 3 below each other; of each, the first two columns.
        let of = |matrix: u64| piece("a", Part::columns(matrix * 2 * 3, 2, 3));
        let turned = stack(&[of(0), of(1)], &[4, 2]);
        assert_eq!(turned.values_f32(&source).unwrap(), [0., 3., 1., 4., 6., 9., 7., 10.]);
        for recipe in [odd.clone(), turned, odd.converted(QuantScheme::int8(0))] {
            let whole = recipe.rows(&source, 0..4).unwrap();
            for cut in 0..=4 {
                let parts = [0..cut, cut..4].map(|rows| recipe.rows(&source, rows).unwrap().values());
                assert_eq!(parts.concat(), whole.values(), "{recipe:?} cut at {cut}");
            }
        }
        for bad in [stack(&[of(0), of(1)], &[5, 2]), stack(&[of(1), of(2)], &[4, 2]), stack(&[], &[4, 2])] {
            assert!(bad.rows(&source, 0..4).is_err(), "{bad:?}");
        }
    }
}
