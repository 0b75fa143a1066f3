//! Products that are defined to the bit, so that what the compiler derives from them (statistics, scales, codes) is a function of its input
//! alone: no instruction set, blocking or thread count changes a result.
//!
//! - An element of a matrix product is a sum of stretches of [`STRETCH`] factors, added in ascending order. A stretch is a chain of fused
//!   multiply-adds from zero, in ascending order. So each element has one lane of a vector, and registers hold a tile of them.
//! - A dot product that stands alone would wait for its own chain. It has [`LANES`] partial sums instead, element `i` in sum `i % LANES`,
//!   folded by halves.

use crate::vector::vectorised;
use crate::weights::{MatrixRows, NumberSlice};
use faer::MatMut;
use faer::prelude::ReborrowMut;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Partial sums of a dot product.
pub const LANES: usize = 16;
/// Factors of a matrix product that are one chain.
pub const STRETCH: usize = 256;
/// Vectors of a row of a tile: with the rows that registers leave room for, enough sums to fill the latency of two units, and few enough
/// columns for a stretch of them to stay in the first cache.
const VECTORS: usize = 2;
/// Rows of a tile, by the vector registers that there are: 32, or fewer.
const TALL: [usize; 2] = [12, 6];
/// Rows that meet all columns of a task before the next: their stretch stays in the second cache.
const BLOCK: usize = 40 * TALL[0];
/// Floats of a row of a tile, at most.
const WIDEST: usize = VECTORS * 16;
/// Columns of a matrix product that are a task, at most: with a stretch of them and of all rows, what stays in the cache.
const COLUMNS: usize = 6 * WIDEST;
/// Rows of a second moment that are a task, at least and at most. With more of them what they are multiplied with is read less often.
const BAND: std::ops::RangeInclusive<usize> = 32..=512;
/// And at most so many tasks.
const BANDS: usize = 16;

/// The dot product of two slices of equal length.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    vectorised(
        #[inline(always)]
        || lanes(a, b),
    )
}

#[inline(always)]
fn lanes(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        sums = add_products(a, b, sums);
    }
    for (l, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[l] = a.mul_add(*b, sums[l]);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for l in 0..width {
            sums[l] += sums[l + width];
        }
    }
    sums[0]
}

/// By value, so that sums stay in vector registers: sums that are reached through a reference the compiler adds one by one.
#[inline(always)]
fn add_products(a: &[f32; LANES], b: &[f32; LANES], sums: [f32; LANES]) -> [f32; LANES] {
    let mut out = sums;
    for l in 0..LANES {
        out[l] = a[l].mul_add(b[l], sums[l]);
    }
    out
}

