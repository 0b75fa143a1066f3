//! Loops over numbers that compilers vectorise. Callers run them inside [`pulp::Arch::dispatch`], which compiles them for the vector
//! instructions that this machine has.

use half::bf16;

/// Independent partial sums: enough to fill the vector units' latency.
const LANES: usize = 64;

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
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            sums[i] += sums[i + width];
        }
    }
    sums[0] + tail
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
    fn dot_takes_every_element() {
        for n in [0, 1, 63, 64, 65, 200] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let expected: f32 = (0..n).map(|i| (i * i) as f32).sum();
            assert_eq!(dot(&x, &x), expected);
        }
    }
}
