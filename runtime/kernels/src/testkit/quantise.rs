//! Tests of a [`Quantise`] row.

use super::data::Random;
use super::guard::Guarded;
use crate::linear::{Quantise, QuantiseFn};
use crate::table::Row;
use bessemer_format::act::Int8Layout;
use bessemer_format::scheme::quantise_int8;
use bessemer_format::{PanelLayout, QuantScheme};

fn layouts() -> Vec<Int8Layout> {
    let mut out = Vec::new();
    for (weight_group, group) in [(0, 16), (0, 32), (0, 48), (0, 512), (32, 32), (128, 64), (48, 16)] {
        for k in [1, 15, 16, 31, 64, 90, 135, 576, 1000] {
            let weight = PanelLayout::new(&QuantScheme::int8(weight_group), 16, k).unwrap();
            out.extend(Int8Layout::new(&weight, group).ok());
        }
    }
    assert!(out.len() > 40);
    out
}

/// What the definition says, byte by byte.
fn expected(layout: &Int8Layout, x: &[f32]) -> Vec<u8> {
    let mut out = vec![0u8; layout.row_bytes()];
    for (g, x) in x.chunks(layout.group).enumerate() {
        let mut codes = vec![0i8; x.len()];
        let scale = quantise_int8(x, &mut codes);
        let sum: i32 = codes.iter().map(|&c| i32::from(c)).sum();
        for (i, c) in codes.iter().enumerate() {
            out[g * layout.group + i] = *c as u8;
        }
        out[layout.scales_at() + 4 * g..][..4].copy_from_slice(&scale.to_le_bytes());
        out[layout.sums_at() + 4 * g..][..4].copy_from_slice(&sum.to_le_bytes());
        out[layout.products_at() + 4 * g..][..4].copy_from_slice(&(scale * sum as f32).to_le_bytes());
    }
    out
}

/// Bit-equal to the definition, on ordinary and on exceptional numbers.
pub(crate) fn exact(row: &Row<QuantiseFn>) {
    let quantise = Quantise { isa: row.isa, kernel: row.kernel };
    let mut random = Random::new(31);
    let special = [
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        -0.0,
        1e-38,
        1e-40,
        127.5,
    ];
    for layout in layouts() {
        for case in 0..24 {
            let mut x = random.floats(layout.k);
            let factor = [1.0, 1e30, 1e-30, 1e-37, 1e-38, 1e-40, 1e-44, 0.0, 128.0, 254.0][case % 10];
            x.iter_mut().for_each(|v| *v *= factor);
            if case >= 10 {
                let at = random.int(0, layout.k as i32 - 1) as usize;
                x[at] = special[(case - 10) % special.len()];
            }
            if case >= 20 {
                // Ties: halves of the step.
                x.iter_mut().for_each(|v| *v = random.int(-254, 254) as f32 / 2.0);
                x[0] = 127.0;
            }
            let mut out = vec![0xaa; layout.row_bytes()];
            quantise.row(&layout, &x, &mut out);
            assert_eq!(out, expected(&layout, &x), "{layout:?} case {case}");
        }
    }
}

/// No access outside of any buffer.
pub(crate) fn guarded(row: &Row<QuantiseFn>) {
    let quantise = Quantise { isa: row.isa, kernel: row.kernel };
    let mut random = Random::new(32);
    for layout in layouts() {
        let (data, bytes) = (random.floats(layout.k), vec![0u8; layout.row_bytes()]);
        let (x, mut out) = (Guarded::at_end(&data), Guarded::at_end(&bytes));
        quantise.row(&layout, &x, &mut out);
        let end = out.to_vec();
        let (x, mut out) = (Guarded::at_start(&data), Guarded::at_start(&bytes));
        quantise.row(&layout, &x, &mut out);
        assert_eq!(end, out.to_vec());
    }
}
