//! Tests of a [`LinearInt8`] row.

use super::data::{Random, exact_rows, packed, random_rows, schemes};
use super::{gamma, guard::Guarded};
use crate::linear::{Lane, LinearInt8, LinearInt8Fn, LinearInt8PairFn};
use crate::table::{KernelSet, Row};
use bessemer_format::act::Int8Layout;
use bessemer_format::panel::COLUMNS;
use bessemer_format::rows::Rows;
use bessemer_format::{Offset, PanelLayout};

const ROWS: [usize; 6] = [1, 2, 3, 5, 8, 27];

/// The kernel under test for every activation group that fits the weights.
fn linears(row: &Row<LinearInt8Fn>, layout: &PanelLayout) -> Vec<LinearInt8> {
    [16, 32, 48, 64, 256, 512]
        .into_iter()
        .filter_map(|group| Int8Layout::new(layout, group).ok())
        .map(|act| LinearInt8 { layout: layout.clone(), act, isa: row.isa, kernel: row.kernel, pair: None })
        .collect()
}

fn integer_schemes<F>(row: &Row<F>) -> impl Iterator<Item = bessemer_format::QuantScheme> {
    schemes(row.family).filter(|s| s.elem.unit().is_some())
}

fn quantised(act: &Int8Layout, x: &[f32]) -> Vec<u8> {
    let quantise = KernelSet::for_isa(crate::Isa::Portable).unwrap().quantise();
    let rows = x.len() / act.k;
    let mut out = vec![0xaa; rows * act.row_bytes()];
    for (x, out) in x.chunks(act.k).zip(out.chunks_mut(act.row_bytes())) {
        quantise.row(act, x, out);
    }
    out
}

