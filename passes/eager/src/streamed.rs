//! Many windows of tokens through a model of which one segment at a time is in memory: what calibration and the measurement of quality run
//! on. Results are defined to the bit ([`crate::defined`]).

use crate::error::EagerError;
use crate::executor::{Pass, Value, pool, unfused};
use crate::kv::Caches;
use crate::weights::Matrix;
use crate::{Logits, SequenceRows, Wanted, WeightFormat};
use bessemer_format::manifest::KvElem;
use bessemer_ir::exec::{Batch, ExecNode};
use bessemer_ir::{Graph, NodeId, Op, WeightSource};
use std::ops::Range;

/// Windows go through a segment together up to so many rows: what is done once a weight, or once an element of a moment, is then done
/// less often.
const TOGETHER: usize = 2048;
/// As [`TOGETHER`], where there will be logits, of which a row is long.
const TOGETHER_FOR_LOGITS: usize = 256;

/// Hears what a run computes.
pub trait Observer: Send {
    /// The input of a linear, rows of `width` elements: of one whose slots have parts of their own, a row for each.
    fn linear(&mut self, _linear: NodeId, _x: &[f32], _width: usize) {}
    /// Some windows have gone through a segment. An error stops the run.
    fn window(&mut self) -> Result<(), String> {
        Ok(())
    }
    /// All windows have gone through the linears of a segment. An error stops the run.
    fn segment(&mut self, _done: usize, _of: usize) -> Result<(), String> {
        Ok(())
    }
    /// Whether logits are wanted; without them the last product is left out.
    fn wants_logits(&self) -> bool {
        false
    }
    /// The logits of all tokens of a window.
    fn logits(&mut self, _window: usize, _logits: Logits) {}
}

/// A graph cut where nothing but the residual stream (or whatever is as narrow) goes on.
pub struct Streamed<'a> {
    nodes: Vec<ExecNode>,
    segments: Vec<Range<usize>>,
    source: &'a dyn WeightSource,
    cache: KvElem,
    pool: rayon::ThreadPool,
}

impl<'a> Streamed<'a> {
    /// Verifies the graph and cuts it. No weight is read yet.
    pub fn new(graph: &Graph, source: &'a dyn WeightSource, threads: usize) -> Result<Self, EagerError> {
        let nodes = unfused(graph)?;
        let segments = cut(&nodes);
        Ok(Self { nodes, segments, source, cache: KvElem::F32, pool: pool(threads)? })
    }

    /// With keys and values as a cache of `elem` holds them, in place of f32.
    pub fn cache(self, elem: KvElem) -> Self {
        Self { cache: elem, ..self }
    }

    /// Runs `windows`, each a sequence of its own.
    pub fn run(&self, windows: &[Vec<u32>], observer: &mut dyn Observer) -> Result<(), EagerError> {
        let logits = observer.wants_logits();
        let end = match (logits, self.nodes.last().and_then(|output| output.operands.first())) {
            // Up to the product that makes logits; its input is still observed.
            (false, Some((step, _))) if matches!(self.nodes[*step].op, Op::Linear { .. }) => Some(*step),
            _ => None,
        };
        let groups = groups(windows, if logits { TOGETHER_FOR_LOGITS } else { TOGETHER });
        let mut held: Vec<Vec<Option<Value>>> =
            groups.iter().map(|_| self.nodes.iter().map(|_| None).collect()).collect();
        for (s, segment) in self.segments.iter().enumerate() {
            let steps = segment.start..end.map_or(segment.end, |end| segment.end.min(end));
            if steps.is_empty() && steps.end < segment.start {
                continue;
            }
            let constants = self.pool.install(|| self.constants(steps.clone()))?;
            for (group, values) in groups.iter().zip(&mut held) {
                let here = &windows[group.clone()];
                let part =
                    |(sequence, tokens)| SequenceRows { sequence, tokens, types: &[], logits: Wanted::All };
                let parts: Vec<SequenceRows<'_>> =
                    here.iter().map(Vec::as_slice).enumerate().map(part).collect();
                let batch = Batch::new(&parts, |_| 0)?;
                let (rows, mut caches) = (batch.rows().max(1), Caches::new(self.cache));
                let nodes = &self.nodes;
                let mut pass =
                    Pass { nodes, constants: &constants, caches: &mut caches, batch: &batch, defined: true };
                let mut observe = |step: usize, x: &[f32]| {
                    let weight =
                        1 + usize::from(matches!(nodes[step].op, Op::GroupedLinear { routed: true, .. }));
                    let weight = nodes[step].operands.get(weight).and_then(|(at, _)| constants[*at].as_ref());
                    observer.linear(nodes[step].node, x, weight.map_or(x.len() / rows, |w| w.k));
                };
                let made = self.pool.install(|| -> Result<_, EagerError> {
                    for i in (0..nodes.len()).filter(|i| light(&nodes[*i].op)) {
                        pass.run(i..i + 1, values, &mut |_, _| {})?;
                    }
                    pass.run(steps.clone(), values, &mut observe)
                })?;
                if let Some(last) = end.filter(|_| steps.end < segment.end)
                    && let Some((x, _)) = nodes[last].operands.first()
                    && let Some(Value::Tensor(x)) = &values[*x]
                {
                    self.pool.install(|| observer.linear(nodes[last].node, x, x.len() / rows));
                }
                if let Some(Logits { vocab, values: made }) = made {
                    let mut rest = made.as_slice();
                    for (window, tokens) in group.clone().zip(here) {
                        let own = rest.split_off(..rest.len().min(tokens.len() * vocab)).unwrap_or_default();
                        observer.logits(window, Logits { vocab, values: own.to_vec() });
                    }
                }
                // What every segment makes again would only take memory.
                for (value, _) in values.iter_mut().zip(nodes).filter(|(_, n)| light(&n.op)) {
                    *value = None;
                }
                observer.window().map_err(|why| EagerError::Stopped { why })?;
            }
            let segment = observer.segment(s + 1, self.segments.len());
            segment.map_err(|why| EagerError::Stopped { why })?;
        }
        Ok(())
    }

