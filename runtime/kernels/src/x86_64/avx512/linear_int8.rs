//! Integer linears by `vpdpbusd`: unsigned weight codes times a broadcast of four signed activation codes. Few rows wait for the
//! weights, which are unpacked on their way; many rows are the matter of [`gemm`].

use super::{gemm_int8 as gemm, scales};
use crate::linear::Lane;
use crate::x86_64::{
    EVEN_STEPS, PREFETCH_AHEAD, Side, TABLE, code_bits, even_groups, prefetch_at_once, prefetch_near,
    prefetch_to_l2,
};
use bessemer_format::PanelLayout;
use bessemer_format::act::Int8Layout;
use bessemer_format::panel::{K_STEP, LINE};
use std::arch::x86_64::*;
use std::hint::black_box;

/// Most rows that share the codes of a panel while these stream by: their i32 and f32 sums, an unpacked pair of atoms and the scales fill
/// the registers.
const BLOCK: usize = 8;
/// Most rows of a block that multiplies two panels, where a broadcast activation serves two products: with one panel
/// every `vpdpbusd` needs a load of its own, and eight sums a step do not hide its latency. Sixteen do, for which the f32 sums go to
/// memory between groups (Emerald Rapids, 8 rows: 7 to 13 % faster than one panel).
const PAIR_BLOCK: usize = 8;
/// The same where a block is not all rows, and codes are unpacked for each: f32 sums stay in registers (measured on Zen 5, whose many
/// rows take this way).
const ONE_OF_BLOCKS: usize = 5;

/// Bytes of a matrix that is probably one of a model that the last cache holds. From there a line comes to the L1 cache in one step
/// as soon as in two (Emerald Rapids, one row: 5 % sooner).
const SMALL: usize = 2 << 20;

/// Step `step` along k of a run of `steps` steps, whose codes are readable at `run`: four atoms of unsigned codes of `BITS` (signed ones
/// plus 128, and so the integers of a `table`), put together from the bit planes of the run. A macro, since a function may become a call, before which every sum in a
/// register would have to be stored.
macro_rules! four_atoms {
    ($bits:ident, $table:expr, $run:expr, $steps:expr, $step:expr) => {{
        let (run, steps, step): (*const u8, usize, usize) = ($run, $steps, $step);
        let mut atoms = [_mm512_setzero_si512(); 4];
        // Bits of the code below those put together so far, and lines of the planes before.
        let (mut low, mut base) = (code_bits($bits), 0);
        if $bits == 8 {
            let bias = _mm512_set1_epi8(-128);
            for i in 0..4 {
                atoms[i] = _mm512_xor_si512(_mm512_loadu_si512(run.add((4 * step + i) * LINE).cast()), bias);
            }
        }
        if $bits & 4 != 0 {
            low -= 4;
            for half in 0..2 {
                let line = _mm512_loadu_si512(run.add((2 * step + half) * LINE).cast());
                for j in 0..2 {
                    atoms[2 * half + j] = moved::<4>(line, 4 * j, low);
                }
            }
            base += 2 * steps;
        }
        if $bits & 2 != 0 {
            low -= 2;
            let line = _mm512_loadu_si512(run.add((base + step) * LINE).cast());
            for j in 0..4 {
                atoms[j] = _mm512_or_si512(atoms[j], moved::<2>(line, j * 2, low));
            }
            base += steps;
        }
        if $bits & 1 != 0 {
            // A line holds two steps.
            let line = _mm512_loadu_si512(run.add((base + step / 2) * LINE).cast());
            let line = _mm512_srl_epi16(line, _mm_cvtsi32_si128((step % 2 * 4) as i32));
            for j in 0..4 {
                atoms[j] = _mm512_or_si512(atoms[j], moved::<1>(line, j, 0));
            }
        }
        if $bits == TABLE {
            for i in 0..4 {
                atoms[i] = _mm512_shuffle_epi8($table, atoms[i]);
            }
        }
        atoms
    }};
}
pub(in crate::x86_64) use four_atoms;