fn product(linear: &LinearInt8, weight: &[u8], x: &[u8]) -> Vec<f32> {
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

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn same_as_portable(row: &Row<LinearInt8Fn>, weights: &Rows, random: &mut Random, integers: bool) {
    let (layout, weight) = packed(weights);
    for linear in linears(row, &layout) {
        let portable = KernelSet::for_isa(crate::Isa::Portable)
            .unwrap()
            .linear_int8(&layout, linear.act().group)
            .unwrap();
        for rows in ROWS {
            let n = rows * layout.k();
            let x = quantised(linear.act(), &if integers { random.small_ints(n) } else { random.floats(n) });
            let (got, want) = (product(&linear, &weight, &x), product(&portable, &weight, &x));
            assert_eq!(
                bits(&got),
                bits(&want),
                "{} k={} group={} rows={rows}",
                layout.scheme(),
                layout.k(),
                linear.act().group
            );
            assert!(layout.k() < 16 || want.iter().any(|&v| v != 0.0));
        }
    }
}

/// Small integers give the portable kernel's bits.
pub(crate) fn exact(row: &Row<LinearInt8Fn>) {
    let mut random = Random::new(21);
    for scheme in integer_schemes(row) {
        for (n, k) in [(16, 64), (48, 200), (16, 1040)] {
            same_as_portable(row, &exact_rows(&mut random, scheme, n, k), &mut random, true);
        }
    }
}

/// The largest codes of either sign against the largest activations: nothing saturates on the way.
pub(crate) fn extremes(row: &Row<LinearInt8Fn>) {
    let mut random = Random::new(25);
    for scheme in integer_schemes(row) {
        let mut weights = exact_rows(&mut random, scheme, 32, 512);
        let (low, high) = scheme.elem.range();
        for (i, code) in weights.codes.iter_mut().enumerate() {
            *code = if (i / weights.k).is_multiple_of(3) { low } else { high };
        }
        let (layout, weight) = packed(&weights);
        for linear in linears(row, &layout) {
            let portable = KernelSet::for_isa(crate::Isa::Portable)
                .unwrap()
                .linear_int8(&layout, linear.act().group)
                .unwrap();
            for value in [1.0, -1.0] {
                let x = quantised(linear.act(), &vec![value; 9 * layout.k()]);
                let (got, want) = (product(&linear, &weight, &x), product(&portable, &weight, &x));
                assert_eq!(bits(&got), bits(&want), "{scheme} group={}", linear.act().group);
            }
        }
    }
}

/// Random data stays within the rounding bound of the exact product of the quantised activations.
pub(crate) fn bounded(row: &Row<LinearInt8Fn>) {
    let mut random = Random::new(22);
    for scheme in integer_schemes(row) {
        let (n, k, rows) = (32, 320, 5);
        let (layout, weight) = packed(&random_rows(&mut random, scheme, n, k));
        for linear in linears(row, &layout) {
            let act = linear.act();
            let x = quantised(act, &random.floats(rows * k));
            let got = product(&linear, &weight, &x);
            let constant = if let Offset::Const(c) = scheme.offset { f64::from(c) } else { 0.0 };
            for (i, row) in x.chunks(act.row_bytes()).enumerate() {
                for j in 0..n {
                    let (mut want, mut size) = (0.0f64, 0.0f64);
                    for l in 0..k {
                        let at = act.scales_at() + 4 * (l / act.group);
                        let scale_x = f32::from_le_bytes(row[at..at + 4].try_into().unwrap());
                        let x = f64::from(row[l] as i8) * f64::from(scale_x);
                        let (scale, offset) = layout.scale_offset(&weight, j, l).unwrap();
                        let (scale, offset) = (f64::from(scale), f64::from(offset));
                        let code = f64::from(layout.code(&weight, j, l).unwrap());
                        want += x * ((code - constant) * scale + offset);
                        // The parts round apart, so the bound is the sum of their sizes.
                        size += x.abs() * (((code - constant) * scale).abs() + offset.abs());
                    }
                    let error = (f64::from(got[i * n + j]) - want).abs();
                    assert!(
                        error <= gamma(2 * act.groups() + 4) * size,
                        "{scheme} group={} at ({i}, {j}): {} against {want}, error {error:e}",
                        act.group,
                        got[i * n + j]
                    );
                }
            }
        }
    }
}

/// Partial panels, short last runs, odd k: the portable kernel's bits on random data; rows do not depend on others.
pub(crate) fn odd_shapes(row: &Row<LinearInt8Fn>) {
    let mut random = Random::new(23);
    for scheme in integer_schemes(row) {
        for (n, k) in [(1, 1), (3, 17), (17, 33), (20, 90), (5, 135), (32, 544)] {
            let weights = random_rows(&mut random, scheme, n, k);
            same_as_portable(row, &weights, &mut random, false);
            let (layout, weight) = packed(&weights);
            for linear in linears(row, &layout) {
                let x = quantised(linear.act(), &random.floats(70 * k));
                let all = product(&linear, &weight, &x);
                for (i, x) in x.chunks(linear.act().row_bytes()).enumerate() {
                    let alone = product(&linear, &weight, x);
                    assert_eq!(bits(&alone), bits(&all[i * n..][..n]), "{scheme} k={k}: row {i}");
                }
            }
        }
    }
}

/// No access outside of any buffer.
pub(crate) fn guarded(row: &Row<LinearInt8Fn>) {
    let mut random = Random::new(24);
    for scheme in integer_schemes(row) {
        for (n, k) in [(16, 1), (16, 31), (7, 50), (16, 96), (16, 530)] {
            let (layout, weight) = packed(&random_rows(&mut random, scheme, n, k));
            for linear in linears(row, &layout) {
                for rows in ROWS {
                    let data = quantised(linear.act(), &random.floats(rows * k));
                    let lanes: Vec<Lane> = vec![[0.0; COLUMNS]; rows];
                    let (w, x, mut out) =
                        (Guarded::at_end(&weight), Guarded::at_end(&data), Guarded::at_end(&lanes));
                    linear.tile(&w, 0, &x, &mut out);
                    let end = out.to_vec();
                    let (w, x, mut out) =
                        (Guarded::at_start(&weight), Guarded::at_start(&data), Guarded::at_start(&lanes));
                    linear.tile(&w, 0, &x, &mut out);
                    assert_eq!(bits(end.as_flattened()), bits(out.as_flattened()));
                }
            }
        }
    }
}

/// The kernel of two panels under test, beside the portable kernel that gives what it ought to.
fn pairs(row: &Row<LinearInt8PairFn>, layout: &PanelLayout) -> Vec<LinearInt8> {
    let portable = KernelSet::for_isa(crate::Isa::Portable).unwrap();
    [16, 32, 48, 64, 256, 512]
        .into_iter()
        .filter_map(|group| portable.linear_int8(layout, group).ok())
        .map(|linear| LinearInt8 { pair: Some(row.kernel), ..linear })
        .collect()
}

/// Two panels at once have the bits of either alone.
pub(crate) fn pair_is_two(row: &Row<LinearInt8PairFn>) {
    let mut random = Random::new(26);
    for scheme in integer_schemes(row) {
        // The longest is more than is unpacked at a time.
        for (n, k) in [(32, 64), (48, 200), (20, 90), (33, 135), (64, 544), (33, 1610)] {
            let (layout, weight) = packed(&random_rows(&mut random, scheme, n, k));
            for pair in pairs(row, &layout) {
                let single = LinearInt8 { pair: None, ..pair.clone() };
                for rows in [1, 4, 5, 6, 7, 8, 13, 60, 67] {
                    let x = quantised(pair.act(), &random.floats(rows * k));
                    let (got, want) = (product(&pair, &weight, &x), product(&single, &weight, &x));
                    assert_eq!(bits(&got), bits(&want), "{scheme} n={n} k={k} rows={rows}");
                }
            }
        }
    }
}

/// No access outside of any buffer.
pub(crate) fn pair_guarded(row: &Row<LinearInt8PairFn>) {
    let mut random = Random::new(27);
    for scheme in integer_schemes(row) {
        for k in [1, 31, 50, 96, 530] {
            let weights = [0, 1].map(|_| packed(&random_rows(&mut random, scheme, 16, k)));
            let layout = &weights[0].0;
            for pair in pairs(row, layout) {
                for rows in 4..=13 {
                    let data = quantised(pair.act(), &random.floats(rows * k));
                    let lanes: Vec<Lane> = vec![[0.0; COLUMNS]; rows];
                    let run = |[a, b]: [Guarded<u8>; 2], x: Guarded<u8>, mut out: [Guarded<Lane>; 2]| {
                        let [out_a, out_b] = &mut out;
                        pair.tiles([(&a, 0), (&b, 0)], &x, [out_a, out_b]);
                        out.map(|out| bits(out.as_flattened()))
                    };
                    let end = run(
                        weights.each_ref().map(|(_, weight)| Guarded::at_end(weight)),
                        Guarded::at_end(&data),
                        [Guarded::at_end(&lanes), Guarded::at_end(&lanes)],
                    );
                    let start = run(
                        weights.each_ref().map(|(_, weight)| Guarded::at_start(weight)),
                        Guarded::at_start(&data),
                        [Guarded::at_start(&lanes), Guarded::at_start(&lanes)],
                    );
                    assert_eq!(end, start);
                }
            }
        }
    }
}
