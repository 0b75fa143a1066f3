//! Rotary position embedding as checkpoints describe it: every family that has it reads it through here.

use super::config::{Fields, Harmless};
use super::error::ImportError;
use super::source::{Checkpoint, StoredType};

/// Rotary position embedding: pair `i` of a head turns by `position * inv_freq[i]`, where
/// `inv_freq[i] = theta^(-2i/head_dim)` before scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base.
    pub theta: f64,
    /// What happens to the frequencies.
    pub scaling: RopeScaling,
    /// Which elements of a head make a pair.
    pub pairing: RopePairing,
}

/// What happens to the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Nothing.
    None,
    /// All are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: with the wavelength `w = 2 pi / inv_freq`, those with `w > original_context / low_freq_factor` are
    /// divided by `factor`, those with `w < original_context / high_freq_factor` stay, and between the two
    /// `s = (original_context / w - low) / (high - low)` blends them: `(1 - s) * inv_freq / factor + s * inv_freq`.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Edge of the low frequencies.
        low_freq_factor: f64,
        /// Edge of the high frequencies.
        high_freq_factor: f64,
        /// Context length before scaling.
        original_context: usize,
    },
    /// Each is divided by its own factor (GGUF's `rope_freqs.weight`, which is how Llama 3.1 comes there).
    Factors(Vec<f32>),
}

/// Which elements of a head the rotation takes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// `(i, i + head_dim/2)`: Hugging Face; "NEOX" in ggml.
    HalfSplit,
    /// `(2i, 2i + 1)`: "NORM" in ggml. GGUF files of this family store the rows of q and k permuted for it: row
    /// `2i + j` of a head is row `j * head_dim/2 + i` of Hugging Face's (`permute` in `convert_hf_to_gguf.py`).
    /// Both orders give the same scores, so the weights stay as they are and the graph follows the file.
    Interleaved,
}

/// The GGUF tensor with the divisors of the rotary frequencies.
pub const FREQUENCY_FACTORS: &str = "rope_freqs.weight";

/// RoPE as transformers writes it: `rope_theta` and `rope_scaling`, since 5.0 both in `rope_parameters`.
pub fn from_hf(fields: &Fields) -> Result<Rope, ImportError> {
    let outer = fields.positive("rope_theta")?;
    let (old, new) = (fields.object("rope_scaling")?, fields.object("rope_parameters")?);
    if old.is_some() && new.is_some() {
        return Err(fields.error("rope_scaling", "either this or `rope_parameters`", "remove one of them"));
    }
    let Some(inner) = new.or(old) else {
        return Ok(Rope {
            theta: outer.unwrap_or(10000.0),
            scaling: RopeScaling::None,
            pairing: RopePairing::HalfSplit,
        });
    };

    let theta = match (outer, inner.positive("rope_theta")?) {
        (Some(outer), Some(inner_theta)) if outer != inner_theta => {
            return Err(inner.error("rope_theta", format!("{outer}, as outside"), "remove one of them"));
        }
        (outer, inner_theta) => inner_theta.or(outer).unwrap_or(10000.0),
    };
    inner.neutral("partial_rotary_factor", "1", |value| value.as_f64() == Some(1.0))?;
    let (long, short) = (inner.text("rope_type")?, inner.text("type")?);
    if let (Some(long), Some(short)) = (long, short)
        && long != short
    {
        return Err(inner.error("type", format!("`{long}`, as in `rope_type`"), "remove one of them"));
    }
    let scaling = match long.or(short) {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: inner.required_positive("factor")? },
        Some("llama3") => {
            let low_freq_factor = inner.required_positive("low_freq_factor")?;
            let high_freq_factor = inner.required_positive("high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                return Err(inner.error(
                    "high_freq_factor",
                    format!("more than low_freq_factor {low_freq_factor}"),
                    "correct the value",
                ));
            }
            RopeScaling::Llama3 {
                factor: inner.required_positive("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_context: inner.required_count("original_max_position_embeddings")?,
            }
        }
        Some(_) => {
            let key = if long.is_some() { "rope_type" } else { "type" };
            return Err(inner.error(
                key,
                "default, linear or llama3",
                "this scaling is not built; use a model without it",
            ));
        }
    };
    inner.finish()?;
    Ok(Rope { theta, scaling, pairing: RopePairing::HalfSplit })
}

/// RoPE as llama.cpp reads it: a factor without a type means linear, and Llama 3.1's scaling is a tensor.
pub fn from_gguf(checkpoint: &Checkpoint, fields: &Fields, head_dim: usize) -> Result<Rope, ImportError> {
    let theta = fields.positive("rope.freq_base")?.unwrap_or(10000.0);
    let factor = fields.positive("rope.scaling.factor")?.or(fields.positive("rope.scale_linear")?);
    let linear = match fields.text("rope.scaling.type")? {
        Some("none") => None,
        None | Some("linear") => factor.filter(|factor| *factor != 1.0),
        Some(_) => {
            let remedy = "this scaling is not built; use a model without it";
            return Err(fields.error("rope.scaling.type", "none or linear", remedy));
        }
    };
    fields.skip(&[Harmless {
        reason: "only YaRN reads them",
        keys: &["rope.scaling.original_context_length", "rope.scaling.finetuned"],
    }]);

    let scaling = match (linear, frequency_factors(checkpoint, head_dim)?) {
        (None, None) => RopeScaling::None,
        (Some(factor), None) => RopeScaling::Linear { factor },
        (None, Some(factors)) => RopeScaling::Factors(factors),
        (Some(_), Some(_)) => {
            let expected = format!("no linear scaling beside the tensor `{FREQUENCY_FACTORS}`");
            return Err(fields.error("rope.scaling.factor", expected, "convert the model again"));
        }
    };
    Ok(Rope { theta, scaling, pairing: RopePairing::Interleaved })
}

fn frequency_factors(checkpoint: &Checkpoint, head_dim: usize) -> Result<Option<Vec<f32>>, ImportError> {
    let Some(info) = checkpoint.tensors().get(FREQUENCY_FACTORS) else { return Ok(None) };
    let path = || checkpoint.path().to_owned();
    let tensor = || FREQUENCY_FACTORS.to_owned();
    if info.stored != StoredType::F32 {
        let (found, supported) = (info.stored.name(), "F32");
        return Err(ImportError::UnsupportedEncoding { path: path(), tensor: tensor(), found, supported });
    }
    if info.shape != [head_dim / 2] {
        let (expected, found) = (vec![head_dim / 2], info.shape.clone());
        return Err(ImportError::TensorShape { path: path(), tensor: tensor(), expected, found });
    }
    let (elements, _) = checkpoint.bytes(FREQUENCY_FACTORS)?.as_chunks();
    let factors: Vec<f32> = elements.iter().map(|element| f32::from_le_bytes(*element)).collect();
    match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
        None => Ok(Some(factors)),
        Some(wrong) => {
            let what = format!("tensor `{FREQUENCY_FACTORS}`");
            Err(ImportError::damaged(checkpoint.path(), what, "numbers above 0", wrong.to_string()))
        }
    }
}
