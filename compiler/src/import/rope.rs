//! Rotary position embedding as checkpoints describe it: every family that has it reads it through here.

use super::config::{Fields, Harmless};
use super::error::ImportError;
use super::source::{Checkpoint, StoredType};
use bessemer_ir::Stored;
use std::f64::consts::PI;

/// Rotary position embedding: pair `i` of a head turns by `position * inv_freq[i]`, where
/// `inv_freq[i] = theta^(-2i/dims)` before scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base.
    pub theta: f64,
    /// How many elements of a head turn, from its first one on.
    pub dims: usize,
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
    /// YaRN: pairs that turn more than `beta_fast` times in the original context stay, those that turn less than
    /// `beta_slow` times are divided by `factor`, and a ramp over the pairs' numbers blends what lies between.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Turns from which on a pair stays.
        beta_fast: f64,
        /// Turns below which a pair is divided.
        beta_slow: f64,
        /// Whether the ends of the ramp are whole numbers.
        truncate: bool,
        /// Context length before scaling.
        original_context: usize,
        /// Factor of the cosines and sines.
        attention_factor: f64,
    },
    /// Each is divided by its own factor: GGUF's `rope_freqs.weight`, which is how Llama 3.1 comes there.
    Factors {
        /// One a pair.
        factors: Vec<f32>,
        /// Factor of the cosines and sines.
        attention_factor: f64,
    },
    /// LongRoPE: each is divided by its own factor, of one list in contexts up to the original one and of another beyond.
    Long {
        /// One a pair, up to the original context.
        short: Vec<f32>,
        /// One a pair, beyond.
        long: Vec<f32>,
        /// Context length before scaling.
        original_context: usize,
        /// Factor of the cosines and sines, whichever list it is.
        attention_factor: f64,
    },
    /// Dynamic NTK: in a context `c` beyond the trained one `t` the base is `theta * (factor * c / t - (factor - 1))^(dims / (dims - 2))`.
    Dynamic {
        /// How fast the base grows, and how many trained contexts long a sequence may be.
        factor: f64,
        /// Context length up to which nothing changes.
        trained_context: usize,
    },
}

/// Which elements of a head the rotation takes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// `(i, i + dims/2)`: Hugging Face; "NEOX" in ggml.
    HalfSplit,
    /// `(2i, 2i + 1)`: "NORM" in ggml. GGUF files of some families store the rows of q and k permuted for it: row
    /// `2i + j` of a head is row `j * head_dim/2 + i` of Hugging Face's (`permute` in `convert_hf_to_gguf.py`).
    /// Both orders give the same scores, so the weights stay as they are and the graph follows the file.
    Interleaved,
}

/// What a family assumes where its configuration is silent, and what scaling depends on beside its own keys.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// Elements of a head.
    pub head_dim: usize,
    /// Most positions that the model was trained with.
    pub context: usize,
    /// Base.
    pub theta: f64,
    /// Share of a head that turns.
    pub partial: f64,
    /// Whether the family can turn another share than the whole.
    pub can_be_partial: bool,
}

