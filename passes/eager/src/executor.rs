//! A whole graph, with state.

use crate::attention::{Heads, Scores, attention};
use crate::defined;
use crate::error::EagerError;
use crate::experts;
use crate::kv::Caches;
use crate::linear::{Linear, linear};
use crate::ops;
use crate::recurrent;
use crate::weights::Matrix;
use bessemer_format::manifest::KvElem;
use bessemer_ir::attr::Epilogue;
use bessemer_ir::exec::{Batch, ExecNode, Logits, SequenceRows, schedule};
use bessemer_ir::{Graph, Op, WeightSource};
use std::collections::BTreeMap;

/// How matrices are held in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// Dequantised to f32.
    #[default]
    F32,
    /// Rounded to bf16: half the memory traffic.
    Bf16,
}

/// How to execute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EagerOptions {
    /// How matrices are held.
    pub weights: WeightFormat,
    /// Threads; 0 takes as many as the machine offers.
    pub threads: usize,
    /// Whether results are defined to the bit ([`crate::defined`]): slower, and the same on every machine.
    pub defined: bool,
}

/// A graph that runs node by node.
pub struct Eager {
    nodes: Vec<ExecNode>,
    /// The constant of each step that is one.
    constants: Vec<Option<Matrix>>,
    caches: Caches,
    lens: BTreeMap<usize, usize>,
    defined: bool,
    pool: rayon::ThreadPool,
}

/// The result of a step; constants and states are found by step.
pub(crate) enum Value {
    Tensor(Vec<f32>),
    Index(Vec<u32>),
    State(u32),
}

impl Eager {
    /// Verifies the graph and loads its constants, one after the other.
    pub fn new(graph: &Graph, source: &dyn WeightSource, options: EagerOptions) -> Result<Self, EagerError> {
        let nodes = unfused(graph)?;
        let constants = nodes.iter().map(|n| match &n.op {
            Op::Const { recipe } => Matrix::load(recipe, source, options.weights)
                .map(Some)
                .map_err(|why| EagerError::Constant { node: n.name.clone(), why }),
            _ => Ok(None),
        });
        let constants = constants.collect::<Result<_, _>>()?;
        let (caches, lens) = (Caches::new(KvElem::F32), BTreeMap::new());
        Ok(Self { nodes, constants, caches, lens, defined: options.defined, pool: pool(options.threads)? })
    }

    /// Tokens that a sequence holds.
    pub fn len(&self, sequence: usize) -> usize {
        self.lens.get(&sequence).copied().unwrap_or(0)
    }

    /// Whether no sequence holds a token.
    pub fn is_empty(&self) -> bool {
        self.lens.values().all(|len| *len == 0)
    }

    /// Threads that it runs on.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Forgets the tokens of a sequence from `len` on.
    pub fn truncate(&mut self, sequence: usize, len: usize) {
        self.lens.entry(sequence).and_modify(|held| *held = (*held).min(len));
        if let Ok(sequence) = u32::try_from(sequence) {
            self.caches.truncate(sequence, len);
        }
    }

    /// Forgets all sequences.
    pub fn reset(&mut self) {
        self.caches.clear();
        self.lens.clear();
    }

