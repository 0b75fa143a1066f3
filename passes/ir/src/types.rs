//! Types of values: dtype, shape with symbols, and encoding.

use bessemer_format::QuantScheme;
use std::fmt;

/// What an element is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// A real number: f32 unless the encoding says otherwise.
    F32,
    /// An index.
    I32,
    /// A version of a layer's KV cache. Append takes one and gives the next, so no pass can reorder them.
    State,
}

/// One extent of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    /// Known now.
    Const(u64),
    /// Token rows of a forward pass.
    Rows,
    /// Rows whose logits are wanted.
    LogitRows,
}

/// How a tensor's bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layout {
    /// Row-major.
    Dense,
    /// Panels of 16 output rows ([`bessemer_format::panel`]).
    Panel,
}

/// Precision and layout: two orthogonal axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Encoding {
    /// What the codes mean; `None` for plain f32 or i32.
    pub scheme: Option<QuantScheme>,
    /// How they lie.
    pub layout: Layout,
}

impl Encoding {
    /// Plain row-major numbers.
    pub const PLAIN: Self = Self { scheme: None, layout: Layout::Dense };
}

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorType {
    /// Element.
    pub dtype: DType,
    /// Extents, outermost first; empty for a state.
    pub shape: Vec<Dim>,
    /// Precision and layout.
    pub encoding: Encoding,
}

impl TensorType {
    /// Plain f32 activations.
    pub fn f32(shape: impl Into<Vec<Dim>>) -> Self {
        Self { dtype: DType::F32, shape: shape.into(), encoding: Encoding::PLAIN }
    }
    /// Plain indices.
    pub fn i32(shape: impl Into<Vec<Dim>>) -> Self {
        Self { dtype: DType::I32, shape: shape.into(), encoding: Encoding::PLAIN }
    }
    /// A layer's state.
    pub fn state() -> Self {
        Self { dtype: DType::State, shape: Vec::new(), encoding: Encoding::PLAIN }
    }
    /// A constant of `shape` in `scheme`.
    pub fn weight(shape: &[u64], scheme: QuantScheme, layout: Layout) -> Self {
        let scheme = (scheme != QuantScheme::F32).then_some(scheme);
        let shape = shape.iter().map(|d| Dim::Const(*d)).collect();
        Self { dtype: DType::F32, shape, encoding: Encoding { scheme, layout } }
    }
    /// The scheme of the codes, plain f32 if none is stated.
    pub fn scheme(&self) -> QuantScheme {
        self.encoding.scheme.unwrap_or(QuantScheme::F32)
    }
    /// The constant extent at `axis`.
    pub fn const_dim(&self, axis: usize) -> Option<u64> {
        match self.shape.get(axis) {
            Some(Dim::Const(n)) => Some(*n),
            _ => None,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Const(n) => write!(f, "{n}"),
            Dim::Rows => f.write_str("R"),
            Dim::LogitRows => f.write_str("L"),
        }
    }
}

/// `f32[R, 576]`, `i32[R]`, `state`, `f32[49152, 576] @u4:f16x32+f16 panel`.
impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.dtype {
            DType::F32 => "f32",
            DType::I32 => "i32",
            DType::State => return f.write_str("state"),
        })?;
        f.write_str("[")?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")?;
        if let Some(s) = self.encoding.scheme {
            write!(f, " @{s}")?;
        }
        if self.encoding.layout == Layout::Panel {
            f.write_str(" panel")?;
        }
        Ok(())
    }
}
