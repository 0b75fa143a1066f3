//! Encodings of checkpoints: how a stored row turns into [`Rows`], losing nothing.

mod blocks;
mod packed;

pub use packed::{Packed, PackedFormat, PackedPart};

use bessemer_format::rows::Rows;
use bessemer_format::{QuantScheme, ScaleType};

/// Declares [`Stored`] and what is known of each encoding.
macro_rules! encodings {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $elems:literal elements in $bytes:literal bytes, $scheme:ident;)*) => {
        /// How a checkpoint stores a tensor.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Stored {
            $($(#[$doc])* $name,)*
        }

        impl Stored {
            /// All encodings.
            pub const ALL: &[Stored] = &[$(Stored::$name,)*];

            /// The name that containers use.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Stored::$name => $text,)*
                }
            }

            /// The scheme that holds the stored numbers exactly.
            pub const fn scheme(self) -> QuantScheme {
                match self {
                    $(Stored::$name => QuantScheme::$scheme,)*
                }
            }

            /// Elements and bytes of a block.
            pub const fn block(self) -> (usize, usize) {
                match self {
                    $(Stored::$name => ($elems, $bytes),)*
                }
            }
        }
    };
}

encodings! {
    /// IEEE binary32.
    F32 = "F32", 1 elements in 4 bytes, F32;
    /// IEEE binary16.
    F16 = "F16", 1 elements in 2 bytes, F16;
    /// bfloat16.
    Bf16 = "BF16", 1 elements in 2 bytes, BF16;
    /// GGUF: 32 codes of 4 bits minus 8, f16 scale.
    Q4_0 = "Q4_0", 32 elements in 18 bytes, Q4_0;
    /// GGUF: 32 codes of 4 bits, f16 scale and minimum.
    Q4_1 = "Q4_1", 32 elements in 20 bytes, Q4_1;
    /// GGUF: 32 codes of 5 bits minus 16, f16 scale.
    Q5_0 = "Q5_0", 32 elements in 22 bytes, Q5_0;
    /// GGUF: 32 codes of 5 bits, f16 scale and minimum.
    Q5_1 = "Q5_1", 32 elements in 24 bytes, Q5_1;
    /// GGUF: 32 signed bytes, f16 scale.
    Q8_0 = "Q8_0", 32 elements in 34 bytes, Q8_0;
    /// GGUF: codes of 2 bits, scales and minima of 4 bits by 16.
    Q2K = "Q2_K", 256 elements in 84 bytes, Q2_K;
    /// GGUF: codes of 3 bits minus 4, signed scales of 6 bits by 16.
    Q3K = "Q3_K", 256 elements in 110 bytes, Q3_K;
    /// GGUF: codes of 4 bits, scales and minima of 6 bits by 32.
    Q4K = "Q4_K", 256 elements in 144 bytes, Q4_K;
    /// GGUF: codes of 5 bits, scales and minima of 6 bits by 32.
    Q5K = "Q5_K", 256 elements in 176 bytes, Q5_K;
    /// GGUF: codes of 6 bits minus 32, signed scales of 8 bits by 16.
    Q6K = "Q6_K", 256 elements in 210 bytes, Q6_K;
    /// GGUF: 32 codes into a codebook, f16 scale.
    Iq4Nl = "IQ4_NL", 32 elements in 18 bytes, IQ4_NL;
    /// GGUF: codes into a codebook, signed scales of 6 bits by 32.
    Iq4Xs = "IQ4_XS", 256 elements in 136 bytes, IQ4_XS;
    /// GGUF: 32 4-bit floats and a power of two.
    Mxfp4 = "MXFP4", 32 elements in 17 bytes, MXFP4;
}

impl Stored {
    /// Bytes of a row of `k` elements; `None` where blocks do not fill a row.
    pub fn row_bytes(self, k: usize) -> Option<usize> {
        let (elems, bytes) = self.block();
        k.is_multiple_of(elems).then(|| (k / elems).checked_mul(bytes)).flatten()
    }

    /// Decodes whole rows. `bytes` must hold a whole number of rows of `k` elements.
    pub fn rows(self, bytes: &[u8], k: usize) -> Result<Rows, String> {
        let row_bytes = self
            .row_bytes(k)
            .ok_or_else(|| format!("rows of {k} elements do not divide into {} blocks", self.name()))?;
        if row_bytes == 0 || !bytes.len().is_multiple_of(row_bytes) {
            return Err(format!("{} bytes are no whole number of rows of {row_bytes}", bytes.len()));
        }
        let rows = bytes.len() / row_bytes;
        let mut out = Rows { codes: Vec::with_capacity(rows * k), ..Rows::empty(self.scheme(), rows, k) };
        let blocks = bytes.chunks_exact(self.block().1);
        match self {
            Stored::F32 => out.codes.extend(blocks.map(|b| ScaleType::F32.read(b))),
            Stored::F16 => out.codes.extend(blocks.map(|b| ScaleType::F16.read(b))),
            Stored::Bf16 => out.codes.extend(blocks.map(|b| ScaleType::Bf16.read(b))),
            _ => blocks.for_each(|block| blocks::decode(self, block, &mut out)),
        }
        debug_assert_eq!(out.codes.len(), rows * k);
        Ok(out)
    }
}