    /// One forward pass. A pass that fails leaves every sequence as it was.
    pub fn forward(&mut self, parts: &[SequenceRows<'_>]) -> Result<Logits, EagerError> {
        let batch = Batch::new(parts, |sequence| self.len(sequence))?;
        let Self { nodes, constants, caches, pool, defined, .. } = self;
        let mut values: Vec<Option<Value>> = nodes.iter().map(|_| None).collect();
        let mut pass = Pass { nodes, constants, caches, batch: &batch, defined: *defined };
        let result = pool.install(|| pass.run(0..pass.nodes.len(), &mut values, &mut |_, _| {}));
        let no_output = || bessemer_ir::GraphError { node: "graph".into(), why: "has no output".into() };
        let result = result.and_then(|logits| logits.ok_or_else(|| EagerError::Graph(no_output())));
        for part in parts {
            let before = self.len(part.sequence);
            match &result {
                Ok(_) => drop(self.lens.insert(part.sequence, before + part.tokens.len())),
                Err(_) => self.truncate(part.sequence, before),
            }
        }
        result
    }
}

/// The nodes in execution order, none of which is fused.
pub(crate) fn unfused(graph: &Graph) -> Result<Vec<ExecNode>, EagerError> {
    bessemer_ir::verify::verify(graph)?;
    let nodes = schedule(graph);
    let fused = |op: &Op| match op {
        Op::AddRmsNorm { .. } | Op::RopeAppend { .. } | Op::Pointwise { .. } => true,
        Op::Linear { segments, epilogue, .. } | Op::GroupedLinear { segments, epilogue, .. } => {
            segments.len() != 1 || *epilogue != Epilogue::None
        }
        _ => false,
    };
    match nodes.iter().find(|n| fused(&n.op)) {
        Some(n) => Err(EagerError::Fused { node: n.name.clone(), op: n.op.name() }),
        None => Ok(nodes),
    }
}

/// A pool of `threads` threads; 0 takes as many as the machine offers.
pub(crate) fn pool(threads: usize) -> Result<rayon::ThreadPool, EagerError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|why| EagerError::Threads { threads, why: why.to_string() })
}

/// A forward pass of one batch.
pub(crate) struct Pass<'a> {
    pub nodes: &'a [ExecNode],
    /// The constant of each step that is one and is needed.
    pub constants: &'a [Option<Matrix>],
    pub caches: &'a mut Caches,
    pub batch: &'a Batch,
    pub defined: bool,
}

impl Pass<'_> {
    /// Runs a range of steps from the `values` of earlier ones. `observe` sees the input of every linear, grouped ones included, and its step. Gives the logits
    /// if the output is among the steps.
    pub fn run(
        &mut self,
        steps: std::ops::Range<usize>,
        values: &mut [Option<Value>],
        observe: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<Option<Logits>, EagerError> {
        for i in steps {
            let node = &self.nodes[i];
            if matches!(node.op, Op::Const { .. }) || values[i].is_some() {
                continue;
            }
            let error = |why| EagerError::Node { node: node.name.clone(), op: node.op.name(), why };
            let constants = self.constants;
            let operands = Operands { node, constants, values, defined: self.defined };
            match node.op {
                Op::Output {} => {
                    let Some(Value::Tensor(logits)) = values[operands.step(0).map_err(error)?].take() else {
                        return Err(error("operand 0 is no tensor".into()));
                    };
                    let rows = self.batch.logit_rows.len();
                    let vocab = logits.len().checked_div(rows).unwrap_or(0);
                    return Ok(Some(Logits { vocab, values: logits }));
                }
                Op::Embed {} => {
                    let vocab = operands.constant(1).map_err(error)?.rows;
                    let tokens = operands.index(0).map_err(error)?;
                    if let Some(&token) = tokens.iter().find(|t| **t as usize >= vocab) {
                        return Err(EagerError::Token { token, vocab });
                    }
                }
                Op::Linear { .. } | Op::GroupedLinear { .. } => {
                    observe(i, operands.tensor(0).map_err(error)?);
                }
                _ => {}
            }
            // A tensor that nobody reads again is changed in place.
            let own = node.operands.first().filter(|(step, _)| {
                let reads = node.operands.iter().filter(|(s, _)| s == step).count();
                reads == 1 && node.last_uses.contains(step)
            });
            let own = match (own, &node.op) {
                (Some((step, _)), Op::Unary { .. } | Op::Binary { .. } | Op::Rope { .. }) => {
                    values[*step].take()
                }
                _ => None,
            };
            let operands = Operands { node, constants, values, defined: self.defined };
            let value = step(&operands, own, self.caches, self.batch).map_err(error)?;
            values[i] = Some(value);
            for &step in &node.last_uses {
                values[step] = None;
            }
        }
        Ok(None)
    }
}

/// The operands of one node.
struct Operands<'a> {
    node: &'a ExecNode,
    constants: &'a [Option<Matrix>],
    values: &'a [Option<Value>],
    defined: bool,
}

impl<'a> Operands<'a> {
    /// The product with a weight.
    fn linear(&self) -> Linear {
        if self.defined { defined::linear } else { linear }
    }

    fn step(&self, i: usize) -> Result<usize, String> {
        self.node.operands.get(i).map(|(step, _)| *step).ok_or_else(|| format!("operand {i} is missing"))
    }

