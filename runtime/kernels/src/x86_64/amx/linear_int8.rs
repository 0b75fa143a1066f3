//! Integer linears by tiles, where a group of the activations is long: a sum of a tile leaves it once a group, and with groups of 32 that would
//! cost more than the products save. Shorter groups, and few rows, are multiplied by vectors. Integer sums are exact, so all have the same bits.

use super::product::{BYTES, Product};
use super::tile;
use crate::linear::{Lane, TILE_ROWS};
use crate::x86_64::avx512::linear_int8::{self as vectors, constant, four_atoms, integers, moved};
use crate::x86_64::avx512::scales;
use crate::x86_64::{Side, TABLE, code_bits};
use bessemer_format::PanelLayout;
use bessemer_format::act::Int8Layout;
use bessemer_format::panel::{COLUMNS, K_STEP, LINE};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// From how many elements in a group on tiles pay.
const FROM_GROUP: usize = 256;
/// From how many rows on: a tile takes as long for one as for several.
const FROM_ROWS: usize = 8;
/// Steps of 16 elements along k in a tile.
const TILE_STEPS: usize = LINE / K_STEP;
/// Most steps that are unpacked at once: those of two panels take a third of an L1 cache with 48 KiB.
const STEPS: usize = 32;

/// Whether tiles multiply so many rows with activations of this layout: those with a single group, or whose groups are whole tiles.
fn takes(act: &Int8Layout, rows: usize) -> bool {
    let long = act.groups() == 1 || act.group >= FROM_GROUP && act.group.is_multiple_of(LINE);
    long && (FROM_ROWS..=TILE_ROWS).contains(&rows)
}

/// Declares the kernels, each for the codes of so many bits, as [`vectors`] does.
macro_rules! kernels {
    ($($name:ident: $bits:expr;)*) => {
        $(
            /// [`crate::linear::LinearInt8Fn`] for the element of this name.
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            pub(crate) unsafe fn $name(l: &PanelLayout, act: &Int8Layout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
                // SAFETY: the caller's promises are those of either.
                unsafe {
                    match takes(act, out.len()) {
                        true => linear::<{ $bits }, 1>(l, act, [panel], x, [out]),
                        false => vectors::$name(l, act, panel, x, out),
                    }
                }
            }
        )*

        /// Kernels of two panels.
        pub(crate) mod pair {
            use super::*;
            $(
                /// [`crate::linear::LinearInt8PairFn`] for the element of this name.
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
                pub(crate) unsafe fn $name(
                    l: &PanelLayout,
                    act: &Int8Layout,
                    panels: [&[u8]; 2],
                    x: &[u8],
                    out: [&mut [Lane]; 2],
                ) {
                    // SAFETY: the caller's promises are those of either.
                    unsafe {
                        match takes(act, out[0].len()) {
                            true => linear::<{ $bits }, 2>(l, act, panels, x, out),
                            false => vectors::pair::$name(l, act, panels, x, out),
                        }
                    }
                }
            )*
        }
    };
}
kernels! {
    u2: 2;
    u3: 3;
    u4: 4;
    u5: 5;
    u6: 6;
    s8: 8;
    table: TABLE;
}

/// Unpacked codes of some steps of a panel, as tiles.
#[repr(align(64))]
struct Codes([MaybeUninit<__m512i>; 4 * STEPS]);

