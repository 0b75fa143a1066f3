//! Linears: convert the activations once, then every thread multiplies them with its panels of the weights.

use super::{Pass, Stop, Thread};
use crate::bind::{BoundBuffer, BoundEpilogue, BoundLinear, BoundSegment, Converted, LinearKernel, Operand};
use crate::pool::SharedBytes;
use bessemer_format::panel::COLUMNS;
use bessemer_kernels::Gated;
use bessemer_kernels::linear::{Lane, RowsF32, TILE_ROWS};
use std::ops::Range;

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
    pub(super) fn linear(&self, linear: &BoundLinear, thread: &Thread<'_>) -> Result<(), Stop> {
        let rows = self.rows(linear.rows);
        self.convert(linear, thread)?;
        if rows > 0 {
            let input = match linear.operand() {
                Operand::Floats { buffer, stride } => {
                    let data = self.buffer(buffer).get(0..rows * stride);
                    Input::Floats(RowsF32 { data, rows, stride })
                }
                Operand::Codes { buffer, row_bytes } => {
                    Input::Codes { data: self.buffer(buffer).get(0..rows * row_bytes), row_bytes }
                }
            };
            let row_elems = linear.out.row_elems;
            self.multiply(linear, 0, input, thread, |row| row * row_elems);
        }
        Ok(())
    }

    /// Rounds the input to what the kernels read, if they ask for it; then all threads have finished that.
    pub(super) fn convert(&self, linear: &BoundLinear, thread: &Thread<'_>) -> Result<(), Stop> {
        let Some(convert) = &linear.convert else { return Ok(()) };
        let (scratch, row_bytes) = (self.buffer(&convert.scratch), convert.row_bytes);
        let inputs = linear.inputs();
        for row in thread.share(self.rows(linear.rows)) {
            for part in 0..inputs {
                let x = self.row(&linear.input, row, part * linear.k..(part + 1) * linear.k);
                let at = (row * inputs + part) * row_bytes;
                let out = scratch.get_mut::<u8>(at..at + row_bytes);
                match &convert.to {
                    Converted::Int8(layout, quantise) => quantise.row(layout, x, out),
                    Converted::Bf16(layout, round) => round.row(layout, x, out),
                }
            }
        }
        thread.meet()
    }

    /// This thread's part of the product of all rows of `x` with weight `weight` of the segments' stacks. `place` says at which element
    /// of the output (and of a residual) the results of a row of `x` begin.
    pub(super) fn multiply(
        &self,
        linear: &BoundLinear,
        weight: usize,
        x: Input<'_>,
        thread: &Thread<'_>,
        place: impl Fn(usize) -> usize,
    ) {
        if let (BoundEpilogue::Gated(kernel), [gate, up]) = (&linear.epilogue, &linear.segments[..]) {
            self.gated(linear, *kernel, [gate, up], (weight, thread.share(gate.panels)), x, place);
            return;
        }
        // A thread's share is a range of the panels of all segments, one behind the other.
        let share = thread.share(linear.segments.iter().map(|s| s.panels).sum());
        let mut first = 0;
        for segment in &linear.segments {
            let start = share.start.clamp(first, first + segment.panels) - first;
            let end = share.end.clamp(first, first + segment.panels) - first;
            if start < end {
                self.segment(linear, segment, (weight, start..end), x, &place);
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
        place: impl Fn(usize) -> usize,
    ) {
        let residual = match &linear.epilogue {
            BoundEpilogue::Residual(residual) => Some(residual),
            _ => None,
        };
        self.tiles(segment, (weight, panels), x, |panel, first_row, tile| {
            let (columns, bias) = self.panel_columns(segment, weight, panel);
            let residual = residual.map(|residual| self.columns(residual, columns.clone()));
            let out = self.columns(&linear.out, columns);
            for (i, lane) in tile.iter_mut().enumerate() {
                let at = place(first_row + i);
                add(lane, bias);
                if let Some(residual) = &residual {
                    // `residual + result`; read before the row is written: it may be the output itself.
                    add(lane, residual.read(at));
                }
                out.write(at, lane);
            }
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

    /// Two segments, gates and ups. Each is read as one stream: for as many rows as stay in the cache the gates are put where
    /// the results will be, then the ups come and take them up.
    fn gated(
        &self,
        linear: &BoundLinear,
        kernel: Gated,
        [gate, up]: [&BoundSegment; 2],
        (weight, panels): (usize, Range<usize>),
        x: Input<'_>,
        place: impl Fn(usize) -> usize,
    ) {
        let mut gates = [[0.0; COLUMNS]; TILE_ROWS];
        let tile_rows = gate.kernel.tile_rows().min(up.kernel.tile_rows());
        for first in (0..x.rows()).step_by(tile_rows) {
            let x = x.part(first..x.rows().min(first + tile_rows));
            self.tiles(gate, (weight, panels.clone()), x, |panel, row, gates| {
                let (columns, bias) = self.panel_columns(gate, weight, panel);
                let out = self.columns(&linear.out, columns);
                for (i, lane) in gates.iter_mut().enumerate() {
                    add(lane, bias);
                    out.write(place(first + row + i), lane);
                }
            });
            self.tiles(up, (weight, panels.clone()), x, |panel, row, ups| {
                let (columns, bias) = self.panel_columns(up, weight, panel);
                let out = self.columns(&linear.out, columns);
                for (part, ups) in ups.chunks_mut(TILE_ROWS).enumerate() {
                    let (row, gates) = (first + row + part * TILE_ROWS, &mut gates[..ups.len()]);
                    for (i, (gate, up)) in gates.iter_mut().zip(ups.iter_mut()).enumerate() {
                        out.load(place(row + i), gate);
                        add(up, bias);
                    }
                    kernel.tile(gates, ups);
                    for (i, lane) in gates.iter().enumerate() {
                        out.write(place(row + i), lane);
                    }
                }
            });
        }
    }

    /// The columns of a slot that a panel of a stack writes, and the bias that belongs to them (empty without one).
    fn panel_columns(&self, segment: &BoundSegment, weight: usize, panel: usize) -> (Range<usize>, &[f32]) {
        let first = (panel - weight * segment.panels) * COLUMNS;
        let width = COLUMNS.min(segment.n - first);
        let bias = segment.bias.as_ref().map_or(&[][..], |range| {
            let first = weight * segment.n + first;
            SharedBytes::read_only(&self.file[range.clone()]).get(first..first + width)
        });
        (segment.column + first..segment.column + first + width, bias)
    }

    /// `columns` of a buffer of floats: what a panel is stored in.
    fn columns(&self, buffer: &BoundBuffer, columns: Range<usize>) -> Columns<'_> {
        Columns { buffer: self.buffer(buffer), columns }
    }
}

/// At most [`COLUMNS`] columns of a buffer: found once a tile, not once a row.
struct Columns<'a> {
    buffer: SharedBytes<'a>,
    columns: Range<usize>,
}

impl Columns<'_> {
    #[inline(always)]
    fn place(&self, start: usize) -> Range<usize> {
        start + self.columns.start..start + self.columns.end
    }

    #[inline(always)]
    fn read(&self, start: usize) -> &[f32] {
        self.buffer.get(self.place(start))
    }

    /// Fills as many lanes as there are columns.
    #[inline(always)]
    fn load(&self, start: usize, lane: &mut Lane) {
        let found = self.read(start);
        match <&Lane>::try_from(found) {
            Ok(found) => *lane = *found,
            Err(_) => lane[..found.len()].copy_from_slice(found),
        }
    }

    #[inline(always)]
    fn write(&self, start: usize, lane: &Lane) {
        let out = self.buffer.get_mut::<f32>(self.place(start));
        match <&mut Lane>::try_from(&mut *out) {
            // A length that is known, so that no call copies 64 bytes.
            Ok(out) => *out = *lane,
            Err(_) => out.copy_from_slice(&lane[..out.len()]),
        }
    }
}

/// Adds as many lanes as there are numbers.
#[inline(always)]
fn add(lane: &mut Lane, numbers: &[f32]) {
    if let Ok(numbers) = <&Lane>::try_from(numbers) {
        // Of known length: two instructions.
        for (a, b) in lane.iter_mut().zip(numbers) {
            *a += b;
        }
        return;
    }
    for (a, b) in lane.iter_mut().zip(numbers) {
        *a += b;
    }
}
