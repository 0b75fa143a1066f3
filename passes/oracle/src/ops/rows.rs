//! Rows of tables and of activations.

use crate::value::{Tensor, Weight};
use bessemer_ir::attr::PoolKind;
use bessemer_ir::exec::Batch;

/// `embed`: a row of the table for each token.
pub fn embed(tokens: &[u32], table: &Weight) -> Result<Tensor, String> {
    let mut out = Tensor::zeros(tokens.len(), table.k);
    for (r, &token) in tokens.iter().enumerate() {
        if token as usize >= table.rows {
            return Err(format!("token {token} of a vocabulary of {}", table.rows));
        }
        for (o, w) in out.row_mut(r).iter_mut().zip(table.row(token as usize)) {
            *o = f64::from(*w);
        }
    }
    Ok(out)
}

/// `select_rows`: the named rows.
pub fn select(x: &Tensor, rows: &[u32]) -> Result<Tensor, String> {
    let mut out = Tensor::zeros(rows.len(), x.width);
    for (r, &row) in rows.iter().enumerate() {
        if row as usize >= x.rows {
            return Err(format!("row {row} of {}", x.rows));
        }
        out.row_mut(r).copy_from_slice(x.row(row as usize));
    }
    Ok(out)
}

/// `pool`: the mean, or the first, of the rows of a sequence up to each wanted one.
pub fn pool(kind: PoolKind, x: &Tensor, rows: &[u32], batch: &Batch) -> Result<Tensor, String> {
    let mut out = Tensor::zeros(rows.len(), x.width);
    for (r, &row) in rows.iter().enumerate() {
        let row = row as usize;
        if row >= x.rows.min(batch.rows()) {
            return Err(format!("row {row} of {}", x.rows));
        }
        let first = batch.first_row(row);
        let last = if kind == PoolKind::First { first } else { row };
        for i in first..=last {
            let share = 1.0 / (last - first + 1) as f64;
            out.row_mut(r).iter_mut().zip(x.row(i)).for_each(|(o, v)| *o += v * share);
        }
    }
    Ok(out)
}
