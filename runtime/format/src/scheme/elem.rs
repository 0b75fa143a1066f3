//! Number formats: the codes of weight elements, and the numbers of scales and offsets.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// The code of one weight element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Elem {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Unsigned integer of 1 to 8 bits.
    U(u8),
    /// Two's complement integer of 2 to 8 bits.
    S(u8),
    /// 8-bit float with 4 bits of exponent and no infinity (OCP OFP8 E4M3).
    E4M3,
    /// 8-bit float with 5 bits of exponent: the upper half of a binary16 (OCP OFP8 E5M2).
    E5M2,
    /// 4-bit float of the OCP microscaling formats: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
    E2M1,
    /// An index into the codebook of GGUF's IQ4_NL and IQ4_XS ([`IQ4_CODEBOOK`]).
    Iq4,
}

/// The numbers of [`Elem::Iq4`] (`kvalues_iq4nl` of ggml).
pub const IQ4_CODEBOOK: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The numbers of [`Elem::E2M1`] in halves. Code 8 is minus zero, which as an integer is zero.
pub const E2M1_HALVES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The numbers of [`Elem::E4M3`].
pub static E4M3_NUMBERS: [f32; 256] = small_floats(4);
/// The numbers of [`Elem::E5M2`].
pub static E5M2_NUMBERS: [f32; 256] = small_floats(5);
/// The numbers of [`Elem::E2M1`] (the upper half repeats the lower).
static E2M1_NUMBERS: [f32; 256] = {
    let mut out = [0.0; 256];
    let mut i = 0;
    while i < 256 {
        let half = E2M1_HALVES[i % 16] as f32 * 0.5;
        out[i] = if i % 16 == 8 { -0.0 } else { half };
        i += 1;
    }
    out
};
/// The numbers of [`Elem::Iq4`] (the upper half repeats the lower).
static IQ4_NUMBERS: [f32; 256] = {
    let mut out = [0.0; 256];
    let mut i = 0;
    while i < 256 {
        out[i] = IQ4_CODEBOOK[i % 16] as f32;
        i += 1;
    }
    out
};

/// All 8-bit floats with so many bits of exponent: E4M3 (only the code of all ones is no number) or E5M2 (as IEEE).
const fn small_floats(exponent_bits: u32) -> [f32; 256] {
    let mantissa_bits = 7 - exponent_bits;
    let bias = (1 << (exponent_bits - 1)) - 1;
    let mut out = [0.0; 256];
    let mut code = 0u32;
    while code < 256 {
        let (exponent, mantissa) = ((code & 127) >> mantissa_bits, code & ((1 << mantissa_bits) - 1));
        let top = exponent == (1 << exponent_bits) - 1;
        let magnitude = if top && exponent_bits == 5 {
            f32::from_bits(0x7f80_0000 | mantissa << (23 - mantissa_bits))
        } else if top && mantissa == 7 {
            f32::NAN
        } else if exponent == 0 {
            mantissa as f32 * f32::from_bits((127 + 1 - bias - mantissa_bits) << 23)
        } else {
            f32::from_bits((exponent + 127 - bias) << 23 | mantissa << (23 - mantissa_bits))
        };
        out[code as usize] = f32::from_bits(magnitude.to_bits() | (code >> 7) << 31);
        code += 1;
    }
    out
}

impl Elem {
    /// Bits that one code takes.
    pub const fn bits(self) -> u32 {
        match self {
            Elem::F32 => 32,
            Elem::F16 | Elem::Bf16 => 16,
            Elem::U(b) | Elem::S(b) => b as u32,
            Elem::E4M3 | Elem::E5M2 => 8,
            Elem::E2M1 | Elem::Iq4 => 4,
        }
    }

    /// Whether the code is a floating-point number that stands for itself, so that no scale belongs to it.
    pub const fn is_float(self) -> bool {
        matches!(self, Elem::F32 | Elem::F16 | Elem::Bf16)
    }

