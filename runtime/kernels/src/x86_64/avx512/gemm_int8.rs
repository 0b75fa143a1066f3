//! Integer products of many rows by one panel or two.
//!
//! Along k a panel is cut into stretches. The codes of a stretch are unpacked once, to where all rows find them in the L1 cache; so
//! within the loop over rows nothing is unpacked, and the same loop serves every width of codes. A block of [`ROWS`] rows by two panels
//! fills the registers: its f32 and i32 sums hide the latency of `vpdpbusd`, and a broadcast activation serves two products, since
//! with one panel each would need a load of its own and the two load ports would limit it.

use super::linear_int8::{constant, four_atoms, integers, moved};
use super::scales;
use super::sums::{BIAS, LANES, add_product, bias_is_exact, scaled, starts_of};
use crate::linear::Lane;
use crate::x86_64::{Side, TABLE, code_bits, prefetch_to_l2};
use bessemer_format::PanelLayout;
use bessemer_format::act::Int8Layout;
use bessemer_format::panel::{K_STEP, LINE};
use std::arch::x86_64::*;
use std::hint::black_box;
use std::mem::MaybeUninit;

/// Rows of a block.
const ROWS: usize = 6;
/// From how many rows on to unpack apart pays.
pub(super) const FROM_ROWS: usize = 12;
/// Most steps of 16 elements along k of a stretch: beside the codes of two panels the rows of a block and their sums stay in the L1 cache.
/// Zen 5, k = 576: 32 steps 3 % slower, 36 (so that one stretch is all of k) 6 %.
const STRETCH: usize = 20;

/// Four atoms, a step along k of a panel.
type Step = [__m512i; 4];

/// Unpacked codes, scales and offsets of some groups of the activations.
struct Stretch<const PANELS: usize> {
    /// For each group, each of its steps and each atom of that: those of the panels.
    codes: [MaybeUninit<[__m512i; PANELS]>; 4 * STRETCH],
    scales: [MaybeUninit<[__m512; PANELS]>; STRETCH],
    offsets: [MaybeUninit<[__m512; PANELS]>; STRETCH],
}

/// Whether [`multiply`] knows the groups of the activations: one step of 16 elements, or two.
pub(super) fn takes(act: &Int8Layout) -> bool {
    matches!(act.group, 16 | 32)
}

/// Many rows by one panel or two.
///
/// # Safety
/// As [`crate::linear::LinearInt8Fn`] for each panel and its output, all of them equally long, for codes of `BITS`;
/// [`takes`] says yes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn multiply<const BITS: usize, const PANELS: usize>(
    layout: &PanelLayout,
    act: &Int8Layout,
    panels: [&[u8]; PANELS],
    x: &[u8],
    mut out: [&mut [Lane]; PANELS],
) {
    let Some(stored) = Side::of(layout) else { return };
    let shape = Shape { act: *act, constant: constant::<BITS>(layout) };
    let rows = match (layout.scheme().offset_type().is_some(), bias_is_exact::<BITS>(layout)) {
        (false, false) => rows::<PANELS, false, false>,
        (false, true) => rows::<PANELS, false, true>,
        (true, false) => rows::<PANELS, true, false>,
        (true, true) => rows::<PANELS, true, true>,
    };
    let mut stretch = MaybeUninit::<Stretch<PANELS>>::uninit();
    // SAFETY: an array of what may be uninitialised needs no initialisation.
    let stretch = unsafe { stretch.assume_init_mut() };
    let (groups, most) = (act.groups(), STRETCH * K_STEP / act.group);
    // As equal as they can be: a short one takes and leaves the sums of every row for few products.
    let most = groups.div_ceil(groups.div_ceil(most).max(1));
    for first in (0..groups).step_by(most) {
        let some = most.min(groups - first);
        // SAFETY: the groups exist; the rest is the caller's promise. What was unpacked is what is read.
        unsafe {
            unpack::<BITS, PANELS>(stored, layout, act, panels, first..first + some, stretch);
            rows(&shape, stretch, first, some, x, &mut out);
        }
    }
}

/// What the rows of a product have in common.
struct Shape {
    act: Int8Layout,
    /// What every code is too large by.
    constant: i32,
}

