//! Attributes of ops, and their one printed form.
//!
//! An attribute prints as it parses; the op table calls [`Attr`] for every field, so a new op has text at once.

use crate::recipe::{Axis, Origin, Part, Piece, Recipe, Transform};
use crate::stored::Stored;
use crate::text::Cursor;
use bessemer_format::plan::{Choice, Gate, Input, Score};
use bessemer_format::{Compute, QuantScheme};

/// An attribute that can stand in the text form.
pub trait Attr: Sized {
    /// Appends the text.
    fn print(&self, out: &mut String);
    /// Parses what `print` wrote.
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String>;
}

/// What a linear or attention computes in, by how many rows a pass has. A program of a plan serves a regime of rows, so it computes in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Computes {
    /// In passes of few rows, and of any number if there is no `many`.
    pub few: Compute,
    /// From how many rows on in something else, and in what.
    pub many: Option<(u32, Compute)>,
}

impl Computes {
    /// In a pass of `rows` rows.
    pub fn at(&self, rows: u32) -> Compute {
        self.many.filter(|(from, _)| rows >= *from).map_or(self.few, |(_, compute)| compute)
    }

    /// Those that there are.
    pub fn all(&self) -> impl Iterator<Item = Compute> {
        [self.few].into_iter().chain(self.many.map(|(_, compute)| compute))
    }
}

impl From<Compute> for Computes {
    fn from(few: Compute) -> Self {
        Self { few, many: None }
    }
}

/// `f32`, or `int8x32 then bf16 from 26` rows on.
impl Attr for Computes {
    fn print(&self, out: &mut String) {
        self.few.print(out);
        if let Some((from, many)) = &self.many {
            out.push_str(" then ");
            many.print(out);
            out.push_str(&format!(" from {from}"));
        }
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        let few = Compute::parse(c)?;
        if !c.eat("then") {
            return Ok(few.into());
        }
        let many = Compute::parse(c)?;
        c.expect_word("from")?;
        Ok(Self { few, many: Some((u32::parse(c)?, many)) })
    }
}

/// One segment of a linear: it keeps its source name and its own columns of the output.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Name of the weight in the source.
    pub name: String,
    /// Output columns.
    pub width: u64,
    /// Whether a bias operand follows its weight.
    pub bias: bool,
}

/// What happens to a linear's result before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// The last operand is added.
    Residual,
    /// Two segments, gate and up: `f(gate) * up`.
    Gated(Gate),
}

/// Which elements of a head RoPE rotates with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Element i with i + d/2.
    Half,
    /// Element 2i with 2i + 1.
    Interleaved,
}

/// How the rows of a sequence become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// Their mean.
    Mean,
    /// The first of them.
    First,
}

/// A scalar function of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum UnaryKind {
    /// `x / (1 + e^-x)`
    Silu,
    /// `-x`
    Neg,
    /// `x * (1 + erf(x / sqrt 2)) / 2`
    Gelu,
    /// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`
    GeluTanh,
    /// `tanh x`
    Tanh,
    /// `factor * x`
    Scale(f32),
    /// `x + number`
    Plus(f32),
    /// The nearest number to `x` from the first to the second, of which either may be infinite.
    Clamp(f32, f32),
}

impl From<Gate> for UnaryKind {
    fn from(gate: Gate) -> Self {
        match gate {
            Gate::Silu => UnaryKind::Silu,
            Gate::Gelu => UnaryKind::Gelu,
            Gate::GeluTanh => UnaryKind::GeluTanh,
        }
    }
}

/// A scalar function of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryKind {
    /// `a + b`
    Add,
    /// `a * b`
    Mul,
}

/// One instruction of a pointwise cluster. Numbers below the operand count name operands, higher ones earlier instructions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// A unary function.
    Unary(UnaryKind, u32),
    /// A binary function.
    Binary(BinaryKind, u32, u32),
}

macro_rules! number {
    ($($ty:ty),*) => {$(
        impl Attr for $ty {
            fn print(&self, out: &mut String) {
                out.push_str(&self.to_string());
            }
            fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
                let word = c.word();
                word.parse().map_err(|_| format!("`{word}` is no {}", stringify!($ty)))
            }
        }
    )*};
}
number!(u32, u64, bool);

/// Floats print in the shortest form that reads back to the same bits.
impl Attr for f32 {
    fn print(&self, out: &mut String) {
        out.push_str(&format!("{self:?}"));
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        let word = c.word();
        word.parse().map_err(|_| format!("`{word}` is no f32"))
    }
}