/// # Safety
/// As [`crate::linear::LinearInt8Fn`] for codes of `BITS`, for every panel and its output, all of which are equally long; [`takes`] says yes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn linear<const BITS: usize, const PANELS: usize>(
    layout: &PanelLayout,
    act: &Int8Layout,
    panels: [&[u8]; PANELS],
    x: &[u8],
    mut out: [&mut [Lane]; PANELS],
) {
    let Some(stored) = Side::of(layout) else { return };
    let rows = out[0].len();
    let mut sums = [[[0i32; COLUMNS]; TILE_ROWS]; PANELS];
    let mut codes = [const { Codes([MaybeUninit::uninit(); _]) }; PANELS];
    let constant = _mm512_set1_epi32(constant::<BITS>(layout));
    let (_, unit) = integers(layout);
    let row_bytes = act.row_bytes();
    out.iter_mut().for_each(|out| out.fill([0.0; COLUMNS]));
    for g in 0..act.groups() {
        let start = g * act.group;
        let steps = start / K_STEP..act.padded_k.min(start + act.group) / K_STEP;
        // A run has whole groups, or is the only one.
        let r = if layout.runs() == 1 { 0 } else { start / layout.run() };
        let mut sums = sums.each_mut().map(|sums| &mut sums[..rows]);
        let mut product = Product::<PANELS, BYTES, i32>::new(x, row_bytes, &mut sums);
        for first in steps.clone().step_by(STEPS) {
            let some = first..steps.end.min(first + STEPS);
            // SAFETY: the steps lie in run `r`, the first of them is the first of a tile, and rows of activations are padded to whole
            // tiles; the rest is the caller's promise.
            unsafe {
                for (codes, panel) in codes.iter_mut().zip(panels) {
                    let in_run = r * layout.run() / K_STEP;
                    unpack::<BITS>(layout, panel, r, some.start - in_run..some.end - in_run, codes);
                }
                let weights = codes.each_ref().map(|codes| codes.0.as_ptr().cast());
                product.add::<false>(weights, first / TILE_STEPS, some.len().div_ceil(TILE_STEPS));
            }
        }
        // SAFETY: scales and offsets of run `r` lie in its panel; each row of activations holds the numbers of every group.
        unsafe {
            for (panel, (sums, out)) in panels.into_iter().zip(sums.iter().zip(&mut out)) {
                let side = panel.as_ptr().add(layout.run_offset(r) + layout.run_code_bytes(r));
                let (mut scale, offset) = scales(stored, layout, panel.as_ptr(), side, r);
                if BITS == TABLE {
                    scale = _mm512_mul_ps(scale, unit);
                }
                for (row, (sums, out)) in sums.iter().zip(out.iter_mut()).enumerate() {
                    let number = |at: usize| x.as_ptr().add(row * row_bytes + at + 4 * g);
                    let sum_x = _mm512_set1_epi32(number(act.sums_at()).cast::<i32>().read_unaligned());
                    let scale_x = number(act.scales_at()).cast::<f32>().read_unaligned();
                    let product = number(act.products_at()).cast::<f32>().read_unaligned();
                    let isum = _mm512_loadu_si512(sums.as_ptr().cast());
                    let isum = _mm512_sub_epi32(isum, _mm512_mullo_epi32(constant, sum_x));
                    let t = _mm512_mul_ps(_mm512_cvtepi32_ps(isum), scale);
                    let mut acc = _mm512_fmadd_ps(t, _mm512_set1_ps(scale_x), _mm512_loadu_ps(out.as_ptr()));
                    if stored.offset.is_some() {
                        acc = _mm512_fmadd_ps(offset, _mm512_set1_ps(product), acc);
                    }
                    _mm512_storeu_ps(out.as_mut_ptr(), acc);
                }
            }
        }
    }
    // SAFETY: the host runs AMX.
    unsafe { tile::release() };
}

/// Steps `steps` of run `r` as tiles, the last of which may end in zeros.
///
/// # Safety
/// As [`linear`]; the steps are the run's.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn unpack<const BITS: usize>(
    layout: &PanelLayout,
    panel: &[u8],
    r: usize,
    steps: Range<usize>,
    codes: &mut Codes,
) {
    let run_steps = layout.run_len(r).div_ceil(K_STEP);
    let (table, _) = integers(layout);
    let (tiles, _) = codes.0.as_chunks_mut::<4>();
    let mut tiles = tiles.iter_mut();
    // SAFETY: the run lies in the panel, and the steps in the run.
    unsafe {
        let run = panel.as_ptr().add(layout.run_offset(r));
        for (step, place) in steps.clone().zip(&mut tiles) {
            for (place, atom) in place.iter_mut().zip(four_atoms!(BITS, table, run, run_steps, step)) {
                place.write(atom);
            }
        }
    }
    let missing = steps.len().next_multiple_of(TILE_STEPS) - steps.len();
    for place in tiles.take(missing).flatten() {
        place.write(_mm512_setzero_si512());
    }
}

const _: () = assert!(STEPS.is_multiple_of(TILE_STEPS));
