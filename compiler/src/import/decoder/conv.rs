//! Gated short convolutions, which stand in place of attention in some blocks.
//!
//! A projection gives three rows `b`, `c` and `x`; what goes on is `c * conv(b * x)`, where the convolution sees a few tokens and each
//! column by itself. Its last inputs are all that a block remembers of a text.

use super::{Blocks, Decoder, Naming};
use crate::import::error::ImportError;
use bessemer_ir::Value;
use bessemer_ir::attr::BinaryKind;

/// Which blocks convolve, and how far they see.
#[derive(Debug, Clone, PartialEq)]
pub struct ShortConv {
    /// Tokens that a convolution sees, its own included.
    pub taps: usize,
    /// The blocks that attend and do not convolve, ascending.
    pub attending: Vec<usize>,
}

/// What a tensor is called in Hugging Face and in GGUF.
#[derive(Clone, Copy)]
enum Tensor {
    In,
    Conv,
    Out,
}

impl Tensor {
    fn name(self, naming: Naming, layer: usize) -> String {
        let name = match self {
            Tensor::In => "in_proj",
            Tensor::Conv => "conv",
            Tensor::Out => "out_proj",
        };
        match naming {
            Naming::HuggingFace => format!("model.layers.{layer}.conv.{name}.weight"),
            Naming::Gguf => format!("blk.{layer}.shortconv.{name}.weight"),
        }
    }
}

impl ShortConv {
    /// Most taps that are built.
    pub const MAX_TAPS: usize = bessemer_ir::infer::MAX_TAPS as usize;

    /// The tensors of a block with their shapes.
    pub(super) fn tensors(&self, d: &Decoder, layer: usize) -> impl Iterator<Item = (String, Vec<usize>)> {
        let (n, taps, naming) = (d.hidden, self.taps, d.naming);
        let weights = match naming {
            Naming::HuggingFace => vec![n, 1, taps],
            Naming::Gguf => vec![n, taps],
        };
        let shapes = [(Tensor::In, vec![3 * n, n]), (Tensor::Conv, weights), (Tensor::Out, vec![n, n])];
        shapes.into_iter().map(move |(tensor, shape)| (tensor.name(naming, layer), shape))
    }
}

impl Blocks<'_> {
    /// What a block adds to the stream for normed rows `h`.
    pub(super) fn short_conv(
        &mut self,
        conv: &ShortConv,
        layer: usize,
        h: Value,
    ) -> Result<Value, ImportError> {
        let d = self.decoder;
        let name = |what: &str| format!("layer.{layer}.{what}");
        let tensor = |tensor: Tensor| tensor.name(d.naming, layer);
        let (n, taps) = (d.hidden, conv.taps);
        let parts = [("b", 0..n), ("c", n..2 * n), ("x", 2 * n..3 * n)];
        let [b, c, x] =
            parts.map(|(part, rows)| self.b.linear_rows(h, &tensor(Tensor::In), None, part, rows));
        let bx = self.b.binary(name("conv.in"), BinaryKind::Mul, b?, x?)?;
        let state = self.b.carried(layer, (taps - 1) * n)?;
        let (y, state) = self.b.short_conv(name("conv"), bx, state, &tensor(Tensor::Conv), [n, taps])?;
        self.states.push(state);
        let y = self.b.binary(name("conv.out"), BinaryKind::Mul, c?, y)?;
        self.b.linear(y, &tensor(Tensor::Out), None)
    }
}