    /// The number that all numbers of the element are multiples of by signed or unsigned bytes, if there is one: what an
    /// integer product multiplies the scale with.
    pub const fn unit(self) -> Option<f32> {
        match self {
            Elem::U(_) | Elem::S(_) | Elem::Iq4 => Some(1.0),
            Elem::E2M1 => Some(0.5),
            _ => None,
        }
    }

    /// The multiples of [`Elem::unit`] that the codes of a table stand for; `None` where the code is the number.
    pub const fn integers(self) -> Option<&'static [i8; 16]> {
        match self {
            Elem::Iq4 => Some(&IQ4_CODEBOOK),
            Elem::E2M1 => Some(&E2M1_HALVES),
            _ => None,
        }
    }

    /// The number of each code, for elements whose codes are looked up in a table.
    pub fn numbers(self) -> Option<&'static [f32; 256]> {
        match self {
            Elem::E4M3 => Some(&E4M3_NUMBERS),
            Elem::E5M2 => Some(&E5M2_NUMBERS),
            Elem::E2M1 => Some(&E2M1_NUMBERS),
            Elem::Iq4 => Some(&IQ4_NUMBERS),
            _ => None,
        }
    }

    /// The number that a code of at most 8 bits stands for.
    pub fn number(self, code: u32) -> f32 {
        match self {
            Elem::S(bits) => {
                let unused = 32 - u32::from(bits);
                ((code << unused) as i32 >> unused) as f32
            }
            _ => match self.numbers() {
                Some(numbers) => numbers[code as usize & 255],
                None => code as f32,
            },
        }
    }

    /// The code of at most 8 bits that stands for exactly `number`, which must be finite.
    pub fn code(self, number: f32) -> Option<u32> {
        let code = match self {
            Elem::U(_) | Elem::S(_) => {
                let (low, high) = self.range();
                let code = number as i32;
                return (code as f32 == number && (low..=high).contains(&number)).then_some(code as u32);
            }
            // The bits of a binary16 hold those of both, once the exponents' biases agree.
            Elem::E5M2 => f16::from_f32(number).to_bits() >> 8,
            Elem::E4M3 => {
                let half = f16::from_f32(number * (1.0 / 256.0)).to_bits();
                (half >> 8) & 0x80 | (half >> 7) & 0x7f
            }
            _ => {
                let codes = self.numbers()?[..16].iter();
                codes.into_iter().position(|n| n.to_bits() == number.to_bits())? as u16
            }
        };
        let back = self.number(code.into());
        (back.to_bits() == number.to_bits() && number.is_finite()).then_some(code.into())
    }

    /// The finite number of the element nearest to `x`; of two equally near ones that whose code is even.
    pub fn nearest(self, x: f32) -> f32 {
        match self {
            Elem::E4M3 => nearest_float(x, 3, -6, 448.0),
            Elem::E5M2 => nearest_float(x, 2, -14, 57344.0),
            Elem::E2M1 => nearest_float(x, 1, 0, 6.0),
            Elem::Iq4 => {
                let number = |code: usize| f32::from(IQ4_CODEBOOK[code]);
                let above = (0..16).position(|code| number(code) >= x).unwrap_or(15);
                let below = above.saturating_sub(1);
                let (up, down) = (number(above) - x, x - number(below));
                number(if up < down || (up == down && above % 2 == 0) { above } else { below })
            }
            _ => {
                let (low, high) = self.range();
                x.round_ties_even().clamp(low, high)
            }
        }
    }

    /// The lowest and highest finite number of an element that is scaled.
    pub fn range(self) -> (f32, f32) {
        match self {
            Elem::U(b) => (0.0, ((1u32 << b) - 1) as f32),
            Elem::S(b) => (-((1u32 << (b - 1)) as f32), ((1u32 << (b - 1)) - 1) as f32),
            Elem::E4M3 => (-448.0, 448.0),
            Elem::E5M2 => (-57344.0, 57344.0),
            Elem::E2M1 => (-6.0, 6.0),
            Elem::Iq4 => (-127.0, 113.0),
            Elem::F32 | Elem::F16 | Elem::Bf16 => (f32::MIN, f32::MAX),
        }
    }
}