impl Rope {
    /// Factor of the cosines and sines.
    pub fn attention_factor(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Yarn { attention_factor, .. }
            | RopeScaling::Factors { attention_factor, .. }
            | RopeScaling::Long { attention_factor, .. } => *attention_factor as f32,
            _ => 1.0,
        }
    }

    /// The context of an engine of a model that was `trained` for so many tokens: as many as were `asked` for, as far as the rope serves
    /// them.
    pub fn context(&self, trained: usize, asked: Option<usize>) -> usize {
        let longest = match self.scaling {
            RopeScaling::Dynamic { factor, trained_context } => (trained_context as f64 * factor) as usize,
            _ => trained,
        };
        asked.map_or(trained, |asked| asked.min(longest))
    }

    /// The inverse frequencies after scaling, for `dims / 2` pairs, computed in f64 and rounded once.
    ///
    /// Some kinds of scaling depend on the context. It is the engine's, not a sequence's: keys stay in the cache as they were turned,
    /// so what turns them may not change while a sequence grows. (llama.cpp chooses by the size of its context, vLLM by its longest
    /// sequence; transformers processes a sequence again when it passes the edge.)
    pub fn inv_freq(&self, context: usize) -> Vec<f32> {
        let divided =
            |factors: &[f32], i: usize, f: f64| f / f64::from(factors.get(i).copied().unwrap_or(1.0));
        let scale = |i: usize, f: f64| match &self.scaling {
            // Of dynamic scaling the base has it all.
            RopeScaling::None | RopeScaling::Dynamic { .. } => f,
            RopeScaling::Linear { factor } => f / factor,
            RopeScaling::Factors { factors, .. } => divided(factors, i, f),
            RopeScaling::Long { short, original_context, .. } if context <= *original_context => {
                divided(short, i, f)
            }
            RopeScaling::Long { long, .. } => divided(long, i, f),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let wavelength = 2.0 * PI / f;
                let context = *original_context as f64;
                if wavelength < context / high_freq_factor {
                    f
                } else if wavelength > context / low_freq_factor {
                    f / factor
                } else {
                    let s = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - s) * f / factor + s * f
                }
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_context, .. } => {
                // The number of the pair that turns so often in the original context, as a real number.
                let pair = |turns: f64| {
                    let wavelength = *original_context as f64 / (turns * 2.0 * PI);
                    self.dims as f64 * wavelength.ln() / (2.0 * self.theta.ln())
                };
                let (low, high) = (pair(*beta_fast), pair(*beta_slow));
                let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(self.dims as f64 - 1.0));
                let width = if low == high { 0.001 } else { high - low };
                let divided = ((i as f64 - low) / width).clamp(0.0, 1.0);
                divided * f / factor + (1.0 - divided) * f
            }
        };
        let dims = self.dims as f64;
        let theta = match self.scaling {
            RopeScaling::Dynamic { factor, trained_context } if context > trained_context => {
                let grown = factor * context as f64 / trained_context as f64 - (factor - 1.0);
                // A single pair turns by 1 whatever the base is.
                self.theta * grown.powf(dims / (dims - 2.0).max(1.0))
            }
            _ => self.theta,
        };
        let base = |i: usize| theta.powf(-2.0 * i as f64 / dims);
        (0..self.dims / 2).map(|i| scale(i, base(i)) as f32).collect()
    }
}

/// The GGUF tensor with the divisors of the rotary frequencies.
pub const FREQUENCY_FACTORS: &str = "rope_freqs.weight";
/// GGUF's tensors with the divisors of LongRoPE, for contexts beyond the original one and up to it.
pub const LONG_FACTORS: [&str; 2] = ["rope_factors_long.weight", "rope_factors_short.weight"];

/// RoPE as transformers writes it: `rope_theta` and `rope_scaling`, since 5.0 both in `rope_parameters`.
pub fn from_hf(fields: &Fields, defaults: Defaults) -> Result<Rope, ImportError> {
    let outer = fields.positive("rope_theta")?;
    let (old, new) = (fields.object("rope_scaling")?, fields.object("rope_parameters")?);
    if old.is_some() && new.is_some() {
        return Err(fields.error("rope_scaling", "either this or `rope_parameters`", "remove one of them"));
    }
    let partial = fields.positive("partial_rotary_factor")?;
    let original = fields.count("original_max_position_embeddings")?;
    let Some(inner) = new.or(old) else {
        let dims = dims(fields, partial.unwrap_or(defaults.partial), defaults)?;
        let (theta, scaling) = (outer.unwrap_or(defaults.theta), RopeScaling::None);
        return Ok(Rope { theta, dims, scaling, pairing: RopePairing::HalfSplit });
    };
    let theta = match (outer, inner.positive("rope_theta")?) {
        (Some(outer), Some(inner_theta)) if outer != inner_theta => {
            return Err(inner.error("rope_theta", format!("{outer}, as outside"), "remove one of them"));
        }
        (outer, inner_theta) => inner_theta.or(outer).unwrap_or(defaults.theta),
    };
    let partial = match (partial, inner.positive("partial_rotary_factor")?) {
        (Some(outer), Some(found)) if outer != found => {
            let expected = format!("{outer}, as outside");
            return Err(inner.error("partial_rotary_factor", expected, "remove one of them"));
        }
        (outer, found) => found.or(outer).unwrap_or(defaults.partial),
    };
    let rope = Rope {
        theta,
        dims: dims(&inner, partial, defaults)?,
        scaling: RopeScaling::None,
        pairing: RopePairing::HalfSplit,
    };
    scaled(inner, rope, original, defaults)
}

