//! A whole graph, with state.

use crate::error::OracleError;
use crate::kv::Caches;
use crate::ops::{Context, run_node};
use crate::value::{Val, Weight};
use bessemer_format::manifest::KvElem;
use bessemer_ir::exec::{Batch, ExecNode, Logits, SequenceRows, schedule};
use bessemer_ir::{Graph, Op, WeightSource};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which rounding applies. Every test names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Dequantised weights, f64 everywhere: quality is measured against it.
    Exact,
    /// Results of ops rounded to f32, activations rounded as each linear's `Compute` says, keys and values as `kv` says: kernels and
    /// plans are held to it.
    Declared {
        /// Elements of the cache.
        kv: KvElem,
    },
}

/// A graph that can be asked for logits.
pub struct Oracle {
    nodes: Vec<ExecNode>,
    weights: Vec<Option<Val>>,
    reading: Reading,
    caches: Caches,
    lens: BTreeMap<usize, usize>,
}

impl Oracle {
    /// Verifies the graph and dequantises its constants, all into memory.
    pub fn new(graph: &Graph, source: &dyn WeightSource, reading: Reading) -> Result<Self, OracleError> {
        bessemer_ir::verify::verify(graph)?;
        let nodes = schedule(graph);
        let weights = nodes.iter().map(|n| weight(n, source)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { nodes, weights, reading, caches: Caches::default(), lens: BTreeMap::new() })
    }

    /// Tokens that a sequence holds.
    pub fn len(&self, sequence: usize) -> usize {
        self.lens.get(&sequence).copied().unwrap_or(0)
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
    pub fn forward(&mut self, parts: &[SequenceRows<'_>]) -> Result<Logits, OracleError> {
        self.forward_with(parts, |_, _| {})
    }

    /// One forward pass that shows every node's results as they come. What `see` leaves in their place is what the
    /// nodes after it read: so a single node can be held to what another executor made of the same operands.
    pub fn forward_with(
        &mut self,
        parts: &[SequenceRows<'_>],
        see: impl FnMut(&ExecNode, &mut [Val]),
    ) -> Result<Logits, OracleError> {
        let batch = Batch::new(parts, |sequence| self.len(sequence))?;
        let result = self.run(&batch, see);
        for part in parts {
            let before = self.len(part.sequence);
            match &result {
                Ok(_) => drop(self.lens.insert(part.sequence, before + part.tokens.len())),
                Err(_) => self.truncate(part.sequence, before),
            }
        }
        result
    }

    fn run(
        &mut self,
        batch: &Batch,
        mut see: impl FnMut(&ExecNode, &mut [Val]),
    ) -> Result<Logits, OracleError> {
        let mut values: Vec<Vec<Val>> = vec![Vec::new(); self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            let error = |why| OracleError::Node { node: node.name.clone(), op: node.op.name(), why };
            if let Some(weight) = &self.weights[i] {
                values[i] = vec![weight.clone()];
                continue;
            }
            let operands = node.operands.iter().map(|(step, result)| {
                values[*step].get(*result).ok_or_else(|| error(format!("has no operand {step}.{result}")))
            });
            let operands = operands.collect::<Result<Vec<_>, _>>()?;
            if let Op::Output {} = node.op {
                let logits = operands.first().ok_or("has no logits".to_string()).and_then(|v| v.tensor());
                let logits = logits.map_err(error)?;
                return Ok(Logits { vocab: logits.width, values: logits.to_f32() });
            }
            let mut cx = Context { reading: self.reading, batch, caches: &mut self.caches };
            let mut results = run_node(&node.op, &operands, &mut cx).map_err(error)?;
            see(node, &mut results);
            values[i] = results;
            for &step in &node.last_uses {
                values[step] = Vec::new();
            }
        }
        Err(OracleError::Graph(bessemer_ir::GraphError { node: "graph".into(), why: "has no output".into() }))
    }
}

/// The value of a constant; `None` for another op.
fn weight(node: &ExecNode, source: &dyn WeightSource) -> Result<Option<Val>, OracleError> {
    let Op::Const { recipe } = &node.op else { return Ok(None) };
    let data =
        recipe.values_f32(source).map_err(|why| OracleError::Constant { node: node.name.clone(), why })?;
    let (rows, k) = recipe.matrix();
    Ok(Some(Val::Weight(Arc::new(Weight { rows, k, data }))))
}
