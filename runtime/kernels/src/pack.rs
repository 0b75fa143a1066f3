//! From [`Rows`] to the packed form that kernels read, and back.

use crate::codes::{ATOM_K, RunCodes, run_planes, run_scales};
use bessemer_format::panel::{COLUMNS, LINE, PanelLayout};
use bessemer_format::rows::Rows;
use bessemer_format::{Elem, Offset, ScaleType};
use half::{bf16, f16};

/// Why rows cannot be packed or unpacked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PackError {
    /// The rows are not rows of the layout's matrix.
    #[error("rows in {rows_scheme} with {rows_k} elements do not fit a layout in {scheme} with k = {k}")]
    Mismatch {
        /// Scheme of the rows.
        rows_scheme: String,
        /// Elements of a row.
        rows_k: usize,
        /// Scheme of the layout.
        scheme: String,
        /// Elements of a row of the layout.
        k: usize,
    },
    /// A buffer of another length than the shapes say.
    #[error("{what}: {got} where {want} are needed")]
    Length {
        /// Which buffer, and what is counted.
        what: &'static str,
        /// What was passed.
        got: usize,
        /// What the shapes say.
        want: usize,
    },
    /// A number that its element or scale type does not hold exactly; packing never rounds.
    #[error("row {row}, element {k}: {value} is no {ty}; quantise before packing")]
    Unrepresentable {
        /// Row within the slice.
        row: usize,
        /// Element along k (the first of its group, for a scale or an offset).
        k: usize,
        /// The offending number.
        value: f32,
        /// What it was to be stored as.
        ty: String,
    },
}

/// Packs `rows`, which start at a multiple of 16 of the matrix, into `out`: as many panels as they fill.
///
/// The last panel may hold fewer than 16 rows; the lanes beyond them, and elements beyond k, are stored as zeros.
/// Packing changes no value: a number that the scheme cannot hold is an error, never rounded.
pub fn pack_panels(layout: &PanelLayout, rows: &Rows, out: &mut [u8]) -> Result<(), PackError> {
    check(layout, rows.rows, out.len())?;
    if rows.scheme != *layout.scheme() || rows.k != layout.k() {
        return Err(PackError::Mismatch {
            rows_scheme: rows.scheme.to_string(),
            rows_k: rows.k,
            scheme: layout.scheme().to_string(),
            k: layout.k(),
        });
    }
    let groups = rows.rows * layout.runs();
    let scales = if layout.scheme().scale.is_some() { groups } else { 0 };
    let offsets = if matches!(layout.scheme().offset, Offset::Float(_)) { groups } else { 0 };
    for (what, got, want) in [
        ("codes", rows.codes.len(), rows.rows * rows.k),
        ("scales", rows.scales.len(), scales),
        ("offsets", rows.offsets.len(), offsets),
    ] {
        if got != want {
            return Err(PackError::Length { what, got, want });
        }
    }
    out.fill(0);
    for row in 0..rows.rows {
        let panel = &mut out[row / COLUMNS * layout.panel_bytes()..][..layout.panel_bytes()];
        pack_row(layout, rows, row, panel)?;
    }
    Ok(())
}

/// Reads back the first `rows` rows of `bytes`, whole panels that start at a multiple of 16 rows of the matrix.
///
/// The inverse of [`pack_panels`]: codes, scales and offsets return exactly.
pub fn unpack_panels(layout: &PanelLayout, rows: usize, bytes: &[u8]) -> Result<Rows, PackError> {
    check(layout, rows, bytes.len())?;
    let scheme = *layout.scheme();
    let mut out = Rows {
        scheme,
        rows,
        k: layout.k(),
        codes: Vec::with_capacity(rows * layout.k()),
        scales: Vec::new(),
        offsets: Vec::new(),
    };
    for row in 0..rows {
        let column = row % COLUMNS;
        let panel = &bytes[row / COLUMNS * layout.panel_bytes()..][..layout.panel_bytes()];
        if scheme.elem.is_float() {
            let values = (0..layout.k()).map(|k| layout.code(panel, column, k));
            out.codes.extend(values.map(|v| v.expect("a whole panel holds 16 rows of k elements")));
            continue;
        }
        for r in 0..layout.runs() {
            let codes = RunCodes::new(layout, panel, r);
            let len = layout.run_len(r);
            let lanes = (0..len.div_ceil(ATOM_K)).flat_map(|j| codes.lane(j, column));
            out.codes.extend(lanes.take(len).map(f32::from));
            let (scales, offsets) = run_scales(layout, panel, r);
            out.scales.push(scales[column]);
            if matches!(scheme.offset, Offset::Float(_)) {
                out.offsets.push(offsets[column]);
            }
        }
    }
    Ok(out)
}