/// Unpacks `groups` groups from `first` on; asks for the same of the panels behind these, which are multiplied next.
///
/// # Safety
/// As [`multiply`]; the groups exist and fit a stretch.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn unpack<const BITS: usize, const PANELS: usize>(
    stored: Side,
    layout: &PanelLayout,
    act: &Int8Layout,
    panels: [&[u8]; PANELS],
    groups: std::ops::Range<usize>,
    stretch: &mut Stretch<PANELS>,
) {
    let next = PANELS * layout.panel_bytes();
    let group_steps = act.group / K_STEP;
    let (table, unit) = integers(layout);
    // Runs are as long as the first, but for the last.
    let runs = layout.runs();
    let run = |r: usize| (layout.run_code_bytes(r), layout.run_len(r).div_ceil(K_STEP));
    let (whole, last) = (run(0), run(runs - 1));
    let side_bytes = layout.scale_bytes() + layout.offset_bytes();
    // A single run may hold every group.
    let run_groups = (layout.run() / act.group).max(1);
    let first = (groups.start / run_groups).min(runs - 1);
    for panel in 0..PANELS {
        let start = panels[panel].as_ptr();
        let mut codes = stretch.codes.as_mut_ptr().cast::<__m512i>().wrapping_add(panel);
        let mut numbers = panel;
        let (mut r, mut run) = (first, start.wrapping_add(layout.run_offset(first)));
        let mut step = (groups.start - first * run_groups) * group_steps;
        for _ in groups.clone() {
            let (code_bytes, steps) = if r + 1 < runs { whole } else { last };
            // SAFETY: a run lies inside its panel with its codes, scales and offsets, and the steps inside the run; where the last
            // group is short, codes of zero stand for the steps that it lacks. The stretch has room for every step.
            unsafe {
                let side = run.add(code_bytes);
                let (mut scale, offset) = scales(stored, layout, start, side, r);
                if BITS == TABLE {
                    scale = _mm512_mul_ps(scale, unit);
                }
                prefetch_to_l2(side.wrapping_add(next));
                stretch.scales.as_mut_ptr().cast::<__m512>().add(numbers).write(scale);
                stretch.offsets.as_mut_ptr().cast::<__m512>().add(numbers).write(offset);
                for step in step..step + group_steps {
                    for line in 0..code_bits(BITS).div_ceil(2) {
                        let at = step * code_bits(BITS) * LINE / 2 + line * LINE;
                        prefetch_to_l2(run.wrapping_add(next + at));
                    }
                    let atoms: Step = match step < steps {
                        true => four_atoms!(BITS, table, run, steps, step),
                        false => [_mm512_setzero_si512(); 4],
                    };
                    for atom in atoms {
                        codes.write(atom);
                        codes = codes.wrapping_add(PANELS);
                    }
                }
                numbers += PANELS;
                step += group_steps;
                if step >= steps && r + 1 < runs {
                    (r, run, step) = (r + 1, side.add(side_bytes), 0);
                }
            }
        }
    }
}

/// All rows by a stretch, in blocks as equal as they can be. `FLOAT`: whether offsets are floats; `BIASED`: whether sums become floats by
/// [`BIAS`].
///
/// # Safety
/// As [`multiply`]; `groups` groups, from group `first` of the activations on, were unpacked.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn rows<const PANELS: usize, const FLOAT: bool, const BIASED: bool>(
    shape: &Shape,
    stretch: &Stretch<PANELS>,
    first: usize,
    groups: usize,
    x: &[u8],
    out: &mut [&mut [Lane]; PANELS],
) {
    let mut left = out[0].len();
    let mut blocks = left.div_ceil(ROWS);
    while left > 0 {
        let rows = left.div_ceil(blocks);
        let at = out[0].len() - left;
        let x = x[at * shape.act.row_bytes()..].as_ptr();
        let out = out.each_mut().map(|out| out[at..][..rows].as_mut_ptr());
        // SAFETY: so many rows are there, of `x` and of every output; the rest is the caller's promise.
        unsafe {
            match rows {
                6 => tile::<PANELS, 6, FLOAT, BIASED>(shape, stretch, first, groups, x, out),
                5 => tile::<PANELS, 5, FLOAT, BIASED>(shape, stretch, first, groups, x, out),
                4 => tile::<PANELS, 4, FLOAT, BIASED>(shape, stretch, first, groups, x, out),
                3 => tile::<PANELS, 3, FLOAT, BIASED>(shape, stretch, first, groups, x, out),
                2 => tile::<PANELS, 2, FLOAT, BIASED>(shape, stretch, first, groups, x, out),
                _ => tile::<PANELS, 1, FLOAT, BIASED>(shape, stretch, first, groups, x, out),
            }
        }
        left -= rows;
        blocks -= 1;
    }
}

