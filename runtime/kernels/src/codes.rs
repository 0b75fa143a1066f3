//! Reading the codes of a panel with plain Rust: what portable kernels, gathers and unpackers share.

use bessemer_format::panel::{COLUMNS, K_STEP, LINE, Plane, planes};
use bessemer_format::{Elem, PanelLayout, ScaleType};
use half::{bf16, f16};

/// Elements along k of an atom of codes of up to 8 bits.
pub(crate) const ATOM_K: usize = 4;

/// The bit planes of run `r`, each with its offset from the run's start, and how many there are.
#[inline(always)]
pub(crate) fn run_planes(layout: &PanelLayout, r: usize) -> ([(usize, Plane); 4], usize) {
    let atoms = layout.run_len(r).next_multiple_of(K_STEP) / ATOM_K;
    let mut list = [(0, Plane { bits: 8, shift: 0 }); 4];
    let (mut base, mut count) = (0, 0);
    for p in planes(layout.scheme().elem.bits()) {
        list[count] = (base, p);
        count += 1;
        base += atoms.div_ceil(8 / p.bits as usize) * LINE;
    }
    (list, count)
}

/// The codes of one run, of up to 8 bits.
#[derive(Clone, Copy)]
pub(crate) struct RunCodes<'a> {
    bytes: &'a [u8],
    planes: [(usize, Plane); 4],
    count: usize,
    elem: Elem,
}

impl<'a> RunCodes<'a> {
    /// The codes of run `r` in `panel`. The element must be one that is scaled.
    #[inline(always)]
    pub(crate) fn new(layout: &PanelLayout, panel: &'a [u8], r: usize) -> Self {
        let bytes = &panel[layout.run_offset(r)..][..layout.run_code_bytes(r)];
        let (planes, count) = run_planes(layout, r);
        Self { bytes, planes, count, elem: layout.scheme().elem }
    }

    /// Atom `j` in integers, for elements that are multiples of [`Elem::unit`]: that of column `c` and element `4 * j + i` at
    /// `[4 * c + i]`.
    #[inline(always)]
    pub(crate) fn integers(&self, j: usize) -> [i16; LINE] {
        let codes = self.part(j, 0);
        match (self.elem, self.elem.integers()) {
            (Elem::S(bits), _) => codes.map(|c| i16::from(extend(c, bits))),
            (_, Some(table)) => codes.map(|c| i16::from(table[usize::from(c & 15)])),
            _ => codes.map(i16::from),
        }
    }

    /// Atom `j` in numbers, in the same order.
    #[inline(always)]
    pub(crate) fn atom(&self, j: usize) -> [f32; LINE] {
        self.numbers(j, 0)
    }

    /// The numbers of one column in atom `j`: elements `4 * j ..`.
    #[inline(always)]
    pub(crate) fn lane(&self, j: usize, column: usize) -> [f32; ATOM_K] {
        self.numbers(j, ATOM_K * column)
    }

    #[inline(always)]
    fn numbers<const N: usize>(&self, j: usize, at: usize) -> [f32; N] {
        let codes = self.part(j, at);
        match (self.elem, self.elem.numbers()) {
            (Elem::S(bits), _) => codes.map(|c| f32::from(extend(c, bits))),
            (_, Some(table)) => codes.map(|c| table[usize::from(c)]),
            _ => codes.map(f32::from),
        }
    }

    /// `N` codes of atom `j` from position `at`: the planes' parts put together.
    #[inline(always)]
    fn part<const N: usize>(&self, j: usize, at: usize) -> [u8; N] {
        let mut codes = [0u8; N];
        for &(base, p) in &self.planes[..self.count] {
            let per_line = (8 / p.bits) as usize;
            let line = &self.bytes[base + j / per_line * LINE + at..][..N];
            let shift = (j % per_line) as u32 * p.bits;
            let mask = (0xffu32 >> (8 - p.bits)) as u8;
            for (code, &byte) in codes.iter_mut().zip(line) {
                *code |= ((byte >> shift) & mask) << p.shift;
            }
        }
        codes
    }
}

