//! Reading the codes of a panel with plain Rust: what portable kernels, gathers and unpackers share.

use bessemer_format::panel::{COLUMNS, K_STEP, LINE, Plane, planes};
use bessemer_format::{Elem, Offset, PanelLayout, ScaleType};
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

/// The integer codes of one run.
#[derive(Clone, Copy)]
pub(crate) struct RunCodes<'a> {
    bytes: &'a [u8],
    planes: [(usize, Plane); 4],
    count: usize,
    /// Bits to shift left and back to sign-extend a byte; `None` for unsigned codes.
    sign: Option<u32>,
}

impl<'a> RunCodes<'a> {
    /// The codes of run `r` in `panel`. The element must be an integer.
    #[inline(always)]
    pub(crate) fn new(layout: &PanelLayout, panel: &'a [u8], r: usize) -> Self {
        let bytes = &panel[layout.run_offset(r)..][..layout.run_code_bytes(r)];
        let (planes, count) = run_planes(layout, r);
        let sign = if let Elem::S(b) = layout.scheme().elem { Some(8 - u32::from(b)) } else { None };
        Self { bytes, planes, count, sign }
    }

    /// Atom `j`: the code of column `c` and element `4 * j + i` at `[4 * c + i]`.
    #[inline(always)]
    pub(crate) fn atom(&self, j: usize) -> [i16; LINE] {
        self.part(j, 0)
    }

    /// The lane of one column in atom `j`: elements `4 * j ..`.
    #[inline(always)]
    pub(crate) fn lane(&self, j: usize, column: usize) -> [i16; ATOM_K] {
        self.part(j, ATOM_K * column)
    }

    /// `N` codes of atom `j` from position `at`: the planes' parts put together, and the sign extended.
    #[inline(always)]
    fn part<const N: usize>(&self, j: usize, at: usize) -> [i16; N] {
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
        match self.sign {
            None => codes.map(i16::from),
            Some(s) => codes.map(|c| i16::from(((c << s) as i8) >> s)),
        }
    }
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
    }
    out
}

/// The scales and floating offsets of run `r` (1 and 0 where the scheme has none).
#[inline(always)]
pub(crate) fn run_scales(layout: &PanelLayout, panel: &[u8], r: usize) -> ([f32; COLUMNS], [f32; COLUMNS]) {
    let Some(levels) = layout.scheme().scale else { return ([1.0; COLUMNS], [0.0; COLUMNS]) };
    let at = layout.run_offset(r) + layout.run_code_bytes(r);
    let scale = read16(levels.inner.ty, &panel[at..][..layout.scale_bytes()]);
    let offset = match layout.scheme().offset {
        Offset::Float(o) => read16(o.inner.ty, &panel[at + layout.scale_bytes()..][..layout.offset_bytes()]),
        _ => [0.0; COLUMNS],
    };
    (scale, offset)
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
