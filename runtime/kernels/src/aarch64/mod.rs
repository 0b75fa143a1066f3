//! Kernels for AArch64.
//!
//! [`neon`] holds what every AArch64 CPU runs; [`dotprod`] and [`i8mm`] hold integer linears with the instructions
//! that came later, around one body ([`int8`]). One unpacking of codes ([`codes`]) serves every integer scheme, so
//! no scheme needs a kernel of its own.
//!
//! Functions of these modules carry `#[target_feature]`: safe among themselves, unsafe to call from anywhere else. The
//! contracts of the entry points are those of the function types in [`crate::linear`] and [`crate::attention`].

// Register blocks are arrays that a constant range indexes, several at a time: zipped iterators would hide the block.
#![allow(clippy::needless_range_loop)]

mod codes;
pub(crate) mod dotprod;
pub(crate) mod i8mm;
mod int8;
pub(crate) mod neon;
pub(crate) mod peak;

/// Vectors of four columns in a panel.
const QUARTERS: usize = bessemer_format::panel::COLUMNS / 4;

/// Calls a function that is generic over the width of codes, `1 ..= 8`, with that of `$elem`.
macro_rules! for_bits {
    ($elem:expr, $f:ident($($arg:expr),*)) => {
        match $elem.bits() {
            1 => $f::<1>($($arg),*),
            2 => $f::<2>($($arg),*),
            3 => $f::<3>($($arg),*),
            4 => $f::<4>($($arg),*),
            5 => $f::<5>($($arg),*),
            6 => $f::<6>($($arg),*),
            7 => $f::<7>($($arg),*),
            _ => $f::<8>($($arg),*),
        }
    };
}
use for_bits;
