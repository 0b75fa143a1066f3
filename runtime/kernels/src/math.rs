//! Transcendental functions, defined operation by operation.
//!
//! [`exp`] uses only f32 additions and multiplications (each rounded, never fused), integer shifts and bit casts, so
//! that a vector unit or a code generator that performs the same operations gets the same bits. The constants are
//! public for that reason.

/// log2(e), rounded to f32.
pub const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// 1.5 * 2^23: adding it rounds a number of magnitude below 2^22 to the nearest even integer, which then stands in
/// the low bits of the sum.
pub const ROUND: f32 = 12_582_912.0;
/// ln 2, upper part: 10 significant bits, so that its product with an exponent is exact.
pub const LN2_HI: f32 = 355.0 / 512.0;
/// ln 2 minus [`LN2_HI`].
pub const LN2_LO: f32 = -2.121_944_4e-4;
/// `(exp(r) - 1 - r) / r^2` on `|r| <= ln(2) / 2`, highest power first (the minimax polynomial of Cephes' `expf`).
pub const POLY: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
/// Above this the result is infinite: ln(f32::MAX), rounded down.
pub const EXP_MAX: f32 = 88.722_83;
/// Below this the result is flushed to zero: ln(f32::MIN_POSITIVE).
pub const EXP_MIN: f32 = -87.336_54;

/// `e^x`, within 1 ulp of the true value (0.9904 at worst, over every f32).
///
/// Zero below [`EXP_MIN`] (results are never subnormal), infinity above [`EXP_MAX`], NaN for NaN.
///
/// ```text
/// t = x * LOG2_E + ROUND;  n = t - ROUND;  i = bits(t) - bits(ROUND)
/// r = (x - n * LN2_HI) - n * LN2_LO
/// p = POLY by Horner;      y = (p * (r * r) + r) + 1
/// h = i >> 1 (arithmetic); e^x = (y * 2^h) * 2^(i - h)
/// ```
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let t = x * LOG2_E + ROUND;
    let n = t - ROUND;
    let r = (x - n * LN2_HI) - n * LN2_LO;
    let mut p = POLY[0];
    for c in &POLY[1..] {
        p = p * r + c;
    }
    let y = (p * (r * r) + r) + 1.0;
    // 2^i in two factors: i reaches 128, which no single f32 exponent holds.
    let i = (t.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let h = i >> 1;
    let power = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    let y = (y * power(h)) * power(i.wrapping_sub(h));
    let y = if x < EXP_MIN { 0.0 } else { y };
    if x > EXP_MAX { f32::INFINITY } else { y }
}

/// `x / (1 + e^-x)`: the activation of SwiGLU.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// GELU as it is approximated: `x * (1 + tanh u) / 2 = x / (1 + e^-2u)` with `u = sqrt(2 / pi) * (x + 0.044715 x^3)`.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    x / (1.0 + exp(x * (GELU_TANH[0] + GELU_TANH[1] * (x * x))))
}

/// `-2 sqrt(2 / pi)`, and that times 0.044715.
pub const GELU_TANH: [f32; 2] = [-1.595_769, -0.071_354_81];

/// GELU: `x * (1 + erf(x / sqrt 2)) / 2`, within 1.5e-7 of `|x|`.
///
/// By the complement of `|x|`, which keeps its digits: `max(x, 0) - |x| * p(t) * e^(-x^2 / 2)` with
/// `t = 1 / (1 + ERF_T |x|)` and the polynomial of Abramowitz and Stegun, 7.1.26.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / (1.0 + ERF_T * size);
    let mut p = ERF_POLY[0];
    for c in &ERF_POLY[1..] {
        p = p * t + c;
    }
    let tail = p * t * exp(size * size * -0.5);
    (if x < 0.0 { 0.0 } else { x }) - size * tail
}

/// 0.3275911 / sqrt 2.
pub const ERF_T: f32 = 0.231_641_89;
/// Half the coefficients of the formula, highest power first.
pub const ERF_POLY: [f32; 5] = [0.530_702_7, -0.726_576, 0.710_706_9, -0.142_248_37, 0.127_414_8];

/// `tanh x = 1 - 2 / (e^2x + 1)`: what caps scores and logits. Within 1.8e-7 of the true value, which is three halves of a unit in
/// the last place of the quotient, a number up to 2: of the sum below it (twice as near where it is large) and of itself.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(x + x) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelus_are_close_everywhere() {
        for i in -12_000..=12_000 {
            let x = i as f32 / 1000.0;
            let wide = f64::from(x);
            // erf by its series, which converges everywhere; beyond 4 it is 1 for our purpose.
            let z = wide / 2f64.sqrt();
            let (mut term, mut sum) = (z, z);
            for n in 1..100 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            let erf = if z.abs() > 4.0 { z.signum() } else { sum * 2.0 / std::f64::consts::PI.sqrt() };
            let exact = 0.5 * wide * (1.0 + erf);
            assert!((f64::from(gelu(x)) - exact).abs() <= 3e-7 * wide.abs(), "gelu({x})");
            let u = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            let tanh = 0.5 * wide * (1.0 + u.tanh());
            assert!((f64::from(gelu_tanh(x)) - tanh).abs() <= 6e-7 * wide.abs(), "gelu_tanh({x})");
        }
        assert!(gelu(f32::NAN).is_nan() && gelu_tanh(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_close_everywhere() {
        for i in -20_000..=20_000 {
            let x = i as f32 / 1000.0;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 1.8e-7, "{x}");
        }
        assert_eq!([tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)], [1.0, -1.0]);
        assert!(tanh(f32::NAN).is_nan());
    }

    /// Distance in units of the last place of the correctly rounded result.
    fn ulps(got: f32, want: f64) -> f64 {
        let rounded = want as f32;
        let ulp = f64::from(f32::from_bits(rounded.to_bits() + 1)) - f64::from(rounded);
        (f64::from(got) - want).abs() / ulp
    }

    #[test]
    fn exp_is_within_an_ulp() {
        let mut worst = (0.0, 0.0f32);
        // Every 97th float of both signs: about 20 million, of which those in range count.
        for bits in (0..0x42b2_0000u32).step_by(97) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                if (EXP_MIN..=EXP_MAX).contains(&x) {
                    let e = ulps(exp(x), f64::from(x).exp());
                    if e > worst.0 {
                        worst = (e, x);
                    }
                }
            }
        }
        println!("worst error {:.3} ulp at {}", worst.0, worst.1);
        assert!(worst.0 <= 1.0, "{worst:?}");
        assert!(worst.0 > 0.5, "an error below half an ulp means that the comparison does not compare");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(1e30), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(EXP_MAX).is_finite() && exp(EXP_MAX) > 3.4e38);
        assert!(exp(EXP_MIN) >= f32::MIN_POSITIVE);
    }

    #[test]
    fn silu_at_the_edges() {
        assert_eq!(silu(0.0), 0.0);
        assert_eq!(silu(-200.0), 0.0);
        assert_eq!(silu(50.0), 50.0);
        assert!((silu(1.0) - 0.731_058_6).abs() < 1e-6);
        assert!(silu(f32::NAN).is_nan());
    }
}
