//! Building blocks of graphs: what architecture files share.

use super::error::ImportError;
use super::rope::{Rope, RopePairing};
use super::source::{Checkpoint, StoredType};
use bessemer_format::Compute;
use bessemer_format::plan::{Choice, Input, ModelFacts, Score};
use bessemer_ir::attr::{BinaryKind, Epilogue, PoolKind, RopeStyle, Segment, UnaryKind};
use bessemer_ir::recipe::{Part, Piece};
use bessemer_ir::{Graph, Op, Recipe, Stored, Value};
use std::ops::Range;

/// A model as a graph in phase `Imported`.
pub struct Model {
    /// The graph.
    pub graph: Graph,
    /// What the runtime must know beside it.
    pub facts: ModelFacts,
    /// Name of the family.
    pub architecture: &'static str,
}

/// What an attention does.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Positions that a row sees, its own included.
    pub window: Option<usize>,
    /// A scaled score s becomes `softcap * tanh(s / softcap)`.
    pub softcap: Option<f64>,
    /// For each query head a score that takes weight from all tokens.
    pub sinks: Option<Value>,
}

impl Attention {
    /// Scores scaled by the root of the head's width, and nothing else.
    pub fn plain(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        let scale = 1.0 / (head_dim as f64).sqrt();
        Self { heads, kv_heads, scale, window: None, softcap: None, sinks: None }
    }
}