/// The rope of global layers and, where sliding ones have another, theirs: since transformers 5 an object for each kind in
/// `rope_parameters`, before that `rope_local_base_freq`, which no scaling applies to.
pub fn by_layer_kind(fields: &Fields, defaults: Defaults) -> Result<(Rope, Option<Rope>), ImportError> {
    let local_theta = fields.positive("rope_local_base_freq")?;
    if let Some(kinds) = fields.object("rope_parameters")?
        && let Some(global) = kinds.object("full_attention")?
    {
        let local = kinds.object("sliding_attention")?;
        let theta = local_theta.unwrap_or(LOCAL_THETA);
        let global_theta = fields.positive_or("rope_theta", defaults.theta)?;
        let local = local.map(|local| of_kind(local, Defaults { theta, ..defaults })).transpose()?;
        kinds.finish()?;
        return Ok((of_kind(global, Defaults { theta: global_theta, ..defaults })?, local));
    }
    let global = from_hf(fields, defaults)?;
    let local = |theta| Rope { theta, scaling: RopeScaling::None, ..global.clone() };
    let local = local_theta.map(local);
    Ok((global, local))
}

/// Base of sliding layers where nothing else is said.
const LOCAL_THETA: f64 = 10000.0;

fn of_kind(inner: Fields, defaults: Defaults) -> Result<Rope, ImportError> {
    let theta = inner.positive_or("rope_theta", defaults.theta)?;
    let partial = inner.positive_or("partial_rotary_factor", defaults.partial)?;
    let dims = dims(&inner, partial, defaults)?;
    let rope = Rope { theta, dims, scaling: RopeScaling::None, pairing: RopePairing::HalfSplit };
    scaled(inner, rope, None, defaults)
}

/// How many elements of a head turn.
fn dims(fields: &Fields, partial: f64, defaults: Defaults) -> Result<usize, ImportError> {
    if partial != 1.0 && !defaults.can_be_partial {
        let remedy = "this arithmetic is not built; use a model without it";
        return Err(fields.error("partial_rotary_factor", "1", remedy));
    }
    let dims = (defaults.head_dim as f64 * partial) as usize;
    if dims < 2 || dims > defaults.head_dim || !dims.is_multiple_of(2) {
        let expected =
            format!("a share of head size {} that is an even number of elements", defaults.head_dim);
        return Err(fields.error("partial_rotary_factor", expected, "correct the value"));
    }
    Ok(dims)
}

/// Reads the scaling and ends `inner`. `original` is the original context where it stands outside.
fn scaled(
    inner: Fields,
    mut rope: Rope,
    original: Option<usize>,
    defaults: Defaults,
) -> Result<Rope, ImportError> {
    let (long, short) = (inner.text("rope_type")?, inner.text("type")?);
    if let (Some(long), Some(short)) = (long, short)
        && long != short
    {
        return Err(inner.error("type", format!("`{long}`, as in `rope_type`"), "remove one of them"));
    }
    // Every kind may state it; only some read it.
    let original = inner.count("original_max_position_embeddings")?.or(original);
    let required_original = || {
        let missing =
            || inner.error("original_max_position_embeddings", "the context before scaling", "add the key");
        original.ok_or_else(missing)
    };
    rope.scaling = match long.or(short) {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: inner.required_positive("factor")? },
        Some("dynamic") => {
            let factor = inner.required_positive("factor")?;
            if factor < 1.0 {
                return Err(inner.error("factor", "1 or more", "correct the value"));
            }
            RopeScaling::Dynamic { factor, trained_context: defaults.context }
        }
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
                original_context: required_original()?,
            }
        }
        Some("yarn") => {
            let original_context = required_original()?;
            let factor = match inner.positive("factor")? {
                Some(factor) => factor,
                None => defaults.context as f64 / original_context as f64,
            };
            let mscale = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
            let scales = inner.positive("mscale")?.zip(inner.positive("mscale_all_dim")?);
            let attention_factor = match (inner.positive("attention_factor")?, scales) {
                (Some(stated), _) => stated,
                (None, Some((scale, of_all))) => mscale(scale) / mscale(of_all),
                (None, None) => mscale(1.0),
            };
            RopeScaling::Yarn {
                factor,
                beta_fast: inner.positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: inner.positive("beta_slow")?.unwrap_or(1.0),
                truncate: inner.flag("truncate")?.unwrap_or(true),
                original_context,
                attention_factor,
            }
        }
        Some("longrope" | "su") => {
            let original_context = required_original()?;
            let [short, long] =
                ["short_factor", "long_factor"].map(|key| inner.positives(key, rope.dims / 2));
            let (short, long) = (short?, long?);
            let stated = inner.positive("factor")?;
            let factor = stated.unwrap_or(defaults.context as f64 / original_context as f64);
            let attention_factor = match inner.positive("attention_factor")? {
                Some(stated) => stated,
                None => long_attention_factor(factor, original_context),
            };
            RopeScaling::Long { short, long, original_context, attention_factor }
        }
        Some(_) => {
            let key = if long.is_some() { "rope_type" } else { "type" };
            return Err(inner.error(
                key,
                "default, linear, dynamic, llama3, yarn or longrope",
                "this scaling is not built; use a model without it",
            ));
        }
    };
    inner.finish()?;
    Ok(rope)
}

