//! Where the bytes of a packed matrix lie.
//!
//! A matrix `W[n][k]` (output rows by input elements) is cut into panels of [`COLUMNS`] output rows, which are the
//! columns of the register tile that a kernel computes. Along k a panel is a sequence of *runs*, one a scale group:
//!
//! ```text
//! matrix = panel 0 | panel 1 | …                      each panel 64-byte aligned, ceil(n / 16) of them
//! panel  = run 0 | run 1 | … | outer | padding to 64  ceil(k / group) runs, the last one may be short
//! run    = codes | scales[16] | offsets[16]           scales and offsets lie beside the codes they belong to
//! outer  = (scales[16] | offsets[16]) a group of the outer level, for schemes that have one
//! ```
//!
//! Codes of up to 8 bits lie in *atoms* of 4 consecutive k by 16 columns (byte `4 * column + k % 4`), which is the
//! operand of `vpdpbusd`, of an AMX B tile and (after a zip) of `smmla`. Sub-byte codes are split into bit planes of
//! 4, 2 and 1 bits (6 = 4 + 2); a 64-byte line of a plane of `p` bits holds `8 / p` consecutive atoms, atom `j` in
//! the bits `p * j ..`, so that one shift and one mask yield whole atoms. Wider planes come first in a run.
//! 16-bit elements lie in atoms of 2 k by 16 columns, 32-bit ones in atoms of 1 k by 16.
//!
//! Rows beyond n and elements beyond k are stored as code, scale and offset zero. A kernel therefore multiplies
//! padding with activations that it must have padded with zeros.

use crate::scheme::{Elem, QuantScheme, ScaleType};

/// Output rows of a panel: the columns of a kernel's tile.
pub const COLUMNS: usize = 16;
/// Bytes of an atom, and the alignment of a panel.
pub const LINE: usize = 64;
/// Elements along k that a short run is padded to.
pub const K_STEP: usize = 16;

/// One bit plane of sub-byte codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// Bits of the plane: 8, 4, 2 or 1.
    pub bits: u32,
    /// Position of the plane's lowest bit in the code.
    pub shift: u32,
}

/// The shape of a packed matrix: every offset a kernel or packer needs, all in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PanelLayout {
    scheme: QuantScheme,
    n: usize,
    k: usize,
    run: usize,
    runs: usize,
    code_bytes: usize,
    last_code_bytes: usize,
    scale_bytes: usize,
    offset_bytes: usize,
    outer: Option<OuterLayout>,
    panel_bytes: usize,
}

/// Where the outer level of two-level scales lies in a panel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OuterLayout {
    /// Offset of the first group from the panel's start.
    at: usize,
    /// Runs that share a group.
    runs: usize,
    /// Types of the scales, and of the offsets if they have two levels.
    scale: ScaleType,
    offset: Option<ScaleType>,
}

impl OuterLayout {
    const fn scale_bytes(&self) -> usize {
        self.scale.bytes() * COLUMNS
    }

    fn group_bytes(&self) -> usize {
        self.scale_bytes() + self.offset.map_or(0, ScaleType::bytes) * COLUMNS
    }
}

/// The 16 outer scales of a run, and the 16 outer offsets where offsets have two levels: type, and offset from the panel's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// The scales.
    pub scale: (ScaleType, usize),
    /// The offsets.
    pub offset: Option<(ScaleType, usize)>,
}

/// The planes of a code of `bits` bits, widest first. Widest planes hold the highest bits.
pub fn planes(bits: u32) -> impl Iterator<Item = Plane> {
    let mut shift = bits;
    [8, 4, 2, 1].into_iter().filter(move |p| bits & p != 0).map(move |p| {
        shift -= p;
        Plane { bits: p, shift }
    })
}

/// Atoms-per-line packing of one plane: lines for `k` elements.
const fn plane_lines(bits: u32, k: usize) -> usize {
    let atoms = k.div_ceil(4);
    atoms.div_ceil((8 / bits) as usize)
}

