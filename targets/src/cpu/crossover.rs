//! From how many rows of a pass on it pays to dequantise weights for the tiles of AMX, by what kernels do for a weight.
//!
//! Rates are those of one thread of a Sapphire Rapids, measured: 1.4 TFLOPS of bfloat16 in tiles that come from the L2 cache, 0.72 TOPS of
//! bytes and 0.16 TFLOPS of f32 in vectors. The kernels themselves have not been timed on such a CPU yet.

use bessemer_format::{Compute, Elem, QuantScheme};

/// Picoseconds of a multiply-add.
const TILES: f64 = 2.0 / 1.4;
const BYTES: f64 = 2.0 / 0.72;
const FLOATS: f64 = 2.0 / 0.16;
/// Picoseconds of a vector instruction: a fused multiply-add of 16 f32.
const INSTRUCTION: f64 = 16.0 * FLOATS;
/// Columns of a panel: weights that one vector instruction dequantises.
const COLUMNS: f64 = 16.0;

/// The number of rows from which on dequantising once and multiplying tiles costs no more than multiplying as `few` says.
pub(super) fn from_rows(scheme: &QuantScheme, few: Compute) -> u32 {
    let offset = if scheme.offset_type().is_some() { 1.0 } else { 0.0 };
    let instructions = match scheme.elem {
        // Shift, look-up, scale; and to round and lay out a pair of elements takes two.
        Elem::U(4) | Elem::E2M1 | Elem::Iq4 => 4.0,
        // Bits of exponent and mantissa are moved, subnormals and NaNs are told apart.
        Elem::E4M3 => 12.0,
        // Shift, mask, constant offset, conversion, scale; and a pair.
        _ => 6.0,
    };
    let dequantise = (instructions + offset) * INSTRUCTION / COLUMNS;
    let row = match few {
        Compute::F32 | Compute::Bf16 => FLOATS,
        // The sum of a group has a constant subtracted, is converted, scaled and added.
        Compute::Int8 { group } => BYTES + (4.0 + offset) * INSTRUCTION / (COLUMNS * f64::from(group)),
    };
    (dequantise / (row - TILES)).ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dearer_a_row_and_the_cheaper_the_codes_the_earlier() {
        let rows = |scheme: &str, few| from_rows(&scheme.parse().unwrap(), few);
        let int8 = |group| Compute::Int8 { group };
        assert_eq!(rows("u4:f16x32-8", int8(32)), 18);
        assert!(rows("u4:f16x32+f16", int8(32)) > rows("u4:f16x32-8", int8(32)));
        assert!(rows("u4:f16x16-8", int8(16)) < rows("u4:f16x32-8", int8(32)));
        assert!(rows("u6:f16x32-32", int8(32)) > rows("u4:f16x32-8", int8(32)));
        assert!((2..16).contains(&rows("e4m3:f32x0", Compute::F32)));
        // Whatever the scheme, a chunk has rows enough, and a single row never.
        for scheme in ["u2:f16x16", "s8:f16x0", "u3:f16x32+f16", "e2m1:e8m0x32"] {
            assert!((2..64).contains(&rows(scheme, int8(32))), "{scheme}");
        }
    }
}