/// Declares the kernels, each for the codes of so many bits (8: signed bytes; fewer: unsigned).
macro_rules! kernels {
    ($($name:ident: $bits:expr;)*) => {
        $(
            /// [`crate::linear::LinearInt8Fn`] for the element of this name.
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            pub(crate) unsafe fn $name(l: &PanelLayout, act: &Int8Layout, panel: &[u8], x: &[u8], out: &mut [Lane]) {
                // SAFETY: the caller's promises are those of `single`.
                unsafe { single::<{ $bits }>(l, act, panel, x, out) }
            }
        )*
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

/// Declares kernels of two panels, each for the codes of so many bits, by a function of any.
macro_rules! pairs {
    ($both:ident: $($name:ident: $bits:expr;)*) => {
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
                // SAFETY: the caller's promises are those of the function.
                unsafe { super::$both::<{ $bits }>(l, act, panels, x, out) }
            }
        )*
    };
}

/// Kernels of two panels.
pub(crate) mod pair {
    use super::*;
    pairs! {
        both:
        u2: 2;
        u3: 3;
        u4: 4;
        u5: 5;
        u6: 6;
        s8: 8;
        table: TABLE;
    }
}

/// Kernels of two panels that unpack where they multiply, however many rows there are: a shift and a mask cost nothing on cores whose
/// products leave ports for them (Zen 5). On those that multiply on every port (Emerald Rapids) many rows lose a tenth and more.
pub(crate) mod beside {
    use super::*;
    pairs! {
        unpacking:
        u2: 2;
        u4: 4;
    }
}

/// One panel.
///
/// # Safety
/// As [`crate::linear::LinearInt8Fn`], for codes of `BITS`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn single<const BITS: usize>(
    l: &PanelLayout,
    act: &Int8Layout,
    panel: &[u8],
    x: &[u8],
    out: &mut [Lane],
) {
    // SAFETY: the caller's promises are those of `linear`.
    unsafe {
        if out.len() >= gemm::FROM_ROWS && gemm::takes(act) {
            gemm::multiply::<BITS, 1>(l, act, [panel], x, [out])
        } else if even_groups(act) {
            linear::<BITS, EVEN_STEPS>(l, act, panel, x, out)
        } else {
            linear::<BITS, 0>(l, act, panel, x, out)
        }
    }
}

/// Two panels.
///
/// # Safety
/// As [`crate::linear::LinearInt8PairFn`], for codes of `BITS`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn both<const BITS: usize>(
    l: &PanelLayout,
    act: &Int8Layout,
    panels: [&[u8]; 2],
    x: &[u8],
    out: [&mut [Lane]; 2],
) {
    // SAFETY: the caller's promises are those of `gemm::multiply`, `unpacking` and `single`.
    unsafe {
        if out[0].len() >= gemm::FROM_ROWS && gemm::takes(act) {
            return gemm::multiply::<BITS, 2>(l, act, panels, x, out);
        }
        unpacking::<BITS>(l, act, panels, x, out)
    }
}

/// Two panels, unpacked where they are multiplied.
///
/// # Safety
/// As [`crate::linear::LinearInt8PairFn`], for codes of `BITS`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn unpacking<const BITS: usize>(
    l: &PanelLayout,
    act: &Int8Layout,
    panels: [&[u8]; 2],
    x: &[u8],
    out: [&mut [Lane]; 2],
) {
    // SAFETY: the caller's promises are those of `linear_pair` and of `single`.
    unsafe {
        if even_groups(act) {
            return linear_pair::<BITS, EVEN_STEPS>(l, act, panels, x, out);
        }
        for (panel, out) in panels.into_iter().zip(out) {
            single::<BITS>(l, act, panel, x, out)
        }
    }
}

