//! Mixtures of experts: rows choose, and rows that chose the same weight are multiplied as one matrix.
//!
//! Which rows a weight meets is known only here. Every thread sorts the slots by weight for itself, which costs less than to wait for
//! another thread that does it, and then takes its panels of each weight that somebody chose. What a row of a product holds does not
//! depend on the rows beside it, so neither batching nor threads change a bit.

use super::linear::Input;
use super::{Pass, Scratch, Stop, Thread};
use crate::bind::{BoundGrouped, BoundRoute};
use crate::error::RunError;
use crate::pool::SharedBytes;
use bessemer_kernels::linear::{Places, RowsF32, TILE_ROWS};
use bessemer_kernels::route::route_row;

impl Pass<'_> {
    pub(super) fn route(&self, route: &BoundRoute, thread: &Thread<'_>, scratch: &mut Scratch) {
        let bias = route.bias.as_ref().map(|range| {
            let bytes = SharedBytes::read_only(&self.file[range.clone()]);
            bytes.get(0..route.logits.row_elems)
        });
        let (logits, chosen) = (self.buffer(&route.logits), self.buffer(&route.chosen));
        let (experts, top_k) = (route.logits.row_elems, route.chosen.row_elems);
        for row in thread.share(self.rows(route.rows)) {
            let chosen = chosen.get_mut::<i32>(row * top_k..(row + 1) * top_k);
            let logits = logits.get(row * experts..(row + 1) * experts);
            route_row(&route.choice, logits, bias, chosen, &mut scratch.floats);
        }
    }

    pub(super) fn grouped(
        &self,
        grouped: &BoundGrouped,
        source: &str,
        thread: &Thread<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), Stop> {
        let BoundGrouped { linear, groups, slots, chosen } = grouped;
        let picks = self.rows(linear.rows) * slots;
        let Scratch { order, ends, floats, bytes, converted, .. } = scratch;
        let all = self.input(linear, thread, converted)?;
        let chosen = chosen.as_ref().map(|chosen| self.buffer(chosen).get::<i32>(0..picks));
        sort(*groups, *slots, picks, chosen, order, ends)
            .map_err(|why| Stop::Error(RunError::Index { step: source.into(), why }))?;
        let inputs = linear.inputs();
        let width = linear.out.row_elems / slots;
        let mut start = 0;
        for (weight, &end) in ends.iter().enumerate() {
            for tile in order[start..end].chunks(TILE_ROWS) {
                // Where a slot's input lies, counted in inputs.
                let at = |pick: u32| pick as usize / if inputs == 1 { *slots } else { 1 };
                let input = match all {
                    Input::Floats(RowsF32 { data, stride, .. }) => {
                        let data = gather(tile, at, |at| &data[at * stride..(at + 1) * stride], floats);
                        Input::Floats(RowsF32 { data, rows: tile.len(), stride })
                    }
                    Input::Codes { data, row_bytes } => {
                        let row = |at| &data[at * row_bytes..(at + 1) * row_bytes];
                        Input::Codes { data: gather(tile, at, row, bytes), row_bytes }
                    }
                };
                self.multiply(linear, weight, input, thread, Places::Listed { rows: tile, width });
            }
            start = end;
        }
        Ok(())
    }
}

/// Sorts the slots of all rows (`row * slots + slot`) by the weight that they take: `order[ends[w - 1]..ends[w]]` take weight `w`, in
/// ascending order.
fn sort(
    groups: usize,
    slots: usize,
    picks: usize,
    chosen: Option<&[i32]>,
    order: &mut Vec<u32>,
    ends: &mut Vec<usize>,
) -> Result<(), String> {
    let weight = |pick: usize| chosen.map_or(pick % slots, |chosen| chosen[pick] as usize);
    ends.clear();
    ends.resize(groups, 0);
    for pick in 0..picks {
        let count = ends.get_mut(weight(pick));
        *count
            .ok_or_else(|| format!("row {} chooses {} of {groups} weights", pick / slots, weight(pick)))? +=
            1;
    }
    let mut first = 0;
    for end in ends.iter_mut() {
        (first, *end) = (first + *end, first);
    }
    order.clear();
    order.resize(picks, 0);
    for pick in 0..picks {
        let at = &mut ends[weight(pick)];
        order[*at] = pick as u32;
        *at += 1;
    }
    Ok(())
}

/// The inputs of some slots one behind the other: copied, unless there is just one.
fn gather<'a, T: Copy>(
    tile: &[u32],
    source: impl Fn(u32) -> usize,
    row: impl Fn(usize) -> &'a [T],
    copy: &'a mut Vec<T>,
) -> &'a [T] {
    if let [pick] = tile {
        return row(source(*pick));
    }
    copy.clear();
    tile.iter().for_each(|pick| copy.extend_from_slice(row(source(*pick))));
    copy
}
