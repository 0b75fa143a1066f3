//! Tests of a [`LinearF32`] row.

use super::data::{Random, exact_rows, packed, random_rows, schemes};
use super::{gamma, guard::Guarded};
use crate::linear::{Lane, LinearF32, LinearF32Fn, RowsF32};
use crate::table::{KernelSet, Row};
use bessemer_format::PanelLayout;
use bessemer_format::panel::COLUMNS;
use bessemer_format::rows::Rows;

/// Rows of activations, enough for whole register blocks and every remainder.
const ROWS: [usize; 6] = [1, 2, 3, 5, 8, 27];

fn linear(row: &Row<LinearF32Fn>, layout: &PanelLayout) -> LinearF32 {
    LinearF32 { layout: layout.clone(), isa: row.isa, kernel: row.kernel }
}

/// All outputs, `[rows][n]`.
fn product(linear: &LinearF32, weight: &[u8], x: RowsF32<'_>) -> Vec<f32> {
    let n = linear.layout().n();
    let mut out = vec![f32::NAN; x.rows * n];
    linear.for_each_tile(weight, 0..linear.layout().panels(), x, |panel, first, tile| {
        for (i, lane) in tile.iter().enumerate() {
            let at = panel * COLUMNS;
            let columns = COLUMNS.min(n - at);
            out[(first + i) * n + at..][..columns].copy_from_slice(&lane[..columns]);
        }
    });
    out
}

fn portable(layout: &PanelLayout) -> LinearF32 {
    KernelSet::for_isa(crate::Isa::Portable).unwrap().linear_f32(layout)
}

/// Where nothing rounds, every kernel gives the portable kernel's bits.
pub(crate) fn exact(row: &Row<LinearF32Fn>) {
    let mut random = Random::new(11);
    for scheme in schemes(row.family) {
        for (n, k) in [(16, 64), (48, 200)] {
            let (layout, weight) = packed(&exact_rows(&mut random, scheme, n, k));
            for rows in ROWS {
                let data = random.small_ints(rows * k);
                let x = RowsF32 { data: &data, rows, stride: k };
                let got = product(&linear(row, &layout), &weight, x);
                let want = product(&portable(&layout), &weight, x);
                assert_eq!(got, want, "{scheme} n={n} k={k} rows={rows}");
                assert!(want.iter().any(|&v| v != 0.0));
            }
        }
    }
}

fn check_bounded(row: &Row<LinearF32Fn>, weights: &Rows, random: &mut Random, rows: usize) {
    let (layout, weight) = packed(weights);
    let (n, k) = (layout.n(), layout.k());
    let stride = k + 3;
    let data = random.floats((rows - 1) * stride + k);
    let got = product(&linear(row, &layout), &weight, RowsF32 { data: &data, rows, stride });
    for i in 0..rows {
        for j in 0..n {
            let (mut want, mut size) = (0.0f64, 0.0f64);
            for (l, &x) in data[i * stride..][..k].iter().enumerate() {
                let product = f64::from(x) * f64::from(layout.value(&weight, j, l).unwrap());
                want += product;
                size += product.abs();
            }
            let error = (f64::from(got[i * n + j]) - want).abs();
            assert!(
                error <= gamma(k + 4) * size,
                "{} n={n} k={k} rows={rows} at ({i}, {j}): {} against {want}, error {error:e}",
                layout.scheme(),
                got[i * n + j]
            );
        }
    }
}

/// Random data stays within the rounding bound of the exact product of the values that `PanelLayout::value` defines.
pub(crate) fn bounded(row: &Row<LinearF32Fn>) {
    let mut random = Random::new(12);
    for scheme in schemes(row.family) {
        let weights = random_rows(&mut random, scheme, 32, 320);
        for rows in [1, 9] {
            check_bounded(row, &weights, &mut random, rows);
        }
    }
}

/// Partial panels, short last runs, odd k, single elements; and rows do not depend on their neighbours.
pub(crate) fn odd_shapes(row: &Row<LinearF32Fn>) {
    let mut random = Random::new(13);
    for scheme in schemes(row.family) {
        for (n, k) in [(1, 1), (3, 17), (17, 33), (20, 90), (5, 135)] {
            let weights = random_rows(&mut random, scheme, n, k);
            for rows in ROWS {
                check_bounded(row, &weights, &mut random, rows);
            }
            let (layout, weight) = packed(&weights);
            let data = random.floats(70 * k);
            let linear = linear(row, &layout);
            let all = product(&linear, &weight, RowsF32 { data: &data, rows: 70, stride: k });
            for (i, x) in data.chunks(k).enumerate() {
                let alone = product(&linear, &weight, RowsF32 { data: x, rows: 1, stride: k });
                assert_eq!(alone, all[i * n..][..n], "{scheme} k={k}: row {i} depends on other rows");
            }
        }
    }
}

/// No access outside of any buffer.
pub(crate) fn guarded(row: &Row<LinearF32Fn>) {
    let mut random = Random::new(14);
    for scheme in schemes(row.family) {
        for (n, k) in [(16, 1), (16, 31), (7, 50), (16, 96), (16, 530)] {
            let (layout, weight) = packed(&random_rows(&mut random, scheme, n, k));
            for rows in ROWS {
                let data = random.floats(rows * k);
                let linear = linear(row, &layout);
                let lanes: Vec<Lane> = vec![[0.0; COLUMNS]; rows];
                let (w, x, mut out) =
                    (Guarded::at_end(&weight), Guarded::at_end(&data), Guarded::at_end(&lanes));
                linear.tile(&w, 0, RowsF32 { data: &x, rows, stride: k }, 0, &mut out);
                let end = out.to_vec();
                let (w, x, mut out) =
                    (Guarded::at_start(&weight), Guarded::at_start(&data), Guarded::at_start(&lanes));
                linear.tile(&w, 0, RowsF32 { data: &x, rows, stride: k }, 0, &mut out);
                assert_eq!(end, out.to_vec());
            }
        }
    }
}
