//! Rows that calibration has rounded, as bytes: of each row the numbers of its groups, as f32 (scales, offsets, outer scales, outer
//! offsets, as far as the scheme has them), then its codes, as bytes of integers and as f32 of other numbers. Rows can be read one by one,
//! so a mapped file serves.

use bessemer_format::rows::Rows;
use bessemer_format::{Elem, Offset, QuantScheme};
use std::ops::Range;

/// How many numbers of each kind a row has, and the bytes of a code.
struct RowLayout {
    numbers: [usize; 4],
    code: usize,
    bytes: usize,
}

fn row_layout(scheme: &QuantScheme, k: usize) -> RowLayout {
    let groups = k.div_ceil(scheme.group(k));
    let outer = k.div_ceil(scheme.outer_group(k));
    let has = |there: bool, count: usize| if there { count } else { 0 };
    let numbers = [
        groups,
        has(matches!(scheme.offset, Offset::Float(_) | Offset::Zero(_)), groups),
        has(scheme.outer().is_some(), outer),
        has(scheme.outer_offset_type().is_some(), outer),
    ];
    let code = if matches!(scheme.elem, Elem::U(_) | Elem::S(_)) { 1 } else { 4 };
    RowLayout { numbers, code, bytes: 4 * numbers.iter().sum::<usize>() + code * k }
}

/// The bytes of `rows`, which have scales.
pub fn encode(rows: &Rows) -> Vec<u8> {
    let layout = row_layout(&rows.scheme, rows.k);
    let mut out = Vec::with_capacity(rows.rows * layout.bytes);
    let kinds = [&rows.scales, &rows.offsets, &rows.outer_scales, &rows.outer_offsets];
    for r in 0..rows.rows {
        for (numbers, count) in kinds.into_iter().zip(layout.numbers) {
            numbers[r * count..(r + 1) * count].iter().for_each(|v| out.extend(v.to_le_bytes()));
        }
        let codes = &rows.codes[r * rows.k..(r + 1) * rows.k];
        match layout.code {
            // Negative codes wrap, and come back by the scheme's sign.
            1 => out.extend(codes.iter().map(|c| *c as i32 as u8)),
            _ => codes.iter().for_each(|c| out.extend(c.to_le_bytes())),
        }
    }
    out
}

/// The rows of a range.
pub fn decode(scheme: &QuantScheme, k: usize, bytes: &[u8], rows: Range<usize>) -> Result<Rows, String> {
    let layout = row_layout(scheme, k);
    let signed = matches!(scheme.elem, Elem::S(_));
    let mut out = Rows { codes: Vec::with_capacity(rows.len() * k), ..Rows::empty(*scheme, rows.len(), k) };
    for r in rows {
        let row = r.checked_mul(layout.bytes).and_then(|at| bytes.get(at..at.checked_add(layout.bytes)?));
        let row = row.ok_or_else(|| {
            format!("{} bytes of rounded codes end before row {r} of {} bytes", bytes.len(), layout.bytes)
        })?;
        let (numbers, codes) = row.split_at(layout.bytes - layout.code * k);
        let mut numbers = floats(numbers);
        let kinds = [&mut out.scales, &mut out.offsets, &mut out.outer_scales, &mut out.outer_offsets];
        for (kind, count) in kinds.into_iter().zip(layout.numbers) {
            kind.extend(numbers.by_ref().take(count));
        }
        match layout.code {
            1 if signed => out.codes.extend(codes.iter().map(|c| f32::from(*c as i8))),
            1 => out.codes.extend(codes.iter().map(|c| f32::from(*c))),
            _ => out.codes.extend(floats(codes)),
        }
    }
    Ok(out)
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{quantise, uniform};

    #[test]
    fn rows_come_back_alone_and_together() {
        let x: Vec<f32> = (0..4 * 64).map(|i| uniform(3, i)).collect();
        for scheme in [
            "u4:f16x32+f16",
            "s8:f16x32",
            "u8:f16x16+f16",
            "u3:f16x32-4",
            "u4:f16x32-u8",
            "u4:u8x32*f16x64+u8*f16",
            "e4m3:f32x0",
            "iq4:f16x32",
        ] {
            let scheme: QuantScheme = scheme.parse().unwrap();
            let rows = quantise(&scheme, 4, 64, &x);
            let bytes = encode(&rows);
            assert_eq!(decode(&scheme, 64, &bytes, 0..4).unwrap(), rows);
            assert_eq!(decode(&scheme, 64, &bytes, 2..3).unwrap().values(), rows.values()[128..192]);
            assert!(decode(&scheme, 64, &bytes[1..], 0..4).unwrap_err().contains("row 3"));
        }
    }
}