impl PanelLayout {
    /// The layout of an `n` by `k` matrix in `scheme`. Errors for schemes that do not pack, and for sizes whose
    /// bytes do not fit a 47-bit offset.
    pub fn new(scheme: &QuantScheme, n: usize, k: usize) -> Result<Self, String> {
        scheme.check()?;
        if n == 0 || k == 0 || n > 1 << 28 || k > 1 << 24 {
            return Err(format!(
                "a packed matrix of {n} x {k} is out of range (n <= 2^28, k <= 2^24, both above 0)"
            ));
        }
        let run = scheme.group(k);
        let runs = k.div_ceil(run);
        let last = k - (runs - 1) * run;
        let code = |k: usize| -> usize {
            let k = k.next_multiple_of(K_STEP);
            match scheme.elem {
                Elem::F32 => k * COLUMNS * 4,
                Elem::F16 | Elem::Bf16 => k * COLUMNS * 2,
                elem => planes(elem.bits()).map(|p| plane_lines(p.bits, k) * LINE).sum::<usize>(),
            }
        };
        let scale_bytes = scheme.scale.map_or(0, |s| s.inner.ty.bytes() * COLUMNS);
        let offset_bytes = scheme.offset_type().map_or(0, ScaleType::bytes) * COLUMNS;
        let (code_bytes, last_code_bytes) = (code(run), code(last));
        let side = scale_bytes + offset_bytes;
        let runs_end = (runs - 1) * (code_bytes + side) + last_code_bytes + side;
        let outer_group = scheme.outer_group(k);
        let outer = scheme.outer().map(|outer| OuterLayout {
            at: runs_end,
            runs: if outer_group >= k { runs } else { outer_group / run },
            scale: outer.ty,
            offset: scheme.outer_offset_type(),
        });
        let outer_bytes = outer.as_ref().map_or(0, |o| k.div_ceil(outer_group) * o.group_bytes());
        let panel_bytes = (runs_end + outer_bytes).next_multiple_of(LINE);
        Ok(Self {
            scheme: *scheme,
            n,
            k,
            run,
            runs,
            code_bytes,
            last_code_bytes,
            scale_bytes,
            offset_bytes,
            outer,
            panel_bytes,
        })
    }

    /// What the codes mean.
    pub fn scheme(&self) -> &QuantScheme {
        &self.scheme
    }
    /// Output rows of the matrix.
    pub fn n(&self) -> usize {
        self.n
    }
    /// Input elements of the matrix.
    pub fn k(&self) -> usize {
        self.k
    }
    /// Panels of 16 output rows.
    pub fn panels(&self) -> usize {
        self.n.div_ceil(COLUMNS)
    }
    /// Bytes from one panel to the next.
    pub fn panel_bytes(&self) -> usize {
        self.panel_bytes
    }
    /// Bytes of the whole matrix.
    pub fn total_bytes(&self) -> usize {
        self.panel_bytes * self.panels()
    }
    /// Elements along k of a full run: the scale group.
    pub fn run(&self) -> usize {
        self.run
    }
    /// Runs along k.
    pub fn runs(&self) -> usize {
        self.runs
    }
    /// Elements along k that run `r` really holds (the last one may be short).
    pub fn run_len(&self, r: usize) -> usize {
        self.run.min(self.k - r * self.run)
    }
    /// Offset of run `r` from the start of its panel.
    pub fn run_offset(&self, r: usize) -> usize {
        r * (self.code_bytes + self.scale_bytes + self.offset_bytes)
    }
    /// Bytes of the codes of run `r`; the scales follow them.
    pub fn run_code_bytes(&self, r: usize) -> usize {
        if r + 1 == self.runs { self.last_code_bytes } else { self.code_bytes }
    }
    /// Bytes of a run's 16 scales (0 for floating-point elements).
    pub fn scale_bytes(&self) -> usize {
        self.scale_bytes
    }
    /// Bytes of a run's 16 floating offsets or zero points (0 where the scheme has none).
    pub fn offset_bytes(&self) -> usize {
        self.offset_bytes
    }
    /// The outer level that run `r` belongs to, for schemes that have one.
    #[inline]
    pub fn outer(&self, r: usize) -> Option<Outer> {
        self.outer.as_ref().map(|o| {
            let at = o.at + r / o.runs * o.group_bytes();
            Outer { scale: (o.scale, at), offset: o.offset.map(|ty| (ty, at + o.scale_bytes())) }
        })
    }
    /// The group of the outer level that run `r` belongs to (0 without one), and how many there are.
    pub fn outer_group(&self, r: usize) -> (usize, usize) {
        self.outer.as_ref().map_or((0, 1), |o| (r / o.runs, self.runs.div_ceil(o.runs)))
    }
    /// k rounded up so that every run ends on a multiple of 16 elements: the length of a padded activation row.
    pub fn padded_k(&self) -> usize {
        (self.runs - 1) * self.run + self.run_len(self.runs - 1).next_multiple_of(K_STEP)
    }

