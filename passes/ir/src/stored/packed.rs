//! Matrices of checkpoints that were quantised before: codes, scales and zero points in tensors of their own.
//!
//! Nothing is requantised: codes stay codes and scales stay scales. Layouts are those of the programs that write them:
//!
//! | format | codes | zero points | scales |
//! |---|---|---|---|
//! | AWQ (AutoAWQ, `gemm`) | `qweight` i32 `[k, n/8]`, columns in the order 0 2 4 6 1 3 5 7 | `qzeros` i32 `[groups, n/8]`, so too | `scales` `[groups, n]` |
//! | GPTQ (AutoGPTQ, GPTQModel) | `qweight` i32 `[k * bits / 32, n]`, bits along k | `qzeros` i32 `[groups, n * bits / 32]`; v1 stores them less one | `scales` `[groups, n]` |
//! | compressed-tensors, packed | `weight_packed` i32 `[n, k * bits / 32]`, plus `2^(bits - 1)` | `weight_zero_point` i32 `[n * bits / 32, groups]`, so too | `weight_scale` `[n, groups]` |
//! | bytes and FP8 | `weight` `[n, k]` | none | `[rows / block, groups]`, or one |
//! | NVFP4 (compressed-tensors) | `weight_packed` u8 `[n, k/2]`, low nibble first | none | `weight_scale` E4M3 `[n, k/16]` over `weight_global_scale` |
//! | MXFP4 (gpt-oss) | `_blocks` u8 `[n, k/32, 16]`, low nibble first | none | `_scales` E8M0 `[n, k/32]` |
//!
//! With `desc_act` (GPTQ, and compressed-tensors as `actorder`) elements are in their own order all the same, but those of a group are not
//! neighbours: `g_idx` i32 `[k]` has the group of each. No scheme has such groups, so these matrices become the numbers that they stand
//! for, in f32, which is exact: a code of 8 bits times a scale of 16 has at most 19 significant bits.

use crate::recipe::WeightSource;
use bessemer_format::rows::Rows;
use bessemer_format::scheme::{Elem, Levels, Offset, QuantScheme, ScaleType};
use std::fmt;
use std::str::FromStr;

/// Whose layout a packed matrix has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PackedFormat {
    /// AutoAWQ's `gemm`.
    Awq,
    /// AutoGPTQ, whose zero points are stored less one.
    Gptq,
    /// GPTQModel's second version, with zero points as they are.
    GptqV2,
    /// compressed-tensors, `pack-quantized`.
    PackQuantized,
    /// compressed-tensors, `int-quantized`: signed bytes.
    IntQuantized,
    /// compressed-tensors, `float-quantized`: E4M3, scales in `weight_scale`.
    FloatQuantized,
    /// Block-wise E4M3 with scales in `weight_scale_inv`, as large mixture models publish it.
    Fp8,
    /// compressed-tensors, `nvfp4-pack-quantized`.
    Nvfp4,
    /// The microscaling format of gpt-oss.
    Mxfp4,
}

impl PackedFormat {
    const NAMES: [(Self, &'static str); 9] = [
        (Self::Awq, "awq"),
        (Self::Gptq, "gptq"),
        (Self::GptqV2, "gptq_v2"),
        (Self::PackQuantized, "pack-quantized"),
        (Self::IntQuantized, "int-quantized"),
        (Self::FloatQuantized, "float-quantized"),
        (Self::Fp8, "fp8"),
        (Self::Nvfp4, "nvfp4-pack-quantized"),
        (Self::Mxfp4, "mxfp4"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(format, _)| *format == self).map_or("", |(_, name)| name)
    }
}

/// How one matrix is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Packed {
    /// Whose layout it is.
    pub format: PackedFormat,
    /// Bits of a code.
    pub bits: u8,
    /// Elements along k that share a scale; 0: all.
    pub group: u32,
    /// Output rows that share a scale; 0: all.
    pub rows: u32,
    /// Whether zero points are stored and used. Without them codes are symmetric.
    pub zeros: bool,
    /// Type of the scales.
    pub scale: ScaleType,
    /// Whether elements say themselves which group they belong to.
    pub reordered: bool,
}

/// A tensor that a packed matrix is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedPart {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape. A part of one number may have any number of extents of one.
    pub shape: Vec<usize>,
    /// Bytes of an element.
    pub elem_bytes: usize,
}

impl Packed {
    /// The scheme that holds the stored numbers exactly. Scales that rows share are repeated.
    pub fn scheme(&self) -> QuantScheme {
        if self.reordered { QuantScheme::F32 } else { self.coded() }
    }

