//! Linears in bfloat16, and what is rounded for them.

use crate::linear::{Lane, portable};
use bessemer_format::PanelLayout;

/// [`crate::linear::LinearBf16::Widened`] for every scheme: the portable kernel with newer vectors.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn any(layout: &PanelLayout, panel: &[u8], x: &[f32], stride: usize, out: &mut [Lane]) {
    portable::linear_widened(layout, panel, x, stride, out);
}

/// [`crate::linear::RoundBf16Fn`] to f32: the portable loop with newer vectors.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn round(x: &[f32], out: &mut [u8]) {
    portable::round_widened(x, out);
}
