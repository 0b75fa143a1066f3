//! What becomes of the weights of a model.

use bessemer_format::{Elem, Levels, Offset, QuantScheme, ScaleType};
use regex_automata::meta::Regex;
use std::fmt;

/// One choice for all matrices of a model. Vectors are too small for it to matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrecisionPolicy {
    /// As the checkpoint stores them, bit for bit.
    #[default]
    Source,
    /// Binary32.
    F32,
    /// bfloat16.
    Bf16,
    /// Symmetric signed bytes, a scale for each group (0: each row).
    Int8 {
        /// Elements of a group.
        group: u32,
    },
    /// Nibbles with scale and minimum for each group (0: each row).
    Int4 {
        /// Elements of a group.
        group: u32,
    },
    /// Any other scheme, stated in full.
    Scheme(QuantScheme),
}

/// Another precision for the weights whose name matches a regular expression.
#[derive(Clone, Debug)]
pub struct Override {
    /// The expression, as it was given.
    pub pattern: String,
    regex: Regex,
    /// What they become.
    pub precision: PrecisionPolicy,
}

impl Override {
    /// Whether it speaks of the weight of this name. The expression may match any part of it.
    pub fn matches(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }
}

impl PartialEq for Override {
    fn eq(&self, other: &Self) -> bool {
        (&self.pattern, self.precision) == (&other.pattern, other.precision)
    }
}

impl Eq for Override {}

/// `regex=precision`.
impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.precision)
    }
}

/// Parses what [`fmt::Display`] prints.
impl std::str::FromStr for Override {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (pattern, precision) =
            s.rsplit_once('=').ok_or_else(|| format!("`{s}` is no override; write REGEX=PRECISION"))?;
        let regex = Regex::new(pattern).map_err(|e| format!("`{pattern}` is no regular expression: {e}"))?;
        Ok(Self { pattern: pattern.into(), regex, precision: precision.parse()? })
    }
}

impl PrecisionPolicy {
    /// The scheme that a matrix gets; `None` where it keeps its own.
    pub fn scheme(self) -> Option<QuantScheme> {
        match self {
            Self::Source => None,
            Self::F32 => Some(QuantScheme::F32),
            Self::Bf16 => Some(QuantScheme::BF16),
            Self::Int8 { group } => Some(QuantScheme::int8(group)),
            Self::Int4 { group } => Some(QuantScheme::int4(group)),
            Self::Scheme(scheme) => Some(scheme),
        }
    }

    /// The same width with another group size; `None` where there are no groups.
    pub fn with_group(self, group: u32) -> Option<Self> {
        let level = |levels: Levels| Levels::group(group, levels.inner.ty);
        match self {
            Self::Int8 { .. } => Some(Self::Int8 { group }),
            Self::Int4 { .. } => Some(Self::Int4 { group }),
            Self::Scheme(s) => Some(Self::Scheme(QuantScheme {
                scale: Some(level(s.scale?)),
                offset: match s.offset {
                    Offset::Float(levels) => Offset::Float(level(levels)),
                    other => other,
                },
                ..s
            })),
            _ => None,
        }
    }

    /// Integer codes around zero instead of between a minimum and a maximum; `None` where there are no integers. A code of eight bits
    /// is a signed byte; a narrower one is unsigned, less half its range, so that all its values count.
    pub fn symmetric(self) -> Option<Self> {
        let scheme = self.scheme()?;
        match scheme.elem {
            Elem::U(8) => {
                let group = scheme.scale.map_or(0, |s| s.inner.k);
                Some(Self::Int8 { group })
            }
            Elem::U(bits) => {
                let offset = Offset::Const(1 << (bits - 1));
                Some(Self::Scheme(QuantScheme { offset, ..scheme }))
            }
            Elem::S(_) => Some(self),
            _ => None,
        }
    }
}

/// Unsigned codes of `bits` bits with scale and minimum for each group.
fn unsigned(bits: u8, group: u32) -> QuantScheme {
    let minimum = Offset::Float(Levels::group(group, ScaleType::F16));
    QuantScheme::grouped(Elem::U(bits), group, ScaleType::F16, minimum)
}

/// Widths that have a name of their own beside int8 and int4.
const WIDTHS: [(&str, u8); 4] = [("int6", 6), ("int5", 5), ("int3", 3), ("int2", 2)];

