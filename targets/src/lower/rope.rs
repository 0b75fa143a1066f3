//! Rotary embedding and the KV append.

use super::{Lowered, NestArg, activation, builder::NestBuilder, row_count};
use crate::states::LayerState;
use bessemer_format::kv;
use bessemer_format::nest::{Base, Extent, Index, Int, Op as NestOp, Reg, ViewElem, ViewId};
use bessemer_format::plan::{Input, ModelFacts};
use bessemer_ir::TensorType;
use bessemer_ir::attr::RopeStyle;

/// Cosines, then sines, for every row's position.
pub fn table(
    inv_freq: &[f32],
    factor: f32,
    positions: &TensorType,
    facts: &ModelFacts,
) -> Result<Lowered, String> {
    let rows = row_count(positions)?;
    let pairs = inv_freq.len() as i64;
    let mut b = NestBuilder::new("rope_table");
    let positions = b.input("positions", ViewElem::I32);
    let frequencies = b.input("inv_freq", ViewElem::F32);
    let out = b.output("out", ViewElem::F32);
    let position = b.load_int(positions, b.row(), Index::constant(i64::from(facts.context)));
    let position = b.op(NestOp::FromInt(position));
    let factor = b.constant(factor);
    b.for_each(Extent::constant(pairs), |b, j| {
        let frequency = b.load(frequencies, Index::axis(j));
        let angle = b.mul(position, frequency);
        let at = b.row() * (2 * pairs) + Index::axis(j);
        for (op, shift) in [(NestOp::Cos(angle), 0), (NestOp::Sin(angle), pairs)] {
            let value = b.op(op);
            let value = b.mul(value, factor);
            b.store(out, at.clone().plus(shift), value);
        }
    });
    Ok(Lowered {
        nest: b.finish(),
        rows,
        args: vec![NestArg::Operand(0), NestArg::Constant(inv_freq.to_vec()), NestArg::Result(0)],
    })
}

/// The two elements of pair `axis` of a head of which `turned` elements are rotated.
fn pair(style: RopeStyle, turned: i64, axis: u8) -> (Index, Index) {
    match style {
        RopeStyle::Half => (Index::axis(axis), Index::axis(axis).plus(turned / 2)),
        RopeStyle::Interleaved => (Index::axis(axis) * 2, (Index::axis(axis) * 2).plus(1)),
    }
}

/// Rotates the pair at `first`, `second` of `x` by the row's angle `axis`.
fn rotate(
    b: &mut NestBuilder,
    (x, first, second): (ViewId, Index, Index),
    table: ViewId,
    turned: i64,
    axis: u8,
) -> (Reg, Reg) {
    let angle = b.row() * turned + Index::axis(axis);
    let cos = b.load(table, angle.clone());
    let sin = b.load(table, angle.plus(turned / 2));
    let (p, q) = (b.load(x, first), b.load(x, second));
    let (pc, qs) = (b.mul(p, cos), b.mul(q, sin));
    let (qc, ps) = (b.mul(q, cos), b.mul(p, sin));
    (b.sub(pc, qs), b.add(qc, ps))
}

/// Rotates the first elements of every head of x, as many as the table is wide.
pub fn rope(style: RopeStyle, heads: u32, x: &TensorType, table: &TensorType) -> Result<Lowered, String> {
    let (rows, width) = activation(x)?;
    let (_, turned) = activation(table)?;
    let head_dim = width / i64::from(heads);
    let mut b = NestBuilder::new("rope");
    let x = b.input("x", ViewElem::F32);
    let table = b.input("table", ViewElem::F32);
    let out = b.output("out", ViewElem::F32);
    b.for_each(Extent::constant(i64::from(heads)), |b, h| {
        let head = b.row() * width + Index::axis(h) * head_dim;
        b.for_each(Extent::constant(turned / 2), |b, i| {
            let (first, second) = pair(style, turned, i);
            let (first, second) = (head.clone() + first, head.clone() + second);
            let (p, q) = rotate(b, (x, first.clone(), second.clone()), table, turned, i);
            b.store(out, first, p);
            b.store(out, second, q);
        });
        if turned < head_dim {
            b.for_each(Extent::constant(head_dim - turned), |b, d| {
                let at = (head + Index::axis(d)).plus(turned);
                let value = b.load(x, at.clone());
                b.store(out, at, value);
            });
        }
    });
    Ok(Lowered {
        nest: b.finish(),
        rows,
        args: vec![NestArg::Operand(0), NestArg::Operand(1), NestArg::Result(0)],
    })
}