    /// What the codes mean, but for which elements are a group.
    fn coded(&self) -> QuantScheme {
        let grouped = |elem, offset| QuantScheme::grouped(elem, self.group, self.scale, offset);
        match self.format {
            PackedFormat::Awq | PackedFormat::Gptq | PackedFormat::GptqV2 | PackedFormat::PackQuantized => {
                let offset = match self.zeros {
                    true => Offset::Zero(ScaleType::U8),
                    false => Offset::Const(self.symmetric_zero() as i32),
                };
                grouped(Elem::U(self.bits), offset)
            }
            PackedFormat::IntQuantized => grouped(Elem::S(8), Offset::None),
            PackedFormat::FloatQuantized | PackedFormat::Fp8 => grouped(Elem::E4M3, Offset::None),
            PackedFormat::Nvfp4 => QuantScheme {
                elem: Elem::E2M1,
                scale: Some(Levels::two(self.group, ScaleType::E4M3, 0, ScaleType::F32)),
                offset: Offset::None,
            },
            PackedFormat::Mxfp4 => grouped(Elem::E2M1, Offset::None),
        }
    }

    /// The zero point of codes that are symmetric.
    fn symmetric_zero(&self) -> u32 {
        1 << (self.bits - 1)
    }

    fn groups(&self, k: usize) -> usize {
        if self.group == 0 { 1 } else { k.div_ceil(self.group as usize) }
    }

    fn name(&self, weight: &str, part: &str) -> String {
        match self.format {
            PackedFormat::Mxfp4 => format!("{weight}_{part}"),
            _ => format!("{}.{part}", weight.strip_suffix(".weight").unwrap_or(weight)),
        }
    }

    /// The tensors that matrix `weight` of `n` rows of `k` elements is made of: codes, scales, then zero points and a global scale where the
    /// format has them, and last the groups of elements that are in another order.
    pub fn parts(&self, weight: &str, n: usize, k: usize) -> Vec<PackedPart> {
        let mut parts = self.coded_parts(weight, n, k);
        if self.reordered {
            let part = if self.format == PackedFormat::PackQuantized { "weight_g_idx" } else { "g_idx" };
            parts.push(PackedPart { name: self.name(weight, part), shape: vec![k], elem_bytes: 4 });
        }
        parts
    }

    fn coded_parts(&self, weight: &str, n: usize, k: usize) -> Vec<PackedPart> {
        let part = |name: &str, shape: &[usize], elem_bytes: usize| PackedPart {
            name: self.name(weight, name),
            shape: shape.to_vec(),
            elem_bytes,
        };
        let (groups, bits, scale) = (self.groups(k), usize::from(self.bits), self.scale.bytes());
        match self.format {
            PackedFormat::Awq => vec![
                part("qweight", &[k, n.div_ceil(8)], 4),
                part("scales", &[groups, n], scale),
                part("qzeros", &[groups, n.div_ceil(8)], 4),
            ],
            PackedFormat::Gptq | PackedFormat::GptqV2 => vec![
                part("qweight", &[(k * bits).div_ceil(32), n], 4),
                part("scales", &[groups, n], scale),
                part("qzeros", &[groups, (n * bits).div_ceil(32)], 4),
            ],
            PackedFormat::PackQuantized => {
                let mut parts = vec![
                    part("weight_packed", &[n, (k * bits).div_ceil(32)], 4),
                    part("weight_scale", &[n, groups], scale),
                ];
                if self.zeros {
                    parts.push(part("weight_zero_point", &[(n * bits).div_ceil(32), groups], 4));
                }
                parts
            }
            PackedFormat::IntQuantized | PackedFormat::FloatQuantized | PackedFormat::Fp8 => {
                let scales =
                    if self.format == PackedFormat::Fp8 { "weight_scale_inv" } else { "weight_scale" };
                let blocks = if self.rows == 0 { 1 } else { n.div_ceil(self.rows as usize) };
                vec![part("weight", &[n, k], 1), part(scales, &[blocks, groups], scale)]
            }
            PackedFormat::Nvfp4 => vec![
                part("weight_packed", &[n, k.div_ceil(2)], 1),
                part("weight_scale", &[n, groups], 1),
                part("weight_global_scale", &[1], 4),
            ],
            PackedFormat::Mxfp4 => {
                vec![part("blocks", &[n, groups, 16], 1), part("scales", &[n, groups], 1)]
            }
        }
    }