/// What an attention of each row to its whole sequence does, with scores scaled by the root of the head's width.
#[derive(Debug, Clone, Copy)]
pub struct FullAttention {
    /// Heads of queries, keys and values.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// How far from its own a row sees positions on either side; all of them where there is none.
    pub reach: Option<usize>,
    /// What [`Builder::distances`] gave.
    pub bias: Option<Value>,
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
        let shape: Vec<u64> = self.checkpoint.tensor(name)?.shape.iter().map(|d| *d as u64).collect();
        let recipe = match self.checkpoint.tensor(name)?.stored {
            StoredType::Packed(packed) => Recipe::packed(name, packed, &shape),
            _ => Recipe::tensor(name, self.stored(name)?, &shape),
        };
        self.add(name, Op::Const { recipe }, &[])
    }

    /// A part of a tensor, of shape `shape`, under a name of its own. Of a matrix that was quantised before it can only be rows.
    pub fn part(&mut self, name: &str, part: Part, shape: &[usize], of: &str) -> Result<Value, ImportError> {
        let shape: Vec<u64> = shape.iter().map(|d| *d as u64).collect();
        let info = self.checkpoint.tensor(of)?;
        let recipe = match (info.stored, part) {
            (StoredType::Packed(packed), Part::Whole | Part::Rows { .. }) => {
                let rows = info.shape.split_last().map_or(0, |(_, rows)| rows.iter().product::<usize>());
                Recipe::packed_part(of, packed, part, rows as u64, &shape)
            }
            _ => Recipe::part(of, self.stored(of)?, part, &shape),
        };
        self.add(name, Op::Const { recipe }, &[])
    }

    /// Parts of tensors of one encoding below each other, as one matrix.
    pub fn pieces(&mut self, name: &str, pieces: Vec<Piece>, shape: [u64; 2]) -> Result<Value, ImportError> {
        let [first, ..] = &pieces[..] else { unreachable!("a stack of nothing") };
        let stored = self.stored(&first.name)?;
        for piece in &pieces {
            if self.stored(&piece.name)? != stored {
                return Err(ImportError::UnsupportedEncoding {
                    path: self.checkpoint.path().to_owned(),
                    tensor: piece.name.clone(),
                    found: self.checkpoint.tensor(&piece.name)?.stored.name(),
                    supported: "that of the block's first expert".into(),
                });
            }
        }
        let recipe = Recipe::stack(pieces, stored, &shape);
        self.add(name, Op::Const { recipe }, &[])
    }

    /// The weights of `count` experts below each other: tensors that hold one each, or one tensor of all.
    pub fn stack(&mut self, name: &str, tensors: &[String], count: usize) -> Result<Value, ImportError> {
        let [first, rest @ ..] = tensors else { unreachable!("a stack of no tensor") };
        let extents = &self.checkpoint.tensor(first)?.shape;
        let [n, k] = [extents.len().wrapping_sub(2), extents.len().wrapping_sub(1)]
            .map(|at| extents.get(at).copied().unwrap_or(1));
        if rest.is_empty() {
            return self.part(name, Part::Whole, &[count * n, k], first);
        }
        let piece = |name: &String| Piece { name: name.clone(), part: Part::Whole };
        self.pieces(name, tensors.iter().map(piece).collect(), [(count * n) as u64, k as u64])
    }

    /// The experts of each row.
    pub fn route(
        &mut self,
        name: String,
        logits: Value,
        correction: Option<Value>,
        choice: Choice,
    ) -> Result<Value, ImportError> {
        let operands: Vec<Value> = [logits].into_iter().chain(correction).collect();
        self.add(name, Op::Route { choice }, &operands)
    }

    /// What the chosen experts count: by which score, whether it adds up to 1, and a factor.
    pub fn route_weights(
        &mut self,
        name: String,
        logits: Value,
        chosen: Value,
        (score, renormalise, scale): (Score, bool, f32),
    ) -> Result<Value, ImportError> {
        self.add(name, Op::RouteWeights { score, renormalise, scale }, &[logits, chosen])
    }

    /// `x`, or the part of a slot of it, times the weight that the slot chose of `count`.
    pub fn experts_linear(
        &mut self,
        name: String,
        x: Value,
        chosen: Value,
        (stack, bias): (Value, Option<Value>),
        (count, slots): (usize, usize),
    ) -> Result<Value, ImportError> {
        let width = self.graph.ty(stack).const_dim(0).unwrap_or(0) / count.max(1) as u64;
        let op = Op::GroupedLinear {
            groups: count as u32,
            slots: slots as u32,
            routed: true,
            segments: vec![Segment { name: name.clone(), width, bias: bias.is_some() }],
            epilogue: Epilogue::None,
            compute: Compute::F32.into(),
        };
        let operands: Vec<Value> = [x, chosen, stack].into_iter().chain(bias).collect();
        self.add(name, op, &operands)
    }

    /// The weighted sum of the slots of each row.
    pub fn combine(&mut self, name: String, y: Value, weights: Value) -> Result<Value, ImportError> {
        self.add(name, Op::Combine {}, &[y, weights])
    }

    fn stored(&self, name: &str) -> Result<Stored, ImportError> {
        let info = self.checkpoint.tensor(name)?;
        match info.stored {
            StoredType::Known(stored) => Ok(stored),
            StoredType::Packed(packed) => Err(ImportError::UnsupportedEncoding {
                path: self.checkpoint.path().to_owned(),
                tensor: name.to_owned(),
                found: packed.format.name(),
                supported: format!("{} for what is stacked or stored transposed", StoredType::supported()),
            }),
            StoredType::Unsupported(_) => Err(self
                .checkpoint
                .bytes(name)
                .err()
                .unwrap_or_else(|| unreachable!("an encoding that is not read has no bytes"))),
        }
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
        let bias = bias.map(|bias| self.weight(bias)).transpose()?;
        self.linear_of(x, w, name, bias)
    }

    /// As [`Builder::linear`] for a weight and a bias that are in the graph already.
    pub fn linear_of(
        &mut self,
        x: Value,
        w: Value,
        name: &str,
        bias: Option<Value>,
    ) -> Result<Value, ImportError> {
        let width = self.graph.ty(w).const_dim(0).unwrap_or(0);
        let operands: Vec<Value> = [x, w].into_iter().chain(bias).collect();
        let segments = vec![Segment { name: name.into(), width, bias: bias.is_some() }];
        // Imported linears compute in f32; the precision pass declares otherwise where weights are integers.
        self.add(
            name,
            Op::Linear { segments, epilogue: Epilogue::None, compute: Compute::F32.into() },
            &operands,
        )
    }

    /// `x` times `rows` of tensor `weight`, plus those of tensor `bias`: one of several projections in one tensor. It is called
    /// `weight[name]`.
    pub fn linear_rows(
        &mut self,
        x: Value,
        weight: &str,
        bias: Option<&str>,
        name: &str,
        rows: Range<usize>,
    ) -> Result<Value, ImportError> {
        let part = Part::rows(rows.start as u64, rows.len() as u64);
        if bias.is_none() {
            return self.linear_part(x, weight, name, (part, rows.len()));
        }
        let columns = self.checkpoint.tensor(weight)?.shape.get(1).copied().unwrap_or(0);
        let name = format!("{weight}[{name}]");
        let w = self.part(&name, part, &[rows.len(), columns], weight)?;
        let bias =
            bias.map(|bias| self.part(&format!("{name}.bias"), part, &[rows.len()], bias)).transpose()?;
        self.linear_of(x, w, &name, bias)
    }

    /// As [`Builder::linear_rows`] without a bias, of any rows: a part, and how many they are.
    pub fn linear_part(
        &mut self,
        x: Value,
        weight: &str,
        name: &str,
        (part, rows): (Part, usize),
    ) -> Result<Value, ImportError> {
        let columns = self.checkpoint.tensor(weight)?.shape.get(1).copied().unwrap_or(0);
        let name = format!("{weight}[{name}]");
        let w = self.part(&name, part, &[rows, columns], weight)?;
        self.linear_of(x, w, &name, None)
    }

    /// Each head of `x` times its own weight of `stack`.
    pub fn heads_linear(
        &mut self,
        name: String,
        x: Value,
        stack: Value,
        heads: usize,
    ) -> Result<Value, ImportError> {
        let width = self.graph.ty(stack).const_dim(0).unwrap_or(0) / heads.max(1) as u64;
        let op = Op::GroupedLinear {
            groups: heads as u32,
            slots: heads as u32,
            routed: false,
            segments: vec![Segment { name: name.clone(), width, bias: false }],
            epilogue: Epilogue::None,
            compute: Compute::F32.into(),
        };
        self.add(name, op, &[x, stack])
    }

    /// Each head of `a`, then the same head of `b`.
    pub fn concat_heads(
        &mut self,
        name: String,
        a: Value,
        b: Value,
        heads: usize,
    ) -> Result<Value, ImportError> {
        self.add(name, Op::ConcatHeads { heads: heads as u32 }, &[a, b])
    }

    /// The cache of a layer that holds one vector of each token.
    pub fn latents(&mut self, layer: usize, width: usize) -> Result<Value, ImportError> {
        self.add(format!("kv.{layer}"), Op::Latents { layer: layer as u32, width: width as u32 }, &[])
    }

    /// Appends vectors; the next version of the state.
    pub fn append_latent(&mut self, name: String, state: Value, x: Value) -> Result<Value, ImportError> {
        self.add(name, Op::AppendLatent {}, &[state, x])
    }

    /// Causal attention to vectors of which the first `value` elements are values too.
    pub fn latent_attention(
        &mut self,
        name: String,
        q: Value,
        state: Value,
        (heads, value, scale): (usize, usize, f64),
    ) -> Result<Value, ImportError> {
        let op = Op::LatentAttention {
            heads: heads as u32,
            value: value as u32,
            scale: scale as f32,
            compute: Compute::F32.into(),
        };
        self.add(name, op, &[q, state])
    }

    /// What a recurrent layer carries on from token to token.
    pub fn carried(&mut self, layer: usize, width: usize) -> Result<Value, ImportError> {
        self.add(format!("carried.{layer}"), Op::Carried { layer: layer as u32, width: width as u32 }, &[])
    }

    /// A causal convolution of each column by itself, with the rows of tensor `weight` (`[columns, taps]`) as weights. Gives the result
    /// and the next version of the state, which carries the inputs of the `taps - 1` last tokens.
    pub fn short_conv(
        &mut self,
        name: String,
        x: Value,
        state: Value,
        weight: &str,
        [columns, taps]: [usize; 2],
    ) -> Result<(Value, Value), ImportError> {
        let w = self.part(weight, Part::Whole, &[columns, taps], weight)?;
        let history = self.add(format!("{name}.history"), Op::History { taps: taps as u32 }, &[x, state])?;
        let carry = Op::Carry { width: ((taps - 1) * columns) as u32 };
        let state = self.add(format!("{name}.carry"), carry, &[state, history])?;
        Ok((self.add(name, Op::Depthwise {}, &[history, w])?, state))
    }

    /// RMSNorm with tensor `weight`, to which `offset` is added.
    pub fn rms_norm(&mut self, x: Value, weight: &str, eps: f64, offset: f32) -> Result<Value, ImportError> {
        let w = match offset {
            0.0 => self.weight(weight)?,
            offset => {
                let shape: Vec<u64> =
                    self.checkpoint.tensor(weight)?.shape.iter().map(|d| *d as u64).collect();
                let recipe = Recipe::tensor(weight, self.stored(weight)?, &shape).plus(offset);
                self.add(weight, Op::Const { recipe }, &[])?
            }
        };
        self.add(weight, Op::RmsNorm { eps: eps as f32 }, &[x, w])
    }

    /// LayerNorm with tensor `weight` and, where the family has one, tensor `bias`.
    pub fn layer_norm(
        &mut self,
        x: Value,
        weight: &str,
        bias: Option<&str>,
        eps: f64,
    ) -> Result<Value, ImportError> {
        let mut operands = vec![x, self.weight(weight)?];
        if let Some(bias) = bias {
            operands.push(self.weight(bias)?);
        }
        self.add(weight, Op::LayerNorm { eps: eps as f32, parts: 1 }, &operands)
    }

    /// LayerNorm of each of `heads` heads of a row by itself, with the rows of tensor `weight`, one a head.
    pub fn heads_layer_norm(
        &mut self,
        x: Value,
        weight: &str,
        heads: usize,
        eps: f64,
    ) -> Result<Value, ImportError> {
        let width = self.checkpoint.tensor(weight)?.shape.iter().product();
        let w = self.part(weight, Part::Whole, &[width], weight)?;
        self.add(weight, Op::LayerNorm { eps: eps as f32, parts: heads as u32 }, &[x, w])
    }

    /// A row of tensor `table` for each position (or other id).
    pub fn lookup(&mut self, ids: Value, table: &str) -> Result<Value, ImportError> {
        self.lookup_from(ids, table, 0)
    }

    /// As [`Builder::lookup`], of id 0 row `first`.
    pub fn lookup_from(&mut self, ids: Value, table: &str, first: usize) -> Result<Value, ImportError> {
        let w = match (first, &self.checkpoint.tensor(table)?.shape[..]) {
            (1.., &[rows, width]) if rows > first => {
                let part = Part::rows(first as u64, (rows - first) as u64);
                self.part(&format!("{table}[{first}..]"), part, &[rows - first, width], table)?
            }
            _ => self.weight(table)?,
        };
        self.add(format!("{table}[]"), Op::Embed {}, &[ids, w])
    }

    /// Cosines and sines for the rows of this pass, in an engine for sequences of up to `context` tokens.
    pub fn rope_table(
        &mut self,
        name: String,
        positions: Value,
        rope: &Rope,
        context: usize,
    ) -> Result<Value, ImportError> {
        let op = Op::RopeTable { inv_freq: rope.inv_freq(context), factor: rope.attention_factor() };
        self.add(name, op, &[positions])
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

    /// Causal attention.
    pub fn attention(
        &mut self,
        name: String,
        q: Value,
        state: Value,
        shape: Attention,
    ) -> Result<Value, ImportError> {
        let op = Op::Attention {
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            scale: shape.scale as f32,
            window: shape.window.map(|window| window as u32),
            softcap: shape.softcap.map(|cap| cap as f32),
            compute: Compute::F32.into(),
        };
        let operands: Vec<Value> = [q, state].into_iter().chain(shape.sinks).collect();
        self.add(name, op, &operands)
    }

    /// Attention of each row to its whole sequence, or to the positions near it.
    pub fn full_attention(
        &mut self,
        name: String,
        q: Value,
        state: Value,
        shape: FullAttention,
    ) -> Result<Value, ImportError> {
        let scale = (1.0 / (shape.head_dim as f64).sqrt()) as f32;
        let (heads, reach) = (shape.heads as u32, shape.reach.map(|reach| reach as u32));
        let operands: Vec<Value> = [q, state].into_iter().chain(shape.bias).collect();
        let compute = Compute::F32.into();
        self.add(name, Op::FullAttention { heads, kv_heads: heads, scale, reach, compute }, &operands)
    }

    /// What is added to scores by the distance `j - i` of position j from row i: for each head the number in row `bucket(j - i)` of tensor
    /// `table`, for the distances that there are in a context.
    pub fn distances(
        &mut self,
        table: &str,
        context: usize,
        heads: usize,
        bucket: impl Fn(i64) -> u64,
    ) -> Result<Value, ImportError> {
        // Nests read whole blocks of the cache.
        let most = context.next_multiple_of(bessemer_format::kv::TOKENS) as i64 - 1;
        let row = |distance| Piece { name: table.to_owned(), part: Part::rows(bucket(distance), 1) };
        let pieces: Vec<Piece> = (-most..=most).map(row).collect();
        let shape = [pieces.len() as u64, heads as u64];
        self.pieces(&format!("{table}[distances]"), pieces, shape)
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

    /// One row for each wanted one: its sequence's rows up to it, pooled.
    pub fn pool(&mut self, x: Value, rows: Value, kind: PoolKind) -> Result<Value, ImportError> {
        self.add("pool", Op::Pool { kind }, &[x, rows])
    }

    /// Scales rows of `width` elements to length 1: their root mean square to `1 / sqrt(width)`.
    pub fn l2_norm(&mut self, x: Value, width: usize) -> Result<Value, ImportError> {
        let unit = (1.0 / (width as f64).sqrt()) as f32;
        let w = self.add("unit", Op::Const { recipe: Recipe::values(vec![unit; width]) }, &[])?;
        // Only a row of zeros is near enough to zero to notice what is added.
        self.add("l2_norm", Op::RmsNorm { eps: 1e-30 }, &[x, w])
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