/// Where the elements of a slot lie: [`kv::key`] and [`kv::value`] as indices.
struct Slot {
    slot: Int,
    layer: LayerState,
}

impl Slot {
    /// Loads the slot of the row. The runtime fills slots, so the bound that matters is that of the pool, which it keeps.
    fn load(b: &mut NestBuilder, slots: ViewId, layer: LayerState) -> Self {
        let slot = b.load_int(slots, b.row(), Index::constant(i64::from(i32::MAX)));
        Self { slot, layer }
    }

    fn head(&self, h: u8, part: i64) -> Index {
        let tokens = kv::TOKENS as u32;
        let head_elems = kv::head_elems(self.layer.head_dim as usize) as i64;
        let kv_heads = i64::from(self.layer.kv_heads);
        Index::div(Base::Int(self.slot), tokens) * self.layer.block_elems as i64
            + (Index::axis(h) * head_elems).plus(self.layer.first_elem as i64 + part * kv_heads * head_elems)
    }

    /// Element `d` of head `h`'s key, where `d = element_of(axis)` is given by its halves: `d / 2` and `d % 2`.
    fn key(&self, h: u8, half: Index, parity: Index) -> Index {
        let columns = kv::COLUMNS as u32;
        let panel = kv::COLUMNS as i64 * i64::from(self.layer.head_dim);
        let panels = (kv::TOKENS / kv::COLUMNS) as u32;
        self.head(h, 0)
            + Index::div_rem(Base::Int(self.slot), columns, panels) * panel
            + half * (2 * kv::COLUMNS as i64)
            + Index::rem(Base::Int(self.slot), columns) * 2
            + parity
    }

    /// Element `d` of head `h`'s value.
    fn value(&self, h: u8, d: Index) -> Index {
        self.head(h, 1)
            + Index::div_rem(Base::Int(self.slot), 2, kv::TOKENS as u32 / 2)
                * (2 * i64::from(self.layer.head_dim))
            + d * 2
            + Index::rem(Base::Int(self.slot), 2)
    }
}

/// Copies a row's keys (from column `k`) and values (from column `v`) into the cache.
fn append_values(b: &mut NestBuilder, state: ViewId, slot: &Slot, source: (ViewId, i64, i64)) {
    let (view, width, column) = source;
    let head_dim = i64::from(slot.layer.head_dim);
    b.for_each(Extent::constant(i64::from(slot.layer.kv_heads)), |b, h| {
        b.for_each(Extent::constant(head_dim), |b, d| {
            let at = (b.row() * width + Index::axis(h) * head_dim + Index::axis(d)).plus(column);
            let value = b.load(view, at);
            b.store(state, slot.value(h, Index::axis(d)), value);
        });
    });
}

/// Copies a row's keys into the cache.
fn append_keys(b: &mut NestBuilder, state: ViewId, slot: &Slot, keys: ViewId, width: i64) {
    let head_dim = i64::from(slot.layer.head_dim);
    b.for_each(Extent::constant(i64::from(slot.layer.kv_heads)), |b, h| {
        b.for_each(Extent::constant(head_dim), |b, d| {
            let key = b.load(keys, b.row() * width + Index::axis(h) * head_dim + Index::axis(d));
            let (half, parity) = (Index::div(Base::Axis(d), 2), Index::rem(Base::Axis(d), 2));
            b.store(state, slot.key(h, half, parity), key);
        });
    });
}

/// Each row's vector enters the cache at the row's slot.
pub fn append_latent(x: &TensorType, layer: LayerState) -> Result<Lowered, String> {
    let (rows, width) = activation(x)?;
    if !layer.latent() || width != i64::from(layer.head_dim) {
        return Err(format!("vectors of {width} elements for a layer of {}", layer.head_dim));
    }
    let mut b = NestBuilder::new("append_latent");
    let x = b.input("x", ViewElem::F32);
    let slots = b.input("slots", ViewElem::I32);
    let state = b.output("cache", ViewElem::Kv);
    let slot = Slot::load(&mut b, slots, layer);
    append_keys(&mut b, state, &slot, x, width);
    let args = vec![NestArg::Operand(1), NestArg::Input(Input::Slots), NestArg::State];
    Ok(Lowered { nest: b.finish(), rows, args })
}