/// `x w^T` for `rows` rows of x and `n` of w, both of `k` elements.
pub fn product(x: &[f32], rows: usize, w: &[f32], n: usize, k: usize) -> Vec<f32> {
    let mut out = vec![0f32; rows * n];
    if out.is_empty() || k == 0 {
        return out;
    }
    let (tall, wide) = tile_shape();
    // [stretch][panel][element][row]
    let mut packed = vec![0f32; rows.next_multiple_of(tall) * k];
    let stretches = packed.par_chunks_mut(rows.next_multiple_of(tall) * STRETCH);
    stretches.enumerate().for_each(|(s, packed)| pack_rows(x, k, s * STRETCH, tall, packed));

    // Several tasks a thread, so that a thread which is held up does not hold up the others.
    let columns =
        n.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(wide).min(COLUMNS / wide * wide);
    let mut rest = MatMut::from_row_major_slice_mut(&mut out, rows, n);
    let mut tasks = Vec::with_capacity(n.div_ceil(columns));
    for (start, w) in w.chunks(columns * k).enumerate() {
        let (part, others) = rest.split_at_col_mut(columns.min(n - start * columns));
        rest = others;
        tasks.push((w, part));
    }
    let scratch = || (Vec::new(), Vec::new());
    tasks.into_par_iter().for_each_init(scratch, |(panels, sums), (w, mut out)| {
        let columns = out.ncols();
        let wide_columns = columns.next_multiple_of(wide);
        panels.clear();
        panels.resize(wide_columns * k, 0.0);
        for (s, panels) in panels.chunks_mut(wide_columns * STRETCH).enumerate() {
            pack_rows(w, k, s * STRETCH, wide, panels);
        }
        // All stretches of a block of rows before the next, summed side by side: rows of a result may lie a power of two apart, and would
        // push each other out of every cache (2,048 x 8,192 from 2,048, two Xeon cores: 107 GFLOP/s in place, 235 so).
        for first in (0..rows).step_by(BLOCK) {
            let block = BLOCK.min(rows - first);
            sums.clear();
            sums.resize(block * columns, 0.0);
            let stretches = packed.chunks(rows.next_multiple_of(tall) * STRETCH);
            for (a, b) in stretches.zip(panels.chunks(wide_columns * STRETCH)) {
                let len = b.len() / wide_columns;
                let a = &a[first * len..][..block.next_multiple_of(tall) * len];
                let out = MatMut::from_row_major_slice_mut(sums, block, columns);
                Arch::new().dispatch(Tiles { a, b, len, out });
            }
            for (r, sums) in sums.chunks_exact(columns).enumerate() {
                if let Some(out) = out.rb_mut().row_mut(first + r).try_as_row_major_mut() {
                    out.as_slice_mut().copy_from_slice(sums);
                }
            }
        }
    });
    out
}

/// Adds `x^T x` of `rows` rows to `moment`, of which elements `[i][j]` with `j >= i` are kept; others may hold anything. Only products of
/// elements of one of the blocks of `block` that the row divides into are made.
pub fn add_second_moment(x: &[f32], rows: usize, k: usize, block: usize, moment: &mut [f32]) {
    let block = block.clamp(1, k.max(1));
    if rows == 0 || k == 0 {
        return;
    }
    let (tall, wide) = tile_shape();
    // [panel][row][column]
    let mut packed = vec![0f32; k.next_multiple_of(wide) * rows];
    let panels = packed.par_chunks_mut(wide * rows).enumerate();
    panels.for_each(|(p, panel)| pack_columns(x, k, p * wide, wide, panel));
    let band = (k / BANDS).clamp(*BAND.start(), *BAND.end());
    let bands = moment.par_chunks_mut(block * k).enumerate().flat_map(|(at, block)| {
        let bands = block.par_chunks_mut(band * k).enumerate();
        bands.map(move |(i, out)| (at, i, out))
    });
    bands.for_each_init(Vec::new, |a, (at, i, out)| {
        let (first, here) = (at * block + i * band, out.len() / k);
        a.clear();
        a.resize(here.next_multiple_of(tall) * rows, 0.0);
        pack_columns(x, k, first, tall, a);
        let mut out = MatMut::from_row_major_slice_mut(out, here, k);
        // From the panel on in which the diagonal lies; one after the other, each through all rows while it is in the cache.
        let panels = packed.chunks(wide * rows).enumerate().take(((at + 1) * block).div_ceil(wide));
        for (p, b) in panels.skip(first / wide) {
            let (_, out) = out.rb_mut().split_at_col_mut(p * wide);
            let columns = wide.min(out.ncols());
            let out = out.subcols_mut(0, columns);
            Arch::new().dispatch(Tiles { a, b, len: rows, out });
        }
    });
}

/// Rows and columns of a tile on this machine.
fn tile_shape() -> (usize, usize) {
    struct Shape;
    impl WithSimd for Shape {
        type Output = (usize, usize);

        fn with_simd<S: Simd>(self, _: S) -> (usize, usize) {
            (TALL[usize::from(S::REGISTER_COUNT < 32)], VECTORS * S::F32_LANES)
        }
    }
    Arch::new().dispatch(Shape)
}

