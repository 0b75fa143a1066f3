//! Tests of [`LinearBf16`] and [`RoundBf16`] rows.

use super::data::{Random, exact_rows, packed, random_rows, schemes};
use super::{gamma, guard::Guarded};
use crate::linear::{Lane, LinearBf16, LinearBf16Fn, RoundBf16, RoundBf16Fn};
use crate::table::{KernelSet, Row};
use bessemer_format::PanelLayout;
use bessemer_format::act::Bf16Layout;
use bessemer_format::panel::COLUMNS;
use bessemer_format::rows::Rows;
use bessemer_format::scheme::{round_bf16, widen_bf16};

/// Rows of activations, enough for whole register blocks and every remainder.
const ROWS: [usize; 7] = [1, 2, 3, 5, 8, 12, 27];

fn linear(row: &Row<LinearBf16Fn>, layout: &PanelLayout) -> LinearBf16 {
    LinearBf16 { layout: layout.clone(), isa: row.isa, kernel: row.kernel }
}

fn portable() -> &'static KernelSet {
    KernelSet::for_isa(crate::Isa::Portable).unwrap()
}

fn rounded(k: usize, x: &[f32]) -> Vec<u8> {
    let act = Bf16Layout { k };
    let mut out = vec![0xaa; x.len() / k * act.row_bytes()];
    for (x, out) in x.chunks(k).zip(out.chunks_mut(act.row_bytes())) {
        portable().round_bf16().row(&act, x, out);
    }
    out
}

/// All outputs, `[rows][n]`.
fn product(linear: &LinearBf16, weight: &[u8], x: &[u8]) -> Vec<f32> {
    let n = linear.layout().n();
    let mut out = vec![f32::NAN; x.len() / linear.act().row_bytes() * n];
    linear.for_each_tile(weight, 0..linear.layout().panels(), x, |panel, first, tile| {
        for (i, lane) in tile.iter().enumerate() {
            let at = panel * COLUMNS;
            let columns = COLUMNS.min(n - at);
            out[(first + i) * n + at..][..columns].copy_from_slice(&lane[..columns]);
        }
    });
    out
}

/// Where nothing rounds, every kernel gives the portable kernel's bits.
pub(crate) fn exact(row: &Row<LinearBf16Fn>) {
    let mut random = Random::new(41);
    for scheme in schemes(row.family) {
        for (n, k) in [(16, 64), (48, 200)] {
            let (layout, weight) = packed(&exact_rows(&mut random, scheme, n, k));
            for rows in ROWS {
                let x = rounded(k, &random.small_ints(rows * k));
                let got = product(&linear(row, &layout), &weight, &x);
                let want = product(&portable().linear_bf16(&layout), &weight, &x);
                assert_eq!(got, want, "{scheme} n={n} k={k} rows={rows}");
                assert!(want.iter().any(|&v| v != 0.0));
            }
        }
    }
}

fn check_bounded(row: &Row<LinearBf16Fn>, weights: &Rows, random: &mut Random, rows: usize) {
    let (layout, weight) = packed(weights);
    let (n, k) = (layout.n(), layout.k());
    let data = random.floats(rows * k);
    let got = product(&linear(row, &layout), &weight, &rounded(k, &data));
    let round = |v: f32| f64::from(widen_bf16(round_bf16(v)));
    for i in 0..rows {
        for j in 0..n {
            let (mut want, mut size) = (0.0f64, 0.0f64);
            for (l, &x) in data[i * k..][..k].iter().enumerate() {
                let product = round(x) * round(layout.value(&weight, j, l).unwrap());
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

/// Random data stays within the rounding bound of the exact product of the rounded numbers.
pub(crate) fn bounded(row: &Row<LinearBf16Fn>) {
    let mut random = Random::new(42);
    for scheme in schemes(row.family) {
        let weights = random_rows(&mut random, scheme, 32, 320);
        for rows in [1, 13] {
            check_bounded(row, &weights, &mut random, rows);
        }
    }
}

/// Partial panels, short last runs, odd k, single elements; and rows do not depend on their neighbours.
pub(crate) fn odd_shapes(row: &Row<LinearBf16Fn>) {
    let mut random = Random::new(43);
    for scheme in schemes(row.family) {
        for (n, k) in [(1, 1), (3, 17), (17, 33), (20, 90), (5, 135)] {
            let weights = random_rows(&mut random, scheme, n, k);
            for rows in ROWS {
                check_bounded(row, &weights, &mut random, rows);
            }
            let (layout, weight) = packed(&weights);
            let linear = linear(row, &layout);
            let x = rounded(k, &random.floats(70 * k));
            let all = product(&linear, &weight, &x);
            for (i, x) in x.chunks(linear.act().row_bytes()).enumerate() {
                let alone = product(&linear, &weight, x);
                assert_eq!(alone, all[i * n..][..n], "{scheme} k={k}: row {i} depends on other rows");
            }
        }
    }
}

/// No access outside of any buffer.
pub(crate) fn guarded(row: &Row<LinearBf16Fn>) {
    let mut random = Random::new(44);
    for scheme in schemes(row.family) {
        for (n, k) in [(16, 1), (16, 31), (7, 50), (16, 96), (16, 530)] {
            let (layout, weight) = packed(&random_rows(&mut random, scheme, n, k));
            for rows in ROWS {
                let data = rounded(k, &random.floats(rows * k));
                let linear = linear(row, &layout);
                let lanes: Vec<Lane> = vec![[0.0; COLUMNS]; rows];
                let (w, x, mut out) =
                    (Guarded::at_end(&weight), Guarded::at_end(&data), Guarded::at_end(&lanes));
                linear.tile(&w, 0, &x, &mut out);
                let end = out.to_vec();
                let (w, x, mut out) =
                    (Guarded::at_start(&weight), Guarded::at_start(&data), Guarded::at_start(&lanes));
                linear.tile(&w, 0, &x, &mut out);
                assert_eq!(end, out.to_vec());
            }
        }
    }
}

/// Bit-equal to the definition, on ordinary and on exceptional numbers, with zeros behind, and inside of every buffer.
pub(crate) fn rounds(row: &Row<RoundBf16Fn>) {
    let round = RoundBf16 { isa: row.isa, kernel: row.kernel };
    let mut random = Random::new(45);
    for k in [1, 15, 16, 31, 64, 90, 135, 1000] {
        let layout = Bf16Layout { k };
        for case in 0..50 {
            // Any bits in odd cases, NaNs and infinities among them.
            let x: Vec<f32> = match case % 2 {
                0 => random.floats(k),
                _ => (0..k)
                    .map(|i| f32::from_bits((random.next() as u32) | (0x7f80_0000 * (i as u32 % 2))))
                    .collect(),
            };
            let mut want = vec![0; layout.row_bytes()];
            for (w, x) in want.as_chunks_mut::<2>().0.iter_mut().zip(&x) {
                *w = round_bf16(*x).to_le_bytes();
            }
            let bytes = vec![0xaau8; layout.row_bytes()];
            let (data, mut out) = (Guarded::at_end(&x), Guarded::at_end(&bytes));
            round.row(&layout, &data, &mut out);
            assert_eq!(out.to_vec(), want, "k={k} case {case}");
            let (data, mut out) = (Guarded::at_start(&x), Guarded::at_start(&bytes));
            round.row(&layout, &data, &mut out);
            assert_eq!(out.to_vec(), want, "k={k} case {case}");
        }
    }
}
