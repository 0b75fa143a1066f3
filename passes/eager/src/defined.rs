//! Products that are defined to the bit: [`LANES`] partial sums of fused multiply-adds, element `i` in sum `i % LANES` in ascending order,
//! then folded by halves. No instruction set, blocking or thread count changes a result, so what the compiler derives from them (statistics,
//! scales, codes) is a function of its input alone.

use crate::vector::vectorised;
use crate::weights::{MatrixRows, NumberSlice};
use rayon::prelude::*;

/// Partial sums of a product.
pub const LANES: usize = 16;
/// Outputs that a thread takes at a time.
const TILE: usize = 48;
/// Columns of a second moment that stay in registers.
const BLOCK: usize = 4;

/// The dot product of two slices of equal length.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    vectorised(
        #[inline(always)]
        || block::<1, 1>([a], [b])[0][0],
    )
}

/// `x w^T` for `rows` rows of x and `n` of w, both of `k` elements.
pub fn product(x: &[f32], rows: usize, w: &[f32], n: usize, k: usize) -> Vec<f32> {
    let mut out = vec![0f32; rows * n];
    if out.is_empty() {
        return out;
    }
    // [output][row], so that threads write apart.
    let mut by_output = vec![0f32; rows * n];
    by_output.par_chunks_mut(TILE * rows).enumerate().for_each(|(tile, out)| {
        vectorised(
            #[inline(always)]
            || {
                let outputs = out.len() / rows;
                let w = |i: usize| &w[(tile * TILE + i) * k..][..k];
                let x = |r: usize| &x[r * k..][..k];
                for r in (0..rows).step_by(2) {
                    let mut i = 0;
                    while r + 1 < rows && i + 2 < outputs {
                        let sums = block([x(r), x(r + 1)], [w(i), w(i + 1), w(i + 2)]);
                        for (dr, sums) in sums.into_iter().enumerate() {
                            sums.into_iter()
                                .enumerate()
                                .for_each(|(di, s)| out[(i + di) * rows + r + dr] = s);
                        }
                        i += 3;
                    }
                    for i in i..outputs {
                        for r in r..rows.min(r + 2) {
                            out[i * rows + r] = block([x(r)], [w(i)])[0][0];
                        }
                    }
                }
            },
        );
    });
    out.par_chunks_mut(n).enumerate().for_each(|(r, out)| {
        out.iter_mut().enumerate().for_each(|(i, o)| *o = by_output[i * rows + r]);
    });
    out
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

/// [`LANES`] elements of each product are added. By value, so that sums stay in vector registers: sums that are reached through a
/// reference the compiler adds one by one.
#[inline(always)]
fn add_products(x: &[f32; LANES], w: &[f32; LANES], sums: [f32; LANES]) -> [f32; LANES] {
    let mut out = sums;
    for l in 0..LANES {
        out[l] = x[l].mul_add(w[l], sums[l]);
    }
    out
}

/// Dot products of every row of x with every row of w: the one definition of the order of additions.
#[inline(always)]
fn block<const R: usize, const N: usize>(x: [&[f32]; R], w: [&[f32]; N]) -> [[f32; N]; R] {
    let k = x[0].len();
    let mut sums = [[[0f32; LANES]; N]; R];
    let (x, w) = (x.map(|x| x.as_chunks::<LANES>()), w.map(|w| w.as_chunks::<LANES>()));
    for at in 0..k / LANES {
        for r in 0..R {
            for i in 0..N {
                sums[r][i] = add_products(&x[r].0[at], &w[i].0[at], sums[r][i]);
            }
        }
    }
    let mut out = [[0f32; N]; R];
    for r in 0..R {
        for i in 0..N {
            let mut sums = sums[r][i];
            for (l, (x, w)) in x[r].1.iter().zip(w[i].1).enumerate() {
                sums[l] = x.mul_add(*w, sums[l]);
            }
            let mut width = LANES;
            while width > 1 {
                width /= 2;
                for l in 0..width {
                    sums[l] += sums[l + width];
                }
            }
            out[r][i] = sums[0];
        }
    }
    out
}

/// Adds `x^T x` of `rows` rows to `moment`, of which only elements `[i][j]` with `j / 4 >= i / 4` are kept: the sum over these rows, in
/// ascending order, is added to what is there.
pub fn add_second_moment(x: &[f32], rows: usize, k: usize, moment: &mut [f32]) {
    // [column][row]: both factors of an element are contiguous.
    let mut columns = vec![0f32; x.len()];
    columns.par_chunks_mut(rows.max(1)).enumerate().for_each(|(i, column)| {
        column.iter_mut().enumerate().for_each(|(r, c)| *c = x[r * k + i]);
    });
    let column = |i: usize| &columns[i * rows..(i + 1) * rows];
    moment.par_chunks_mut(BLOCK * k).enumerate().for_each(|(tile, out)| {
        vectorised(
            #[inline(always)]
            || {
                let (first, here) = (tile * BLOCK, out.len() / k);
                let mut j = first;
                while here == BLOCK && j < k {
                    let ours = [column(first), column(first + 1), column(first + 2), column(first + 3)];
                    for (i, sums) in block(ours, [column(j)]).into_iter().enumerate() {
                        out[i * k + j] += sums[0];
                    }
                    j += 1;
                }
                for j in j..k {
                    for i in 0..here {
                        out[i * k + j] += block([column(first + i)], [column(j)])[0][0];
                    }
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use bessemer_ir::recipe::uniform;

    fn numbers(seed: u64, n: usize) -> Vec<f32> {
        (0..n as u64).map(|i| uniform(seed, i)).collect()
    }

    /// The documented order, written down plainly.
    fn plain(a: &[f32], b: &[f32]) -> f32 {
        let mut sums = [0f32; LANES];
        a.iter().zip(b).enumerate().for_each(|(i, (a, b))| sums[i % LANES] = a.mul_add(*b, sums[i % LANES]));
        for width in [8, 4, 2, 1] {
            (0..width).for_each(|l| sums[l] += sums[l + width]);
        }
        sums[0]
    }

    #[test]
    fn every_shape_and_thread_count_has_the_documented_bits() {
        for (rows, n, k) in [(1, 1, 1), (2, 3, 16), (5, 100, 37), (3, 49, 288)] {
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
    }

    #[test]
    fn second_moments_are_sums_of_products_of_columns() {
        let (rows, k) = (37, 21);
        let x = numbers(3, rows * k);
        let mut moment = vec![1f32; k * k];
        add_second_moment(&x, rows, k, &mut moment);
        for i in 0..k {
            for j in i..k {
                let column = |c: usize| (0..rows).map(|r| x[r * k + c]).collect::<Vec<_>>();
                assert_eq!(moment[i * k + j], 1.0 + plain(&column(i), &column(j)));
            }
        }
    }
}