/// Elements `from..` of rows of `k`, as many as there is room for, in panels of `height` rows: `[panel][element][row]`. Rows that fill the
/// last panel are left as they are.
fn pack_rows(rows: &[f32], k: usize, from: usize, height: usize, packed: &mut [f32]) {
    let len = STRETCH.min(k - from);
    for (rows, panel) in rows.chunks(height * k).zip(packed.chunks_mut(height * len)) {
        for (r, row) in rows.chunks_exact(k).enumerate() {
            let places = panel[r..].iter_mut().step_by(height);
            places.zip(&row[from..from + len]).for_each(|(p, v)| *p = *v);
        }
    }
}

/// Columns `from..` of rows of `k`, as many as there is room for, in panels of `width` columns: `[panel][row][column]`. Columns that fill the
/// last panel are left as they are.
fn pack_columns(rows: &[f32], k: usize, from: usize, width: usize, packed: &mut [f32]) {
    let len = rows.len() / k;
    for (p, panel) in packed.chunks_mut(width * len).enumerate() {
        let columns = (from + p * width).min(k)..(from + (p + 1) * width).min(k);
        for (row, panel) in rows.chunks_exact(k).zip(panel.chunks_exact_mut(width)) {
            panel[..columns.len()].copy_from_slice(&row[columns.clone()]);
        }
    }
}

/// Adds products to results: `out[i][j] += sum over t of a[t][i] b[t][j]`, a stretch after the other, both factors packed in panels.
struct Tiles<'a> {
    a: &'a [f32],
    b: &'a [f32],
    /// Elements of each sum.
    len: usize,
    out: MatMut<'a, f32>,
}

impl WithSimd for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT < 32 {
            self.run::<S, { TALL[1] }>(simd)
        } else {
            self.run::<S, { TALL[0] }>(simd)
        }
    }
}