impl PrecisionPolicy {
    /// The width's name and group, where a scheme is one of [`WIDTHS`].
    fn named(scheme: &QuantScheme) -> Option<(&'static str, u32)> {
        let group = scheme.scale?.inner.k;
        let (name, _) = WIDTHS.iter().find(|(_, bits)| unsigned(*bits, group) == *scheme)?;
        Some((name, group))
    }
}

/// `source`, `f32`, `bf16`, `int8:32`, `int4:0`.
impl fmt::Display for PrecisionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source => f.write_str("source"),
            Self::F32 => f.write_str("f32"),
            Self::Bf16 => f.write_str("bf16"),
            Self::Int8 { group } => write!(f, "int8:{group}"),
            Self::Int4 { group } => write!(f, "int4:{group}"),
            Self::Scheme(scheme) => match Self::named(scheme) {
                Some((name, group)) => write!(f, "{name}:{group}"),
                None => write!(f, "{scheme}"),
            },
        }
    }
}

/// Parses what [`fmt::Display`] prints; the group may be left out (32).
impl std::str::FromStr for PrecisionPolicy {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        // A scheme in full begins with its element and the type of its scales.
        if let Ok(scheme) = s.parse::<QuantScheme>()
            && !scheme.elem.is_float()
        {
            return Ok(Self::Scheme(scheme));
        }
        let (name, group) = match s.split_once(':') {
            Some((name, group)) => {
                let group = group
                    .parse()
                    .map_err(|_| format!("`{group}` is no group size (a number of elements)"))?;
                (name, Some(group))
            }
            None => (s, None),
        };
        match (name, group) {
            ("source", None) => Ok(Self::Source),
            ("f32", None) => Ok(Self::F32),
            ("bf16", None) => Ok(Self::Bf16),
            ("int8", group) => Ok(Self::Int8 { group: group.unwrap_or(32) }),
            ("int4", group) => Ok(Self::Int4 { group: group.unwrap_or(32) }),
            (name, group) => match WIDTHS.iter().find(|(known, _)| *known == name) {
                Some((_, bits)) => {
                    let scheme = unsigned(*bits, group.unwrap_or(32));
                    scheme.check().map_err(|why| format!("`{s}`: {why}"))?;
                    Ok(Self::Scheme(scheme))
                }
                None => Err(format!(
                    "`{s}` is no precision; known: source, f32, bf16, int8, int6, int5, int4, int3, int2 (each with :GROUP), or a \
                     scheme such as u4:f16x32-8"
                )),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_speak_of_names_that_they_match() {
        let o: Override = r"mlp\.down|embed=int8:64".parse().unwrap();
        assert!(o.matches("layers.3.mlp.down_proj.weight") && o.matches("embed_tokens"));
        assert!(!o.matches("layers.3.mlp.up_proj.weight"));
        assert_eq!(o.to_string().parse(), Ok(o));
        assert!("(=int8".parse::<Override>().unwrap_err().contains("regular expression"));
        assert!("down=int9".parse::<Override>().is_err() && "down".parse::<Override>().is_err());
    }

    #[test]
    fn groups_and_symmetry_change_what_has_them() {
        let p = |s: &str| s.parse::<PrecisionPolicy>().unwrap();
        assert_eq!(p("int3").with_group(64), Some(p("int3:64")));
        assert_eq!(p("u4:f16x32-8").with_group(96), Some(p("u4:f16x96-8")));
        assert_eq!(p("bf16").with_group(64), None);
        assert_eq!(p("int4:64").symmetric(), Some(p("u4:f16x64-8")));
        assert_eq!(p("int8").symmetric(), Some(p("int8")));
        assert_eq!(p("source").symmetric(), None);
    }

    #[test]
    fn text_round_trips() {
        for p in [
            PrecisionPolicy::Source,
            PrecisionPolicy::F32,
            PrecisionPolicy::Bf16,
            PrecisionPolicy::Int8 { group: 0 },
            PrecisionPolicy::Int4 { group: 128 },
        ] {
            assert_eq!(p.to_string().parse(), Ok(p));
        }
        assert_eq!("int4".parse(), Ok(PrecisionPolicy::Int4 { group: 32 }));
        for text in ["int3:32", "int6:64", "u4:f16x32-8", "s8:f32x0"] {
            assert_eq!(text.parse::<PrecisionPolicy>().unwrap().to_string(), text);
        }
        assert_eq!("int2".parse::<PrecisionPolicy>().unwrap().to_string(), "int2:32");
        for bad in ["int4:x", "f32:32", "int7", "int3:5", ""] {
            assert!(bad.parse::<PrecisionPolicy>().is_err(), "{bad}");
        }
    }
}
