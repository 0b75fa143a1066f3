//! Activations and the kernel that multiplies them: what a measurement repeats.

use super::{LinearBf16, LinearF32, LinearInt8, LinearNative, RowsF32};
use crate::KernelSet;
use bessemer_format::act::{Bf16Layout, Int8Layout};
use bessemer_format::scheme::{round_bf16, widen_bf16};
use bessemer_format::{Compute, PanelLayout};
use std::hint::black_box;
use std::ops::Range;

/// Activations, converted once, and the kernel that a linear of one [`Compute`] takes for them.
#[derive(Clone, Debug)]
pub struct Product(Kind);

#[derive(Clone, Debug)]
enum Kind {
    F32(LinearF32, Vec<f32>),
    Int8(LinearInt8, Vec<u8>),
    Bf16(LinearNative, Vec<u8>),
}

impl Product {
    /// Of the rows of `x`, each [`PanelLayout::k`] long.
    ///
    /// # Errors
    /// Where weights of the layout are not multiplied so, in words.
    pub fn new(
        kernels: &KernelSet,
        layout: &PanelLayout,
        compute: Compute,
        x: &[f32],
    ) -> Result<Self, String> {
        let k = layout.k();
        // All rows as `convert` writes each of them.
        let rows = |row_bytes: usize, convert: &dyn Fn(&[f32], &mut [u8])| {
            let mut rows = vec![0; x.len() / k * row_bytes];
            x.chunks_exact(k).zip(rows.chunks_exact_mut(row_bytes)).for_each(|(x, row)| convert(x, row));
            rows
        };
        Ok(Self(match compute {
            Compute::F32 => Kind::F32(kernels.linear_f32(layout), x.to_vec()),
            Compute::Bf16 => match kernels.linear_bf16(layout) {
                LinearBf16::Widened(linear) => {
                    Kind::F32(linear, x.iter().map(|x| widen_bf16(round_bf16(*x))).collect())
                }
                LinearBf16::Native(linear) => {
                    let (round, act) = (kernels.round_bf16(), Bf16Layout { k });
                    let rows = rows(round.row_bytes(&act), &|x, row| round.row(&act, x, row));
                    Kind::Bf16(linear, rows)
                }
            },
            Compute::Int8 { group } => {
                let act = Int8Layout::new(layout, group as usize)?;
                let rows = rows(act.row_bytes(), &|x, row| kernels.quantise().row(&act, x, row));
                Kind::Int8(kernels.linear_int8(layout, group as usize)?, rows)
            }
        }))
    }

    /// All rows by some panels of `weight`, a whole packed matrix. Nobody looks at the results.
    pub fn run(&self, weight: &[u8], panels: Range<usize>) {
        match &self.0 {
            Kind::F32(linear, x) => {
                let k = linear.layout().k();
                let x = RowsF32 { data: x, rows: x.len() / k, stride: k };
                linear.for_each_tile(weight, panels, x, |_, _, tile| _ = black_box(tile));
            }
            Kind::Int8(linear, x) => {
                linear.for_each_tile(weight, panels, x, |_, _, tile| _ = black_box(tile));
            }
            Kind::Bf16(linear, x) => {
                linear.for_each_tile(weight, panels, x, |_, _, tile| _ = black_box(tile));
            }
        }
    }
}