/// What LongRoPE multiplies cosines and sines with when a context grows by `factor`.
fn long_attention_factor(factor: f64, original_context: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original_context as f64).ln()).sqrt() }
}

/// RoPE as llama.cpp reads it: a factor without a type means linear, and Llama 3.1's scaling is a tensor.
pub fn from_gguf(
    checkpoint: &Checkpoint,
    fields: &Fields,
    pairing: RopePairing,
    defaults: Defaults,
) -> Result<Rope, ImportError> {
    let theta = fields.positive("rope.freq_base")?.unwrap_or(defaults.theta);
    let dims = fields.count("rope.dimension_count")?.unwrap_or(defaults.head_dim);
    if dims > defaults.head_dim || !dims.is_multiple_of(2) {
        let expected = format!("an even number up to the head size {}", defaults.head_dim);
        return Err(fields.error("rope.dimension_count", expected, "correct the value"));
    }
    let factor = fields.positive("rope.scaling.factor")?.or(fields.positive("rope.scale_linear")?);
    let original = fields.count("rope.scaling.original_context_length")?;
    fields.skip(&[Harmless { reason: "says how a model was trained", keys: &["rope.scaling.finetuned"] }]);
    let scaling = match fields.text("rope.scaling.type")? {
        Some("none" | "longrope") => None,
        None | Some("linear") => {
            factor.filter(|factor| *factor != 1.0).map(|factor| RopeScaling::Linear { factor })
        }
        Some("yarn") => {
            let missing = || fields.error("rope.scaling.original_context_length", "a count", "add the key");
            let factor = fields.required_positive("rope.scaling.factor")?;
            let stated = fields.positive("rope.scaling.yarn_attn_factor")?.unwrap_or(1.0);
            Some(RopeScaling::Yarn {
                factor,
                beta_fast: fields.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: fields.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                truncate: true,
                original_context: original.ok_or_else(missing)?,
                attention_factor: stated * (1.0 + 0.1 * factor.max(1.0).ln()),
            })
        }
        Some(_) => {
            let remedy = "this scaling is not built; use a model without it";
            return Err(fields.error("rope.scaling.type", "none, linear, yarn or longrope", remedy));
        }
    };
    let attention_factor = fields.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let [long, short] = LONG_FACTORS;
    let names = [FREQUENCY_FACTORS, long, short];
    let tensor = names.into_iter().find(|name| checkpoint.tensors().contains_key(*name));
    let factors = |name| frequency_factors(checkpoint, name, dims);
    let scaling = match (scaling, tensor) {
        (None, None) => RopeScaling::None,
        (Some(scaling), None) => scaling,
        (None, Some(FREQUENCY_FACTORS)) => {
            RopeScaling::Factors { factors: factors(FREQUENCY_FACTORS)?, attention_factor }
        }
        (None, Some(_)) => RopeScaling::Long {
            short: factors(short)?,
            long: factors(long)?,
            original_context: original.unwrap_or(defaults.context),
            attention_factor,
        },
        (Some(_), Some(name)) => {
            let expected = format!("no other scaling beside the tensor `{name}`");
            return Err(fields.error("rope.scaling.factor", expected, "convert the model again"));
        }
    };
    Ok(Rope { theta, dims, scaling, pairing })
}

fn frequency_factors(checkpoint: &Checkpoint, name: &str, dims: usize) -> Result<Vec<f32>, ImportError> {
    let info = checkpoint.tensor(name)?;
    let path = || checkpoint.path().to_owned();
    let tensor = || name.to_owned();
    if info.stored != StoredType::Known(Stored::F32) {
        let (found, supported) = (info.stored.name(), "F32");
        return Err(ImportError::UnsupportedEncoding {
            path: path(),
            tensor: tensor(),
            found,
            supported: supported.into(),
        });
    }
    if info.shape != [dims / 2] {
        let (expected, found) = (vec![dims / 2], info.shape.clone());
        return Err(ImportError::TensorShape { path: path(), tensor: tensor(), expected, found });
    }
    let (elements, _) = checkpoint.bytes(name)?.as_chunks();
    let factors: Vec<f32> = elements.iter().map(|element| f32::from_le_bytes(*element)).collect();
    match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
        None => Ok(factors),
        Some(wrong) => {
            let what = format!("tensor `{name}`");
            Err(ImportError::damaged(checkpoint.path(), what, "numbers above 0", wrong.to_string()))
        }
    }
}