/// Rounds to a float of so many bits of mantissa, smallest exponent of a normal number, and largest number. Zero is positive.
fn nearest_float(x: f32, mantissa_bits: i32, lowest: i32, largest: f32) -> f32 {
    let magnitude = x.abs().min(largest);
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(lowest);
    let step = f32::from_bits(((exponent - mantissa_bits + 127) as u32) << 23);
    let rounded = ((magnitude / step).round_ties_even() * step).min(largest);
    if rounded == 0.0 { 0.0 } else { rounded.copysign(x) }
}

/// The number format of a scale or of an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ScaleType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Unsigned byte: the inner level of two, or a zero point.
    U8,
    /// Signed byte: the inner level of two, or a zero point.
    S8,
    /// 8-bit float ([`Elem::E4M3`]): the inner level of NVFP4.
    E4M3,
    /// A power of two, `2^(code - 127)`, of the OCP microscaling formats. The code 255 is no number.
    E8M0,
}

impl ScaleType {
    /// Bytes that one scale takes.
    pub const fn bytes(self) -> usize {
        match self {
            ScaleType::F32 => 4,
            ScaleType::F16 | ScaleType::Bf16 => 2,
            ScaleType::U8 | ScaleType::S8 | ScaleType::E4M3 | ScaleType::E8M0 => 1,
        }
    }

    /// Whether the numbers are integers.
    pub const fn is_integer(self) -> bool {
        matches!(self, ScaleType::U8 | ScaleType::S8)
    }

    /// Reads the little-endian scale at the head of `bytes` (shorter input reads as zero bytes).
    pub fn read(self, bytes: &[u8]) -> f32 {
        let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
        match self {
            ScaleType::F32 => f32::from_le_bytes([at(0), at(1), at(2), at(3)]),
            ScaleType::F16 => f16::from_le_bytes([at(0), at(1)]).to_f32(),
            ScaleType::Bf16 => bf16::from_le_bytes([at(0), at(1)]).to_f32(),
            ScaleType::U8 => f32::from(at(0)),
            ScaleType::S8 => f32::from(at(0) as i8),
            ScaleType::E4M3 => E4M3_NUMBERS[at(0) as usize],
            ScaleType::E8M0 => e8m0(at(0)),
        }
    }

    /// Appends `value`, rounded as [`ScaleType::round`] does, in little-endian order.
    pub fn push(self, value: f32, out: &mut Vec<u8>) {
        let mut bytes = [0; 4];
        self.store(self.round(value), &mut bytes);
        out.extend(&bytes[..self.bytes()]);
    }