impl Attr for String {
    fn print(&self, out: &mut String) {
        out.push_str(&format!("{self:?}"));
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        c.string()
    }
}

/// `none`, or the value.
impl<T: Attr> Attr for Option<T> {
    fn print(&self, out: &mut String) {
        match self {
            Some(value) => value.print(out),
            None => out.push_str("none"),
        }
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        let start = c.clone();
        if c.word() == "none" {
            return Ok(None);
        }
        *c = start;
        T::parse(c).map(Some)
    }
}

impl<T: Attr> Attr for Vec<T> {
    fn print(&self, out: &mut String) {
        out.push('[');
        for (i, v) in self.iter().enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            v.print(out);
        }
        out.push(']');
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        c.expect("[")?;
        let mut out = Vec::new();
        while !c.eat("]") {
            if !out.is_empty() {
                c.expect(",")?;
            }
            out.push(T::parse(c)?);
        }
        Ok(out)
    }
}

/// Enums whose values are single words.
macro_rules! words {
    ($ty:ty { $($word:literal => $value:expr),* $(,)? }) => {
        impl Attr for $ty {
            fn print(&self, out: &mut String) {
                $(if *self == $value { out.push_str($word); })*
            }
            fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
                let word = c.word();
                $(if word == $word { return Ok($value); })*
                Err(format!("`{word}` is none of: {}", [$($word),*].join(", ")))
            }
        }
    };
}
words!(Epilogue {
    "none" => Epilogue::None, "residual" => Epilogue::Residual, "swiglu" => Epilogue::Gated(Gate::Silu),
    "geglu" => Epilogue::Gated(Gate::Gelu), "geglu_tanh" => Epilogue::Gated(Gate::GeluTanh),
});
words!(Axis { "rows" => Axis::Rows, "columns" => Axis::Columns });
words!(RopeStyle { "half" => RopeStyle::Half, "interleaved" => RopeStyle::Interleaved });
words!(PoolKind { "mean" => PoolKind::Mean, "first" => PoolKind::First });
words!(BinaryKind { "add" => BinaryKind::Add, "mul" => BinaryKind::Mul });
words!(Score { "softmax" => Score::Softmax, "sigmoid" => Score::Sigmoid });
words!(Input {
    "tokens" => Input::Tokens, "positions" => Input::Positions, "slots" => Input::Slots,
    "sequences" => Input::Sequences, "logit_rows" => Input::LogitRows, "block_table" => Input::BlockTable,
    "table_starts" => Input::TableStarts, "token_types" => Input::TokenTypes, "first_rows" => Input::FirstRows,
    "last_positions" => Input::LastPositions, "carried_blocks" => Input::CarriedBlocks,
});
/// The name that containers use.
impl Attr for Stored {
    fn print(&self, out: &mut String) {
        out.push_str(self.name());
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        let word = c.word();
        let known = || Stored::ALL.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ");
        let found = Stored::ALL.iter().find(|s| s.name() == word).copied();
        found.ok_or_else(|| format!("`{word}` is none of: {}", known()))
    }
}

/// A word, some with numbers: `scale[0.5]`, `clamp[-inf, 7.0]`.
impl Attr for UnaryKind {
    fn print(&self, out: &mut String) {
        match self {
            UnaryKind::Silu => out.push_str("silu"),
            UnaryKind::Neg => out.push_str("neg"),
            UnaryKind::Gelu => out.push_str("gelu"),
            UnaryKind::GeluTanh => out.push_str("gelu_tanh"),
            UnaryKind::Tanh => out.push_str("tanh"),
            UnaryKind::Scale(factor) => out.push_str(&format!("scale[{factor:?}]")),
            UnaryKind::Plus(number) => out.push_str(&format!("plus[{number:?}]")),
            UnaryKind::Clamp(low, high) => out.push_str(&format!("clamp[{low:?}, {high:?}]")),
        }
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        fn numbers<const N: usize>(c: &mut Cursor<'_>) -> Result<[f32; N], String> {
            let found = Vec::<f32>::parse(c)?;
            found
                .try_into()
                .map_err(|found: Vec<f32>| format!("{N} numbers are expected, not {}", found.len()))
        }
        match c.word() {
            "silu" => Ok(UnaryKind::Silu),
            "neg" => Ok(UnaryKind::Neg),
            "gelu" => Ok(UnaryKind::Gelu),
            "gelu_tanh" => Ok(UnaryKind::GeluTanh),
            "tanh" => Ok(UnaryKind::Tanh),
            "scale" => numbers(c).map(|[factor]| UnaryKind::Scale(factor)),
            "plus" => numbers(c).map(|[number]| UnaryKind::Plus(number)),
            "clamp" => numbers(c).map(|[low, high]| UnaryKind::Clamp(low, high)),
            word => Err(format!("`{word}` is none of: silu, neg, gelu, gelu_tanh, tanh, scale, plus, clamp")),
        }
    }
}