impl Tiles<'_> {
    #[inline(always)]
    fn run<S: Simd, const R: usize>(self, simd: S) {
        let Self { a, b, len, mut out } = self;
        let wide = VECTORS * S::F32_LANES;
        let mut lines = [[0f32; WIDEST]; R];
        for (block, a) in a.chunks(BLOCK * len).enumerate() {
            for (j, b) in b.chunks_exact(wide * len).enumerate() {
                let column = j * wide;
                let columns = wide.min(out.ncols() - column);
                for (i, a) in a.chunks_exact(R * len).enumerate() {
                    let row = block * BLOCK + i * R;
                    for (a, b) in a.chunks(R * STRETCH).zip(b.chunks(wide * STRETCH)) {
                        tile::<S, R>(simd, a, b, &mut lines);
                        for (r, line) in lines.iter().enumerate().take(out.nrows() - row) {
                            let out = out.rb_mut().row_mut(row + r).subcols_mut(column, columns);
                            if let Some(out) = out.try_as_row_major_mut() {
                                out.as_slice_mut().iter_mut().zip(line).for_each(|(o, v)| *o += v);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A tile of results: `R` rows of [`VECTORS`] vectors, written into `lines` at the end. Sums that are themselves reached by an index that
/// is not known to the compiler would be stored after every product.
#[expect(clippy::manual_memcpy, reason = "a copy of memory would keep the sums in memory")]
#[inline(always)]
fn tile<S: Simd, const R: usize>(simd: S, a: &[f32], b: &[f32], lines: &mut [[f32; WIDEST]; R]) {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; R];
    let (b, _) = S::as_simd_f32s(b);
    for (a, b) in a.as_chunks::<R>().0.iter().zip(b.as_chunks::<VECTORS>().0) {
        for r in 0..R {
            let a = simd.splat_f32s(a[r]);
            for v in 0..VECTORS {
                sums[r][v] = simd.mul_add_f32s(a, b[v], sums[r][v]);
            }
        }
    }
    for r in 0..R {
        let (vectors, _) = S::as_mut_simd_f32s(&mut lines[r]);
        for v in 0..VECTORS {
            vectors[v] = sums[r][v];
        }
    }
}

/// The defined [`Linear`](crate::linear::Linear).
pub(crate) fn linear(x: &[f32], rows: usize, w: MatrixRows<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = match w.numbers {
        NumberSlice::F32(numbers) => product(x, rows, numbers, w.rows, w.k),
        NumberSlice::Bf16(numbers) => {
            let wide: Vec<f32> = numbers.iter().map(|v| v.to_f32()).collect();
            product(x, rows, &wide, w.rows, w.k)
        }
    };
    if let Some(bias) = bias {
        out.chunks_exact_mut(bias.len().max(1)).for_each(|row| {
            row.iter_mut().zip(bias).for_each(|(o, b)| *o += b);
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use bessemer_ir::recipe::uniform;

    fn numbers(seed: u64, n: usize) -> Vec<f32> {
        (0..n as u64).map(|i| uniform(seed, i)).collect()
    }

    /// The documented order of a matrix product, written down plainly.
    fn plain(a: &[f32], b: &[f32]) -> f32 {
        let stretches = a.chunks(STRETCH).zip(b.chunks(STRETCH));
        let chain = |(a, b): (&[f32], &[f32])| a.iter().zip(b).fold(0f32, |sum, (a, b)| a.mul_add(*b, sum));
        stretches.map(chain).fold(0.0, |sum, stretch| sum + stretch)
    }

    #[test]
    fn every_shape_and_thread_count_has_the_documented_bits() {
        let shapes = [
            (1, 1, 1),
            (2, 3, 16),
            (5, 100, 37),
            (3, 49, 288),
            (17, 97, 513),
            (64, 1, 256),
            (9, 500, 20),
            (BLOCK + 7, 33, 600),
        ];
        for (rows, n, k) in shapes {
            let (x, w) = (numbers(1, rows * k), numbers(2, n * k));
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let out = pool.install(|| product(&x, rows, &w, n, k));
                for r in 0..rows {
                    for i in 0..n {
                        let expected = plain(&x[r * k..][..k], &w[i * k..][..k]);
                        assert_eq!(out[r * n + i].to_bits(), expected.to_bits(), "{rows} {n} {k}");
                    }
                }
            }
        }
        assert_eq!(product(&[], 2, &[], 3, 0), [0.0; 6]);
        assert!(product(&[], 0, &[1.0], 1, 1).is_empty());
    }

    #[test]
    fn a_dot_product_has_the_documented_bits() {
        for k in [0, 1, 15, 16, 37, 288] {
            let (a, b) = (numbers(1, k), numbers(2, k));
            let mut sums = [0f32; LANES];
            for (i, (a, b)) in a.iter().zip(&b).enumerate() {
                sums[i % LANES] = a.mul_add(*b, sums[i % LANES]);
            }
            for width in [8, 4, 2, 1] {
                (0..width).for_each(|l| sums[l] += sums[l + width]);
            }
            assert_eq!(dot(&a, &b).to_bits(), sums[0].to_bits());
        }
    }

    #[test]
    fn second_moments_are_sums_of_products_of_columns() {
        for (rows, k, block) in
            [(37, 21, 21), (300, 70, usize::MAX), (2, 131, 131), (0, 3, 3), (300, 131, 64), (9, 200, 48)]
        {
            let x = numbers(3, rows * k);
            for threads in [1, 3] {
                let mut moment = vec![1f32; k * k];
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| add_second_moment(&x, rows, k, block, &mut moment));
                for i in 0..k {
                    for j in i..k.min((i / block + 1).saturating_mul(block)) {
                        let column = |c: usize| (0..rows).map(|r| x[r * k + c]).collect::<Vec<_>>();
                        let (a, b) = (column(i), column(j));
                        let stretches = a.chunks(STRETCH).zip(b.chunks(STRETCH));
                        let expected = stretches.fold(1.0, |sum, (a, b)| sum + plain(a, b));
                        assert_eq!(moment[i * k + j], expected, "{rows} {k}");
                    }
                }
            }
        }
    }
}
