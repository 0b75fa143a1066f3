//! Tests of a [`Gated`] row.

use super::data::Random;
use super::guard::Guarded;
use crate::linear::{Gated, GatedFn, Lane};
use crate::math::{gelu, gelu_tanh, silu};
use crate::table::Row;
use bessemer_format::panel::COLUMNS;
use bessemer_format::plan::Gate;

type Definition = fn(f32) -> f32;
const FUNCTIONS: [(Gate, Definition); 3] =
    [(Gate::Silu, silu), (Gate::Gelu, gelu), (Gate::GeluTanh, gelu_tanh)];

fn kernel(row: &Row<GatedFn>, function: Gate) -> Gated {
    Gated { function, isa: row.isa, kernel: row.kernel }
}

fn lanes(random: &mut Random, rows: usize, factor: f32) -> Vec<Lane> {
    let floats = random.floats(rows * COLUMNS);
    floats.as_chunks::<COLUMNS>().0.iter().map(|lane| lane.map(|v| v * factor)).collect()
}

/// The bits of the definition, from gates that vanish to gates that overflow.
pub(crate) fn exact(row: &Row<GatedFn>) {
    let mut random = Random::new(41);
    for factor in [1e-40, 1e-3, 1.0, 30.0, 200.0, 1e30, f32::INFINITY] {
        for (function, definition) in FUNCTIONS {
            let rows = 7;
            let (mut gates, ups) = (lanes(&mut random, rows, factor), lanes(&mut random, rows, 1.0));
            let pairs = gates.as_flattened().iter().zip(ups.as_flattened());
            let want: Vec<u32> = pairs.map(|(g, u)| (definition(*g) * u).to_bits()).collect();
            kernel(row, function).tile(&mut gates, &ups);
            let got: Vec<u32> = gates.as_flattened().iter().map(|v| v.to_bits()).collect();
            let same = |a: u32, b: u32| a == b || f32::from_bits(a).is_nan() && f32::from_bits(b).is_nan();
            assert!(got.iter().zip(&want).all(|(a, b)| same(*a, *b)), "{function:?} of gates times {factor}");
        }
    }
}

/// No access outside of any buffer.
pub(crate) fn guarded(row: &Row<GatedFn>) {
    let mut random = Random::new(42);
    let (gates, ups) = (lanes(&mut random, 5, 1.0), lanes(&mut random, 5, 1.0));
    let (mut at_end, mut at_start) = (Guarded::at_end(&gates), Guarded::at_start(&gates));
    kernel(row, Gate::Silu).tile(&mut at_end, &Guarded::at_end(&ups));
    kernel(row, Gate::Silu).tile(&mut at_start, &Guarded::at_start(&ups));
    assert_eq!(*at_end, *at_start);
}
