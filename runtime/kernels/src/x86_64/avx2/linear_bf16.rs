//! Linears in bfloat16.

use crate::linear::{Lane, portable};
use bessemer_format::PanelLayout;

/// [`crate::linear::LinearBf16Fn`] for every scheme: the portable kernel with newer vectors.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn any(layout: &PanelLayout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
    portable::linear_bf16(layout, panel, x, out);
}

/// [`crate::linear::RoundBf16Fn`]: the portable loop with newer vectors.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn round(x: &[f32], out: &mut [[u8; 2]]) {
    portable::round(x, out);
}
