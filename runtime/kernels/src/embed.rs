//! Look-up of one row of a packed table: one lane of a panel.

use crate::codes::{ATOM_K, RunCodes, run_scales};
use bessemer_format::panel::{COLUMNS, PanelLayout};
use bessemer_format::{Elem, ScaleType};

/// Writes the k values of `row` of `table` (a whole packed matrix) to `out`, by
/// [`QuantScheme::dequant`](bessemer_format::QuantScheme::dequant).
///
/// # Panics
/// If `row` is out of range, `table` is shorter than the layout says or `out` is not k elements long.
pub fn gather_row(layout: &PanelLayout, table: &[u8], row: usize, out: &mut [f32]) {
    assert!(row < layout.n(), "row {row} of {}", layout.n());
    assert_eq!(out.len(), layout.k(), "a row has k elements");
    let panel = &table[row / COLUMNS * layout.panel_bytes()..][..layout.panel_bytes()];
    let column = row % COLUMNS;
    let scheme = *layout.scheme();
    match scheme.elem {
        Elem::F32 => {
            for (o, line) in out.iter_mut().zip(panel.as_chunks::<64>().0) {
                *o = ScaleType::F32.read(&line[4 * column..]);
            }
        }
        Elem::F16 | Elem::Bf16 => {
            let ty = if scheme.elem == Elem::F16 { ScaleType::F16 } else { ScaleType::Bf16 };
            for (out, line) in out.chunks_mut(2).zip(panel.as_chunks::<64>().0) {
                for (i, o) in out.iter_mut().enumerate() {
                    *o = ty.read(&line[4 * column + 2 * i..]);
                }
            }
        }
        _ => {
            for (r, out) in out.chunks_mut(layout.run()).enumerate() {
                let codes = RunCodes::new(layout, panel, r);
                let (scale, offset) = run_scales(layout, panel, r);
                for (j, out) in out.chunks_mut(ATOM_K).enumerate() {
                    for (o, code) in out.iter_mut().zip(codes.lane(j, column)) {
                        *o = scheme.dequant(code, scale[column], offset[column]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Family;
    use crate::testkit::data::{Random, packed, random_rows, schemes};

    #[test]
    fn every_scheme_gathers_the_defined_values() {
        let mut random = Random::new(5);
        for scheme in schemes(Family::Any) {
            for (n, k) in [(1, 1), (20, 72), (33, 300)] {
                let (layout, table) = packed(&random_rows(&mut random, scheme, n, k));
                for row in 0..n {
                    let mut out = vec![f32::NAN; k];
                    gather_row(&layout, &table, row, &mut out);
                    for (i, v) in out.iter().enumerate() {
                        let want = layout.value(&table, row, i).unwrap();
                        assert_eq!(v.to_bits(), want.to_bits(), "{scheme} {n} x {k} at ({row}, {i})");
                    }
                }
            }
        }
    }
}