    fn constant(&self, i: usize) -> Result<&'a Matrix, String> {
        self.constants[self.step(i)?].as_ref().ok_or_else(|| format!("operand {i} is no constant"))
    }

    fn value(&self, i: usize) -> Result<&'a Value, String> {
        self.values[self.step(i)?].as_ref().ok_or_else(|| format!("operand {i} has no value"))
    }

    fn tensor(&self, i: usize) -> Result<&'a [f32], String> {
        match self.value(i)? {
            Value::Tensor(t) => Ok(t),
            _ => Err(format!("operand {i} is no tensor")),
        }
    }

    fn index(&self, i: usize) -> Result<&'a [u32], String> {
        match self.value(i)? {
            Value::Index(v) => Ok(v),
            _ => Err(format!("operand {i} is no index")),
        }
    }

    fn state(&self, i: usize) -> Result<u32, String> {
        match self.value(i)? {
            Value::State(layer) => Ok(*layer),
            _ => Err(format!("operand {i} is no state")),
        }
    }
}

/// Runs one op. `own` is its first operand where that may be changed in place.
fn step(at: &Operands<'_>, own: Option<Value>, caches: &mut Caches, batch: &Batch) -> Result<Value, String> {
    let first = |own| match own {
        Some(Value::Tensor(t)) => Ok(t),
        _ => at.tensor(0).map(<[f32]>::to_vec),
    };
    let tensor = match &at.node.op {
        Op::Input { input } => {
            let rows = batch.input(*input).ok_or("this input speaks of memory that only a plan has")?;
            return Ok(Value::Index(rows.to_vec()));
        }
        Op::State { layer, .. } | Op::Latents { layer, .. } | Op::Carried { layer, .. } => {
            return Ok(Value::State(*layer));
        }
        Op::Carry { width } => {
            let layer = at.state(0)?;
            recurrent::carry(layer, *width as usize, at.tensor(1)?, batch, caches);
            return Ok(Value::State(layer));
        }
        Op::History { taps } => {
            recurrent::history(*taps as usize, at.tensor(0)?, at.state(1)?, batch, caches)?
        }
        Op::Depthwise {} => recurrent::depthwise(at.tensor(0)?, at.constant(1)?),
        op @ (Op::Append { .. } | Op::AppendLatent {}) => {
            let (layer, k) = (at.state(0)?, at.tensor(1)?);
            let (kv_heads, v) = match op {
                Op::Append { kv_heads } => (*kv_heads as usize, Some(at.tensor(2)?)),
                // Values are read from the keys.
                _ => (1, None),
            };
            let width = k.len().checked_div(batch.rows()).unwrap_or(0);
            let mut start = 0;
            for part in batch.sequences.chunk_by(|a, b| a == b) {
                let rows = start * width..(start + part.len()) * width;
                let v = v.map_or(&[][..], |v| &v[rows.clone()]);
                caches.append(layer, part[0], kv_heads, width, &k[rows], v);
                start += part.len();
            }
            return Ok(Value::State(layer));
        }
        Op::Embed {} => ops::embed(at.index(0)?, at.constant(1)?),
        Op::RmsNorm { eps } => ops::rms_norm(at.tensor(0)?, at.constant(1)?.vector()?, *eps),
        Op::LayerNorm { eps, parts } => {
            let b = if at.node.operands.len() > 2 { Some(at.constant(2)?.vector()?) } else { None };
            ops::layer_norm(at.tensor(0)?, at.constant(1)?.vector()?, b, *eps, *parts as usize)
        }
        Op::Linear { segments, .. } => {
            let (x, w) = (at.tensor(0)?, at.constant(1)?);
            let bias = segments.first().is_some_and(|s| s.bias);
            let bias = if bias { Some(at.constant(2)?.vector()?) } else { None };
            at.linear()(x, x.len() / w.k, w.rows(0..w.rows), bias)
        }
        Op::Route { choice } => {
            let bias = at.node.operands.get(1).map(|_| at.constant(1)?.vector()).transpose()?;
            return Ok(Value::Index(experts::route(choice, at.tensor(0)?, batch.rows(), bias)));
        }
        Op::RouteWeights { score, renormalise, scale } => {
            experts::route_weights(*score, *renormalise, *scale, at.tensor(0)?, at.index(1)?, batch.rows())
        }
        Op::GroupedLinear { groups, slots, routed, segments, .. } => {
            let w = at.constant(1 + usize::from(*routed))?;
            let bias = segments.first().is_some_and(|s| s.bias);
            let bias = if bias { Some(at.constant(2 + usize::from(*routed))?.vector()?) } else { None };
            let (groups, slots) = (*groups as usize, *slots as usize);
            let identity: Vec<u32>;
            let chosen = if *routed {
                at.index(1)?
            } else {
                identity = (0..batch.rows()).flat_map(|_| 0..slots as u32).collect();
                &identity
            };
            experts::grouped_linear(groups, slots, chosen, at.tensor(0)?, w, bias, at.linear())?
        }
        Op::Combine {} => experts::combine(at.tensor(0)?, at.tensor(1)?, batch.rows()),
        Op::ConcatHeads { heads } => {
            experts::concat_heads(at.tensor(0)?, at.tensor(1)?, batch.rows() * *heads as usize)
        }
        Op::RopeTable { inv_freq, factor } => ops::rope_table(at.index(0)?, inv_freq, *factor),
        Op::Rope { style, heads } => {
            ops::rope(*style, *heads as usize, first(own)?, at.tensor(1)?, batch.rows())
        }
        Op::Attention { heads, kv_heads, scale, window, softcap, .. } => {
            let shape = Heads {
                heads: *heads as usize,
                kv_heads: *kv_heads as usize,
                window: window.map_or(usize::MAX, |window| window as usize),
                full: false,
                latent: None,
                scores: Scores { scale: *scale, softcap: *softcap },
                sinks: if at.node.operands.len() > 2 { Some(at.constant(2)?.vector()?) } else { None },
                distances: None,
            };
            attention(shape, at.tensor(0)?, at.state(1)?, batch, caches, at.defined)?
        }
        Op::FullAttention { heads, kv_heads, scale, reach, .. } => {
            let bias = (at.node.operands.len() > 2).then(|| at.constant(2)).transpose()?;
            let by_head = bias.map(Matrix::transposed);
            let shape = Heads {
                heads: *heads as usize,
                kv_heads: *kv_heads as usize,
                window: reach.map_or(usize::MAX, |reach| reach as usize + 1),
                full: true,
                latent: None,
                scores: Scores { scale: *scale, softcap: None },
                sinks: None,
                distances: by_head.as_deref(),
            };
            attention(shape, at.tensor(0)?, at.state(1)?, batch, caches, at.defined)?
        }
        Op::LatentAttention { heads, value, scale, .. } => {
            let shape = Heads {
                heads: *heads as usize,
                kv_heads: 1,
                window: usize::MAX,
                full: false,
                latent: Some(*value as usize),
                scores: Scores { scale: *scale, softcap: None },
                sinks: None,
                distances: None,
            };
            attention(shape, at.tensor(0)?, at.state(1)?, batch, caches, at.defined)?
        }
        Op::Unary { kind } => ops::unary(*kind, first(own)?),
        Op::Binary { kind } => ops::binary(*kind, first(own)?, at.tensor(1)?),
        Op::SelectRows {} => {
            let (x, rows) = (at.tensor(0)?, at.index(1)?);
            let width = x.len().checked_div(batch.rows()).unwrap_or(0);
            rows.iter().flat_map(|r| &x[*r as usize * width..(*r as usize + 1) * width]).copied().collect()
        }
        Op::Pool { kind } => {
            let (x, rows) = (at.tensor(0)?, at.index(1)?);
            let width = x.len().checked_div(batch.rows()).unwrap_or(0);
            rows.iter()
                .flat_map(|r| ops::pool(*kind, x, width, batch.first_row(*r as usize), *r as usize))
                .collect()
        }
        op @ (Op::Const { .. }
        | Op::Output {}
        | Op::AddRmsNorm { .. }
        | Op::RopeAppend { .. }
        | Op::Pointwise { .. }) => return Err(format!("{} is no step of this executor", op.name())),
    };
    Ok(Value::Tensor(tensor))
}
