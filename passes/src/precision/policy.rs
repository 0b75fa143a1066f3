//! What becomes of the weights of a model.

use bessemer_format::QuantScheme;
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
        }
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
        }
    }
}

/// Parses what [`fmt::Display`] prints; the group may be left out (32).
impl std::str::FromStr for PrecisionPolicy {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
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
            _ => Err(format!("`{s}` is no precision; known: source, f32, bf16, int8[:GROUP], int4[:GROUP]")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for bad in ["int4:x", "f32:32", "int5", ""] {
            assert!(bad.parse::<PrecisionPolicy>().is_err(), "{bad}");
        }
    }
}