fn check(layout: &PanelLayout, rows: usize, bytes: usize) -> Result<(), PackError> {
    let want = rows.div_ceil(COLUMNS) * layout.panel_bytes();
    if rows > layout.n() {
        return Err(PackError::Length { what: "rows", got: rows, want: layout.n() });
    }
    if bytes != want {
        return Err(PackError::Length { what: "packed bytes", got: bytes, want });
    }
    Ok(())
}

fn pack_row(layout: &PanelLayout, rows: &Rows, row: usize, panel: &mut [u8]) -> Result<(), PackError> {
    let column = row % COLUMNS;
    let elem = layout.scheme().elem;
    let codes = &rows.codes[row * rows.k..][..rows.k];
    let bad = |k: usize, value: f32, ty: &dyn std::fmt::Display| PackError::Unrepresentable {
        row,
        k,
        value,
        ty: ty.to_string(),
    };
    match elem {
        Elem::F32 | Elem::F16 | Elem::Bf16 => {
            let ty = match elem {
                Elem::F16 => ScaleType::F16,
                Elem::Bf16 => ScaleType::Bf16,
                _ => ScaleType::F32,
            };
            for (k, &v) in codes.iter().enumerate() {
                if !store(ty, v, &mut panel[layout.float_place(column, k)..]) {
                    return Err(bad(k, v, &elem));
                }
            }
        }
        Elem::U(bits) | Elem::S(bits) => {
            let range = match elem {
                Elem::S(_) => -(1i32 << (bits - 1))..1 << (bits - 1),
                _ => 0..1i32 << bits,
            };
            for (r, codes) in codes.chunks(layout.run()).enumerate() {
                let (planes, count) = run_planes(layout, r);
                let run = &mut panel[layout.run_offset(r)..];
                for (j, four) in codes.chunks(ATOM_K).enumerate() {
                    for (i, &v) in four.iter().enumerate() {
                        let code = v as i32;
                        if code as f32 != v || !range.contains(&code) {
                            return Err(bad(r * layout.run() + ATOM_K * j + i, v, &elem));
                        }
                        for &(base, p) in &planes[..count] {
                            let per_line = (8 / p.bits) as usize;
                            let part = (code as u32 >> p.shift) & ((1 << p.bits) - 1);
                            run[base + j / per_line * LINE + ATOM_K * column + i] |=
                                (part << ((j % per_line) as u32 * p.bits)) as u8;
                        }
                    }
                }
            }
        }
    }
    let Some(levels) = layout.scheme().scale else { return Ok(()) };
    for r in 0..layout.runs() {
        let at = layout.run_offset(r) + layout.run_code_bytes(r);
        let ty = levels.inner.ty;
        let scale = rows.scales[row * layout.runs() + r];
        if !store(ty, scale, &mut panel[at + column * ty.bytes()..]) {
            return Err(bad(r * layout.run(), scale, &ty));
        }
        if let Offset::Float(o) = layout.scheme().offset {
            let ty = o.inner.ty;
            let offset = rows.offsets[row * layout.runs() + r];
            if !store(ty, offset, &mut panel[at + layout.scale_bytes() + column * ty.bytes()..]) {
                return Err(bad(r * layout.run(), offset, &ty));
            }
        }
    }
    Ok(())
}

