//! Loops over numbers that compilers vectorise. Callers run them inside [`vectorised`].

use half::bf16;
use pulp::{Arch, Simd, WithSimd};

/// Independent partial sums: enough to fill the vector units' latency.
const LANES: usize = 64;

struct Loops<F>(F);

impl<R, F: FnMut() -> R> WithSimd for Loops<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// Runs `f` compiled for the vector instructions that this machine has. It and what it calls must be `#[inline(always)]`: whatever stays
/// a function of its own is compiled for the least machine. So does the `FnOnce` of a closure, which nothing can mark; hence `FnMut`.
#[inline(always)]
pub fn vectorised<R>(f: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Loops(f))
}

/// Dot product.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of_products(a, b, |v| v)
}

/// Dot product with bf16 weights.
#[inline(always)]
pub(crate) fn dot_bf16(a: &[bf16], b: &[f32]) -> f32 {
    sum_of_products(a, b, |v| f32::from_bits(u32::from(v.to_bits()) << 16))
}

#[inline(always)]
fn sum_of_products<T: Copy>(a: &[T], b: &[f32], widen: impl Fn(T) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let tail: f32 = rest.map(|(x, y)| widen(*x) * y).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            sums[i] += widen(x[i]) * y[i];
        }
    }
    fold(sums, |a, b| a + b) + tail
}

/// Sum.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    reduce(x, 0.0, |a, b| a + b)
}

/// The largest of numbers, of which none is NaN; minus infinity of none.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    reduce(x, f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

#[inline(always)]
fn reduce(x: &[f32], start: f32, op: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] = op(lanes[i], x[i]);
        }
    }
    rest.iter().fold(fold(lanes, &op), |a, b| op(a, *b))
}

/// Folds the upper half onto the lower until one is left.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], op: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] = op(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}

/// `out += factor * x`.
#[inline(always)]
pub(crate) fn add_scaled(out: &mut [f32], factor: f32, x: &[f32]) {
    for (o, x) in out.iter_mut().zip(x) {
        *o += factor * x;
    }
}

/// e^x within 2 ulp: `2^n * e^r` with `|r| <= ln 2 / 2` and the Taylor polynomial of degree 7. Below -87 it gives e^-87.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, whose bits then stand at the low end.
    const ROUND: f32 = 12_582_912.0;
    // A clamp that keeps NaN.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, of which the first has few enough bits that n times it is exact.
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 3e-7, "exp({x}) is off by {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-1e30) < 2e-38);
    }

    #[test]
    fn reductions_take_every_element() {
        for n in [0, 1, 63, 64, 65, 200] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let expected: f32 = (0..n).map(|i| (i * i) as f32).sum();
            assert_eq!(dot(&x, &x), expected);
            assert_eq!(sum(&x), x.iter().sum());
            let falling: Vec<f32> = x.iter().map(|v| -1.0 - v).collect();
            assert_eq!(max(&x), if n == 0 { f32::NEG_INFINITY } else { x[n - 1] });
            assert_eq!(max(&falling), if n == 0 { f32::NEG_INFINITY } else { -1.0 });
        }
    }
}