/// `N` rows by a stretch of `PANELS` panels: the first stretch begins the sums, the others go on with them.
///
/// How many atoms a group has is not known here, so that their loop stays one: unrolled, its loads are moved so far ahead that sums lose
/// their registers.
///
/// # Safety
/// As [`rows`]; `x` points to `N` rows, and each output to as many lanes.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<const PANELS: usize, const N: usize, const FLOAT: bool, const BIASED: bool>(
    shape: &Shape,
    stretch: &Stretch<PANELS>,
    first: usize,
    groups: usize,
    x: *const u8,
    out: [*mut Lane; PANELS],
) {
    let act = &shape.act;
    let (row_bytes, group) = (act.row_bytes(), act.group);
    let rows: [*const u8; N] = black_box(std::array::from_fn(|row| x.wrapping_add(row * row_bytes)));
    let mut codes_at = first * group;
    let mut numbers_at = act.scales_at() + 4 * first;
    // From a scale to the sum and the product of its group.
    let number = 4 * act.groups();
    let mut codes = stretch.codes.as_ptr().cast::<__m512i>();
    let mut scales = stretch.scales.as_ptr().cast::<__m512>();
    let mut offsets = stretch.offsets.as_ptr().cast::<__m512>();
    // SAFETY: a row's codes, scales, sums and products of the groups are inside of it (a last group that is short reads into its
    // numbers, and multiplies them with zero); the stretch holds so many groups; the outputs are `N` lanes.
    unsafe {
        // One for each panel, though they are equal: what is loaded twice is not copied, which would take the ports of products.
        let mut starts = [[[MaybeUninit::<__m512i>::uninit(); STRETCH.div_ceil(LANES)]; PANELS]; N];
        for row in 0..N {
            let sums = rows[row].add(numbers_at + number).cast::<i32>();
            for (part, some) in (0..groups).step_by(LANES).enumerate() {
                let some = starts_of(sums.add(some), groups - some, shape.constant, BIASED);
                for panel in 0..PANELS {
                    starts[row][panel][part].write(some);
                }
            }
        }
        let mut start = starts.as_ptr().cast::<i32>();
        let mut acc = [[_mm512_setzero_ps(); PANELS]; N];
        if first > 0 {
            for row in 0..N {
                for panel in 0..PANELS {
                    acc[row][panel] = _mm512_loadu_ps(out[panel].add(row).cast());
                }
            }
        }
        for _ in 0..groups {
            let mut isum = [[_mm512_setzero_si512(); PANELS]; N];
            for row in 0..N {
                for panel in 0..PANELS {
                    let start = start.add((row * PANELS + panel) * LANES * STRETCH.div_ceil(LANES));
                    isum[row][panel] = _mm512_set1_epi32(start.read());
                }
            }
            for i in 0..group / 4 {
                for row in 0..N {
                    let x = rows[row].add(codes_at + 4 * i).cast::<i32>().read_unaligned();
                    let x = _mm512_set1_epi32(x);
                    for panel in 0..PANELS {
                        let atom = *codes.add(i * PANELS + panel);
                        isum[row][panel] = _mm512_dpbusd_epi32(isum[row][panel], atom, x);
                    }
                }
            }
            let mut scale = [_mm512_setzero_ps(); PANELS];
            let mut bias = scale;
            for panel in 0..PANELS {
                scale[panel] = *scales.add(panel);
                bias[panel] = _mm512_mul_ps(scale[panel], _mm512_set1_ps(BIAS));
            }
            for row in 0..N {
                let scale_x = _mm512_set1_ps(rows[row].add(numbers_at).cast::<f32>().read_unaligned());
                for panel in 0..PANELS {
                    let t = scaled::<BIASED>(isum[row][panel], scale[panel], bias[panel]);
                    add_product(&mut acc[row][panel], t, scale_x);
                }
            }
            if FLOAT {
                for row in 0..N {
                    let product = rows[row].add(numbers_at + 2 * number).cast::<f32>().read_unaligned();
                    for panel in 0..PANELS {
                        let offset = *offsets.add(panel);
                        acc[row][panel] = _mm512_fmadd_ps(offset, _mm512_set1_ps(product), acc[row][panel]);
                    }
                }
                offsets = offsets.add(PANELS);
            }
            codes = codes.add(group / 4 * PANELS);
            scales = scales.add(PANELS);
            start = start.add(1);
            codes_at += group;
            numbers_at += 4;
        }
        for row in 0..N {
            for panel in 0..PANELS {
                _mm512_storeu_ps(out[panel].add(row).cast(), acc[row][panel]);
            }
        }
    }
}
