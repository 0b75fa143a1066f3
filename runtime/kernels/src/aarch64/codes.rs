//! Unpacking of integer codes to signed bytes.

use super::QUARTERS;
use crate::codes::run_planes;
use bessemer_format::panel::LINE;
use bessemer_format::{Elem, PanelLayout};
use std::arch::aarch64::*;

/// How codes become signed bytes: a byte is the code's bits with some of them flipped, and the code is the byte less
/// the bias. Every width and sign takes this one form, whose bias joins the constant offset that a scheme may have.
#[derive(Clone, Copy)]
pub(super) struct SignedBytes {
    flip: u8,
    /// What is subtracted from a byte to give the code.
    pub(super) bias: i32,
}

impl SignedBytes {
    pub(super) fn of(elem: Elem) -> Self {
        match elem {
            // c = (c ^ 128 as a signed byte) + 128
            Elem::U(8) => Self { flip: 0x80, bias: -128 },
            // Two's complement of b bits: c = (bits ^ s) - s, with s the value of the sign bit.
            Elem::S(b) if b < 8 => Self { flip: 1 << (b - 1), bias: 1 << (b - 1) },
            _ => Self { flip: 0, bias: 0 },
        }
    }
}

/// The codes of one run, of `BITS` bits.
#[derive(Clone, Copy)]
pub(super) struct RunBytes<const BITS: u32> {
    planes: [*const u8; 4],
    flip: u8,
}

impl<const BITS: u32> RunBytes<BITS> {
    /// The codes of run `r` in `panel`, whose elements are integers of `BITS` bits.
    #[inline]
    pub(super) fn new(layout: &PanelLayout, panel: &[u8], r: usize) -> Self {
        let codes = &panel[layout.run_offset(r)..][..layout.run_code_bytes(r)];
        let (list, _) = run_planes(layout, r);
        // Places beyond the last plane keep offset 0 and are not read.
        let planes = list.map(|(base, _)| codes[base..].as_ptr());
        Self { planes, flip: SignedBytes::of(layout.scheme().elem).flip }
    }

    /// Atom `j`: element `4 * j + i` of column `c` at byte `4 * c + i`, as [`SignedBytes`] says.
    ///
    /// # Safety
    /// The run has that atom, and the panel that it was made of is alive.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn atom(&self, j: usize) -> [int8x16_t; QUARTERS] {
        let mut bytes = [vdupq_n_u8(self.flip); QUARTERS];
        let (mut plane, mut shift) = (0, BITS);
        for bits in [8, 4, 2, 1] {
            if BITS & bits == 0 {
                continue;
            }
            shift -= bits;
            let per_line = 8 / bits as usize;
            let down = vdupq_n_s8(-((j % per_line) as i8 * bits as i8));
            let mask = vdupq_n_u8((0xff_u32 >> (8 - bits)) as u8);
            for q in 0..QUARTERS {
                // SAFETY: a plane holds a line of every `per_line` atoms of the run.
                let line = unsafe { vld1q_u8(self.planes[plane].add(j / per_line * LINE + 16 * q)) };
                let part = if bits == 8 { line } else { vandq_u8(vshlq_u8(line, down), mask) };
                let part = if shift == 0 { part } else { vshlq_u8(part, vdupq_n_s8(shift as i8)) };
                bytes[q] = veorq_u8(bytes[q], part);
            }
            plane += 1;
        }
        bytes.map(|b| vreinterpretq_s8_u8(b))
    }
}
