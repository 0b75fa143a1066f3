//! Loop nests: the small language in which every op without a hand-written kernel is expressed.
//!
//! A nest is stored in the engine as data. The runtime can execute it as it stands, and the compiler can generate
//! machine code from it; both must give the same bits, so the meaning below leaves nothing open. Kernels for GPUs are made from nests too:
//! they do the same operations and differ in the order of reductions, which many threads share.
//!
//! # Meaning
//!
//! * Axis 0 runs over the rows that a worker was given, in any order; rows are independent of each other.
//! * The body is a flat list of [`Stmt`]s. [`Stmt::For`] and [`Stmt::Reduce`] open a loop over a further axis that
//!   the matching [`Stmt::End`] closes; they nest up to [`MAX_AXES`] deep (axis number = nesting depth).
//! * f32 registers hold values, integer registers hold indices loaded from buffers. A register is written before it
//!   is read in the same or an enclosing loop body, and by one statement only.
//! * Every [`Op`] is one IEEE f32 operation, rounded to nearest even. There is no fused multiply-add. [`Op::Exp`],
//!   [`Op::Sin`] and [`Op::Cos`] are the functions of `bessemer-kernels` (`math::exp`, `trig`), bit for bit.
//! * A *vector loop* is a loop whose body holds no loop. Its iterations may be executed in blocks, statement by
//!   statement, so no iteration may read what another one stores.
//! * `Reduce` over a vector loop keeps [`LANES`] partial results: partial `l` combines the elements `i` with
//!   `i % LANES == l` in ascending order, starting from the neutral element; then `p[l] = p[l] ∘ p[l + s]` for
//!   `s = 8, 4, 2, 1`. `Reduce` over a loop that holds another loop combines in ascending order, one by one.
//!   `Max` is `if b > a { b } else { a }` for accumulated `a` and new `b`, neutral element -inf; `Sum` starts at +0.
//! * An integer that is loaded is checked against its `limit` and an index against its view's length; a failure ends
//!   the step with an error (in generated code the index check is done on the loaded integers alone: a nest whose
//!   indices can leave a view for admissible integers does not pass validation).

use serde::{Deserialize, Serialize};

/// Axes that a nest may have, axis 0 included.
pub const MAX_AXES: usize = 6;
/// Partial results of a vector reduction.
pub const LANES: usize = 16;
/// Registers of each kind that a nest may have.
pub const MAX_REGS: usize = 64;
/// Views that a nest may have.
pub const MAX_VIEWS: usize = 32;

/// An f32 register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reg(pub u8);
/// An integer register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Int(pub u8);
/// Index of a [`View`] in its nest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ViewId(pub u8);

/// A number that is known when a forward pass starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Sym {
    /// Token rows of this forward pass.
    Rows,
    /// Rows whose logits are wanted.
    LogitRows,
    /// Sequences in the batch.
    Sequences,
    /// Block table entries a sequence.
    TableStride,
}

/// What a term of an index is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Base {
    /// The position on an axis.
    Axis(u8),
    /// A loaded integer.
    Int(Int),
    /// A symbol.
    Sym(Sym),
}

/// `((base / div) % rem) * coef`, where `rem == 0` means no remainder is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Term {
    /// What is scaled.
    pub base: Base,
    /// Divisor, at least 1 (floor division of a number that is never negative).
    pub div: u32,
    /// Modulus, or 0.
    pub rem: u32,
    /// Factor.
    pub coef: i64,
}

/// A sum of terms and a constant, in elements of a view.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Index {
    /// Summands.
    pub terms: Vec<Term>,
    /// Constant.
    pub constant: i64,
}

/// How often a loop runs: the smallest of the bounds (each floored at 0). Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Extent(pub Vec<Index>);

/// How a view's elements are stored. Loads widen to f32, stores round to nearest even.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ViewElem {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// Integers for [`Stmt::LoadInt`].
    I32,
    /// The element type that the user chose for the KV cache: bf16 or f32.
    Kv,
    /// A packed matrix, for [`Stmt::LoadWeight`].
    Panel,
}

/// Memory that a nest touches; the step that runs the nest binds it to a buffer, weight or state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct View {
    /// Name for people.
    pub name: String,
    /// Element type.
    pub elem: ViewElem,
    /// Whether the nest stores to it. A view is either read or written, never both.
    pub store: bool,
}

/// Operations on f32 registers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// A constant.
    Const(f32),
    /// An integer register as f32 (exact below 2^24; rounded to nearest even above).
    FromInt(Int),
    /// `-a`
    Neg(Reg),
    /// `|a|`
    Abs(Reg),
    /// Square root.
    Sqrt(Reg),
    /// `e^a`
    Exp(Reg),
    /// `sin a`
    Sin(Reg),
    /// `cos a`
    Cos(Reg),
    /// `a + b`
    Add(Reg, Reg),
    /// `a - b`
    Sub(Reg, Reg),
    /// `a * b`
    Mul(Reg, Reg),
    /// `a / b`
    Div(Reg, Reg),
    /// `if b > a { b } else { a }`
    Max(Reg, Reg),
    /// `if b < a { b } else { a }`
    Min(Reg, Reg),
}

/// How a reduction combines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ReduceKind {
    /// Sum, from +0.
    Sum,
    /// Maximum, from -inf.
    Max,
}