/// Stores `value` at the head of `out` if `ty` holds it exactly (any NaN counts as held).
fn store(ty: ScaleType, value: f32, out: &mut [u8]) -> bool {
    match ty {
        ScaleType::F32 => out[..4].copy_from_slice(&value.to_le_bytes()),
        ScaleType::F16 => out[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        ScaleType::Bf16 => out[..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
    }
    let held = ty.round(value);
    held.to_bits() == value.to_bits() || (held.is_nan() && value.is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::data::{Random, random_rows};

    #[test]
    fn every_scheme_round_trips() {
        let mut random = Random::new(1);
        let mut schemes: Vec<String> = ["f32", "f16", "bf16"].map(String::from).to_vec();
        for group in [16, 32, 48, 128, 0] {
            for bits in 1..=8 {
                schemes.push(format!("u{bits}:f16x{group}"));
                schemes.push(format!("u{bits}:f32x{group}+bf16"));
                schemes.push(format!("u{bits}:bf16x{group}-{}", 1 << (bits - 1)));
            }
            for bits in 2..=8 {
                schemes.push(format!("s{bits}:f16x{group}"));
            }
        }
        for scheme in schemes {
            for (n, k) in [(1, 1), (16, 128), (20, 72), (33, 300)] {
                let layout = PanelLayout::new(&scheme.parse().unwrap(), n, k).unwrap();
                let rows = random_rows(&mut random, *layout.scheme(), n, k);
                let mut bytes = vec![0xaa; layout.total_bytes()];
                pack_panels(&layout, &rows, &mut bytes).unwrap();
                assert_eq!(unpack_panels(&layout, n, &bytes).unwrap(), rows, "{scheme} {n} x {k}");
                for (row, k) in [(0, 0), (n - 1, k - 1), (n / 2, k / 2)] {
                    assert_eq!(layout.value(&bytes, row, k).unwrap().to_bits(), rows.value(row, k).to_bits());
                }
            }
        }
    }

    #[test]
    fn padding_is_zero() {
        let layout = PanelLayout::new(&"u4:f16x32+f16".parse().unwrap(), 3, 40).unwrap();
        let rows = random_rows(&mut Random::new(2), *layout.scheme(), 3, 40);
        let mut bytes = vec![0xaa; layout.total_bytes()];
        pack_panels(&layout, &rows, &mut bytes).unwrap();
        let wide = PanelLayout::new(layout.scheme(), 16, 40).unwrap();
        for row in 3..16 {
            for k in 0..40 {
                assert_eq!(wide.code(&bytes, row, k), Some(0.0));
                assert_eq!(wide.scale_offset(&bytes, row, k), Some((0.0, 0.0)));
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let layout = PanelLayout::new(&"u4:f16x32".parse().unwrap(), 2, 32).unwrap();
        let good = random_rows(&mut Random::new(3), *layout.scheme(), 2, 32);
        let mut bytes = vec![0; layout.total_bytes()];
        for code in [16.0, -1.0, 0.5, f32::NAN] {
            let mut rows = good.clone();
            rows.codes[33] = code;
            let error = pack_panels(&layout, &rows, &mut bytes).unwrap_err();
            assert!(matches!(error, PackError::Unrepresentable { row: 1, k: 1, .. }), "{error}");
        }
        let mut rows = good.clone();
        rows.scales[1] = 0.1;
        assert!(matches!(
            pack_panels(&layout, &rows, &mut bytes),
            Err(PackError::Unrepresentable { row: 1, k: 0, .. })
        ));
        let mut rows = good.clone();
        rows.scales.pop();
        assert!(matches!(
            pack_panels(&layout, &rows, &mut bytes),
            Err(PackError::Length { what: "scales", got: 1, want: 2 })
        ));
        assert!(matches!(pack_panels(&layout, &good, &mut bytes[1..]), Err(PackError::Length { .. })));
        let other = PanelLayout::new(&"u4:f16x16".parse().unwrap(), 2, 32).unwrap();
        let mut bytes = vec![0; other.total_bytes()];
        assert!(matches!(pack_panels(&other, &good, &mut bytes), Err(PackError::Mismatch { .. })));
    }
}