    /// The constants that `steps` read.
    fn constants(&self, steps: Range<usize>) -> Result<Vec<Option<Matrix>>, EagerError> {
        let mut constants: Vec<Option<Matrix>> = self.nodes.iter().map(|_| None).collect();
        for (step, _) in self.nodes[steps].iter().flat_map(|n| &n.operands) {
            let node = &self.nodes[*step];
            if let (Op::Const { recipe }, None) = (&node.op, &constants[*step]) {
                let loaded = Matrix::load(recipe, self.source, WeightFormat::F32);
                let error = |why| EagerError::Constant { node: node.name.clone(), why };
                constants[*step] = Some(loaded.map_err(error)?);
            }
        }
        Ok(constants)
    }
}

/// Windows that go together: neighbours, up to so many rows, or one alone.
fn groups(windows: &[Vec<u32>], most: usize) -> Vec<Range<usize>> {
    let (mut groups, mut rows) = (Vec::<Range<usize>>::new(), 0);
    for (window, tokens) in windows.iter().enumerate() {
        rows += tokens.len();
        match groups.last_mut().filter(|_| rows <= most) {
            Some(group) => group.end = window + 1,
            None => {
                groups.push(window..window + 1);
                rows = tokens.len();
            }
        }
    }
    groups
}

/// Whether a step costs nothing and depends on no weight, so that every segment runs it again.
fn light(op: &Op) -> bool {
    matches!(op, Op::Input { .. } | Op::RopeTable { .. }) || op.state_of().is_some()
}

/// Ranges of steps, each with a linear, after which at most one value goes on.
fn cut(nodes: &[ExecNode]) -> Vec<Range<usize>> {
    let (mut segments, mut start, mut linear) = (Vec::new(), 0, false);
    // What the output keeps of a state is no reason to hold it: only its readers among the steps count.
    let readers = nodes.iter().enumerate().filter(|(_, n)| !matches!(n.op, Op::Output {}));
    let ends: std::collections::BTreeMap<usize, usize> =
        readers.flat_map(|(i, n)| n.operands.iter().map(move |(step, _)| (*step, i))).collect();
    let mut live = std::collections::BTreeSet::new();
    for (i, node) in nodes.iter().enumerate() {
        if !light(&node.op) && !matches!(node.op, Op::Const { .. }) {
            live.insert(i);
        }
        live.retain(|step| ends.get(step).is_none_or(|end| *end > i));
        linear |= matches!(node.op, Op::Linear { .. });
        if linear && live.len() <= 1 && i + 1 < nodes.len() {
            segments.push(start..i + 1);
            (start, linear) = (i + 1, false);
        }
    }
    segments.push(start..nodes.len());
    segments
}
