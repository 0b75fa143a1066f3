//! Unpacking of integer codes to signed bytes.

use super::QUARTERS;
use bessemer_format::panel::{K_STEP, LINE};
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
///
/// Its methods are always inlined and have no loops over planes, so that shifts and masks become constants. Such functions
/// cannot declare target features, but every host of this architecture has theirs.
#[derive(Clone, Copy)]
pub(super) struct RunBytes<const BITS: u32> {
    /// The planes of 8 or 4, of 2 and of 1 bits, as far as the width has them.
    planes: [*const u8; 3],
    flip: u8,
}

impl<const BITS: u32> RunBytes<BITS> {
    /// The codes of run `r` in `panel`, whose elements are integers of `BITS` bits.
    ///
    /// # Safety
    /// `panel` is as long as `layout` says.
    #[inline(always)]
    pub(super) unsafe fn new(layout: &PanelLayout, panel: &[u8], r: usize) -> Self {
        let steps = layout.run_len(r).div_ceil(K_STEP);
        // A step is of 4 atoms, of which a line holds 8 / bits: two lines of nibbles and one of pairs of bits.
        let nibbles = if BITS & 4 != 0 { 2 * steps * LINE } else { 0 };
        let pairs = if BITS & 2 != 0 { steps * LINE } else { 0 };
        // SAFETY: the run and its planes lie inside the panel; without further planes the sums are still at most its end.
        let planes = unsafe {
            let codes = panel.as_ptr().add(layout.run_offset(r));
            [codes, codes.add(nibbles), codes.add(nibbles + pairs)]
        };
        Self { planes, flip: SignedBytes::of(layout.scheme().elem).flip }
    }

    /// Atom `i`, 0 to 3, of a step of 16 elements along k: element `16 * step + 4 * i + e` of column `c` at byte
    /// `4 * c + e`, as [`SignedBytes`] says.
    ///
    /// # Safety
    /// The host has NEON, the run has that step, and the panel that it was made of is alive.
    #[inline(always)]
    pub(super) unsafe fn atom(&self, step: usize, i: usize) -> [int8x16_t; QUARTERS] {
        // SAFETY: the caller promises NEON; a plane holds a line of every `8 / bits` atoms of the run.
        unsafe {
            let mut bytes = [vdupq_n_u8(self.flip); QUARTERS];
            if BITS == 8 {
                add_plane::<8, 0>(self.planes[0].add((4 * step + i) * LINE), 0, &mut bytes);
            }
            if BITS & 4 != 0 {
                let line = self.planes[0].add((2 * step + i / 2) * LINE);
                match BITS & 3 {
                    0 => add_plane::<4, 0>(line, i % 2, &mut bytes),
                    1 => add_plane::<4, 1>(line, i % 2, &mut bytes),
                    2 => add_plane::<4, 2>(line, i % 2, &mut bytes),
                    _ => add_plane::<4, 3>(line, i % 2, &mut bytes),
                }
            }
            if BITS & 2 != 0 {
                let line = self.planes[1].add(step * LINE);
                match BITS & 1 {
                    0 => add_plane::<2, 0>(line, i, &mut bytes),
                    _ => add_plane::<2, 1>(line, i, &mut bytes),
                }
            }
            if BITS & 1 != 0 {
                add_plane::<1, 0>(self.planes[2].add(step / 2 * LINE), step % 2 * 4 + i, &mut bytes);
            }
            [0, 1, 2, 3].map(|q| vreinterpretq_s8_u8(bytes[q]))
        }
    }
}

/// Flips in `bytes` what an atom of a plane of `WIDTH` bits says, from bit `SHIFT` of the codes on. The atom is at `place`
/// of its line.
///
/// # Safety
/// The host has NEON, and a line is readable at `line`.
#[inline(always)]
unsafe fn add_plane<const WIDTH: u32, const SHIFT: i8>(
    line: *const u8,
    place: usize,
    bytes: &mut [uint8x16_t; QUARTERS],
) {
    // SAFETY: the caller promises NEON and what is read.
    unsafe {
        let down = vdupq_n_s8(-(place as i8 * WIDTH as i8));
        let mask = vdupq_n_u8((0xff_u32 >> (8 - WIDTH)) as u8);
        for (q, bytes) in bytes.iter_mut().enumerate() {
            let part = vandq_u8(vshlq_u8(vld1q_u8(line.add(16 * q)), down), mask);
            *bytes = veorq_u8(*bytes, vshlq_u8(part, vdupq_n_s8(SHIFT)));
        }
    }
}
