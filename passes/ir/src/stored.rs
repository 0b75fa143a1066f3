//! Encodings of checkpoints: how a stored row turns into [`Rows`], losing nothing.

use bessemer_format::rows::Rows;
use bessemer_format::{Elem, QuantScheme, ScaleType};

/// How a checkpoint stores a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stored {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// GGUF: 32 codes of 4 bits minus 8, f16 scale.
    Q4_0,
    /// GGUF: 32 codes of 4 bits, f16 scale and minimum.
    Q4_1,
    /// GGUF: 32 signed bytes, f16 scale.
    Q8_0,
}

impl Stored {
    /// The scheme that holds the stored numbers exactly.
    pub const fn scheme(self) -> QuantScheme {
        match self {
            Stored::F32 => QuantScheme::F32,
            Stored::F16 => QuantScheme::F16,
            Stored::Bf16 => QuantScheme::BF16,
            Stored::Q4_0 => QuantScheme::Q4_0,
            Stored::Q4_1 => QuantScheme::Q4_1,
            Stored::Q8_0 => QuantScheme::Q8_0,
        }
    }

    /// Elements and bytes of a block.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Stored::F32 => (1, 4),
            Stored::F16 | Stored::Bf16 => (1, 2),
            Stored::Q4_0 => (32, 2 + 16),
            Stored::Q4_1 => (32, 2 + 2 + 16),
            Stored::Q8_0 => (32, 2 + 32),
        }
    }

    /// Bytes of a row of `k` elements; `None` where blocks do not fill a row.
    pub fn row_bytes(self, k: usize) -> Option<usize> {
        let (elems, bytes) = self.block();
        k.is_multiple_of(elems).then(|| (k / elems).checked_mul(bytes)).flatten()
    }

    /// Decodes whole rows. `bytes` must hold a whole number of rows of `k` elements.
    ///
    /// A GGUF 4-bit block holds elements 0..16 in the low nibbles of its bytes and 16..32 in the high ones.
    pub fn rows(self, bytes: &[u8], k: usize) -> Result<Rows, String> {
        let row_bytes = self
            .row_bytes(k)
            .ok_or_else(|| format!("rows of {k} elements do not divide into {self:?} blocks"))?;
        if row_bytes == 0 || !bytes.len().is_multiple_of(row_bytes) {
            return Err(format!("{} bytes are no whole number of rows of {row_bytes}", bytes.len()));
        }
        let rows = bytes.len() / row_bytes;
        let half = |b: &[u8]| ScaleType::F16.read(b);
        let mut out = Rows {
            scheme: self.scheme(),
            rows,
            k,
            codes: Vec::with_capacity(rows * k),
            scales: Vec::new(),
            offsets: Vec::new(),
        };
        let (_, block_bytes) = self.block();
        let blocks = bytes.chunks_exact(block_bytes);
        match self {
            Stored::F32 => out.codes.extend(blocks.map(|b| ScaleType::F32.read(b))),
            Stored::F16 => out.codes.extend(blocks.map(half)),
            Stored::Bf16 => out.codes.extend(blocks.map(|b| ScaleType::Bf16.read(b))),
            Stored::Q4_0 | Stored::Q4_1 => {
                for b in blocks {
                    out.scales.push(half(b));
                    let codes = if self == Stored::Q4_1 {
                        out.offsets.push(half(&b[2..]));
                        &b[4..]
                    } else {
                        &b[2..]
                    };
                    out.codes.extend(codes.iter().map(|c| f32::from(c & 15)));
                    out.codes.extend(codes.iter().map(|c| f32::from(c >> 4)));
                }
            }
            Stored::Q8_0 => {
                for b in blocks {
                    out.scales.push(half(b));
                    out.codes.extend(b[2..].iter().map(|c| f32::from(*c as i8)));
                }
            }
        }
        debug_assert_eq!(out.codes.len(), rows * k);
        debug_assert!(out.scheme.elem != Elem::F32 || out.scales.is_empty());
        Ok(out)
    }
}