/// # Safety
/// As [`crate::linear::LinearInt8Fn`], for codes of `BITS` in groups of `STEPS` steps along k (0: any, also short ones).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn linear<const BITS: usize, const STEPS: usize>(
    layout: &PanelLayout,
    act: &Int8Layout,
    panel: &[u8],
    mut x: &[u8],
    mut out: &mut [Lane],
) {
    let mut ahead = Ahead::of(1, panel.len());
    while !out.is_empty() {
        let rows = match out.len() {
            BLOCK.. => BLOCK,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let (block, rest) = out.split_at_mut(rows);
        let prefetch = ahead.block(rest.is_empty());
        // SAFETY: `block` and the rows of `x` before its end are `rows` long; the rest is the caller's promise.
        unsafe {
            match rows {
                BLOCK => tile::<BITS, STEPS, BLOCK, 1>(layout, act, [panel], x, [block], prefetch),
                4 => tile::<BITS, STEPS, 4, 1>(layout, act, [panel], x, [block], prefetch),
                2 => tile::<BITS, STEPS, 2, 1>(layout, act, [panel], x, [block], prefetch),
                _ => tile::<BITS, STEPS, 1, 1>(layout, act, [panel], x, [block], prefetch),
            }
        }
        x = &x[rows * act.row_bytes()..];
        out = rest;
    }
}

/// What the blocks of a call bring into the cache.
struct Ahead {
    /// From a panel to the one that is multiplied next.
    next_panel: usize,
    first: bool,
}

/// A prefetch of a block: how far ahead of its reads, or none.
#[derive(Clone, Copy, PartialEq)]
enum Prefetch {
    None,
    /// The stream of a block that is alone: each line is read once, so it comes from memory just in time.
    Stream,
    /// The panel that is so many bytes ahead: while the last block reads its own from the cache, memory would be idle.
    Next(usize),
}

impl Ahead {
    /// For `panels` neighbours of so many bytes. Whoever calls goes through the panels in ascending order.
    fn of(panels: usize, panel_bytes: usize) -> Self {
        Self { next_panel: panels * panel_bytes, first: true }
    }

    fn block(&mut self, last: bool) -> Prefetch {
        match (std::mem::replace(&mut self.first, false), last) {
            (true, true) => Prefetch::Stream,
            (_, true) => Prefetch::Next(self.next_panel),
            (_, false) => Prefetch::None,
        }
    }
}

/// # Safety
/// As [`crate::linear::LinearInt8PairFn`], as [`linear`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn linear_pair<const BITS: usize, const STEPS: usize>(
    layout: &PanelLayout,
    act: &Int8Layout,
    panels: [&[u8]; 2],
    mut x: &[u8],
    mut out: [&mut [Lane]; 2],
) {
    let mut ahead = Ahead::of(2, panels[0].len());
    // As equal as they can be: the sums of few rows do not hide the latency of their products.
    let most = if out[0].len() <= PAIR_BLOCK { PAIR_BLOCK } else { ONE_OF_BLOCKS };
    let mut blocks = out[0].len().div_ceil(most);
    while !out[0].is_empty() {
        let rows = out[0].len().div_ceil(blocks);
        blocks -= 1;
        let [(a, rest_a), (b, rest_b)] = out.map(|out| out.split_at_mut(rows));
        let (block, prefetch) = ([a, b], ahead.block(rest_a.is_empty()));
        // SAFETY: as in `linear`.
        unsafe {
            match rows {
                PAIR_BLOCK => tile::<BITS, STEPS, PAIR_BLOCK, 2>(layout, act, panels, x, block, prefetch),
                7 => tile::<BITS, STEPS, 7, 2>(layout, act, panels, x, block, prefetch),
                6 => tile::<BITS, STEPS, 6, 2>(layout, act, panels, x, block, prefetch),
                5 => tile::<BITS, STEPS, 5, 2>(layout, act, panels, x, block, prefetch),
                4 => tile::<BITS, STEPS, 4, 2>(layout, act, panels, x, block, prefetch),
                3 => tile::<BITS, STEPS, 3, 2>(layout, act, panels, x, block, prefetch),
                2 => tile::<BITS, STEPS, 2, 2>(layout, act, panels, x, block, prefetch),
                _ => tile::<BITS, STEPS, 1, 2>(layout, act, panels, x, block, prefetch),
            }
        }
        x = &x[rows * act.row_bytes()..];
        out = [rest_a, rest_b];
    }
}