    /// Writes `value` to the head of `out` in little-endian order, if the type holds it exactly (any NaN counts as held
    /// by types that have one). `out` must have [`ScaleType::bytes`] bytes.
    pub fn store(self, value: f32, out: &mut [u8]) -> bool {
        match self {
            ScaleType::F32 => out[..4].copy_from_slice(&value.to_le_bytes()),
            ScaleType::F16 => out[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            ScaleType::Bf16 => out[..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            ScaleType::U8 => out[0] = value as u8,
            ScaleType::S8 => out[0] = value as i8 as u8,
            ScaleType::E4M3 => out[0] = Elem::E4M3.code(value).map_or(0x7f, |code| code as u8),
            ScaleType::E8M0 => out[0] = e8m0_code(value),
        }
        let held = self.read(out);
        held.to_bits() == value.to_bits() || (held.is_nan() && value.is_nan())
    }

    /// The number of this type that a quantiser takes for `value`: the nearest, ties to even; for powers of two the next
    /// that is not smaller, so that codes scaled by it do not leave their range.
    pub fn round(self, value: f32) -> f32 {
        match self {
            ScaleType::F32 => value,
            ScaleType::F16 => f16::from_f32(value).to_f32(),
            ScaleType::Bf16 => bf16::from_f32(value).to_f32(),
            ScaleType::U8 => value.round_ties_even().clamp(0.0, 255.0) + 0.0,
            // Integers have no minus zero.
            ScaleType::S8 => value.round_ties_even().clamp(-128.0, 127.0) + 0.0,
            ScaleType::E4M3 if value.is_nan() => value,
            ScaleType::E4M3 => Elem::E4M3.nearest(value),
            ScaleType::E8M0 if value.is_nan() => value,
            ScaleType::E8M0 => {
                (0..255u8).map(e8m0).find(|power| *power >= value).unwrap_or_else(|| e8m0(254))
            }
        }
    }

    /// The largest number that the inner level of two should take, so that the outer level can be chosen by it.
    pub fn largest(self) -> f32 {
        match self {
            ScaleType::U8 => 255.0,
            ScaleType::S8 => 127.0,
            ScaleType::E4M3 => 448.0,
            ScaleType::F16 => f16::MAX.to_f32(),
            _ => 1.0,
        }
    }
}

/// `2^(code - 127)`; the lowest is subnormal in binary32.
const fn e8m0(code: u8) -> f32 {
    f32::from_bits(match code {
        0 => 1 << 22,
        255 => 0x7fc0_0000,
        c => (c as u32) << 23,
    })
}

/// The code whose number may be `value`.
fn e8m0_code(value: f32) -> u8 {
    if value.is_nan() { 255 } else { (value.to_bits() >> 23) as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_floats_have_their_published_numbers() {
        assert_eq!(E4M3_NUMBERS[0x7e], 448.0);
        assert_eq!(E4M3_NUMBERS[0x01], 2f32.powi(-9));
        assert_eq!(E4M3_NUMBERS[0x08], 2f32.powi(-6));
        assert_eq!(E4M3_NUMBERS[0xb8], -1.0);
        assert!(E4M3_NUMBERS[0x7f].is_nan() && E4M3_NUMBERS[0xff].is_nan());
        for code in 0..=255u8 {
            let want = f16::from_le_bytes([0, code]).to_f32();
            let got = E5M2_NUMBERS[code as usize];
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{code:02x}");
        }
        let positive: Vec<f32> = (0..8).map(|c| Elem::E2M1.number(c)).collect();
        assert_eq!(positive, [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
    }

    #[test]
    fn codes_and_numbers_are_inverse() {
        for elem in
            [Elem::E4M3, Elem::E5M2, Elem::E2M1, Elem::Iq4, Elem::U(3), Elem::S(5), Elem::S(8), Elem::U(8)]
        {
            for code in 0..1u32 << elem.bits() {
                let number = elem.number(code);
                if !number.is_finite() {
                    assert_eq!(elem.code(number), None);
                    continue;
                }
                assert_eq!(
                    elem.code(number).map(|c| c & ((1 << elem.bits()) - 1)),
                    Some(code),
                    "{elem:?} {code}"
                );
                assert_eq!(elem.nearest(number), number, "{elem:?} {code}");
            }
            assert_eq!(elem.code(0.3), None);
        }
    }

    #[test]
    fn scales_of_a_byte_store_exactly_or_say_no() {
        for ty in [ScaleType::U8, ScaleType::S8, ScaleType::E4M3, ScaleType::E8M0] {
            for code in 0..=255u8 {
                let number = ty.read(&[code]);
                let mut out = [0];
                let held = ty.store(number, &mut out);
                assert!(held && (out[0] == code || number.is_nan()), "{ty:?} {code}");
                assert!(number.is_nan() || ty.round(number) == number, "{ty:?} {code}");
            }
            assert!(!ty.store(0.3, &mut [0]) && !ty.store(1e9, &mut [0]), "{ty:?}");
        }
        assert_eq!(ScaleType::E8M0.round(0.3), 0.5);
        assert_eq!(ScaleType::E8M0.read(&[127]), 1.0);
    }
}
