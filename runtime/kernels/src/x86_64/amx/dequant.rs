//! Weights of any element as a panel of bfloat16 holds them: a line of two elements along k of each column.

use crate::linear::{Lane, portable};
use crate::x86_64::avx512::linear_f32::{self, Dequant, eight_weights};
use crate::x86_64::avx512::linear_int8::{constant, four_atoms, moved};
use crate::x86_64::avx512::scales;
use crate::x86_64::{Side, TABLE, code_bits, prefetch_to_l2};
use bessemer_format::PanelLayout;
use bessemer_format::panel::{K_STEP, LINE};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Elements without code of their own.
pub(super) const ANY: u8 = u8::MAX;
pub(super) const F16: u8 = linear_f32::F16;
pub(super) const U4: u8 = linear_f32::U4;
pub(super) const S8: u8 = linear_f32::S8;
pub(super) const E4M3: u8 = linear_f32::E4M3;
pub(super) const E5M2: u8 = linear_f32::E5M2;
// Codes that several planes hold.
pub(super) const U2: u8 = 102;
pub(super) const U3: u8 = 103;
pub(super) const U5: u8 = 105;
pub(super) const U6: u8 = 106;

/// Most steps of 16 elements along k of a [`Stretch`]: those of two panels take two thirds of an L1 cache with 48 KiB.
pub(super) const STEPS: usize = 32;
/// Lines of a step.
const STEP_LINES: usize = K_STEP / 2;

/// Some steps of a panel in bfloat16.
#[repr(align(64))]
pub(super) struct Stretch([MaybeUninit<[u8; LINE]>; STEPS * STEP_LINES]);

impl Stretch {
    pub(super) const fn new() -> Self {
        Self([MaybeUninit::uninit(); _])
    }

    /// The first tile.
    pub(super) fn tiles(&self) -> *const u8 {
        self.0.as_ptr().cast()
    }
}

/// Fills a stretch with `steps` of a panel: whole tiles, the last of which may end in zeros. Asks for the same of the panel that begins
/// `ahead` bytes behind this one.
///
/// # Safety
/// `panel` is one of `layout`, whose weights are of `KIND`; the steps exist and fit.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn fill<const KIND: u8>(
    layout: &PanelLayout,
    panel: &[u8],
    steps: Range<usize>,
    ahead: usize,
    stretch: &mut Stretch,
) {
    let mut lines = stretch.0.as_mut_ptr().cast::<u8>();
    // A single run may end anywhere; others are whole steps.
    let run_steps = if layout.runs() == 1 { usize::MAX } else { layout.run() / K_STEP };
    let mut step = steps.start;
    while step < steps.end {
        let r = step / run_steps;
        let first = r * run_steps;
        let end = layout.run_len(r).div_ceil(K_STEP).min(steps.end - first);
        let some = step - first..end;
        // SAFETY: the steps lie in run `r`, which lies in the panel; the stretch has room for them, and a prefetch never faults.
        unsafe {
            let codes = layout.run_offset(r)
                + some.start * layout.run_code_bytes(r) / layout.run_len(r).div_ceil(K_STEP);
            for line in (codes..layout.run_offset(r) + layout.run_code_bytes(r)).step_by(LINE) {
                prefetch_to_l2(panel.as_ptr().wrapping_add(ahead + line));
            }
            match KIND {
                ANY => any(layout, panel, r, some.clone(), lines),
                U2 => planes::<2>(layout, panel, r, some.clone(), lines),
                U3 => planes::<3>(layout, panel, r, some.clone(), lines),
                U5 => planes::<5>(layout, panel, r, some.clone(), lines),
                U6 => planes::<6>(layout, panel, r, some.clone(), lines),
                _ => eights::<KIND>(layout, panel, r, some.clone(), lines),
            }
            lines = lines.add(some.len() * STEP_LINES * LINE);
        }
        step = first + end;
    }
    if !steps.len().is_multiple_of(2) {
        // SAFETY: a stretch has an even number of steps.
        unsafe { lines.write_bytes(0, STEP_LINES * LINE) };
    }
}