/// Each row's key and value enter the cache at the row's slot.
pub fn append(kv_heads: u32, k: &TensorType, layer: LayerState) -> Result<Lowered, String> {
    let (rows, width) = activation(k)?;
    if width != i64::from(kv_heads) * i64::from(layer.head_dim) || kv_heads != layer.kv_heads {
        return Err(format!("{kv_heads} heads in {width} elements for a layer of other heads"));
    }
    let mut b = NestBuilder::new("append");
    let keys = b.input("k", ViewElem::F32);
    let values = b.input("v", ViewElem::F32);
    let slots = b.input("slots", ViewElem::I32);
    let state = b.output("cache", ViewElem::Kv);
    let slot = Slot::load(&mut b, slots, layer);
    append_keys(&mut b, state, &slot, keys, width);
    append_values(&mut b, state, &slot, (values, width, 0));
    Ok(Lowered {
        nest: b.finish(),
        rows,
        args: vec![NestArg::Operand(1), NestArg::Operand(2), NestArg::Input(Input::Slots), NestArg::State],
    })
}

/// Rotates queries and keys of a joint projection, appends keys and values.
pub fn rope_append(
    style: RopeStyle,
    heads: u32,
    kv_heads: u32,
    operands: &[TensorType],
    layer: LayerState,
) -> Result<Lowered, String> {
    let (rows, width) = activation(&operands[0])?;
    let (_, turned) = activation(&operands[1])?;
    let head_dim = i64::from(layer.head_dim);
    let (q_width, k_width) = (i64::from(heads) * head_dim, i64::from(kv_heads) * head_dim);
    let mut b = NestBuilder::new("rope_append");
    let x = b.input("qkv", ViewElem::F32);
    let table = b.input("table", ViewElem::F32);
    let slots = b.input("slots", ViewElem::I32);
    let out = b.output("q", ViewElem::F32);
    let state = b.output("cache", ViewElem::Kv);
    let slot = Slot::load(&mut b, slots, layer);
    b.for_each(Extent::constant(i64::from(heads)), |b, h| {
        let head = |width: i64| b_row(width) + Index::axis(h) * head_dim;
        b.for_each(Extent::constant(turned / 2), |b, i| {
            let (first, second) = pair(style, turned, i);
            let from = (x, head(width) + first.clone(), head(width) + second.clone());
            let (p, q) = rotate(b, from, table, turned, i);
            b.store(out, head(q_width) + first, p);
            b.store(out, head(q_width) + second, q);
        });
        if turned < head_dim {
            b.for_each(Extent::constant(head_dim - turned), |b, d| {
                let at = Index::axis(d).plus(turned);
                let value = b.load(x, head(width) + at.clone());
                b.store(out, head(q_width) + at, value);
            });
        }
    });
    b.for_each(Extent::constant(i64::from(kv_heads)), |b, h| {
        let head = (b_row(width) + Index::axis(h) * head_dim).plus(q_width);
        b.for_each(Extent::constant(turned / 2), |b, i| {
            let (first, second) = pair(style, turned, i);
            let (p, q) = rotate(b, (x, head.clone() + first, head.clone() + second), table, turned, i);
            let half_dim = (turned / 2) as u32;
            let (first, second) = match style {
                RopeStyle::Interleaved => {
                    ((Index::axis(i), Index::constant(0)), (Index::axis(i), Index::constant(1)))
                }
                RopeStyle::Half => (halves(i, 0), halves(i, half_dim)),
            };
            b.store(state, slot.key(h, first.0, first.1), p);
            b.store(state, slot.key(h, second.0, second.1), q);
        });
        if turned < head_dim {
            b.for_each(Extent::constant(head_dim - turned), |b, d| {
                let value = b.load(x, (head + Index::axis(d)).plus(turned));
                let (half, parity) = halves(d, turned as u32);
                b.store(state, slot.key(h, half, parity), value);
            });
        }
    });
    append_values(&mut b, state, &slot, (x, width, q_width + k_width));
    Ok(Lowered {
        nest: b.finish(),
        rows,
        args: vec![
            NestArg::Operand(0),
            NestArg::Operand(1),
            NestArg::Input(Input::Slots),
            NestArg::Result(0),
            NestArg::State,
        ],
    })
}

fn b_row(width: i64) -> Index {
    Index::axis(0) * width
}

/// `(axis + shift) / 2` and `(axis + shift) % 2`. An index term divides one base, so an odd shift swaps the parities instead:
/// `(a + 1) / 2 = a / 2 + a % 2` and `(a + 1) % 2 = 1 - a % 2`.
fn halves(axis: u8, shift: u32) -> (Index, Index) {
    let (half, parity) = (Index::div(Base::Axis(axis), 2), Index::rem(Base::Axis(axis), 2));
    let whole = i64::from(shift / 2);
    if shift.is_multiple_of(2) {
        (half.plus(whole), parity)
    } else {
        ((half + parity.clone()).plus(whole), (parity * -1).plus(1))
    }
}
