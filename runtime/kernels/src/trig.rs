//! Sine and cosine of f32, defined operation by operation in f64, so that a code generator can repeat them bit for bit.
//!
//! No operation is fused. Within 1 ulp of the true value for arguments up to 1e6 in magnitude (a rotary angle is at most
//! the context length); infinities and NaN give NaN. `quarter(x, turns) = sin(x + turns * pi / 2)`:
//!
//! ```text
//! t = x * TWO_OVER_PI + ROUND;  n = t - ROUND;  q = bits(t) + turns
//! r = (x - n * HALF_PI_HI) - n * HALF_PI_LO;   z = r * r
//! s = r + (z * r) * (SIN0 + z * (SIN1 + z * (SIN2 + z * SIN3)))
//! c = 1 + z * (COS0 + z * (COS1 + z * (COS2 + z * COS3)))
//! (q odd: c, even: s), negated if q & 2, rounded to f32
//! ```

/// 2 / pi.
pub const TWO_OVER_PI: f64 = std::f64::consts::FRAC_2_PI;
/// 1.5 * 2^52: adding it rounds to the nearest even integer, which then stands in the low bits of the sum.
pub const ROUND: f64 = 6_755_399_441_055_744.0;
/// pi / 2, first 33 bits: its product with an integer below 2^20 is exact.
pub const HALF_PI_HI: f64 = 1.570_796_326_734_125_6;
/// pi / 2 minus [`HALF_PI_HI`].
pub const HALF_PI_LO: f64 = 6.077_100_506_506_192e-11;
/// Odd polynomial of the sine on `|r| <= pi / 4` beyond its first term (the coefficients of fdlibm's `__sindf`).
pub const SIN: [f64; 4] = [
    -0.166_666_666_416_265_24,
    0.008_333_329_385_889_463,
    -0.000_198_393_348_360_966_32,
    0.000_002_718_311_493_989_822,
];
/// Even polynomial of the cosine beyond 1 (the coefficients of fdlibm's `__cosdf`).
pub const COS: [f64; 4] = [
    -0.499_999_997_251_031,
    0.041_666_623_323_739_06,
    -0.001_388_676_377_460_993,
    0.000_024_390_448_796_277_41,
];

/// The sine of `x`: `quarter(x, 0)`.
pub fn sin(x: f32) -> f32 {
    quarter(x, 0)
}

/// The cosine of `x`: `quarter(x, 1)`, the sine a quarter turn ahead.
pub fn cos(x: f32) -> f32 {
    quarter(x, 1)
}

/// `sin(x + turns * pi / 2)`, as the module says.
fn quarter(x: f32, turns: u64) -> f32 {
    let x = f64::from(x);
    let t = x * TWO_OVER_PI + ROUND;
    let n = t - ROUND;
    let q = t.to_bits().wrapping_add(turns);
    let r = (x - n * HALF_PI_HI) - n * HALF_PI_LO;
    let z = r * r;
    let s = r + (z * r) * (SIN[0] + z * (SIN[1] + z * (SIN[2] + z * SIN[3])));
    let c = 1.0 + z * (COS[0] + z * (COS[1] + z * (COS[2] + z * COS[3])));
    let v = if q & 1 == 1 { c } else { s };
    let v = if q & 2 == 2 { -v } else { v };
    v as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_one_ulp_up_to_a_million() {
        let mut worst = 0.0f64;
        for i in 0..200_000u64 {
            let unit = (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 24) as f32;
            let x = [unit * 1e6, -unit * 1e4, unit * 10.0, unit][i as usize % 4];
            for (found, exact) in [(sin(x), f64::from(x).sin()), (cos(x), f64::from(x).cos())] {
                let ulp =
                    f64::from(f32::from_bits((exact as f32).abs().to_bits() + 1)) - exact.abs() as f32 as f64;
                worst = worst.max((f64::from(found) - exact).abs() / ulp);
            }
        }
        assert!(worst < 1.0, "{worst} ulp");
        assert_eq!((sin(0.0), cos(0.0)), (0.0, 1.0));
        assert!(sin(f32::INFINITY).is_nan() && cos(f32::NAN).is_nan());
    }
}
