//! Tests of [`LinearBf16`] and [`RoundBf16`] rows.

use super::data::{Random, exact_rows, packed, random_rows, schemes};
use super::{gamma, guard::Guarded};
use crate::linear::LinearNativePairFn;
use crate::linear::{Bf16Form, Lane, LinearBf16, LinearF32, LinearF32Fn, LinearNative, LinearNativeFn};
use crate::linear::{RoundBf16, RoundBf16Fn, RowsF32, TILE_ROWS, portable};
use crate::table::{Family, KernelSet, Row};
use bessemer_format::PanelLayout;
use bessemer_format::act::Bf16Layout;
use bessemer_format::panel::COLUMNS;
use bessemer_format::rows::Rows;
use bessemer_format::scheme::{round_bf16, widen_bf16};

/// Rows of activations, enough for whole register blocks and every remainder.
const ROWS: [usize; 7] = [1, 2, 3, 5, 8, 12, 27];

/// A row of either form.
pub(crate) trait Bf16Row {
    fn family(&self) -> Family;
    fn linear(&self, layout: &PanelLayout) -> LinearBf16;
}

impl Bf16Row for Row<LinearNativeFn> {
    fn family(&self) -> Family {
        self.family
    }
    fn linear(&self, layout: &PanelLayout) -> LinearBf16 {
        LinearBf16::Native(LinearNative {
            layout: layout.clone(),
            isa: self.isa,
            kernel: self.kernel,
            pair: None,
        })
    }
}

impl Bf16Row for Row<LinearF32Fn> {
    fn family(&self) -> Family {
        self.family
    }
    fn linear(&self, layout: &PanelLayout) -> LinearBf16 {
        LinearBf16::Widened(LinearF32 { layout: layout.clone(), isa: self.isa, kernel: self.kernel })
    }
}

/// Rounded activations of some rows, in the form that a linear reads.
enum Rounded {
    Native(Vec<u8>),
    Widened(Vec<f32>),
}

fn rounded(linear: &LinearBf16, x: &[f32]) -> Rounded {
    match linear {
        LinearBf16::Widened(_) => Rounded::Widened(x.iter().map(|v| widen_bf16(round_bf16(*v))).collect()),
        LinearBf16::Native(linear) => {
            let row_bytes = linear.row_bytes();
            let mut out = vec![0; x.len() / linear.layout().k() * row_bytes];
            for (x, out) in x.chunks(linear.layout().k()).zip(out.chunks_mut(row_bytes)) {
                portable::round_native(x, &mut out[..2 * x.len()]);
            }
            Rounded::Native(out)
        }
    }
}

fn portable_set() -> &'static KernelSet {
    KernelSet::for_isa(crate::Isa::Portable).unwrap()
}

fn tile_rows(linear: &LinearBf16) -> usize {
    match linear {
        LinearBf16::Native(linear) => linear.tile_rows(),
        LinearBf16::Widened(_) => TILE_ROWS,
    }
}

/// All outputs for the rows of `x` after rounding, `[rows][n]`.
fn product(linear: &LinearBf16, weight: &[u8], x: &[f32]) -> Vec<f32> {
    let (n, k) = (linear.layout().n(), linear.layout().k());
    let mut out = vec![f32::NAN; x.len() / k * n];
    let finished = |panel: usize, first: usize, tile: &mut [Lane]| {
        for (i, lane) in tile.iter().enumerate() {
            let at = panel * COLUMNS;
            let columns = COLUMNS.min(n - at);
            out[(first + i) * n + at..][..columns].copy_from_slice(&lane[..columns]);
        }
    };
    let panels = 0..linear.layout().panels();
    match (linear, rounded(linear, x)) {
        (LinearBf16::Native(linear), Rounded::Native(x)) => {
            linear.for_each_tile(weight, panels, &x, finished)
        }
        (LinearBf16::Widened(linear), Rounded::Widened(data)) => {
            let x = RowsF32 { data: &data, rows: data.len() / k, stride: k };
            linear.for_each_tile(weight, panels, x, finished);
        }
        _ => unreachable!("`rounded` gives the form of the linear"),
    }
    out
}