    /// Where code `(column, k)` of a run lies: for each plane the byte from the run's start, the shift in that byte,
    /// and the plane.
    pub fn code_places(
        &self,
        r: usize,
        column: usize,
        k_in_run: usize,
    ) -> impl Iterator<Item = (usize, u32, Plane)> + use<> {
        let padded = self.run_len(r).next_multiple_of(K_STEP);
        let bits = self.scheme.elem.bits();
        let atom = k_in_run / 4;
        let lane = 4 * column + k_in_run % 4;
        let mut base = 0;
        planes(bits).map(move |p| {
            let per_line = (8 / p.bits) as usize;
            let at = base + (atom / per_line) * LINE + lane;
            base += plane_lines(p.bits, padded) * LINE;
            (at, (atom % per_line) as u32 * p.bits, p)
        })
    }

    /// Where the 16- or 32-bit element `(column, k)` lies, from the panel's start.
    pub fn float_place(&self, column: usize, k: usize) -> usize {
        match self.scheme.elem {
            Elem::F32 => (k * COLUMNS + column) * 4,
            _ => ((k / 2) * COLUMNS * 2 + column * 2 + k % 2) * 2,
        }
    }

    /// The raw code of `(row, k)` in packed `bytes`, as the number it stands for (two's complement resolved,
    /// floats widened). `None` when out of range or when `bytes` is too short.
    pub fn code(&self, bytes: &[u8], row: usize, k: usize) -> Option<f32> {
        if row >= self.n || k >= self.k {
            return None;
        }
        let panel = bytes.get((row / COLUMNS) * self.panel_bytes..)?;
        let column = row % COLUMNS;
        match self.scheme.elem {
            Elem::F32 => Some(ScaleType::F32.read(panel.get(self.float_place(column, k)..)?.get(..4)?)),
            Elem::F16 => Some(ScaleType::F16.read(panel.get(self.float_place(column, k)..)?.get(..2)?)),
            Elem::Bf16 => Some(ScaleType::Bf16.read(panel.get(self.float_place(column, k)..)?.get(..2)?)),
            elem => {
                let r = k / self.run;
                let codes = panel.get(self.run_offset(r)..)?;
                let mut code = 0u32;
                for (at, shift, plane) in self.code_places(r, column, k % self.run) {
                    let part = (u32::from(*codes.get(at)?) >> shift) & ((1 << plane.bits) - 1);
                    code |= part << plane.shift;
                }
                Some(elem.number(code))
            }
        }
    }

