//! Rows of tables and of activations.

use crate::value::{Tensor, Weight};

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
