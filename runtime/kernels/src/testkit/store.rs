//! Tests of a [`Store`] row.

use super::data::Random;
use super::guard::Guarded;
use crate::linear::{Lane, Places, Store, StoreFn};
use crate::table::Row;
use bessemer_format::panel::COLUMNS;

const STRIDE: usize = 37;
const ROWS: [u32; 5] = [3, 0, 4, 6, 1];

fn places() -> [Places<'static>; 2] {
    [Places::Every { first: 2 * STRIDE, stride: STRIDE }, Places::Listed { rows: &ROWS, width: STRIDE }]
}

fn tile(random: &mut Random) -> Vec<Lane> {
    random.floats(ROWS.len() * COLUMNS).as_chunks::<COLUMNS>().0.to_vec()
}

/// The bits of the definition, and nothing else is written: with and without bias and residual, which is another buffer or the same.
pub(crate) fn exact(row: &Row<StoreFn>) {
    let store = Store { isa: row.isa, kernel: row.kernel };
    let mut random = Random::new(43);
    let (tile, bias) = (tile(&mut random), tile(&mut random)[0]);
    let before = random.floats(7 * STRIDE);
    let other = random.floats(7 * STRIDE);
    for places in places() {
        for columns in [1, 7, COLUMNS] {
            for bias in [None, Some(&bias)] {
                for residual in [None, Some(&other), Some(&before)] {
                    let first = 5;
                    let mut want = before.clone();
                    for (i, lane) in tile.iter().enumerate() {
                        for column in 0..columns {
                            let at = places.at(i) + first + column;
                            let sum = bias.map_or(lane[column], |bias| lane[column] + bias[column]);
                            want[at] = residual.map_or(sum, |residual| sum + residual[at]);
                        }
                    }
                    let mut out = before.clone();
                    // SAFETY: the last place is row 6 of 7, whose columns end before the next row would begin.
                    unsafe {
                        let start = out.as_mut_ptr().add(first);
                        let residual = residual.map(|residual| match std::ptr::eq(residual, &before) {
                            true => start.cast_const(),
                            false => residual.as_ptr().add(first),
                        });
                        store.tile(&tile, bias, residual, places, columns, start);
                    }
                    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&out), bits(&want), "{columns} columns at {places:?}");
                }
            }
        }
    }
}

/// No access outside of the columns of a place.
pub(crate) fn guarded(row: &Row<StoreFn>) {
    let store = Store { isa: row.isa, kernel: row.kernel };
    let mut random = Random::new(44);
    let tile = tile(&mut random);
    for columns in [1, 15, COLUMNS] {
        let len = 4 * STRIDE + columns;
        let places = Places::Every { first: 0, stride: STRIDE };
        let (zeros, other) = (vec![0.0f32; len], random.floats(len));
        let mut outs = [Guarded::at_end(&zeros), Guarded::at_start(&zeros)];
        let others = [Guarded::at_end(&other), Guarded::at_start(&other)];
        for (out, other) in outs.iter_mut().zip(&others) {
            // SAFETY: the last of five rows ends with the buffers.
            unsafe {
                let bias = Some(&tile[0]);
                store.tile(&tile, bias, Some(other.as_ptr()), places, columns, out.as_mut_ptr());
            }
        }
        assert_eq!(*outs[0], *outs[1]);
    }
}