    /// The scale and the floating offset (0 where there is none) of `(row, k)` in packed `bytes`, by [`QuantScheme::combine`].
    pub fn scale_offset(&self, bytes: &[u8], row: usize, k: usize) -> Option<(f32, f32)> {
        let Some(levels) = self.scheme.scale else { return Some((1.0, 0.0)) };
        if row >= self.n || k >= self.k {
            return None;
        }
        let r = k / self.run;
        let panel = bytes.get((row / COLUMNS) * self.panel_bytes..)?;
        let read = |ty: ScaleType, at: usize| -> Option<f32> {
            let at = at + row % COLUMNS * ty.bytes();
            Some(ty.read(panel.get(at..at + ty.bytes())?))
        };
        let side = self.run_offset(r) + self.run_code_bytes(r);
        let scale = read(levels.inner.ty, side)?;
        let offset = match self.scheme.offset_type() {
            Some(ty) => read(ty, side + self.scale_bytes)?,
            None => 0.0,
        };
        let (mut outer_scale, mut outer_offset) = (1.0, 1.0);
        if let Some(outer) = self.outer(r) {
            outer_scale = read(outer.scale.0, outer.scale.1)?;
            if let Some((ty, at)) = outer.offset {
                outer_offset = read(ty, at)?;
            }
        }
        Some(self.scheme.combine(scale, outer_scale, offset, outer_offset))
    }

    /// The value of `W[row][k]`: code, scale and offset through [`QuantScheme::dequant`]. Slow and obvious.
    pub fn value(&self, bytes: &[u8], row: usize, k: usize) -> Option<f32> {
        let (scale, offset) = self.scale_offset(bytes, row, k)?;
        Some(self.scheme.dequant(self.code(bytes, row, k)?, scale, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_cover_every_bit_once() {
        for bits in 1..=8 {
            let mut seen = 0u32;
            for p in planes(bits) {
                let mask = ((1 << p.bits) - 1) << p.shift;
                assert_eq!(seen & mask, 0);
                seen |= mask;
            }
            assert_eq!(seen, (1 << bits) - 1, "{bits} bits");
        }
    }

    #[test]
    fn q4_run_is_the_documented_size() {
        let l = PanelLayout::new(&QuantScheme::Q4_0, 4096, 4096).unwrap();
        assert_eq!(l.run_offset(1), 256 + 32);
        assert_eq!(l.total_bytes() * 8, 4096 * 4096 * 9 / 2);
        let l = PanelLayout::new(&QuantScheme::Q4_1, 17, 40).unwrap();
        assert_eq!((l.runs(), l.run_len(1), l.run_code_bytes(1), l.panels()), (2, 8, 128, 2));
        assert_eq!(l.padded_k(), 48);
    }

    #[test]
    fn outer_scales_follow_the_runs() {
        let l = PanelLayout::new(&QuantScheme::Q4_K, 16, 600).unwrap();
        // 19 runs of 4 bits with two bytes of scales a column; three groups of two halves.
        assert_eq!((l.runs(), l.run_offset(1), l.outer_group(18)), (19, 256 + 32, (2, 3)));
        let end = l.run_offset(18) + l.run_code_bytes(18) + 32;
        let outer = l.outer(8).unwrap();
        assert_eq!(
            (outer.scale, outer.offset),
            ((ScaleType::F16, end + 64), Some((ScaleType::F16, end + 96)))
        );
        assert_eq!(l.panel_bytes(), (end + 3 * 64).next_multiple_of(64));
        let l = PanelLayout::new(&QuantScheme::NVFP4, 16, 600).unwrap();
        assert_eq!((l.outer_group(37), l.outer(37)), ((0, 1), l.outer(0)));
    }

    #[test]
    fn places_never_collide() {
        for scheme in
            ["u3:f16x32", "u5:f16x48", "s6:f32x16", "u4:f16x32", "s8:f16x0", "u1:f16x16", "e2m1:e8m0x32"]
        {
            let l = PanelLayout::new(&scheme.parse().unwrap(), 20, 72).unwrap();
            let mut seen = std::collections::BTreeSet::new();
            for r in 0..l.runs() {
                for c in 0..COLUMNS {
                    for k in 0..l.run_len(r) {
                        for (at, shift, p) in l.code_places(r, c, k) {
                            assert!(at < l.run_code_bytes(r), "{scheme}");
                            for b in 0..p.bits {
                                assert!(seen.insert((r, at, shift + b)), "{scheme} {r} {c} {k}");
                            }
                        }
                    }
                }
            }
        }
    }
}