/// The functions below write steps `steps` of run `r`, each in [`STEP_LINES`] lines from `lines` on.
///
/// # Safety
/// As [`fill`]; the steps are the run's, and there is room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
unsafe fn any(layout: &PanelLayout, panel: &[u8], r: usize, steps: Range<usize>, mut lines: *mut u8) {
    portable::rounded_steps(layout, panel, r, steps, |weights| {
        for [even, odd] in weights.as_chunks::<2>().0 {
            let pair = |c: usize| even[c].to_bits() >> 16 | odd[c].to_bits() & 0xffff_0000;
            let line: [u32; LINE / 4] = std::array::from_fn(pair);
            // SAFETY: the caller has room for the lines of every step.
            unsafe {
                lines.cast::<[u32; LINE / 4]>().write_unaligned(line);
                lines = lines.add(LINE);
            }
        }
    });
}

/// # Safety
/// As [`any`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn eights<const KIND: u8>(
    layout: &PanelLayout,
    panel: &[u8],
    r: usize,
    steps: Range<usize>,
    mut lines: *mut u8,
) {
    let mut dequant = Dequant::new::<KIND>(layout);
    let half = linear_f32::step_bytes(layout);
    // SAFETY: a run lies inside its panel, its codes padded to whole steps.
    unsafe {
        let codes = panel.as_ptr().add(layout.run_offset(r));
        if let Some(stored) = Side::of(layout) {
            let side = codes.add(layout.run_code_bytes(r));
            dequant.set_scale(scales(stored, layout, panel.as_ptr(), side, r));
        }
        for step in steps {
            for half in [2 * step * half, (2 * step + 1) * half] {
                for [even, odd] in eight_weights::<KIND>(codes.add(half), &dequant).as_chunks::<2>().0 {
                    _mm512_storeu_si512(lines.cast(), paired(*even, *odd));
                    lines = lines.add(LINE);
                }
            }
        }
    }
}

/// # Safety
/// As [`any`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn planes<const BITS: usize>(
    layout: &PanelLayout,
    panel: &[u8],
    r: usize,
    steps: Range<usize>,
    mut lines: *mut u8,
) {
    let Some(stored) = Side::of(layout) else { return };
    let run_steps = layout.run_len(r).div_ceil(K_STEP);
    let constant = _mm512_set1_epi32(constant::<BITS>(layout));
    // SAFETY: as in `eights`.
    unsafe {
        let run = panel.as_ptr().add(layout.run_offset(r));
        let side = run.add(layout.run_code_bytes(r));
        let (scale, offset) = scales(stored, layout, panel.as_ptr(), side, r);
        for step in steps {
            for atom in four_atoms!(BITS, _mm512_setzero_si512(), run, run_steps, step) {
                let weight = |shifted| {
                    let code = _mm512_and_si512(shifted, _mm512_set1_epi32(0xff));
                    let w = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(code, constant)), scale);
                    if stored.offset.is_some() { _mm512_add_ps(w, offset) } else { w }
                };
                let pairs = [
                    paired(weight(atom), weight(_mm512_srli_epi32::<8>(atom))),
                    paired(weight(_mm512_srli_epi32::<16>(atom)), weight(_mm512_srli_epi32::<24>(atom))),
                ];
                for pair in pairs {
                    _mm512_storeu_si512(lines.cast(), pair);
                    lines = lines.add(LINE);
                }
            }
        }
    }
}

/// A line of a panel of bfloat16: of each column an even element along k and the next.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn paired(even: __m512, odd: __m512) -> __m512i {
    // SAFETY: both are 64 bytes without a structure.
    let both = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even)) };
    // SAFETY: a vector of 32 words.
    let order = unsafe { _mm512_loadu_si512(INTERLEAVED.as_ptr().cast()) };
    _mm512_permutexvar_epi16(order, both)
}

/// Words of the lower half and of the upper one in turn.
const INTERLEAVED: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    order
};

const _: () = assert!(size_of::<Lane>() == LINE && STEPS.is_multiple_of(2));