/// [`tile_with`] for what a block prefetches: within its loops nothing is asked.
///
/// # Safety
/// As [`tile_with`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<const BITS: usize, const STEPS: usize, const ROWS: usize, const PANELS: usize>(
    layout: &PanelLayout,
    act: &Int8Layout,
    panels: [&[u8]; PANELS],
    x: &[u8],
    out: [&mut [Lane]; PANELS],
    prefetch: Prefetch,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match prefetch {
            // Not compiled for blocks that are never one of several.
            Prefetch::None | Prefetch::Next(_) if PANELS == 2 && ROWS > ONE_OF_BLOCKS => {
                unreachable!("a block of {ROWS} rows is alone")
            }
            Prefetch::None => tile_with::<BITS, STEPS, ROWS, PANELS>(layout, act, panels, x, out, |_, _| {}),
            Prefetch::Stream if ROWS == 1 && layout.panels() * panels[0].len() < SMALL => {
                let stream = |p: *const u8, _| prefetch_at_once(p);
                tile_with::<BITS, STEPS, ROWS, PANELS>(layout, act, panels, x, out, stream);
            }
            Prefetch::Stream => {
                let (len, first) = (panels[0].len(), panels[0].as_ptr());
                // Behind the end of a panel lies the one that is multiplied together with it: what comes next lies behind that.
                let others = panels.iter().filter(|panel| panel.as_ptr() == first.wrapping_add(len)).count();
                let stream = |p: *const u8, at: usize| {
                    let beyond = if at + PREFETCH_AHEAD < len { 0 } else { others * len };
                    prefetch_to_l2(p.wrapping_add(PREFETCH_AHEAD + beyond));
                    prefetch_near(p);
                };
                tile_with::<BITS, STEPS, ROWS, PANELS>(layout, act, panels, x, out, stream);
            }
            Prefetch::Next(distance) => {
                let next = |p: *const u8, _| prefetch_to_l2(p.wrapping_add(distance));
                tile_with::<BITS, STEPS, ROWS, PANELS>(layout, act, panels, x, out, next);
            }
        }
    }
}

/// `ROWS` rows by `PANELS` panels. `prefetch` is called for every line that is read, with the start of its run in the panel.
///
/// # Safety
/// As [`linear`], with every `out` and at least as many rows in `x` of length `ROWS`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile_with<const BITS: usize, const STEPS: usize, const ROWS: usize, const PANELS: usize>(
    layout: &PanelLayout,
    act: &Int8Layout,
    panels: [&[u8]; PANELS],
    x: &[u8],
    out: [&mut [Lane]; PANELS],
    prefetch: impl Fn(*const u8, usize),
) {
    let Some(stored) = Side::of(layout) else { return };
    let (constant, float) = (constant::<BITS>(layout), layout.scheme().offset_type());
    let (table, unit) = integers(layout);
    let minus_constant = _mm512_set1_epi32(-constant);
    let minus_constant_low = _mm512_set1_epi32(i32::from(-constant as u16));
    let row_bytes = act.row_bytes();
    // Each row has a pointer of its own, and the compiler does not know that they are evenly spaced: else it adds up addresses where rows
    // are loaded, and loads all that it needs of a row there, long before its turn, which takes the registers of sums.
    let rows: [*const u8; ROWS] = std::array::from_fn(|row| x.as_ptr().wrapping_add(row * row_bytes));
    let rows = if ROWS > 1 { black_box(rows) } else { rows };
    let (mut scales_at, mut sums_at, mut products_at) = (act.scales_at(), act.sums_at(), act.products_at());
    let mut codes_at = 0;
    let mut codes = panels.map(<[u8]>::as_ptr);
    let mut acc = [[_mm512_setzero_ps(); PANELS]; ROWS];
    let broadcast_i32 = |row: usize, at: usize| {
        // SAFETY: called for four codes or a sum of a row only.
        unsafe { _mm512_set1_epi32(rows[row].add(at).cast::<i32>().read_unaligned()) }
    };
    let broadcast_f32 = |row: usize, at: usize| {
        // SAFETY: called for a scale or product of a row only.
        unsafe { _mm512_set1_ps(rows[row].add(at).cast::<f32>().read_unaligned()) }
    };
    // Runs are as long as the first, but for the last. What a run is is not asked again within the loop.
    let runs = layout.runs();
    let run = |r: usize| (layout.run_code_bytes(r), layout.run_len(r).div_ceil(K_STEP));
    let (whole, last) = (run(0), run(runs - 1));
    let side_bytes = layout.scale_bytes() + layout.offset_bytes();
    for r in 0..runs {
        let (code_bytes, steps) = if r + 1 < runs { whole } else { last };
        // SAFETY: every run, with its codes, scales and offsets, lies inside its panel. A group lies inside a row of
        // `x`, and so do its scale, sum and product; `ROWS` rows are there.
        unsafe {
            let side = codes.map(|codes| codes.add(code_bytes));
            let mut scale = [_mm512_setzero_ps(); PANELS];
            let mut offset = scale;
            for p in 0..PANELS {
                (scale[p], offset[p]) = scales(stored, layout, panels[p].as_ptr(), side[p], r);
                if BITS == TABLE {
                    scale[p] = _mm512_mul_ps(scale[p], unit);
                }
            }
            let at = layout.run_offset(r);
            for side in side {
                prefetch(side, at);
            }
            let mut step = 0;
            while step < steps {
                let mut isum = [[_mm512_setzero_si512(); PANELS]; ROWS];
                if constant != 0 {
                    for row in 0..ROWS {
                        let sum = broadcast_i32(row, sums_at);
                        let start = if STEPS > 0 {
                            // The sums of 32 codes fit 16 bits: the low half of each lane times -constant; the high
                            // half times zero.
                            _mm512_dpwssd_epi32(_mm512_setzero_si512(), minus_constant_low, sum)
                        } else {
                            _mm512_mullo_epi32(minus_constant, sum)
                        };
                        isum[row] = [start; PANELS];
                    }
                }
                let group_steps = if STEPS > 0 { STEPS } else { (steps - step).min(act.group / K_STEP) };
                for step in step..step + group_steps {
                    for line in 0..code_bits(BITS).div_ceil(2) {
                        for codes in codes {
                            prefetch(codes.add(step * code_bits(BITS) * LINE / 2 + line * LINE), at);
                        }
                    }
                    let mut atoms = [[_mm512_setzero_si512(); 4]; PANELS];
                    for panel in 0..PANELS {
                        atoms[panel] = four_atoms!(BITS, table, codes[panel], steps, step);
                    }
                    for i in 0..4 {
                        for row in 0..ROWS {
                            let x = broadcast_i32(row, codes_at + 4 * i);
                            for panel in 0..PANELS {
                                isum[row][panel] = _mm512_dpbusd_epi32(isum[row][panel], atoms[panel][i], x);
                            }
                        }
                    }
                    codes_at += K_STEP;
                }
                step += group_steps;
                for row in 0..ROWS {
                    let scale_x = broadcast_f32(row, scales_at);
                    for panel in 0..PANELS {
                        let t = _mm512_mul_ps(_mm512_cvtepi32_ps(isum[row][panel]), scale[panel]);
                        acc[row][panel] = _mm512_fmadd_ps(t, scale_x, acc[row][panel]);
                    }
                }
                if float.is_some() {
                    for row in 0..ROWS {
                        let product_x = broadcast_f32(row, products_at);
                        for panel in 0..PANELS {
                            acc[row][panel] = _mm512_fmadd_ps(offset[panel], product_x, acc[row][panel]);
                        }
                    }
                }
                scales_at += 4;
                products_at += 4;
                sums_at += 4;
            }
            codes = side.map(|side| side.add(side_bytes));
        }
    }
    for (panel, out) in out.into_iter().enumerate() {
        for (out, acc) in out.iter_mut().zip(acc) {
            // SAFETY: a lane is 16 floats.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), acc[panel]) };
        }
    }
}

