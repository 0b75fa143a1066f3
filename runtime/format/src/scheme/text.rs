//! Schemes as text: what plans, options and messages print, and its parser.
//!
//! ```text
//! scheme = element [ ":" levels [ offset ] ]
//! levels = type "x" group [ "*" type "x" group ]         inner, then outer; group 0: the whole row
//! offset = "-" constant | "-" type | "+" type [ "*" type ]   constant, zero points, floats in the groups of the scales
//! ```
//!
//! `f32`, `u4:f16x32-8`, `u4:f16x128-u8`, `u4:u8x32*f16x256+u8*f16`, `e2m1:e4m3x16*f32x0`.

use super::{Elem, Level, Levels, Offset, QuantScheme, ScaleType};
use std::fmt;
use std::str::FromStr;

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Elem::F32 => f.write_str("f32"),
            Elem::F16 => f.write_str("f16"),
            Elem::Bf16 => f.write_str("bf16"),
            Elem::U(b) => write!(f, "u{b}"),
            Elem::S(b) => write!(f, "s{b}"),
            Elem::E4M3 => f.write_str("e4m3"),
            Elem::E5M2 => f.write_str("e5m2"),
            Elem::E2M1 => f.write_str("e2m1"),
            Elem::Iq4 => f.write_str("iq4"),
        }
    }
}

impl FromStr for Elem {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let width = |t: &str| t.parse::<u8>().map_err(drop);
        Ok(match s {
            "f32" => Elem::F32,
            "f16" => Elem::F16,
            "bf16" => Elem::Bf16,
            "e4m3" => Elem::E4M3,
            "e5m2" => Elem::E5M2,
            "e2m1" => Elem::E2M1,
            "iq4" => Elem::Iq4,
            _ => match (s.strip_prefix('u'), s.strip_prefix('s')) {
                (Some(bits), _) => Elem::U(width(bits)?),
                (_, Some(bits)) => Elem::S(width(bits)?),
                _ => return Err(()),
            },
        })
    }
}

impl fmt::Display for ScaleType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ScaleType::F32 => "f32",
            ScaleType::F16 => "f16",
            ScaleType::Bf16 => "bf16",
            ScaleType::U8 => "u8",
            ScaleType::S8 => "s8",
            ScaleType::E4M3 => "e4m3",
            ScaleType::E8M0 => "e8m0",
        })
    }
}

impl FromStr for ScaleType {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let all = [Self::F32, Self::F16, Self::Bf16, Self::U8, Self::S8, Self::E4M3, Self::E8M0];
        all.into_iter().find(|ty| ty.to_string() == s).ok_or(())
    }
}

impl fmt::Display for QuantScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.elem)?;
        if let Some(s) = &self.scale {
            write!(f, ":{}x{}", s.inner.ty, s.inner.k)?;
            if let Some(outer) = s.outer {
                write!(f, "*{}x{}", outer.ty, outer.k)?;
            }
        }
        match &self.offset {
            Offset::None => Ok(()),
            Offset::Const(c) => write!(f, "-{c}"),
            Offset::Zero(ty) => write!(f, "-{ty}"),
            Offset::Float(Levels { inner, outer: None }) => write!(f, "+{}", inner.ty),
            Offset::Float(Levels { inner, outer: Some(outer) }) => write!(f, "+{}*{}", inner.ty, outer.ty),
        }
    }
}

/// Parses what [`fmt::Display`] prints.
impl FromStr for QuantScheme {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let scheme = parse(s).map_err(|()| {
            format!("`{s}` is no scheme (examples: f32, bf16, s8:f16x32, u4:f16x32-8, u4:f16x32+f16, u4:f16x128-u8)")
        })?;
        scheme.check().map_err(|why| format!("`{s}`: {why}"))?;
        Ok(scheme)
    }
}

fn parse(s: &str) -> Result<QuantScheme, ()> {
    let Some((elem, rest)) = s.split_once(':') else { return Ok(QuantScheme::float(s.parse()?)) };
    let (scale, sign, offset) = match rest.find(['+', '-']) {
        Some(at) => (&rest[..at], rest.as_bytes()[at], &rest[at + 1..]),
        None => (rest, 0, ""),
    };
    let (inner, outer) = pair(scale);
    let levels = Levels { inner: level(inner)?, outer: outer.map(level).transpose()? };
    let offset = match sign {
        b'+' => {
            let (inner, outer) = pair(offset);
            let outer = match (outer, levels.outer) {
                (Some(ty), Some(scale)) => Some(Level { ty: ty.parse()?, ..scale }),
                (None, _) => None,
                (Some(_), None) => return Err(()),
            };
            Offset::Float(Levels { inner: Level { ty: inner.parse()?, ..levels.inner }, outer })
        }
        b'-' => match offset.parse() {
            Ok(ty) => Offset::Zero(ty),
            Err(()) => Offset::Const(offset.parse().map_err(drop)?),
        },
        _ => Offset::None,
    };
    Ok(QuantScheme { elem: elem.parse()?, scale: Some(levels), offset })
}

fn pair(s: &str) -> (&str, Option<&str>) {
    s.split_once('*').map_or((s, None), |(inner, outer)| (inner, Some(outer)))
}

fn level(s: &str) -> Result<Level, ()> {
    let (ty, k) = s.split_once('x').ok_or(())?;
    Ok(Level { rows: 1, k: k.parse().map_err(drop)?, ty: ty.parse()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for s in [
            QuantScheme::F32,
            QuantScheme::BF16,
            QuantScheme::Q4_0,
            QuantScheme::Q4_1,
            QuantScheme::Q5_0,
            QuantScheme::Q8_0,
            QuantScheme::Q2_K,
            QuantScheme::Q3_K,
            QuantScheme::Q4_K,
            QuantScheme::Q6_K,
            QuantScheme::IQ4_XS,
            QuantScheme::MXFP4,
            QuantScheme::NVFP4,
            QuantScheme::int8(0),
            QuantScheme::int4(128),
            QuantScheme::fp8(128),
            QuantScheme::grouped(Elem::U(4), 128, ScaleType::F16, Offset::Zero(ScaleType::U8)),
        ] {
            s.check().unwrap();
            assert_eq!(s.to_string().parse::<QuantScheme>().unwrap(), s, "{s}");
        }
        assert_eq!(QuantScheme::Q4_K.to_string(), "u4:u8x32*f16x256+u8*f16");
    }

    #[test]
    fn what_is_no_scheme_is_refused() {
        for (text, why) in [
            ("u9:f16x32", "9 bits"),
            ("u4:f16x33", "multiple of 16"),
            ("f32:f16x32", "takes no scale"),
            ("e4m3", "needs a scale"),
            ("u4:u8x32", "floating-point scale above"),
            ("u4:u8x32*f16x80", "not made of groups"),
            ("u4:u8x32*u8x256", "outer level"),
            ("u4:u8x32*f16x256+f16", "groups differ"),
            ("u4:f16x32-f16", "zero point"),
            ("e2m1:f16x32-8", "no offset"),
            ("u4:f16x32+f16*f16", "no scheme"),
            ("u4;f16x32", "no scheme"),
            ("", "no scheme"),
        ] {
            let error = text.parse::<QuantScheme>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
