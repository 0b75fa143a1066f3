//! What recurrent layers carry from token to token.
//!
//! A nest has no conditions. A loop that runs once or not at all stands for one: its extent is a difference of integers, of which the
//! loop sees the smallest, and that is 1 exactly where the condition holds.

use super::{Lowered, NestArg, activation, builder::NestBuilder, element, vector_elem};
use crate::states::{Holds, LayerState};
use bessemer_format::kv::TOKENS;
use bessemer_format::nest::{Base, Extent, Index, Int, Sym, ViewElem, ViewId};
use bessemer_format::plan::{Input, ModelFacts};
use bessemer_ir::TensorType;

/// Where the runtime's numbers have bounds of their own.
fn any() -> Index {
    Index::constant(i64::from(i32::MAX))
}

/// Copies `count` numbers where each of `conditions` is above 0; the smallest of them is never above 1.
fn copy_where(
    b: &mut NestBuilder,
    conditions: Vec<Index>,
    count: i64,
    (from, at): (ViewId, Index),
    (to, place): (ViewId, Index),
) {
    b.for_each(Extent(conditions), |b, _| {
        b.for_each(Extent::constant(count), |b, j| {
            let value = b.load(from, at + Index::axis(j));
            b.store(to, place + Index::axis(j), value);
        });
    });
}

/// Each row, then those of the tokens before it: rows of this pass, then what was carried into it, then zeros.
pub fn history(taps: u32, x: &TensorType, layer: LayerState, facts: &ModelFacts) -> Result<Lowered, String> {
    let (rows, n) = activation(x)?;
    let taps = i64::from(taps);
    if layer.holds != Holds::Carried || i64::from(layer.head_dim) != (taps - 1) * n {
        return Err(format!("{taps} rows of {n} for a layer that carries {}", layer.head_dim));
    }
    let mut b = NestBuilder::new("history");
    let x = b.input("x", ViewElem::F32);
    let positions = b.input("positions", ViewElem::I32);
    let first_rows = b.input("first_rows", ViewElem::I32);
    let blocks = b.input("carried_blocks", ViewElem::I32);
    let state = b.input("state", ViewElem::F32);
    let out = b.output("out", ViewElem::F32);
    let position = b.load_int(positions, b.row(), Index::constant(i64::from(facts.context)));
    let first = b.load_int(first_rows, b.row(), Index::sym(Sym::Rows));
    let block = b.load_int(blocks, b.row(), any());
    let zero = b.constant(0.0);
    let place = |age: i64| Index::axis(0) * (taps * n) + Index::constant(age * n);
    // Rows of this pass before the row, in its sequence.
    let before = || Index::axis(0) + Index::int(first) * -1;
    b.for_each(Extent::constant(n), |b, j| {
        let value = b.load(x, element(b.row(), n, j));
        b.store(out, place(0) + Index::axis(j), value);
    });
    for age in 1..taps {
        let earlier = (b.row() * n).plus(-age * n);
        let in_this_pass = vec![before().plus(1 - age), Index::constant(1)];
        copy_where(&mut b, in_this_pass, n, (x, earlier), (out, place(age)));
        for passed in 0..age {
            let exactly = [before().plus(1 - passed), (before() * -1).plus(1 + passed)];
            let there_is_one = Index::int(position).plus(1 - age);
            let conditions = exactly.into_iter().chain([there_is_one]).collect();
            let entry = (Index::int(block) * layer.block_elems as i64)
                .plus(layer.first_elem as i64 + (age - 1 - passed) * n);
            copy_where(&mut b, conditions, n, (state, entry), (out, place(age)));
        }
        let there_is_none = Extent::min((Index::int(position) * -1).plus(age), Index::constant(1));
        b.for_each(there_is_none, |b, _| {
            b.for_each(Extent::constant(n), |b, j| b.store(out, place(age) + Index::axis(j), zero));
        });
    }
    let args = vec![
        NestArg::Operand(0),
        NestArg::Input(Input::Positions),
        NestArg::Input(Input::FirstRows),
        NestArg::Input(Input::CarriedBlocks),
        NestArg::State,
        NestArg::Result(0),
    ];
    Ok(Lowered { nest: b.finish(), rows, args })
}

/// The last row of a sequence in this pass, and each that ends a block, leaves its first `width` numbers in its block.
pub fn carry(width: u32, x: &TensorType, layer: LayerState, facts: &ModelFacts) -> Result<Lowered, String> {
    let (rows, m) = activation(x)?;
    if layer.holds != Holds::Carried || layer.head_dim != width {
        return Err(format!("{width} numbers for a layer that carries {}", layer.head_dim));
    }
    let mut b = NestBuilder::new("carry");
    let x = b.input("x", ViewElem::F32);
    let positions = b.input("positions", ViewElem::I32);
    let last_positions = b.input("last_positions", ViewElem::I32);
    let slots = b.input("slots", ViewElem::I32);
    let state = b.output("state", ViewElem::F32);
    let context = || Index::constant(i64::from(facts.context));
    let position = b.load_int(positions, b.row(), context());
    let last = b.load_int(last_positions, b.row(), context());
    let slot: Int = b.load_int(slots, b.row(), any());
    let is_last = (Index::int(position) + Index::int(last) * -1).plus(1);
    let ends_block = Index::rem(Base::Int(slot), TOKENS as u32).plus(2 - TOKENS as i64);
    let place =
        (Index::div(Base::Int(slot), TOKENS as u32) * layer.block_elems as i64).plus(layer.first_elem as i64);
    for condition in [is_last, ends_block] {
        let from = (x, b.row() * m);
        copy_where(&mut b, vec![condition], i64::from(width), from, (state, place.clone()));
    }
    let args = vec![
        NestArg::Operand(1),
        NestArg::Input(Input::Positions),
        NestArg::Input(Input::LastPositions),
        NestArg::Input(Input::Slots),
        NestArg::State,
    ];
    Ok(Lowered { nest: b.finish(), rows, args })
}

/// A sum over the taps for each column, from the oldest on.
pub fn depthwise(x: &TensorType, w: &TensorType) -> Result<Lowered, String> {
    let (rows, width) = activation(x)?;
    let (Some(n), Some(taps)) = (w.const_dim(0), w.const_dim(1)) else { return Err(format!("weights {w}")) };
    let (n, taps) = (n as i64, taps as i64);
    let mut b = NestBuilder::new("depthwise");
    let x = b.input("x", ViewElem::F32);
    let weights = b.input("w", vector_elem(w)?);
    let out = b.output("out", ViewElem::F32);
    b.for_each(Extent::constant(n), |b, c| {
        let mut sum = b.constant(0.0);
        for tap in 0..taps {
            let value = b.load(x, element(b.row(), width, c).plus((taps - 1 - tap) * n));
            let weight = b.load(weights, (Index::axis(c) * taps).plus(tap));
            let product = b.mul(value, weight);
            sum = b.add(sum, product);
        }
        b.store(out, element(b.row(), n, c), sum);
    });
    let args = vec![NestArg::Operand(0), NestArg::Operand(1), NestArg::Result(0)];
    Ok(Lowered { nest: b.finish(), rows, args })
}