/// What is subtracted from each unsigned code. Signed ones are biased to unsigned ones, and the bias is subtracted as the
/// offset is, exactly.
pub(in crate::x86_64) fn constant<const BITS: usize>(layout: &PanelLayout) -> i32 {
    layout.scheme().constant() + if matches!(BITS, 8 | TABLE) { 128 } else { 0 }
}

/// The integers of codes, plus 128, and in every lane the unit of which they are multiples.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::x86_64) fn integers(layout: &PanelLayout) -> (__m512i, __m512) {
    let (integers, unit) = crate::x86_64::integers(layout);
    let biased = integers.map(|i| i as u8 ^ 128);
    // SAFETY: sixteen bytes.
    let biased = unsafe { _mm_loadu_si128(biased.as_ptr().cast()) };
    (_mm512_broadcast_i32x4(biased), _mm512_set1_ps(unit))
}

/// `BITS` bits of every byte, moved from position `from` to position `to`, alone. Constant positions become immediate ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::x86_64) fn moved<const BITS: u32>(v: __m512i, from: usize, to: usize) -> __m512i {
    let count = |n: usize| _mm_cvtsi32_si128(n as i32);
    // Words are shifted; the mask drops what crosses into the other byte.
    let v =
        if from > to { _mm512_srl_epi16(v, count(from - to)) } else { _mm512_sll_epi16(v, count(to - from)) };
    _mm512_and_si512(v, _mm512_set1_epi8((((1 << BITS) - 1) << to) as i8))
}
