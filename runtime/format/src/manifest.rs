//! The manifest: what an engine is, where it came from and what is in it.

use crate::scheme::QuantScheme;
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// A blake3 hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for Hash {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("`{s}` is no hash of 64 hexadecimal digits");
        if s.len() != 64 || !s.is_ascii() {
            return Err(bad());
        }
        let mut out = [0; 32];
        for (i, b) in out.iter_mut().enumerate() {
            *b = u8::from_str_radix(&s[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(out))
    }
}

/// What an engine is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The compiler that wrote the file ([`crate::PRODUCER`]).
    pub producer: String,
    /// Where the weights came from.
    pub source: Source,
    /// The options that shaped the bytes, as `key=value` in a fixed order.
    pub options: Vec<(String, String)>,
    /// What there is for each kind of device, in the order of [`crate::variant::DeviceKind`].
    pub variants: Vec<Variant>,
    /// Every tensor of the checkpoint.
    pub tensors: Vec<TensorEntry>,
    /// A hash for each of the plans' weight slices, in their order.
    pub weight_hashes: Vec<Hash>,
    /// Machine code in the CODE section: of nests of the CPU's plan.
    pub code: Vec<CodeEntry>,
}

/// Where the weights came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Hash over the checkpoint's files in a stated order; independent of folder and file names of the user.
    pub hash: Hash,
    /// `safetensors` or `gguf`.
    pub format: String,
    /// The architecture as the checkpoint names it.
    pub architecture: String,
}

/// What became of one tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape in the checkpoint, outermost first.
    pub shape: Vec<u64>,
    /// Encoding in the checkpoint.
    pub stored: String,
    /// Scheme in the engine.
    pub scheme: QuantScheme,
    /// The weight slices that hold it.
    pub weights: Vec<u32>,
    /// Name of a scale folded into it, if any, so that it can be undone.
    pub folded: Option<String>,
}

/// Machine code of one nest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeEntry {
    /// Instruction set and features.
    pub isa: CodeIsa,
    /// The nest it computes.
    pub nest: u32,
    /// Element type of the KV cache that it was generated for; `None` where the nest touches none.
    pub kv: Option<KvElem>,
    /// Offset in the CODE section, a multiple of 64.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Instruction sets that code is generated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CodeIsa {
    /// x86-64 with the features of x86-64-v3, System V calling convention.
    X86_64V3,
    /// AArch64 with NEON, AAPCS64.
    Aarch64,
}

/// How a KV cache stores its elements. The user's choice at run time; [`crate::kv`] has the layout and the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KvElem {
    /// bfloat16.
    Bf16,
    /// binary32.
    F32,
    /// Signed bytes, with a scale a token and head.
    Int8,
    /// E4M3, with a scale a token and head.
    Fp8,
    /// Four bits, with a scale a token and head.
    Int4,
    /// binary16; finite numbers beyond its range are its largest.
    F16,
}

impl KvElem {
    /// All of them, the narrowest last.
    pub const ALL: [Self; 6] = [Self::F32, Self::F16, Self::Bf16, Self::Int8, Self::Fp8, Self::Int4];

    /// What a run has unless it asks for another: the narrowest that costs no text anything.
    pub const DEFAULT: Self = Self::Bf16;

    /// Bits of an element, its share of a scale not counted.
    pub const fn bits(self) -> usize {
        match self {
            KvElem::F32 => 32,
            KvElem::F16 | KvElem::Bf16 => 16,
            KvElem::Int8 | KvElem::Fp8 => 8,
            KvElem::Int4 => 4,
        }
    }

    /// Whether elements are codes of a scale.
    pub const fn is_scaled(self) -> bool {
        matches!(self, KvElem::Int8 | KvElem::Fp8 | KvElem::Int4)
    }

    /// What a loop nest writes: the element itself, or the numbers whose codes are stored afterwards.
    pub const fn written(self) -> Self {
        if self.is_scaled() { KvElem::F32 } else { self }
    }

    /// The name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            KvElem::Bf16 => "bf16",
            KvElem::F32 => "f32",
            KvElem::F16 => "f16",
            KvElem::Int8 => "int8",
            KvElem::Fp8 => "fp8",
            KvElem::Int4 => "int4",
        }
    }
}

/// Why the compiler chose what it chose: the REPORT section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// For each node: the kernel and why others were not taken.
    pub selection: Vec<Selection>,
    /// Constants of the schedule, in the order of their names.
    pub tactics: Vec<TacticReport>,
    /// What each pass did, in order.
    pub passes: Vec<PassReport>,
    /// What rounding costs, where it was measured.
    pub quality: Option<Quality>,
}

/// How far the engine's weights predict another text than the source's do, both without rounding of activations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Hash of the text's tokens. It is none on which weights were calibrated.
    pub text: Hash,
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Mean KL divergence of the source's predictions from the engine's, in nats.
    pub mean_kl: f64,
    /// The divergence that one token in a hundred exceeds.
    pub p99_kl: f64,
    /// Perplexity with the engine's weights.
    pub perplexity: f64,
    /// Perplexity with the source's.
    pub source_perplexity: f64,
    /// Share of tokens for which both have the same first choice.
    pub top1: f64,
    /// Bits a weight over all matrices, scales included.
    pub bits_per_weight: f64,
    /// Of each calibrated weight: how far its outputs are off on the calibration text, relative to their size.
    pub weights: Vec<(String, f64)>,
    /// The KV cache's element type where a run asks for none.
    pub default_kv: KvElem,
    /// What each narrower KV cache costs by itself: the mean KL divergence of the source's predictions with an f32 cache from those with it.
    pub kv: Vec<(KvElem, f64)>,
}

/// The reasons of one kernel selection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// The node.
    pub node: String,
    /// What runs it.
    pub chosen: String,
    /// Candidates that were not taken, each with its reason.
    pub rejected: Vec<(String, String)>,
}

/// A constant of the schedule that changes speed alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TacticReport {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: u32,
    /// Where the value came from: the rule, a measurement, the user.
    pub why: String,
}

/// What a pass did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassReport {
    /// Name of the pass.
    pub pass: String,
    /// Rewrites applied.
    pub rewrites: u32,
    /// Nodes after it.
    pub nodes: u32,
}
