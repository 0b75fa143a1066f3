//! Building blocks of graphs: what architecture files share.

use super::error::ImportError;
use super::rope::{Rope, RopePairing, RopeScaling};
use super::source::{Checkpoint, StoredType};
use bessemer_format::Compute;
use bessemer_format::plan::{Input, ModelFacts};
use bessemer_ir::attr::{BinaryKind, Epilogue, RopeStyle, Segment, UnaryKind};
use bessemer_ir::{Graph, Op, Recipe, Stored, Value};

/// A model as a graph in phase `Imported`.
pub struct Model {
    /// The graph.
    pub graph: Graph,
    /// What the runtime must know beside it.
    pub facts: ModelFacts,
    /// Name of the family.
    pub architecture: &'static str,
}

/// Adds nodes for the tensors of a checkpoint. Names of nodes are names of tensors where a node reads one.
pub struct Builder<'a> {
    checkpoint: &'a Checkpoint,
    graph: Graph,
}

impl<'a> Builder<'a> {
    /// An empty graph over `checkpoint`.
    pub fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, graph: Graph::default() }
    }

    fn add(&mut self, name: impl Into<String>, op: Op, operands: &[Value]) -> Result<Value, ImportError> {
        Ok(self.graph.add(name, op, operands)?.into())
    }

    /// An array of the forward pass.
    pub fn input(&mut self, name: &str, input: Input) -> Result<Value, ImportError> {
        self.add(name, Op::Input { input }, &[])
    }

    /// The cache of a layer.
    pub fn state(&mut self, layer: usize, kv_heads: usize, head_dim: usize) -> Result<Value, ImportError> {
        let op = Op::State { layer: layer as u32, kv_heads: kv_heads as u32, head_dim: head_dim as u32 };
        self.add(format!("kv.{layer}"), op, &[])
    }

    /// A tensor of the checkpoint, as it is stored.
    pub fn weight(&mut self, name: &str) -> Result<Value, ImportError> {
        let info = self.checkpoint.tensor(name)?;
        let stored = match info.stored {
            StoredType::F32 => Stored::F32,
            StoredType::F16 => Stored::F16,
            StoredType::BF16 => Stored::Bf16,
            StoredType::Q4_0 => Stored::Q4_0,
            StoredType::Q4_1 => Stored::Q4_1,
            StoredType::Q8_0 => Stored::Q8_0,
            StoredType::Unsupported(_) => {
                return Err(self
                    .checkpoint
                    .bytes(name)
                    .err()
                    .unwrap_or_else(|| unreachable!("an encoding that is not read has no bytes")));
            }
        };
        let shape: Vec<u64> = info.shape.iter().map(|d| *d as u64).collect();
        self.add(name, Op::Const { recipe: Recipe::tensor(name, stored, &shape) }, &[])
    }

    /// A row of `table` for each token.
    pub fn embed(&mut self, tokens: Value, table: Value) -> Result<Value, ImportError> {
        self.add("embed", Op::Embed {}, &[tokens, table])
    }

    /// `x` times the rows of tensor `weight`, plus tensor `bias`.
    pub fn linear(&mut self, x: Value, weight: &str, bias: Option<&str>) -> Result<Value, ImportError> {
        let w = self.weight(weight)?;
        self.linear_value(x, w, weight, bias)
    }

    /// As [`Builder::linear`] for a weight that is in the graph already (a tied head).
    pub fn linear_value(
        &mut self,
        x: Value,
        w: Value,
        name: &str,
        bias: Option<&str>,
    ) -> Result<Value, ImportError> {
        let width = self.graph.ty(w).const_dim(0).unwrap_or(0);
        let mut operands = vec![x, w];
        if let Some(bias) = bias {
            operands.push(self.weight(bias)?);
        }
        let segments = vec![Segment { name: name.into(), width, bias: bias.is_some() }];
        // Imported linears compute in f32; the precision pass declares otherwise where weights are integers.
        self.add(name, Op::Linear { segments, epilogue: Epilogue::None, compute: Compute::F32 }, &operands)
    }

    /// RMSNorm with tensor `weight`.
    pub fn rms_norm(&mut self, x: Value, weight: &str, eps: f64) -> Result<Value, ImportError> {
        let w = self.weight(weight)?;
        self.add(weight, Op::RmsNorm { eps: eps as f32 }, &[x, w])
    }

    /// Cosines and sines for the rows of this pass.
    pub fn rope_table(
        &mut self,
        positions: Value,
        rope: &Rope,
        head_dim: usize,
    ) -> Result<Value, ImportError> {
        self.add("rope", Op::RopeTable { inv_freq: rope.inv_freq(head_dim), factor: 1.0 }, &[positions])
    }

    /// Rotates `x` of `heads` heads.
    pub fn rope(
        &mut self,
        name: String,
        x: Value,
        table: Value,
        heads: usize,
        rope: &Rope,
    ) -> Result<Value, ImportError> {
        let style = match rope.pairing {
            RopePairing::HalfSplit => RopeStyle::Half,
            RopePairing::Interleaved => RopeStyle::Interleaved,
        };
        self.add(name, Op::Rope { style, heads: heads as u32 }, &[x, table])
    }

    /// Appends keys and values; the next version of the state.
    pub fn append(
        &mut self,
        name: String,
        state: Value,
        k: Value,
        v: Value,
        kv_heads: usize,
    ) -> Result<Value, ImportError> {
        self.add(name, Op::Append { kv_heads: kv_heads as u32 }, &[state, k, v])
    }

    /// Causal attention with scores scaled by `1 / sqrt(head_dim)`.
    pub fn attention(
        &mut self,
        name: String,
        q: Value,
        state: Value,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<Value, ImportError> {
        let scale = (1.0 / (head_dim as f64).sqrt()) as f32;
        self.add(
            name,
            Op::Attention {
                heads: heads as u32,
                kv_heads: kv_heads as u32,
                scale,
                window: None,
                softcap: None,
            },
            &[q, state],
        )
    }

    /// A scalar function of each element.
    pub fn unary(&mut self, name: String, kind: UnaryKind, a: Value) -> Result<Value, ImportError> {
        self.add(name, Op::Unary { kind }, &[a])
    }

    /// A scalar function of each pair of elements.
    pub fn binary(
        &mut self,
        name: String,
        kind: BinaryKind,
        a: Value,
        b: Value,
    ) -> Result<Value, ImportError> {
        self.add(name, Op::Binary { kind }, &[a, b])
    }

    /// The rows whose logits are wanted.
    pub fn select_rows(&mut self, x: Value, rows: Value) -> Result<Value, ImportError> {
        self.add("select_rows", Op::SelectRows {}, &[x, rows])
    }

    /// Ends the graph.
    pub fn finish(mut self, logits: Value, states: &[Value]) -> Result<Graph, ImportError> {
        let operands: Vec<Value> = std::iter::once(logits).chain(states.iter().copied()).collect();
        self.graph.add("output", Op::Output {}, &operands)?;
        bessemer_ir::verify::verify(&self.graph)?;
        Ok(self.graph)
    }
}

impl Rope {
    /// The inverse frequencies after scaling, for `head_dim / 2` pairs, computed in f64 and rounded once.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        let scale = |i: usize, f: f64| match &self.scaling {
            RopeScaling::None => f,
            RopeScaling::Linear { factor } => f / factor,
            RopeScaling::Factors(factors) => f / f64::from(factors.get(i).copied().unwrap_or(1.0)),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let wavelength = 2.0 * std::f64::consts::PI / f;
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
        };
        let base = |i: usize| self.theta.powf(-2.0 * i as f64 / head_dim as f64);
        (0..head_dim / 2).map(|i| scale(i, base(i)) as f32).collect()
    }
}