    /// Reads some of the `n` rows of `k` elements of matrix `weight`.
    pub fn rows(
        &self,
        source: &dyn WeightSource,
        weight: &str,
        (n, k): (usize, usize),
        rows: &[usize],
    ) -> Result<Rows, String> {
        if let Some(row) = rows.iter().find(|row| **row >= n) {
            return Err(format!("row {row} of `{weight}`, which has {n}"));
        }
        let parts = self.parts(weight, n, k).into_iter().map(|part| {
            let bytes = source
                .tensor(&part.name)
                .ok_or_else(|| format!("the source has no tensor `{}`", part.name))?;
            let want = part.shape.iter().product::<usize>() * part.elem_bytes;
            match bytes.len() == want {
                true => Ok(bytes),
                false => Err(format!("`{}`: {} bytes where {want} are expected", part.name, bytes.len())),
            }
        });
        let parts = parts.collect::<Result<Vec<_>, String>>()?;
        let mut out = Rows::empty(self.coded(), rows.len(), k);
        out.codes.reserve_exact(rows.len() * k);
        let (groups, parts) = match (self.reordered, &parts[..]) {
            (true, [parts @ .., groups]) => (Some(*groups), parts),
            (_, parts) => (None, parts),
        };
        let zeros = parts.get(2).copied();
        for &row in rows {
            self.codes(parts[0], row, (n, k), &mut out.codes);
            self.scales(parts[1], row, (n, k), &mut out.scales);
            match self.format {
                PackedFormat::Nvfp4 => out.outer_scales.push(1.0 / ScaleType::F32.read(parts[2])),
                _ => self.zero_points(zeros, row, (n, k), &mut out.offsets).map_err(|found| {
                    let expected = self.symmetric_zero();
                    format!("`{weight}`, row {row}: zero point {found} in a symmetric matrix of {expected}")
                })?,
            }
        }
        match groups {
            Some(groups) => reordered(&out, groups).map_err(|why| format!("`{weight}`: {why}")),
            None => Ok(out),
        }
    }

    fn codes(&self, bytes: &[u8], row: usize, (n, k): (usize, usize), out: &mut Vec<f32>) {
        let elem = self.coded().elem;
        let bits = usize::from(self.bits);
        match self.format {
            PackedFormat::Awq => {
                out.extend((0..k).map(|i| awq_nibble(bytes, i * n.div_ceil(8), row) as f32));
            }
            PackedFormat::Gptq | PackedFormat::GptqV2 => {
                out.extend((0..k).map(|i| bits_at(bytes, bits * i, bits, n, row) as f32));
            }
            PackedFormat::PackQuantized => {
                let first = row * (k * bits).div_ceil(32);
                out.extend((0..k).map(|i| bits_at(bytes, bits * i, bits, 1, first) as f32));
            }
            PackedFormat::IntQuantized | PackedFormat::FloatQuantized | PackedFormat::Fp8 => {
                out.extend(bytes[row * k..][..k].iter().map(|code| elem.number(u32::from(*code))));
            }
            PackedFormat::Nvfp4 | PackedFormat::Mxfp4 => {
                let start = row * k.div_ceil(2);
                out.extend((0..k).map(|i| elem.number(u32::from(bytes[start + i / 2] >> (i % 2 * 4) & 15))));
            }
        }
    }

    fn scales(&self, bytes: &[u8], row: usize, (n, k): (usize, usize), out: &mut Vec<f32>) {
        let groups = self.groups(k);
        let (ty, at): (_, &dyn Fn(usize) -> usize) = match self.format {
            PackedFormat::Awq | PackedFormat::Gptq | PackedFormat::GptqV2 => (self.scale, &|g| g * n + row),
            PackedFormat::Nvfp4 => (ScaleType::E4M3, &|g| row * groups + g),
            _ => {
                let block = if self.rows == 0 { 0 } else { row / self.rows as usize };
                (self.scale, &move |g| block * groups + g)
            }
        };
        out.extend((0..groups).map(|g| ty.read(&bytes[at(g) * ty.bytes()..])));
    }

    /// Appends the zero points of a row; of symmetric codes, checks that stored ones say so and returns one that does not.
    fn zero_points(
        &self,
        bytes: Option<&[u8]>,
        row: usize,
        (n, k): (usize, usize),
        out: &mut Vec<f32>,
    ) -> Result<(), u32> {
        let Some(bytes) = bytes else { return Ok(()) };
        let bits = usize::from(self.bits);
        for g in 0..self.groups(k) {
            let zero = match self.format {
                PackedFormat::Awq => awq_nibble(bytes, g * n.div_ceil(8), row),
                PackedFormat::PackQuantized => bits_at(bytes, bits * row, bits, self.groups(k), g),
                _ => {
                    let start = g * (n * bits).div_ceil(32) * 32;
                    let stored = bits_at(bytes, start + bits * row, bits, 1, 0);
                    stored + u32::from(self.format == PackedFormat::Gptq)
                }
            };
            match self.zeros {
                true => out.push(zero as f32),
                false if zero != self.symmetric_zero() => return Err(zero),
                false => {}
            }
        }
        Ok(())
    }
}

