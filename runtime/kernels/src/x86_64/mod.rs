//! Kernels for x86-64.
//!
//! Functions of these modules carry `#[target_feature]`: safe among themselves, unsafe to call from anywhere else. The
//! contracts of the entry points are those of the function types in [`crate::linear`] and [`crate::attention`].

// Register blocks are arrays that a constant range indexes, several at a time: zipped iterators would hide the block.
#![allow(clippy::needless_range_loop)]

pub(crate) mod amx;
pub(crate) mod avx2;
pub(crate) mod avx512;
pub(crate) mod peak;

/// Element types of a KV cache as const parameters of the kernels of attention.
mod kv_elem {
    pub(super) const BF16: u8 = 0;
    pub(super) const F32: u8 = 1;
    pub(super) const INT8: u8 = 2;
    pub(super) const FP8: u8 = 3;
    pub(super) const INT4: u8 = 4;
    pub(super) const F16: u8 = 5;
    /// Numbers of binary32 that a kernel made of another type: of sixteen pairs all even ones, then all odd ones.
    pub(super) const WIDENED: u8 = 6;

    /// Bytes of two elements.
    pub(super) const fn pair_bytes(elem: u8) -> usize {
        match elem {
            F32 | WIDENED => 8,
            F16 | BF16 => 4,
            INT8 | FP8 => 2,
            _ => 1,
        }
    }
}

/// The portable kernels for every scheme, compiled with newer instructions: the same bits, faster.
macro_rules! portable_with {
    ($features:literal) => {
        /// The portable kernels for every scheme with this instruction set's vectors and fused multiply-add.
        pub(crate) mod any {
            use crate::linear::{Lane, Places, gate, portable, store};
            use bessemer_format::PanelLayout;
            use bessemer_format::act::Int8Layout;
            use bessemer_format::plan::Gate;
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

            /// [`crate::linear::LinearF32Fn`] for every scheme.
            #[target_feature(enable = $features)]
            pub(crate) fn linear_f32(
                layout: &PanelLayout,
                panel: &[u8],
                x: &[f32],
                stride: usize,
                out: &mut [Lane],
            ) {
                portable::linear_f32(layout, panel, x, stride, out);
            }

            /// [`crate::linear::LinearInt8Fn`] for every scheme of integer codes.
            #[target_feature(enable = $features)]
            pub(crate) fn linear_int8(
                layout: &PanelLayout,
                act: &Int8Layout,
                panel: &[u8],
                x: &[u8],
                out: &mut [Lane],
            ) {
                portable::linear_int8(layout, act, panel, x, out);
            }

            /// [`crate::linear::GatedFn`].
            #[target_feature(enable = $features)]
            pub(crate) fn gated(function: Gate, gates: &mut [Lane], ups: &[Lane]) {
                gate::gated(function, gates, ups);
            }

            /// [`crate::linear::StoreFn`].
            ///
            /// # Safety
            /// As there.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn store(
                tile: &[Lane],
                bias: Option<&Lane>,
                residual: Option<*const f32>,
                places: Places<'_>,
                columns: usize,
                out: *mut f32,
            ) {
                // A prefetch never faults.
                let soon = |p: *const f32| _mm_prefetch::<_MM_HINT_T0>(p.cast());
                // SAFETY: the caller's promise.
                unsafe { store::store(tile, bias, residual, places, columns, out, soon) }
            }
        }
    };
}
pub(crate) use portable_with;

use bessemer_format::act::Int8Layout;
use bessemer_format::panel::K_STEP;
use bessemer_format::{PanelLayout, ScaleType};
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// In place of a number of bits, as a const parameter of integer kernels: four bits that say which of a table's integers is meant
/// ([`bessemer_format::Elem::integers`]).
const TABLE: usize = 4 | 16;

/// Bits of a code.
const fn code_bits(bits: usize) -> usize {
    bits & 15
}

/// The integers of the codes of a layout, and the unit of which they are multiples. No integers unless the codes stand for others.
fn integers(layout: &PanelLayout) -> ([i8; 16], f32) {
    let elem = layout.scheme().elem;
    (elem.integers().copied().unwrap_or_default(), elem.unit().unwrap_or(1.0))
}

/// Steps along k of the activation group that integer kernels unroll: 32 elements.
const EVEN_STEPS: usize = 2;

/// Whether every activation group is whole and of [`EVEN_STEPS`].
fn even_groups(act: &Int8Layout) -> bool {
    act.group == EVEN_STEPS * K_STEP && act.padded_k.is_multiple_of(act.group)
}

/// How the scales and offsets of a run are read: asked once, before the loops of a kernel. Its sums fill the registers
/// meanwhile, so what is long to read is a call, which spares plain schemes the room.
#[derive(Clone, Copy)]
struct Side {
    scale: ScaleType,
    offset: Option<ScaleType>,
    /// They are stored as they are multiplied, in a type that one instruction or two widen.
    plain: bool,
}

impl Side {
    /// Of a layout with scales.
    fn of(layout: &PanelLayout) -> Option<Self> {
        let (scale, offset) = (layout.scheme().scale?.inner.ty, layout.scheme().offset_type());
        let wide = |ty| matches!(ty, ScaleType::F32 | ScaleType::F16 | ScaleType::Bf16);
        let plain = !layout.scheme().combines() && wide(scale) && offset.is_none_or(wide);
        Some(Self { scale, offset, plain })
    }
}

/// How far ahead of a GEMV's reads to ask memory: a DRAM latency at the speed of one core, some times over, since a page that is
/// entered for the first time costs a walk of the page table too. Measured on Zen 5, matrices far larger than the cache, two cores
/// at once: eight rows are 18 % slower with 2048 bytes and 7 % with 4096, one row is 5 % slower with 2048.
const PREFETCH_AHEAD: usize = 8192;
/// How far ahead to ask the L2 cache. From memory lines come no nearer than there, since a core has fewer places for lines on their way
/// to its L1 cache than memory takes to be busy: on Emerald Rapids one row from memory is 11 % slower where they do, two cores at once.
const PREFETCH_NEAR: usize = 1024;

/// Asks memory for the line `PREFETCH_AHEAD` bytes after `p`, and the L2 cache for one that was asked for before. Neither need exist: a
/// prefetch never faults.
#[inline]
#[target_feature(enable = "sse")]
fn prefetch(p: *const u8) {
    prefetch_to_l2(p.wrapping_add(PREFETCH_AHEAD));
    prefetch_near(p);
}

/// Asks for the line `PREFETCH_AHEAD` bytes after `p`, to come to the L1 cache at once.
#[inline]
#[target_feature(enable = "sse")]
fn prefetch_at_once(p: *const u8) {
    _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(PREFETCH_AHEAD).cast());
}

/// Asks for the line `PREFETCH_NEAR` bytes after `p`.
#[inline]
#[target_feature(enable = "sse")]
fn prefetch_near(p: *const u8) {
    _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(PREFETCH_NEAR).cast());
}

/// Asks for the line at `p`, which need not exist, to come as near as the L2 cache.
#[inline]
#[target_feature(enable = "sse")]
fn prefetch_to_l2(p: *const u8) {
    _mm_prefetch::<_MM_HINT_T1>(p.cast());
}