/// `f32`, `bf16` or `int8x32`.
impl Attr for Compute {
    fn print(&self, out: &mut String) {
        match self {
            Compute::F32 => out.push_str("f32"),
            Compute::Bf16 => out.push_str("bf16"),
            Compute::Int8 { group } => out.push_str(&format!("int8x{group}")),
        }
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        let word = c.word();
        let group = || word.strip_prefix("int8x")?.parse().ok();
        match word {
            "f32" => Ok(Compute::F32),
            "bf16" => Ok(Compute::Bf16),
            _ => Ok(Compute::Int8 {
                group: group().ok_or(format!("`{word}` is no compute (f32, bf16, int8x32)"))?,
            }),
        }
    }
}

/// `8 by softmax`, `8 by sigmoid in 4 of 8 groups by 2`.
impl Attr for Choice {
    fn print(&self, out: &mut String) {
        let Self { top_k, score, groups, best_groups, group_keys } = self;
        out.push_str(&format!("{top_k} by "));
        score.print(out);
        if (*groups, *best_groups, *group_keys) != (1, 1, 1) {
            out.push_str(&format!(" in {best_groups} of {groups} groups by {group_keys}"));
        }
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        let top_k = u32::parse(c)?;
        c.expect_word("by")?;
        let score = Score::parse(c)?;
        let all = Self { top_k, score, groups: 1, best_groups: 1, group_keys: 1 };
        if !c.eat("in") {
            return Ok(all);
        }
        let best_groups = u32::parse(c)?;
        c.expect_word("of")?;
        let groups = u32::parse(c)?;
        c.expect_word("groups")?;
        c.expect_word("by")?;
        Ok(Self { groups, best_groups, group_keys: u32::parse(c)?, ..all })
    }
}

impl Attr for QuantScheme {
    fn print(&self, out: &mut String) {
        out.push_str(&self.to_string());
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        c.scheme_word().parse()
    }
}

/// `"name":576` or `"name":576+bias`.
impl Attr for Segment {
    fn print(&self, out: &mut String) {
        self.name.print(out);
        out.push_str(&format!(":{}{}", self.width, if self.bias { "+bias" } else { "" }));
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        let name = c.string()?;
        c.expect(":")?;
        let width = u64::parse(c)?;
        let bias = c.eat("+");
        if bias {
            c.expect("bias")?;
        }
        Ok(Self { name, width, bias })
    }
}

/// `silu(0)`, `add(0, 1)`.
impl Attr for Scalar {
    fn print(&self, out: &mut String) {
        match self {
            Scalar::Unary(kind, a) => {
                kind.print(out);
                out.push_str(&format!("({a})"));
            }
            Scalar::Binary(kind, a, b) => {
                kind.print(out);
                out.push_str(&format!("({a}, {b})"));
            }
        }
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        let start = c.clone();
        let unary = UnaryKind::parse(c);
        if unary.is_err() {
            *c = start;
        }
        let binary = if unary.is_err() { Some(BinaryKind::parse(c)?) } else { None };
        c.expect("(")?;
        let a = u32::parse(c)?;
        let scalar = match (unary, binary) {
            (Ok(kind), _) => Scalar::Unary(kind, a),
            (_, Some(kind)) => {
                c.expect(",")?;
                Scalar::Binary(kind, a, u32::parse(c)?)
            }
            (Err(e), None) => return Err(e),
        };
        c.expect(")")?;
        Ok(scalar)
    }
}

/// Nothing for the whole, else `rows 64 by 32 every 96` or `columns 0 by 64 every 64 of 192`.
impl Attr for Part {
    fn print(&self, out: &mut String) {
        match self {
            Part::Whole => {}
            Part::Rows { first, block, stride } => {
                out.push_str(&format!(" rows {first} by {block} every {stride}"));
            }
            Part::Columns { first, block, stride, width } => {
                out.push_str(&format!(" columns {first} by {block} every {stride} of {width}"));
            }
        }
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        let columns = c.eat("columns");
        if !columns && !c.eat("rows") {
            return Ok(Part::Whole);
        }
        let first = u64::parse(c)?;
        c.expect_word("by")?;
        let block = u64::parse(c)?;
        c.expect_word("every")?;
        let stride = u64::parse(c)?;
        if !columns {
            return Ok(Part::Rows { first, block, stride });
        }
        c.expect_word("of")?;
        Ok(Part::Columns { first, block, stride, width: u64::parse(c)? })
    }
}