/// Where nothing rounds, every kernel gives the portable kernel's bits.
pub(crate) fn exact(row: &impl Bf16Row) {
    let mut random = Random::new(41);
    for scheme in schemes(row.family()) {
        for (n, k) in [(16, 64), (48, 200)] {
            let (layout, weight) = packed(&exact_rows(&mut random, scheme, n, k));
            for rows in ROWS {
                let x = random.small_ints(rows * k);
                let got = product(&row.linear(&layout), &weight, &x);
                let want = product(&portable_set().linear_bf16(&layout), &weight, &x);
                assert_eq!(got, want, "{scheme} n={n} k={k} rows={rows}");
                assert!(want.iter().any(|&v| v != 0.0));
            }
        }
    }
}

fn check_bounded(row: &impl Bf16Row, weights: &Rows, random: &mut Random, rows: usize) {
    let (layout, weight) = packed(weights);
    let (n, k) = (layout.n(), layout.k());
    let data = random.floats(rows * k);
    let got = product(&row.linear(&layout), &weight, &data);
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
pub(crate) fn bounded(row: &impl Bf16Row) {
    let mut random = Random::new(42);
    for scheme in schemes(row.family()) {
        let weights = random_rows(&mut random, scheme, 32, 320);
        for rows in [1, 13] {
            check_bounded(row, &weights, &mut random, rows);
        }
    }
}

/// Partial panels, short last runs, odd k, single elements; and rows do not depend on their neighbours.
pub(crate) fn odd_shapes(row: &impl Bf16Row) {
    let mut random = Random::new(43);
    for scheme in schemes(row.family()) {
        for (n, k) in [(1, 1), (3, 17), (17, 33), (20, 90), (5, 135)] {
            let weights = random_rows(&mut random, scheme, n, k);
            for rows in ROWS {
                check_bounded(row, &weights, &mut random, rows);
            }
            let (layout, weight) = packed(&weights);
            let linear = row.linear(&layout);
            let rows = tile_rows(&linear) + 10;
            let x = random.floats(rows * k);
            let all = product(&linear, &weight, &x);
            // Large tiles are made of many blocks that are alike.
            for (i, x) in x.chunks(k).enumerate().step_by(if rows > 100 { 7 } else { 1 }) {
                let alone = product(&linear, &weight, x);
                assert_eq!(alone, all[i * n..][..n], "{scheme} k={k}: row {i} depends on other rows");
            }
        }
    }
}

fn guarded_at<T: Copy>(end: bool, data: &[T]) -> Guarded<T> {
    if end { Guarded::at_end(data) } else { Guarded::at_start(data) }
}

/// No access outside of any buffer.
pub(crate) fn guarded(row: &impl Bf16Row) {
    let mut random = Random::new(44);
    for scheme in schemes(row.family()) {
        for (n, k) in [(16, 1), (16, 31), (7, 50), (16, 96), (16, 530)] {
            let (layout, weight) = packed(&random_rows(&mut random, scheme, n, k));
            for rows in ROWS {
                let linear = row.linear(&layout);
                let x = rounded(&linear, &random.floats(rows * k));
                let lanes: Vec<Lane> = vec![[0.0; COLUMNS]; rows];
                let [end, start] = [true, false].map(|end| {
                    let (w, mut out) = (guarded_at(end, &weight), guarded_at(end, &lanes));
                    match (&linear, &x) {
                        (LinearBf16::Native(linear), Rounded::Native(x)) => {
                            linear.tile(&w, 0, &guarded_at(end, x), &mut out);
                        }
                        (LinearBf16::Widened(linear), Rounded::Widened(x)) => {
                            let data = guarded_at(end, x);
                            linear.tile(&w, 0, RowsF32 { data: &data, rows, stride: k }, 0, &mut out);
                        }
                        _ => unreachable!("`rounded` gives the form of the linear"),
                    }
                    out.to_vec()
                });
                assert_eq!(end, start);
            }
        }
    }
}

/// The linears with and without the pair of this row.
fn with_and_without(row: &Row<LinearNativePairFn>, layout: &PanelLayout) -> [LinearBf16; 2] {
    let LinearBf16::Native(linear) = KernelSet::for_tests(row.isa).unwrap().linear_bf16(layout) else {
        panic!("{} has a pair, but no kernel", row.isa)
    };
    [Some(row.kernel), None].map(|pair| LinearBf16::Native(LinearNative { pair, ..linear.clone() }))
}

/// Two panels at once have the bits of one after the other.
pub(crate) fn pair_is_two(row: &Row<LinearNativePairFn>) {
    let mut random = Random::new(46);
    for scheme in schemes(row.family) {
        for (n, k) in [(17, 1), (48, 33), (64, 320), (20, 90)] {
            let (layout, weight) = packed(&random_rows(&mut random, scheme, n, k));
            for rows in ROWS.into_iter().chain([70]) {
                let x = random.floats(rows * k);
                let [pair, two] = with_and_without(row, &layout).map(|l| product(&l, &weight, &x));
                assert_eq!(pair, two, "{scheme} n={n} k={k} rows={rows}");
            }
        }
    }
}

/// No access of two panels at once outside of any buffer.
pub(crate) fn pair_guarded(row: &Row<LinearNativePairFn>) {
    let mut random = Random::new(47);
    for scheme in schemes(row.family) {
        for k in [1, 31, 50, 96, 530] {
            let (layout, weight) = packed(&random_rows(&mut random, scheme, 32, k));
            let panels = weight.split_at(layout.panel_bytes());
            for rows in ROWS {
                let [linear, _] = with_and_without(row, &layout);
                let Rounded::Native(x) = rounded(&linear, &random.floats(rows * k)) else { panic!() };
                let lanes: Vec<Lane> = vec![[0.0; COLUMNS]; rows];
                let [end, start] = [true, false].map(|end| {
                    let panels = [panels.0, panels.1].map(|p| guarded_at(end, p));
                    let [mut a, mut b] = [0, 1].map(|_| guarded_at(end, &lanes));
                    let x = guarded_at(end, &x);
                    // SAFETY: the table's tests run only on hosts of the row; the lengths are those of the layout.
                    unsafe { (row.kernel)(&layout, [&panels[0], &panels[1]], &x, [&mut a, &mut b]) };
                    [a.to_vec(), b.to_vec()]
                });
                assert_eq!(end, start);
            }
        }
    }
}

/// [`rounds`] to bf16.
pub(crate) fn rounds_native(row: &Row<RoundBf16Fn>) {
    rounds(row, Bf16Form::Native, |v| round_bf16(v).to_le_bytes().to_vec());
}

/// [`rounds`] to f32.
pub(crate) fn rounds_widened(row: &Row<RoundBf16Fn>) {
    rounds(row, Bf16Form::Widened, |v| widen_bf16(round_bf16(v)).to_le_bytes().to_vec());
}

/// Bit-equal to the definition, on ordinary and on exceptional numbers, with zeros behind, and inside of every buffer.
fn rounds(row: &Row<RoundBf16Fn>, form: Bf16Form, bytes: impl Fn(f32) -> Vec<u8>) {
    let round = RoundBf16 { isa: row.isa, form, kernel: row.kernel };
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
            let mut want: Vec<u8> = x.iter().flat_map(|v| bytes(*v)).collect();
            want.resize(round.row_bytes(&layout), 0);
            let bytes = vec![0xaau8; want.len()];
            let (data, mut out) = (Guarded::at_end(&x), Guarded::at_end(&bytes));
            round.row(&layout, &data, &mut out);
            assert_eq!(out.to_vec(), want, "k={k} case {case}");
            let (data, mut out) = (Guarded::at_start(&x), Guarded::at_start(&bytes));
            round.row(&layout, &data, &mut out);
            assert_eq!(out.to_vec(), want, "k={k} case {case}");
        }
    }
}
