//! Rows of tables and of activations, picked by index.

use super::{Lowered, NestArg, activation, builder::NestBuilder, element, row_count, vector_elem};
use bessemer_format::nest::{Base, Extent, Index, Op as NestOp, ReduceKind, Sym, ViewElem};
use bessemer_format::plan::{Input, RowCount};
use bessemer_ir::attr::PoolKind;
use bessemer_ir::{Layout, TensorType};

/// A row of a table for each id.
pub fn embed(tokens: &TensorType, table: &TensorType) -> Result<Lowered, String> {
    let rows = row_count(tokens)?;
    let (vocab, width) = (table.const_dim(0), table.const_dim(1));
    let (Some(vocab), Some(width)) = (vocab, width) else { return Err(format!("table {table}")) };
    let packed = table.encoding.layout == Layout::Panel;
    let elem = if packed { ViewElem::Panel } else { vector_elem(table)? };
    let mut b = NestBuilder::new("embed");
    let tokens = b.input("tokens", ViewElem::I32);
    let table = b.input("table", elem);
    let out = b.output("out", ViewElem::F32);
    let token = b.load_int(tokens, b.row(), Index::constant(vocab as i64));
    b.for_each(Extent::constant(width as i64), |b, j| {
        let value = if packed {
            b.load_weight(table, Index::int(token), Index::axis(j))
        } else {
            b.load(table, element(Index::int(token), width as i64, j))
        };
        b.store(out, element(b.row(), width as i64, j), value);
    });
    Ok(Lowered {
        nest: b.finish(),
        rows,
        args: vec![NestArg::Operand(0), NestArg::Operand(1), NestArg::Result(0)],
    })
}

/// The wanted rows.
pub fn select(x: &TensorType) -> Result<Lowered, String> {
    let (_, width) = activation(x)?;
    let mut b = NestBuilder::new("select_rows");
    let x = b.input("x", ViewElem::F32);
    let rows = b.input("rows", ViewElem::I32);
    let out = b.output("out", ViewElem::F32);
    let from = b.load_int(rows, b.row(), Index::sym(Sym::Rows));
    b.for_each(Extent::constant(width), |b, j| {
        let value = b.load(x, element(Index::of(Base::Int(from)), width, j));
        b.store(out, element(b.row(), width, j), value);
    });
    Ok(Lowered {
        nest: b.finish(),
        rows: RowCount::Logits,
        args: vec![NestArg::Operand(0), NestArg::Operand(1), NestArg::Result(0)],
    })
}

/// The mean, or the first, of a sequence's rows up to each wanted one.
pub fn pool(kind: PoolKind, x: &TensorType) -> Result<Lowered, String> {
    let (_, width) = activation(x)?;
    let mut b = NestBuilder::new("pool");
    let x = b.input("x", ViewElem::F32);
    let rows = b.input("rows", ViewElem::I32);
    let first_rows = b.input("first_rows", ViewElem::I32);
    let out = b.output("out", ViewElem::F32);
    let last = b.load_int(rows, b.row(), Index::sym(Sym::Rows));
    let first = b.load_int(first_rows, Index::int(last), Index::sym(Sym::Rows));
    match kind {
        PoolKind::First => b.for_each(Extent::constant(width), |b, j| {
            let value = b.load(x, element(Index::int(first), width, j));
            b.store(out, element(b.row(), width, j), value);
        }),
        PoolKind::Mean => {
            let to_the_last = Index::sym(Sym::Rows) + Index::int(first) * -1;
            let count = Index::int(last).plus(1) + Index::int(first) * -1;
            let (a, z, one) = (b.op(NestOp::FromInt(first)), b.op(NestOp::FromInt(last)), b.constant(1.0));
            let distance = b.sub(z, a);
            let rows = b.add(distance, one);
            b.for_each(Extent::constant(width), |b, j| {
                let sum = b.reduce(ReduceKind::Sum, Extent::min(to_the_last, count), |b, i| {
                    b.load(x, (Index::int(first) + Index::axis(i)) * width + Index::axis(j))
                });
                let mean = b.div(sum, rows);
                b.store(out, element(b.row(), width, j), mean);
            });
        }
    }
    Ok(Lowered {
        nest: b.finish(),
        rows: RowCount::Logits,
        args: vec![
            NestArg::Operand(0),
            NestArg::Operand(1),
            NestArg::Input(Input::FirstRows),
            NestArg::Result(0),
        ],
    })
}
