//! Linears: convert the activations once, then every thread multiplies them with its panels of the weights.

use super::{Pass, Scratch, Stop, Thread};
use crate::bind::{BoundEpilogue, BoundLinear, BoundSegment, Converted, LinearKernel};
use crate::pool::SharedBytes;
use bessemer_format::panel::COLUMNS;
use bessemer_kernels::Gated;
use bessemer_kernels::linear::{Bf16Form, Lane, MAX_TILE_ROWS, Places, RowsF32, TILE_ROWS};
use std::ops::Range;

/// From how many rows on a panel of gates is multiplied together with its panel of ups. With fewer, reading the weights takes longer than
/// multiplying, and each matrix is read as one stream.
const GATED_TOGETHER: usize = 16;

/// From how many rows on threads claim pieces of a product, in place of a share that was theirs from the start.
const CLAIMED_FROM: usize = 32;
/// Pairs of panels of a small piece, which takes about 30 microseconds where k is small.
const LAST_PAIRS: usize = 3;

/// The input of a product, as its kernels read it.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    Floats(RowsF32<'a>),
    /// Whole converted rows.
    Codes {
        data: &'a [u8],
        row_bytes: usize,
    },
}

impl Input<'_> {
    fn rows(&self) -> usize {
        match self {
            Input::Floats(x) => x.rows,
            Input::Codes { data, row_bytes } => data.len() / row_bytes,
        }
    }

    /// Some of its rows.
    fn part(self, rows: Range<usize>) -> Self {
        match self {
            Input::Floats(RowsF32 { data, stride, .. }) => {
                let end = data.len().min(rows.end * stride);
                Input::Floats(RowsF32 { data: &data[rows.start * stride..end], rows: rows.len(), stride })
            }
            Input::Codes { data, row_bytes } => {
                Input::Codes { data: &data[rows.start * row_bytes..rows.end * row_bytes], row_bytes }
            }
        }
    }
}

