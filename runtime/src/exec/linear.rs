//! Linears: convert the activations once, then every thread multiplies them with its panels of the weights.

use super::{Pass, Stop, Thread};
use crate::bind::{BoundEpilogue, BoundLinear, BoundSegment, Convert, Converted, LinearKernel};
use bessemer_format::panel::COLUMNS;
use bessemer_format::plan::Gate;
use bessemer_kernels::linear::{Lane, RowsF32};
use bessemer_kernels::math::{gelu, gelu_tanh, silu};
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
        if let (BoundEpilogue::Gated(function), [gate, up]) = (&linear.epilogue, &linear.segments[..]) {
            self.gated(linear, *function, gate, up, rows, thread.share(gate.panels));
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
        let weight = &self.file[segment.weight.clone()];
        let finish = |panel: usize, first_row: usize, tile: &[Lane]| {
            let (width, bias) = self.panel_columns(segment, panel);
            let column = segment.column + panel * COLUMNS;
            for (i, lane) in tile.iter().enumerate() {
                let row = first_row + i;
                let mut lane = *lane;
                add(&mut lane, bias);
                if let BoundEpilogue::Residual(residual) = &linear.epilogue {
                    // `residual + result`; read before the row is written: it may be the output itself.
                    add(&mut lane, self.row(residual, row, column..column + width));
                }
                self.row_mut(&linear.out, row, column..column + width).copy_from_slice(&lane[..width]);
            }
        };
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

    fn gated(
        &self,
        linear: &BoundLinear,
        function: Gate,
        gate: &BoundSegment,
        up: &BoundSegment,
        rows: usize,
        panels: Range<usize>,
    ) {
        let weights = [gate, up].map(|s| &self.file[s.weight.clone()]);
        let finish = |panel: usize, first_row: usize, gates: &[Lane], ups: &[Lane]| {
            let (width, gate_bias) = self.panel_columns(gate, panel);
            let (_, up_bias) = self.panel_columns(up, panel);
            let column = gate.column + panel * COLUMNS;
            for (i, (g, u)) in gates.iter().zip(ups).enumerate() {
                let (mut g, mut u) = (*g, *u);
                add(&mut g, gate_bias);
                add(&mut u, up_bias);
                // All lanes, so that the loop has a fixed length and no branch.
                match function {
                    Gate::Silu => gate_lanes(&mut g, &u, silu),
                    Gate::Gelu => gate_lanes(&mut g, &u, gelu),
                    Gate::GeluTanh => gate_lanes(&mut g, &u, gelu_tanh),
                }
                self.row_mut(&linear.out, first_row + i, column..column + width).copy_from_slice(&g[..width]);
            }
        };
        match (&gate.kernel, &up.kernel) {
            (LinearKernel::F32(g), LinearKernel::F32(u)) => {
                g.for_each_tile_pair(weights[0], (u, weights[1]), panels, self.floats(linear, rows), finish);
            }
            (LinearKernel::Int8(g), LinearKernel::Int8(u)) => {
                g.for_each_tile_pair(weights[0], (u, weights[1]), panels, self.codes(linear, rows), finish);
            }
            (LinearKernel::Bf16(g), LinearKernel::Bf16(u)) => {
                g.for_each_tile_pair(weights[0], (u, weights[1]), panels, self.codes(linear, rows), finish);
            }
            _ => unreachable!("a linear computes in one type: its segments are bound by one `Compute`"),
        }
    }

    /// The real columns of a panel, and the bias that belongs to them (empty without one).
    fn panel_columns(&self, segment: &BoundSegment, panel: usize) -> (usize, &[f32]) {
        let first = panel * COLUMNS;
        let width = COLUMNS.min(segment.n - first);
        let bias = segment.bias.as_ref().map_or(&[][..], |range| {
            crate::pool::SharedBytes::read_only(&self.file[range.clone()]).get(first..first + width)
        });
        (width, bias)
    }

    fn floats(&self, linear: &BoundLinear, rows: usize) -> RowsF32<'_> {
        let stride = linear.input.row_elems;
        RowsF32 { data: self.buffer(&linear.input).get(0..rows * stride), rows, stride }
    }

    fn codes(&self, linear: &BoundLinear, rows: usize) -> &[u8] {
        // Bound together with the kernels: those of bytes and of bf16 come with a conversion.
        linear
            .convert
            .as_ref()
            .map_or(&[], |convert| self.buffer(&convert.scratch).get(0..rows * convert.row_bytes))
    }
}

#[inline(always)]
fn gate_lanes(gate: &mut Lane, up: &Lane, function: impl Fn(f32) -> f32) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = function(*g) * u;
    }
}

/// Adds as many lanes as there are numbers.
#[inline(always)]
fn add(lane: &mut Lane, numbers: &[f32]) {
    for (a, b) in lane.iter_mut().zip(numbers) {
        *a += b;
    }
}