/// `"name"`, `"name" rows 0 16 32`: a tensor or a part of one.
impl Attr for Piece {
    fn print(&self, out: &mut String) {
        self.name.print(out);
        self.part.print(out);
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        Ok(Self { name: c.string()?, part: Part::parse(c)? })
    }
}

/// `tensor "name" Q4_1 [576, 576]`, `tensor "name" F32 rows 0 by 64 every 192 [64, 64]`, `random 7 0.5 [64, 64]`, `values [1.0, 2.0] [2]`, then `| transform` …
impl Attr for Recipe {
    fn print(&self, out: &mut String) {
        match &self.origin {
            Origin::Tensor { name, stored, part } => {
                out.push_str("tensor ");
                name.print(out);
                out.push(' ');
                stored.print(out);
                part.print(out);
            }
            Origin::Packed { name, packed, part, of } => {
                out.push_str("packed ");
                name.print(out);
                out.push(' ');
                packed.to_string().print(out);
                part.print(out);
                if *part != Part::Whole {
                    out.push_str(&format!(" of {of}"));
                }
            }
            Origin::Stack { pieces, stored } => {
                out.push_str("stack ");
                pieces.print(out);
                out.push(' ');
                stored.print(out);
            }
            Origin::Random { seed, scale } => out.push_str(&format!("random {seed} {scale:?}")),
            Origin::Values(values) => {
                out.push_str("values ");
                values.print(out);
            }
            Origin::Rounded { names, key, scheme } => {
                out.push_str("rounded ");
                names.print(out);
                out.push(' ');
                key.print(out);
                out.push(' ');
                scheme.print(out);
            }
        }
        out.push(' ');
        self.shape.print(out);
        for t in &self.transforms {
            out.push_str(" | ");
            match t {
                Transform::Convert(scheme) => {
                    out.push_str("convert ");
                    scheme.print(out);
                }
                Transform::Add(number) => {
                    out.push_str("add ");
                    number.print(out);
                }
                Transform::Scale { axis, by } => {
                    out.push_str("scale ");
                    axis.print(out);
                    out.push(' ');
                    by.print(out);
                }
            }
        }
    }
    fn parse(c: &mut Cursor<'_>) -> Result<Self, String> {
        let origin = match c.word() {
            "tensor" => {
                Origin::Tensor { name: c.string()?, stored: Stored::parse(c)?, part: Part::parse(c)? }
            }
            "packed" => {
                let (name, packed, part) = (c.string()?, c.string()?.parse()?, Part::parse(c)?);
                if part != Part::Whole {
                    c.expect_word("of")?;
                    let of = u64::parse(c)?;
                    Origin::Packed { name, packed, part, of }
                } else {
                    let of = Vec::<u64>::parse(&mut c.clone())?.first().copied().unwrap_or(0);
                    Origin::Packed { name, packed, part, of }
                }
            }
            "stack" => Origin::Stack { pieces: Vec::parse(c)?, stored: Stored::parse(c)? },
            "random" => Origin::Random { seed: u64::parse(c)?, scale: f32::parse(c)? },
            "values" => Origin::Values(Vec::parse(c)?),
            "rounded" => {
                let (names, key) = (Vec::parse(c)?, c.string()?);
                Origin::Rounded { names, key, scheme: QuantScheme::parse(c)? }
            }
            other => {
                return Err(format!(
                    "`{other}` is no origin (tensor, packed, stack, random, values, rounded)"
                ));
            }
        };
        let shape = Vec::parse(c)?;
        let mut transforms = Vec::new();
        while c.eat("|") {
            match c.word() {
                "convert" => transforms.push(Transform::Convert(QuantScheme::parse(c)?)),
                "add" => transforms.push(Transform::Add(f32::parse(c)?)),
                "scale" => {
                    let axis = Axis::parse(c)?;
                    transforms.push(Transform::Scale { axis, by: Vec::parse(c)? });
                }
                other => return Err(format!("`{other}` is no transform (convert, add, scale)")),
            }
        }
        Ok(Self { origin, shape, transforms })
    }
}
