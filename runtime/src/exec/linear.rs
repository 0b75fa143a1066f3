//! Linears: convert the activations once, then every thread multiplies them with its panels of the weights.

use super::{Pass, Stop, Thread};
use crate::bind::{BoundBuffer, BoundEpilogue, BoundLinear, BoundSegment, Convert, Converted, LinearKernel};
use crate::pool::SharedBytes;
use bessemer_format::panel::COLUMNS;
use bessemer_kernels::Gated;
use bessemer_kernels::linear::{Lane, RowsF32, TILE_ROWS};
use std::ops::Range;

impl Pass<'_> {
    pub(super) fn linear(&self, linear: &BoundLinear, thread: &Thread<'_>) -> Result<(), Stop> {
        let rows = self.rows(linear.rows);
        if let Some(convert) = &linear.convert {
            self.convert(linear, convert, thread.share(rows));
            thread.meet()?;
        }
        if rows == 0 {
            return Ok(());
        }
        if let (BoundEpilogue::Gated(kernel), [gate, up]) = (&linear.epilogue, &linear.segments[..]) {
            self.gated(linear, *kernel, [gate, up], rows, thread.share(gate.panels));
            return Ok(());
        }
        // A thread's share is a range of the panels of all segments, one behind the other.
        let share = thread.share(linear.segments.iter().map(|s| s.panels).sum());
        let mut first = 0;
        for segment in &linear.segments {
            let start = share.start.clamp(first, first + segment.panels) - first;
            let end = share.end.clamp(first, first + segment.panels) - first;
            if start < end {
                self.segment(linear, segment, rows, start..end);
            }
            first += segment.panels;
        }
        Ok(())
    }

    /// Rounds `rows` of the input to what the kernels read.
    fn convert(&self, linear: &BoundLinear, convert: &Convert, rows: Range<usize>) {
        let scratch = self.buffer(&convert.scratch);
        let row_bytes = convert.row_bytes;
        for row in rows {
            let out = scratch.get_mut::<u8>(row * row_bytes..(row + 1) * row_bytes);
            let x = self.row(&linear.input, row, 0..linear.k);
            match &convert.to {
                Converted::Int8(layout, quantise) => quantise.row(layout, x, out),
                Converted::Bf16(layout, round) => round.row(layout, x, out),
            }
        }
    }

    fn segment(&self, linear: &BoundLinear, segment: &BoundSegment, rows: usize, panels: Range<usize>) {
        let residual = match &linear.epilogue {
            BoundEpilogue::Residual(residual) => Some(residual),
            _ => None,
        };
        let finish = |panel: usize, first_row: usize, tile: &mut [Lane]| {
            let (width, bias) = self.panel_columns(segment, panel);
            let columns = segment.column + panel * COLUMNS..segment.column + panel * COLUMNS + width;
            let residual = residual.map(|residual| self.columns(residual, columns.clone()));
            let out = self.columns(&linear.out, columns);
            for (i, lane) in tile.iter_mut().enumerate() {
                add(lane, bias);
                if let Some(residual) = &residual {
                    // `residual + result`; read before the row is written: it may be the output itself.
                    add(lane, residual.read(first_row + i));
                }
                out.write(first_row + i, lane);
            }
        };
        self.multiply(linear, segment, panels, 0..rows, finish);
    }

    /// Some rows by some panels of a segment, tile by tile: `finish(panel, first_row, tile)`.
    fn multiply(
        &self,
        linear: &BoundLinear,
        segment: &BoundSegment,
        panels: Range<usize>,
        rows: Range<usize>,
        mut finish: impl FnMut(usize, usize, &mut [Lane]),
    ) {
        let weight = &self.file[segment.weight.clone()];
        let first = rows.start;
        let finish = |panel: usize, row: usize, tile: &mut [Lane]| finish(panel, first + row, tile);
        match &segment.kernel {
            LinearKernel::F32(kernel) => {
                kernel.for_each_tile(weight, panels, self.floats(linear, rows), finish)
            }
            LinearKernel::Int8(kernel) => {
                kernel.for_each_tile(weight, panels, self.codes(linear, rows), finish)
            }
            LinearKernel::Bf16(kernel) => {
                kernel.for_each_tile(weight, panels, self.codes(linear, rows), finish)
            }
        }
    }

    /// Two segments, gates and ups. Each is read as one stream: for as many rows as stay in the cache the gates are put where
    /// the results will be, then the ups come and take them up.
    fn gated(
        &self,
        linear: &BoundLinear,
        kernel: Gated,
        [gate, up]: [&BoundSegment; 2],
        rows: usize,
        panels: Range<usize>,
    ) {
        let out = |panel: usize, width: usize| {
            let column = gate.column + panel * COLUMNS;
            self.columns(&linear.out, column..column + width)
        };
        let mut gates = [[0.0; COLUMNS]; TILE_ROWS];
        for first in (0..rows).step_by(TILE_ROWS) {
            let tile_rows = first..rows.min(first + TILE_ROWS);
            self.multiply(linear, gate, panels.clone(), tile_rows.clone(), |panel, row, gates| {
                let (width, bias) = self.panel_columns(gate, panel);
                let out = out(panel, width);
                for (i, lane) in gates.iter_mut().enumerate() {
                    add(lane, bias);
                    out.write(row + i, lane);
                }
            });
            self.multiply(linear, up, panels.clone(), tile_rows, |panel, row, ups| {
                let (width, bias) = self.panel_columns(up, panel);
                let out = out(panel, width);
                let gates = &mut gates[..ups.len()];
                for (i, (gate, up)) in gates.iter_mut().zip(ups.iter_mut()).enumerate() {
                    out.load(row + i, gate);
                    add(up, bias);
                }
                kernel.tile(gates, ups);
                for (i, lane) in gates.iter().enumerate() {
                    out.write(row + i, lane);
                }
            });
        }
    }

    /// The real columns of a panel, and the bias that belongs to them (empty without one).
    fn panel_columns(&self, segment: &BoundSegment, panel: usize) -> (usize, &[f32]) {
        let first = panel * COLUMNS;
        let width = COLUMNS.min(segment.n - first);
        let bias = segment.bias.as_ref().map_or(&[][..], |range| {
            SharedBytes::read_only(&self.file[range.clone()]).get(first..first + width)
        });
        (width, bias)
    }

    /// `columns` of a buffer of floats: what a panel is stored in.
    fn columns(&self, buffer: &BoundBuffer, columns: Range<usize>) -> Columns<'_> {
        Columns { buffer: self.buffer(buffer), row_elems: buffer.row_elems, columns }
    }

    fn floats(&self, linear: &BoundLinear, rows: Range<usize>) -> RowsF32<'_> {
        let stride = linear.input.row_elems;
        let data = self.buffer(&linear.input).get(rows.start * stride..rows.end * stride);
        RowsF32 { data, rows: rows.len(), stride }
    }

    fn codes(&self, linear: &BoundLinear, rows: Range<usize>) -> &[u8] {
        // Bound together with the kernels: those of bytes and of bf16 come with a conversion.
        linear.convert.as_ref().map_or(&[], |convert| {
            self.buffer(&convert.scratch).get(rows.start * convert.row_bytes..rows.end * convert.row_bytes)
        })
    }
}

/// At most [`COLUMNS`] columns of a buffer: found once a tile, not once a row.
struct Columns<'a> {
    buffer: SharedBytes<'a>,
    row_elems: usize,
    columns: Range<usize>,
}

impl Columns<'_> {
    #[inline(always)]
    fn place(&self, row: usize) -> Range<usize> {
        row * self.row_elems + self.columns.start..row * self.row_elems + self.columns.end
    }

    #[inline(always)]
    fn read(&self, row: usize) -> &[f32] {
        self.buffer.get(self.place(row))
    }

    /// Fills as many lanes as there are columns.
    #[inline(always)]
    fn load(&self, row: usize, lane: &mut Lane) {
        let found = self.read(row);
        match <&Lane>::try_from(found) {
            Ok(found) => *lane = *found,
            Err(_) => lane[..found.len()].copy_from_slice(found),
        }
    }

    #[inline(always)]
    fn write(&self, row: usize, lane: &Lane) {
        let out = self.buffer.get_mut::<f32>(self.place(row));
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