/// Extends the sign of a code of `bits` bits.
#[inline(always)]
fn extend(code: u8, bits: u8) -> i8 {
    ((code << (8 - bits)) as i8) >> (8 - bits)
}

/// Sixteen scales (or offsets) at the head of `bytes`.
#[inline(always)]
pub(crate) fn read16(ty: ScaleType, bytes: &[u8]) -> [f32; COLUMNS] {
    let mut out = [0.0; COLUMNS];
    match ty {
        ScaleType::F32 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
        ScaleType::F16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = f16::from_le_bytes(*b).to_f32();
            }
        }
        ScaleType::Bf16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = bf16::from_le_bytes(*b).to_f32();
            }
        }
        ScaleType::U8 | ScaleType::S8 | ScaleType::E4M3 | ScaleType::E8M0 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<1>().0) {
                *o = ty.read(b);
            }
        }
    }
    out
}

/// The scales and floating offsets of run `r` by [`bessemer_format::QuantScheme::combine`] (1 and 0 where the scheme has none).
#[inline(always)]
pub(crate) fn run_scales(layout: &PanelLayout, panel: &[u8], r: usize) -> ([f32; COLUMNS], [f32; COLUMNS]) {
    let scheme = layout.scheme();
    let Some(levels) = scheme.scale else { return ([1.0; COLUMNS], [0.0; COLUMNS]) };
    let at = layout.run_offset(r) + layout.run_code_bytes(r);
    let mut scale = read16(levels.inner.ty, &panel[at..][..layout.scale_bytes()]);
    let mut offset = match scheme.offset_type() {
        Some(ty) => read16(ty, &panel[at + layout.scale_bytes()..][..layout.offset_bytes()]),
        None => [0.0; COLUMNS],
    };
    let (mut outer_scale, mut outer_offset) = ([1.0; COLUMNS], [1.0; COLUMNS]);
    if let Some(outer) = layout.outer(r) {
        let (ty, at) = outer.scale;
        outer_scale = read16(ty, &panel[at..][..COLUMNS * ty.bytes()]);
        if let Some((ty, at)) = outer.offset {
            outer_offset = read16(ty, &panel[at..][..COLUMNS * ty.bytes()]);
        }
    }
    for c in 0..COLUMNS {
        (scale[c], offset[c]) = scheme.combine(scale[c], outer_scale[c], offset[c], outer_offset[c]);
    }
    (scale, offset)
}

/// As [`run_scales`], with the scale of the integers that an integer product multiplies.
#[inline(always)]
pub(crate) fn run_integer_scales(
    layout: &PanelLayout,
    panel: &[u8],
    r: usize,
) -> ([f32; COLUMNS], [f32; COLUMNS]) {
    let unit = layout.scheme().elem.unit().unwrap_or(1.0);
    let (scale, offset) = run_scales(layout, panel, r);
    (scale.map(|s| s * unit), offset)
}

/// The values of 16 elements along k from `k0` (a multiple of 16) of a panel of floating-point elements.
#[inline(always)]
pub(crate) fn float_step(layout: &PanelLayout, panel: &[u8], k0: usize, out: &mut [[f32; COLUMNS]; K_STEP]) {
    match layout.scheme().elem {
        Elem::F32 => {
            let lines = &panel[k0 * COLUMNS * 4..][..K_STEP * COLUMNS * 4];
            for (row, line) in out.iter_mut().zip(lines.as_chunks::<64>().0) {
                *row = read16(ScaleType::F32, line);
            }
        }
        elem => {
            let lines = &panel[k0 * COLUMNS * 2..][..K_STEP * COLUMNS * 2];
            for (j, line) in lines.as_chunks::<LINE>().0.iter().enumerate() {
                for (c, pair) in line.as_chunks::<4>().0.iter().enumerate() {
                    let pair = [[pair[0], pair[1]], [pair[2], pair[3]]];
                    for (i, b) in pair.into_iter().enumerate() {
                        out[2 * j + i][c] = match elem {
                            Elem::F16 => f16::from_le_bytes(b).to_f32(),
                            _ => f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16),
                        };
                    }
                }
            }
        }
    }
}
