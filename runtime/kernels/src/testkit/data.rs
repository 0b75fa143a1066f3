//! Random and exact test data.

use crate::pack::pack_panels;
use bessemer_format::rows::Rows;
use bessemer_format::{Elem, PanelLayout, QuantScheme, ScaleType};

/// A small fixed generator (SplitMix64), so that tests repeat.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An integer of `low..=high`.
    pub(crate) fn int(&mut self, low: i32, high: i32) -> i32 {
        low + (self.next() % (high - low + 1) as u64) as i32
    }

    /// A float of (-1, 1).
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0 + f32::EPSILON / 4.0
    }

    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    pub(crate) fn small_ints(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.int(-3, 3) as f32).collect()
    }
}

/// The lowest and highest code of an integer element, and of others a few small numbers.
pub(crate) fn code_range(elem: Elem) -> (i32, i32) {
    match elem {
        Elem::U(_) | Elem::S(_) => {
            let (low, high) = elem.range();
            (low as i32, high as i32)
        }
        _ => (-8, 8),
    }
}

/// Rows that use the whole range of codes, with random scales and offsets.
pub(crate) fn random_rows(random: &mut Random, scheme: QuantScheme, n: usize, k: usize) -> Rows {
    rows_from(
        random,
        scheme,
        n,
        k,
        |r, elem| if elem.is_float() { r.float() } else { any_code(r, elem) },
        Random::float,
    )
}

/// A number of any code of an element of up to 8 bits, but those that are no finite numbers.
fn any_code(random: &mut Random, elem: Elem) -> f32 {
    loop {
        let number = elem.number((random.next() & ((1 << elem.bits()) - 1)) as u32);
        if number.is_finite() {
            return number;
        }
    }
}

/// Rows of small integers whose scales are powers of two, so that sums of a few thousand products are exact in f32.
pub(crate) fn exact_rows(random: &mut Random, scheme: QuantScheme, n: usize, k: usize) -> Rows {
    rows_from(
        random,
        scheme,
        n,
        k,
        |r, elem| match elem {
            Elem::Iq4 => any_code(r, elem),
            Elem::E2M1 | Elem::E4M3 | Elem::E5M2 => {
                [0.0, 0.5, 1.0, -1.0, 1.5, -2.0, 4.0, -6.0][r.int(0, 7) as usize]
            }
            _ => {
                let (low, high) = code_range(elem);
                r.int(low, high) as f32
            }
        },
        |r| [0.5, 1.0, -1.0, 2.0][r.int(0, 3) as usize],
    )
}

fn rows_from(
    random: &mut Random,
    scheme: QuantScheme,
    n: usize,
    k: usize,
    mut code: impl FnMut(&mut Random, Elem) -> f32,
    mut scale: impl FnMut(&mut Random) -> f32,
) -> Rows {
    let codes = (0..n * k).map(|_| code(random, scheme.elem)).collect();
    if scheme.elem.is_float() {
        return Rows::floats(scheme.elem, n, k, codes);
    }
    let groups = n * k.div_ceil(scheme.group(k));
    let outer_groups = n * k.div_ceil(scheme.outer_group(k));
    let mut side = |ty: Option<ScaleType>, count: usize| -> Vec<f32> {
        let Some(ty) = ty else { return Vec::new() };
        // Integers of a few bits, so that integers times powers of two stay exact.
        let number = |s: f32| match ty {
            ScaleType::U8 => (s.abs() * 4.0).round(),
            ScaleType::S8 => (s * 4.0).round() + 0.0,
            ScaleType::E8M0 => ty.round(s.abs()),
            _ => ty.round(s),
        };
        (0..count).map(|_| number(scale(random))).collect()
    };
    let scales = side(scheme.scale.map(|s| s.inner.ty), groups);
    let offsets = side(scheme.offset_type(), groups);
    let outer_scales = side(scheme.outer().map(|o| o.ty), outer_groups);
    let outer_offsets = side(scheme.outer_offset_type(), outer_groups);
    Rows { codes, scales, offsets, outer_scales, outer_offsets, ..Rows::empty(scheme, n, k) }
}

pub(crate) fn packed(rows: &Rows) -> (PanelLayout, Vec<u8>) {
    let layout = PanelLayout::new(&rows.scheme, rows.rows, rows.k).unwrap();
    let mut bytes = vec![0; layout.total_bytes()];
    pack_panels(&layout, rows, &mut bytes).unwrap();
    (layout, bytes)
}

/// The schemes that a kernel of `family` is tested with.
pub(crate) fn schemes(family: crate::table::Family) -> impl Iterator<Item = QuantScheme> {
    let text = "f32 f16 bf16 \
        u4:f16x32-8 u4:f16x32+f16 u4:f32x16 u4:bf16x128+f32 u4:f16x0+f16 u4:f16x48-7 u4:bf16x0-8 u4:f16x64+bf16 \
        s8:f16x32 s8:f32x16 s8:bf16x128 s8:f16x0 s8:f16x48 s8:f16x64+f16 s8:f16x32-3 s8:f16x512 u4:f16x512-8 \
        u2:f16x32+f16 u2:f16x16 u2:f16x48-2 u2:f32x0+f32 u2:f16x256-1 u3:f16x32-4 u3:f32x16+bf16 u3:f16x48 u3:f16x0-3 \
        u5:f16x48 u5:f16x32+f16 u5:f32x16-16 u5:f16x0-15 u5:bf16x128-16 u6:bf16x64-32 u6:f16x16-32 u6:f16x48+f16 \
        u6:f16x0 u6:f32x256-31 u1:f16x16 u7:f16x0 u8:f16x32-128 u8:f16x0+f16 \
        s2:f16x32 s3:f16x16 s4:f16x128 s5:f16x32 s6:f32x0 s7:f16x32 \
        u2:u8x16*f16x256+u8*f16 u3:s8x16*f16x256-4 u4:u8x32*f16x256+u8*f16 u5:u8x32*f16x256+u8*f16 u6:s8x16*f16x256-32 \
        s8:u8x32*bf16x0 s4:u8x48*f32x96 u4:f16x128-u8 u4:bf16x32-s8 u3:f16x64-u8 u8:f16x0-u8 u2:u8x32*f16x0-u8 \
        iq4:f16x32 iq4:s8x32*f16x256 iq4:f16x0 e2m1:e8m0x32 e2m1:e4m3x16*f32x0 e4m3:f32x0 e4m3:bf16x128 e4m3:f16x48 \
        e5m2:f32x0 e5m2:bf16x32";
    text.split_whitespace().map(|s| s.parse().unwrap()).filter(move |s: &QuantScheme| family.covers(s.elem))
}
