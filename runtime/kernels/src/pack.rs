//! From [`Rows`] to the packed form that kernels read, and back.

use crate::codes::{ATOM_K, RunCodes, run_planes};
use bessemer_format::panel::{COLUMNS, LINE, PanelLayout};
use bessemer_format::rows::Rows;
use bessemer_format::{Elem, ScaleType};

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
    let outer_groups = rows.rows * layout.outer_group(0).1;
    let scheme = layout.scheme();
    let count = |there: bool, n: usize| if there { n } else { 0 };
    for (what, got, want) in [
        ("codes", rows.codes.len(), rows.rows * rows.k),
        ("scales", rows.scales.len(), count(scheme.scale.is_some(), groups)),
        ("offsets", rows.offsets.len(), count(scheme.offset_type().is_some(), groups)),
        ("outer scales", rows.outer_scales.len(), count(scheme.outer().is_some(), outer_groups)),
        (
            "outer offsets",
            rows.outer_offsets.len(),
            count(scheme.outer_offset_type().is_some(), outer_groups),
        ),
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
    let mut out =
        Rows { codes: Vec::with_capacity(rows * layout.k()), ..Rows::empty(scheme, rows, layout.k()) };
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
            out.codes.extend(lanes.take(len));
        }
        let read = |ty: ScaleType, at: usize| ty.read(&panel[at + column * ty.bytes()..][..ty.bytes()]);
        each_side(layout, |field, ty, at, _, _| match field {
            Side::Scale => out.scales.push(read(ty, at)),
            Side::Offset => out.offsets.push(read(ty, at)),
            Side::OuterScale => out.outer_scales.push(read(ty, at)),
            Side::OuterOffset => out.outer_offsets.push(read(ty, at)),
        });
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
                if !ty.store(v, &mut panel[layout.float_place(column, k)..]) {
                    return Err(bad(k, v, &elem));
                }
            }
        }
        elem => {
            for (r, codes) in codes.chunks(layout.run()).enumerate() {
                let (planes, count) = run_planes(layout, r);
                let run = &mut panel[layout.run_offset(r)..];
                for (j, four) in codes.chunks(ATOM_K).enumerate() {
                    for (i, &v) in four.iter().enumerate() {
                        let Some(code) = elem.code(v) else {
                            return Err(bad(r * layout.run() + ATOM_K * j + i, v, &elem));
                        };
                        for &(base, p) in &planes[..count] {
                            let per_line = (8 / p.bits) as usize;
                            let part = (code >> p.shift) & ((1 << p.bits) - 1);
                            run[base + j / per_line * LINE + ATOM_K * column + i] |=
                                (part << ((j % per_line) as u32 * p.bits)) as u8;
                        }
                    }
                }
            }
        }
    }
    let mut result = Ok(());
    each_side(layout, |field, ty, at, group, r| {
        let (numbers, groups) = match field {
            Side::Scale => (&rows.scales, layout.runs()),
            Side::Offset => (&rows.offsets, layout.runs()),
            Side::OuterScale => (&rows.outer_scales, layout.outer_group(0).1),
            Side::OuterOffset => (&rows.outer_offsets, layout.outer_group(0).1),
        };
        let number = numbers[row * groups + group];
        if !ty.store(number, &mut panel[at + column * ty.bytes()..]) && result.is_ok() {
            result = Err(bad(r * layout.run(), number, &ty));
        }
    });
    result
}

/// What lies beside the codes.
#[derive(Clone, Copy)]
enum Side {
    Scale,
    Offset,
    OuterScale,
    OuterOffset,
}

/// Calls `f` for everything beside the codes of a panel: what it is, its type, the offset of its 16 numbers from the panel's
/// start, its group, and the group's first run.
fn each_side(layout: &PanelLayout, mut f: impl FnMut(Side, ScaleType, usize, usize, usize)) {
    let Some(levels) = layout.scheme().scale else { return };
    for r in 0..layout.runs() {
        let at = layout.run_offset(r) + layout.run_code_bytes(r);
        f(Side::Scale, levels.inner.ty, at, r, r);
        if let Some(ty) = layout.scheme().offset_type() {
            f(Side::Offset, ty, at + layout.scale_bytes(), r, r);
        }
        let (group, _) = layout.outer_group(r);
        let first = r == 0 || layout.outer_group(r - 1).0 != group;
        if let Some(outer) = layout.outer(r).filter(|_| first) {
            f(Side::OuterScale, outer.scale.0, outer.scale.1, group, r);
            if let Some((ty, at)) = outer.offset {
                f(Side::OuterOffset, ty, at, group, r);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::data::{Random, random_rows};
    use bessemer_format::QuantScheme;

    #[test]
    fn every_scheme_round_trips() {
        let mut random = Random::new(1);
        let mut schemes: Vec<String> = ["f32", "f16", "bf16"].map(String::from).to_vec();
        for group in [16, 32, 48, 64, 96, 128, 256, 0] {
            for bits in 1..=8 {
                schemes.push(format!("u{bits}:f16x{group}"));
                schemes.push(format!("u{bits}:f32x{group}+bf16"));
                schemes.push(format!("u{bits}:bf16x{group}-{}", 1 << (bits - 1)));
            }
            for bits in 2..=8 {
                schemes.push(format!("s{bits}:f16x{group}"));
            }
            for elem in ["e4m3", "e5m2", "e2m1", "iq4"] {
                schemes.push(format!("{elem}:bf16x{group}"));
                schemes.push(format!("{elem}:e8m0x{group}"));
            }
        }
        for scheme in [
            QuantScheme::Q2_K,
            QuantScheme::Q3_K,
            QuantScheme::Q4_K,
            QuantScheme::Q5_K,
            QuantScheme::Q6_K,
            QuantScheme::IQ4_NL,
            QuantScheme::IQ4_XS,
            QuantScheme::MXFP4,
            QuantScheme::NVFP4,
        ] {
            schemes.push(scheme.to_string());
        }
        for bits in 1..=8 {
            schemes.push(format!("u{bits}:u8x32*f16x256+u8*f16"));
            schemes.push(format!("u{bits}:u8x48*bf16x96-u8"));
            schemes.push(format!("u{bits}:s8x16*f32x0+s8*f16"));
            schemes.push(format!("u{bits}:f16x64-s8"));
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