impl Pass<'_> {
    pub(super) fn linear(
        &self,
        linear: &BoundLinear,
        thread: &Thread<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), Stop> {
        let input = self.input(linear, thread, &mut scratch.converted)?;
        let rows = input.rows();
        if rows > 0 {
            let places = Places::Every { first: 0, stride: linear.out.row_elems };
            if rows < CLAIMED_FROM || thread.barrier.threads() == 1 {
                self.multiply(linear, 0, input, thread, places);
            } else {
                self.multiply_claimed(linear, input, thread, places);
            }
        }
        Ok(())
    }

    /// All inputs of a linear as its kernels read them: rounded, if they ask for it, by all threads, which then have finished that.
    ///
    /// A row that is alone is rounded by every thread for itself, to `own` memory: nobody could help with it, and all would wait.
    pub(super) fn input<'b>(
        &'b self,
        linear: &BoundLinear,
        thread: &Thread<'_>,
        own: &'b mut Vec<f32>,
    ) -> Result<Input<'b>, Stop> {
        let (rows, inputs, k) = (self.rows(linear.rows), linear.inputs(), linear.k);
        let floats = |memory: SharedBytes<'b>, stride| {
            Input::Floats(RowsF32 {
                data: memory.get(0..rows * inputs * stride),
                rows: rows * inputs,
                stride,
            })
        };
        let Some(convert) = &linear.convert else { return Ok(floats(self.buffer(&linear.input), k)) };
        let row_bytes = convert.row_bytes;
        let alone = rows == 1 && linear.behind_barrier;
        let (converted, mine) = if alone {
            own.resize(own.len().max((inputs * row_bytes).div_ceil(size_of::<f32>())), 0.0);
            (SharedBytes::read_write(own), 0..1)
        } else {
            (self.buffer(&convert.scratch), thread.share(rows))
        };
        for row in mine {
            for part in 0..inputs {
                let x = self.row(&linear.input, row, part * k..(part + 1) * k);
                let at = (row * inputs + part) * row_bytes;
                let out = converted.get_mut::<u8>(at..at + row_bytes);
                match &convert.to {
                    Converted::Int8(layout, quantise) => quantise.row(layout, x, out),
                    Converted::Bf16(layout, round) => round.row(layout, x, out),
                }
            }
        }
        if !alone {
            thread.meet()?;
        }
        Ok(match &convert.to {
            Converted::Bf16(_, round) if round.form() == Bf16Form::Widened => {
                floats(converted, row_bytes / size_of::<f32>())
            }
            _ => Input::Codes { data: converted.get(0..rows * inputs * row_bytes), row_bytes },
        })
    }

    /// The product of many rows, of which a thread takes one piece after the other: some rows, by some panels.
    ///
    /// Pieces are large at first, since their first panels were not asked for ahead, and small for the last rows, so that threads end
    /// together though one may be slower.
    fn multiply_claimed(&self, linear: &BoundLinear, x: Input<'_>, thread: &Thread<'_>, places: Places<'_>) {
        let tile_rows = linear.tile_rows();
        let (rows, panels, threads) = (x.rows(), linear.panels(), thread.barrier.threads());
        // Two at a time, as kernels take them.
        let pairs = panels.div_ceil(2);
        let tiles = rows.div_ceil(tile_rows);
        let pieces = (0..tiles).flat_map(|tile| {
            // The last tile is a whole one.
            let end = rows - (tiles - 1 - tile) * tile_rows;
            let parts = if tile + 1 < tiles { threads } else { pairs.div_ceil(LAST_PAIRS).max(threads) };
            (0..parts).map(move |part| {
                let bound = |part| panels.min(2 * (part * pairs / parts));
                (end.saturating_sub(tile_rows)..end, bound(part)..bound(part + 1))
            })
        });
        for (rows, panels) in thread.claim(pieces) {
            self.multiply_part(linear, (0, panels), x.part(rows.clone()), places.from(rows.start));
        }
    }

    /// This thread's part of the product of all rows of `x` with weight `weight` of the segments' stacks. `places` says where in
    /// the output (and a residual) the results of the rows of `x` begin.
    pub(super) fn multiply(
        &self,
        linear: &BoundLinear,
        weight: usize,
        x: Input<'_>,
        thread: &Thread<'_>,
        places: Places<'_>,
    ) {
        self.multiply_part(linear, (weight, thread.share(linear.panels())), x, places);
    }

    /// All rows of `x` by some of the [panels](BoundLinear::panels) of weight `weight` of the segments' stacks.
    fn multiply_part(
        &self,
        linear: &BoundLinear,
        (weight, part): (usize, Range<usize>),
        x: Input<'_>,
        places: Places<'_>,
    ) {
        if let (BoundEpilogue::Gated(kernel), [gate, up]) = (&linear.epilogue, &linear.segments[..]) {
            if x.rows() < GATED_TOGETHER {
                self.gated(linear, *kernel, [gate, up], (weight, part), x, places);
            } else if x.rows().min(linear.tile_rows()) <= TILE_ROWS {
                // Less room to be cleared.
                self.gated_together::<TILE_ROWS>(linear, *kernel, [gate, up], (weight, part), x, places);
            } else {
                self.gated_together::<MAX_TILE_ROWS>(linear, *kernel, [gate, up], (weight, part), x, places);
            }
            return;
        }
        let mut first = 0;
        for segment in &linear.segments {
            let start = part.start.clamp(first, first + segment.panels) - first;
            let end = part.end.clamp(first, first + segment.panels) - first;
            if start < end {
                self.segment(linear, segment, (weight, start..end), x, places);
            }
            first += segment.panels;
        }
    }

    fn segment(
        &self,
        linear: &BoundLinear,
        segment: &BoundSegment,
        (weight, panels): (usize, Range<usize>),
        x: Input<'_>,
        places: Places<'_>,
    ) {
        let residual = match &linear.epilogue {
            BoundEpilogue::Residual(residual) => Some(self.buffer(residual)),
            _ => None,
        };
        let out = self.buffer(&linear.out);
        self.tiles(segment, (weight, panels), x, |panel, row, tile| {
            let (columns, bias) = self.panel_columns(segment, weight, panel);
            out.store(&linear.store, (tile, bias.as_ref()), residual, places.from(row), columns);
        });
    }

    /// All rows of `x` by some panels of a weight, tile by tile: `finish(panel, first_row, tile)`.
    fn tiles(
        &self,
        segment: &BoundSegment,
        (weight, panels): (usize, Range<usize>),
        x: Input<'_>,
        finish: impl FnMut(usize, usize, &mut [Lane]),
    ) {
        let bytes = &self.file[segment.weight.clone()];
        // Panels of one weight as panels of its stack.
        let first = weight * segment.panels;
        let panels = first + panels.start..first + panels.end;
        match (&segment.kernel, x) {
            (LinearKernel::F32(kernel), Input::Floats(x)) => kernel.for_each_tile(bytes, panels, x, finish),
            (LinearKernel::Int8(kernel), Input::Codes { data, .. }) => {
                kernel.for_each_tile(bytes, panels, data, finish);
            }
            (LinearKernel::Native(kernel), Input::Codes { data, .. }) => {
                kernel.for_each_tile(bytes, panels, data, finish);
            }
            _ => unreachable!("kernels are bound together with the conversion of their input"),
        }
    }

    /// Two segments, gates and ups. Each is read as one stream: the gates are put where the results will be, then the ups come and take
    /// them up.
    fn gated(
        &self,
        linear: &BoundLinear,
        kernel: Gated,
        [gate, up]: [&BoundSegment; 2],
        (weight, panels): (usize, Range<usize>),
        x: Input<'_>,
        places: Places<'_>,
    ) {
        let mut gates = [[0.0; COLUMNS]; GATED_TOGETHER];
        let out = self.buffer(&linear.out);
        self.tiles(gate, (weight, panels.clone()), x, |panel, row, gates| {
            let (columns, bias) = self.panel_columns(gate, weight, panel);
            out.store(&linear.store, (gates, bias.as_ref()), None, places.from(row), columns);
        });
        self.tiles(up, (weight, panels), x, |panel, row, ups| {
            let (columns, bias) = self.panel_columns(up, weight, panel);
            let (places, gates) = (places.from(row), &mut gates[..ups.len()]);
            for (i, gate) in gates.iter_mut().enumerate() {
                let start = places.at(i);
                *gate = lane_of(out.get(start + columns.start..start + columns.end));
            }
            add(ups, bias);
            kernel.tile(gates, ups);
            out.store(&linear.store, (gates, None), None, places, columns);
        });
    }

    /// As [`Self::gated`] for rows enough that multiplying takes longer than reading: both tiles of a gated one are there at once.
    fn gated_together<const ROWS: usize>(
        &self,
        linear: &BoundLinear,
        kernel: Gated,
        [gate, up]: [&BoundSegment; 2],
        (weight, panels): (usize, Range<usize>),
        x: Input<'_>,
        places: Places<'_>,
    ) {
        let mut tiles = [[[0.0; COLUMNS]; ROWS]; 2];
        let out = self.buffer(&linear.out);
        for first in (0..x.rows()).step_by(ROWS) {
            let x = x.part(first..x.rows().min(first + ROWS));
            let places = places.from(first);
            let [gates, ups] = tiles.each_mut().map(|tile| &mut tile[..x.rows()]);
            for panel in panels.clone() {
                self.tile_pair([gate, up], (weight, panel), x, [&mut *gates, &mut *ups]);
                let panel = weight * gate.panels + panel;
                let (columns, bias) = self.panel_columns(gate, weight, panel);
                add(gates, bias);
                add(ups, self.panel_columns(up, weight, panel).1);
                kernel.tile(gates, ups);
                out.store(&linear.store, (gates, None), None, places, columns);
            }
        }
    }

    /// One tile of each of two segments: the same panel of both, by rows `x` that are no more than a tile has.
    fn tile_pair(
        &self,
        of: [&BoundSegment; 2],
        (weight, panel): (usize, usize),
        x: Input<'_>,
        outs: [&mut [Lane]; 2],
    ) {
        let weights = of.map(|segment| (&self.file[segment.weight.clone()], weight * segment.panels + panel));
        match (of.map(|segment| &segment.kernel), x) {
            ([LinearKernel::Int8(kernel), LinearKernel::Int8(other)], Input::Codes { data, .. })
                if kernel.layout() == other.layout() =>
            {
                kernel.tiles(weights, data, outs);
            }
            ([LinearKernel::Native(kernel), LinearKernel::Native(other)], Input::Codes { data, .. })
                if kernel.layout() == other.layout() =>
            {
                kernel.tiles(weights, data, outs);
            }
            _ => {
                for (segment, out) in of.into_iter().zip(outs) {
                    self.tiles(segment, (weight, panel..panel + 1), x, |_, _, tile| {
                        out.copy_from_slice(tile)
                    });
                }
            }
        }
    }

    /// The columns of a slot that a panel of a stack writes, and the bias that belongs to them.
    fn panel_columns(
        &self,
        segment: &BoundSegment,
        weight: usize,
        panel: usize,
    ) -> (Range<usize>, Option<Lane>) {
        let first = (panel - weight * segment.panels) * COLUMNS;
        let width = COLUMNS.min(segment.n - first);
        let bias = segment.bias.as_ref().map(|range| {
            let first = weight * segment.n + first;
            lane_of(SharedBytes::read_only(&self.file[range.clone()]).get(first..first + width))
        });
        (segment.column + first..segment.column + first + width, bias)
    }
}

/// At most [`COLUMNS`] numbers, and zeros.
fn lane_of(numbers: &[f32]) -> Lane {
    let mut lane = [0.0; COLUMNS];
    lane[..numbers.len()].copy_from_slice(numbers);
    lane
}

/// Adds a bias to every row of a tile.
fn add(tile: &mut [Lane], bias: Option<Lane>) {
    let Some(bias) = bias else { return };
    for lane in tile {
        *lane = std::array::from_fn(|i| lane[i] + bias[i]);
    }
}