/// The numbers that rows stand for whose elements belong to `groups`, little-endian words.
fn reordered(rows: &Rows, groups: &[u8]) -> Result<Rows, String> {
    let count = rows.groups();
    let groups = groups.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b) as usize);
    let groups: Vec<usize> = groups.collect();
    if let Some((element, group)) = groups.iter().enumerate().find(|(_, group)| **group >= count) {
        return Err(format!("element {element} is of group {group}, where there are {count} (`g_idx`)"));
    }
    // One element of each group knows its scale and offset.
    let first = rows.scheme.group(rows.k);
    let values = (0..rows.rows).flat_map(|row| {
        let scales: Vec<(f32, f32)> = (0..count).map(|g| rows.scale_offset(row, g * first)).collect();
        let codes = rows.codes[row * rows.k..][..rows.k].iter().zip(&groups);
        codes.map(move |(code, group)| rows.scheme.dequant(*code, scales[*group].0, scales[*group].1))
    });
    Ok(Rows::floats(Elem::F32, rows.rows, rows.k, values.collect()))
}

/// Little-endian word `i`.
fn word(bytes: &[u8], i: usize) -> u32 {
    bytes.as_chunks::<4>().0.get(i).map_or(0, |b| u32::from_le_bytes(*b))
}

/// Column `column` of the row of words that starts at `start`: 8 columns a word, even ones in the low half.
fn awq_nibble(bytes: &[u8], start: usize, column: usize) -> u32 {
    let place = column % 2 * 4 + column % 8 / 2;
    word(bytes, start + column / 8) >> (4 * place) & 15
}

/// `bits` bits from bit `at` of a stream of words that lie `stride` apart, from word `first` on.
fn bits_at(bytes: &[u8], at: usize, bits: usize, stride: usize, first: usize) -> u32 {
    let word = |i: usize| u64::from(word(bytes, i * stride + first));
    let both = word(at / 32) | if at % 32 + bits > 32 { word(at / 32 + 1) << 32 } else { 0 };
    (both >> (at % 32)) as u32 & ((1 << bits) - 1)
}

/// `awq/4/128/1/zeros/f16`: format, bits, group, rows, `zeros` or `symmetric`, type of the scales; behind it `/reordered`, if so.
impl fmt::Display for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, bits, group, rows, zeros, scale, reordered } = self;
        let zeros = if *zeros { "zeros" } else { "symmetric" };
        let reordered = if *reordered { "/reordered" } else { "" };
        write!(f, "{}/{bits}/{group}/{rows}/{zeros}/{scale}{reordered}", format.name())
    }
}

/// Parses what [`fmt::Display`] prints.
impl FromStr for Packed {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("`{s}` is no packed format (example: awq/4/128/1/zeros/f16)");
        let (reordered, plain) = s.strip_suffix("/reordered").map_or((false, s), |plain| (true, plain));
        let [format, bits, group, rows, zeros, scale] = plain.split('/').collect::<Vec<_>>()[..] else {
            return Err(bad());
        };
        let found = PackedFormat::NAMES.iter().find(|(_, name)| *name == format).ok_or_else(bad)?;
        let packed = Self {
            format: found.0,
            bits: bits.parse().ok().filter(|bits| (2..=8).contains(bits)).ok_or_else(bad)?,
            group: group.parse().map_err(|_| bad())?,
            rows: rows.parse().map_err(|_| bad())?,
            zeros: match zeros {
                "zeros" => true,
                "symmetric" => false,
                _ => return Err(bad()),
            },
            scale: scale.parse().map_err(|()| bad())?,
            reordered,
        };
        packed.coded().check().map(|()| packed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in [
            "awq/4/128/1/zeros/f16",
            "gptq_v2/3/0/1/symmetric/bf16",
            "fp8/8/128/128/symmetric/f32",
            "gptq/4/128/1/symmetric/f16/reordered",
        ] {
            assert_eq!(text.parse::<Packed>().unwrap().to_string(), text);
        }
        for text in ["awq", "qqq/4/128/1/zeros/f16", "awq/4/100/1/zeros/f16", "awq/9/128/1/zeros/f16"] {
            assert!(text.parse::<Packed>().is_err(), "{text}");
        }
    }

    #[test]
    fn streams_of_three_bits_cross_words() {
        let codes: Vec<u32> = (0..32).map(|i| (i * 5 + 3) % 8).collect();
        let mut words = [0u32; 3];
        for (i, code) in codes.iter().enumerate() {
            for bit in 0..3 {
                words[(3 * i + bit) / 32] |= (code >> bit & 1) << ((3 * i + bit) % 32);
            }
        }
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let found: Vec<u32> = (0..32).map(|i| bits_at(&bytes, 3 * i, 3, 1, 0)).collect();
        assert_eq!(found, codes);
    }
}