/// A statement of a nest's body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Stmt {
    /// `dst = op`
    Let {
        /// Register written.
        dst: Reg,
        /// Operation.
        op: Op,
    },
    /// `dst = view[index]`
    Load {
        /// Register written.
        dst: Reg,
        /// Source.
        view: ViewId,
        /// Element.
        index: Index,
    },
    /// `dst = W[n][k]` of a packed matrix, dequantised.
    LoadWeight {
        /// Register written.
        dst: Reg,
        /// A view of [`ViewElem::Panel`].
        view: ViewId,
        /// Output row.
        n: Index,
        /// Input element.
        k: Index,
    },
    /// `dst = view[index]`, which must lie in `0..limit`. Not inside a vector loop.
    LoadInt {
        /// Register written.
        dst: Int,
        /// A view of [`ViewElem::I32`].
        view: ViewId,
        /// Element.
        index: Index,
        /// Exclusive upper bound.
        limit: Index,
    },
    /// `view[index] = src`
    Store {
        /// Destination.
        view: ViewId,
        /// Element.
        index: Index,
        /// Register read.
        src: Reg,
    },
    /// Opens a loop whose iterations are independent.
    For {
        /// Number of iterations.
        extent: Extent,
    },
    /// Opens a loop that combines `value`, which its body computes, into `dst`, which is readable after the loop.
    Reduce {
        /// Register that holds the result after the loop.
        dst: Reg,
        /// How to combine.
        kind: ReduceKind,
        /// Register of the body that is combined at the end of each iteration.
        value: Reg,
        /// Number of iterations.
        extent: Extent,
    },
    /// Closes the innermost open loop.
    End,
}

/// A nest over rows. See the module documentation for what it means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nest {
    /// Name for people: the op it computes.
    pub name: String,
    /// Memory it touches.
    pub views: Vec<View>,
    /// The body, executed for each row (axis 0).
    pub body: Vec<Stmt>,
}

impl Index {
    /// A constant.
    pub fn constant(constant: i64) -> Self {
        Self { terms: Vec::new(), constant }
    }
    /// The position on `axis`.
    pub fn axis(axis: u8) -> Self {
        Self::of(Base::Axis(axis))
    }
    /// A loaded integer.
    pub fn int(int: Int) -> Self {
        Self::of(Base::Int(int))
    }
    /// A symbol.
    pub fn sym(sym: Sym) -> Self {
        Self::of(Base::Sym(sym))
    }
    /// One term with factor 1.
    pub fn of(base: Base) -> Self {
        Self { terms: vec![Term { base, div: 1, rem: 0, coef: 1 }], constant: 0 }
    }
    /// `base / div`, floored.
    pub fn div(base: Base, div: u32) -> Self {
        Self { terms: vec![Term { base, div, rem: 0, coef: 1 }], constant: 0 }
    }
    /// `base % rem`.
    pub fn rem(base: Base, rem: u32) -> Self {
        Self { terms: vec![Term { base, div: 1, rem, coef: 1 }], constant: 0 }
    }
    /// `(base / div) % rem`.
    pub fn div_rem(base: Base, div: u32, rem: u32) -> Self {
        Self { terms: vec![Term { base, div, rem, coef: 1 }], constant: 0 }
    }
    /// This index plus a constant.
    pub fn plus(mut self, constant: i64) -> Self {
        self.constant += constant;
        self
    }
    /// Evaluates with `value` giving each base's number. Wraps on overflow: validation has ruled overflow out.
    pub fn eval(&self, mut value: impl FnMut(Base) -> i64) -> i64 {
        self.terms.iter().fold(self.constant, |sum, t| {
            let mut v = value(t.base).wrapping_div(i64::from(t.div.max(1)));
            if t.rem != 0 {
                v = v.wrapping_rem(i64::from(t.rem));
            }
            sum.wrapping_add(v.wrapping_mul(t.coef))
        })
    }
}

impl std::ops::Add for Index {
    type Output = Self;
    fn add(mut self, other: Self) -> Self {
        self.terms.extend(other.terms);
        self.constant += other.constant;
        self
    }
}

impl std::ops::Mul<i64> for Index {
    type Output = Self;
    fn mul(mut self, factor: i64) -> Self {
        for t in &mut self.terms {
            t.coef *= factor;
        }
        self.constant *= factor;
        self
    }
}

impl Extent {
    /// A fixed number of iterations.
    pub fn constant(n: i64) -> Self {
        Self(vec![Index::constant(n)])
    }
    /// The smaller of two bounds.
    pub fn min(a: Index, b: Index) -> Self {
        Self(vec![a, b])
    }
}

impl From<Index> for Extent {
    fn from(index: Index) -> Self {
        Self(vec![index])
    }
}

impl Nest {
    /// For each statement that opens a loop, the position of its [`Stmt::End`]; `None` when brackets do not match.
    pub fn loop_ends(&self) -> Option<Vec<(usize, usize)>> {
        let mut open = Vec::new();
        let mut pairs = Vec::new();
        for (at, stmt) in self.body.iter().enumerate() {
            match stmt {
                Stmt::For { .. } | Stmt::Reduce { .. } => open.push(at),
                Stmt::End => pairs.push((open.pop()?, at)),
                _ => {}
            }
        }
        open.is_empty().then(|| {
            pairs.sort_unstable();
            pairs
        })
    }
}
