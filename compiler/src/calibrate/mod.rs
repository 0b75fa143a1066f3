//! Calibration: statistics of a text, and on them scales, ranges and codes of weights.
//!
//! Statistics are those of the source's own weights, so they serve every precision and method. A segment of the model is in memory at a
//! time while they are gathered, and a block of rows of one weight while codes are made. Every result goes to the scratch at once.

mod quality;
mod scratch;
mod text;

pub use text::{Corpus, Text};

use crate::compile::{Progress, source_hash};
use crate::error::CompileError;
use crate::import::Checkpoint;
use crate::options::{CompileOptions, RunOptions};
use bessemer_calibrate::awq::{self, Sample};
use bessemer_calibrate::gptq::Factor;
use bessemer_calibrate::{Gather, Grid, Moment, grid};
use bessemer_eager::Streamed;
use bessemer_format::QuantScheme;
use bessemer_format::file::Bytes;
use bessemer_format::manifest::Hash;
use bessemer_ir::{Graph, NodeId, Op, Origin, Recipe, Value, WeightSource, rounded};
use bessemer_passes::pipeline::{Context, EQUALISE, Refine, apply};
use bessemer_passes::{Pair, Scale, pairs, scheme_of};
use scratch::Scratch;
use std::collections::BTreeMap;

/// Rows of a weight that stand for it in the search of scales.
const SAMPLED_ROWS: usize = 256;
/// Elements of a weight that are rounded at a time.
const BLOCK: usize = 16 << 20;

/// Codes that calibration has made, by key.
#[derive(Default)]
pub struct Codes {
    held: BTreeMap<String, Bytes>,
    /// Relative error of each weight's outputs on the calibration text, in execution order.
    errors: Vec<(String, f64)>,
    /// Keeps a temporary scratch alive.
    _scratch: Vec<tempfile::TempDir>,
}

/// A checkpoint and what calibration made of some of its weights.
pub struct Calibrated<'a> {
    /// The checkpoint.
    pub checkpoint: &'a Checkpoint,
    /// The codes.
    pub codes: &'a Codes,
}

impl WeightSource for Calibrated<'_> {
    fn tensor(&self, name: &str) -> Option<&[u8]> {
        WeightSource::tensor(self.checkpoint, name)
    }

    fn rounded(&self, key: &str) -> Option<&[u8]> {
        self.codes.held.get(key).map(|b| &**b)
    }
}

/// A matrix that can be calibrated: its readers are linears, all of one input.
struct Weight {
    node: NodeId,
    input: Value,
    scheme: QuantScheme,
}

/// What calibration works with.
pub(crate) struct Calibrate<'a> {
    pub checkpoint: &'a Checkpoint,
    pub options: &'a CompileOptions,
    pub run: &'a RunOptions,
    pub context: Context<'a>,
    pub progress: &'a dyn Progress,
}

impl Calibrate<'_> {
    /// Scales, then rounds the weights of a canonical graph as the options say. Weights that it leaves alone (tables that are embeddings
    /// too, floating-point schemes) are converted later, to nearest.
    pub fn lower(&self, graph: &mut Graph) -> Result<Codes, CompileError> {
        let method = self.options.method;
        if !method.calibrates() {
            return Ok(Codes::default());
        }
        let weights = self.weights(graph);
        let windows = self.options.calibration.cut(self.checkpoint)?;
        let source = match self.run.source_hash {
            Some(known) => known,
            None => source_hash(self.checkpoint, self.progress)?,
        };
        let inputs = format!("{}\n{source}\n{}", bessemer_format::PRODUCER, text::hash_of(&windows));
        let statistics = Scratch::new(self.run.scratch.as_deref(), &format!("statistics\n{inputs}"))?;
        self.gather(graph, &windows, &statistics)?;

        let options = self.options.pairs();
        let results = Scratch::new(self.run.scratch.as_deref(), &format!("codes\n{inputs}\n{options:?}"))?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.run.threads).build();
        let pool = pool.map_err(|e| CompileError::Calibration(e.to_string()))?;
        let codes = pool.install(|| {
            let scales =
                if method.scales() { self.scales(graph, &weights, &statistics, &results)? } else { vec![] };
            let refine = Refine { scales: &scales, ..self.context.refine };
            apply(&EQUALISE, graph, &Context { refine, ..self.context })?;
            self.round(graph, &weights, &scales, &statistics, &results)
        });
        let mut codes = codes?;
        codes._scratch.extend(results.into_guard());
        Ok(codes)
    }

    /// What can be calibrated, in execution order.
    fn weights(&self, graph: &Graph) -> Vec<Weight> {
        let weight = |node: NodeId| {
            let Op::Const { recipe } = graph.op(node) else { return None };
            let scheme = scheme_of(graph, node, &self.context)?;
            let readers = graph.uses(node.into());
            let linear = |(n, i): &(NodeId, usize)| *i > 0 && matches!(graph.op(*n), Op::Linear { .. });
            let input = graph.operands(readers.first()?.0).first().copied()?;
            let one_input = readers.iter().all(|(n, _)| graph.operands(*n).first() == Some(&input));
            let fits = recipe.shape.len() == 2 && recipe.scheme() != scheme && grid::rounds(&scheme);
            (fits && one_input && readers.iter().all(linear)).then_some(Weight { node, input, scheme })
        };
        graph.order().into_iter().filter_map(weight).collect()
    }

    /// Gathers the moments that the scratch does not hold yet.
    fn gather(&self, graph: &Graph, windows: &[Vec<u32>], scratch: &Scratch) -> Result<(), CompileError> {
        if scratch.holds("complete") {
            return Ok(());
        }
        let streamed = Streamed::new(graph, self.checkpoint, self.run.threads).map_err(eager)?;
        let mut failure = None;
        let mut started = false;
        let progress = self.progress;
        let mut sink = |done: usize, of: usize, moments: Vec<(Value, Moment)>| {
            if !std::mem::replace(&mut started, true) {
                progress.start("calibrate: statistics", of as u64);
            }
            let _ = done;
            progress.advance(1);
            let kept =
                moments.iter().try_for_each(|(input, m)| scratch.put(&moment_name(*input), &m.encode()));
            let stopped = if progress.cancelled() { Err(CompileError::Interrupted) } else { Ok(()) };
            kept.and(stopped).map_err(|e| {
                let message = e.to_string();
                failure = Some(e);
                message
            })
        };
        // What an interrupted run has gathered is not gathered again; its activations are made again.
        let held = |input: Value| scratch.holds(&moment_name(input));
        let ran = streamed.run(windows, &mut Gather::new(graph, &held, &mut sink));
        match (failure, ran) {
            (Some(e), _) => Err(e),
            (None, ran) => {
                ran.map_err(eager)?;
                scratch.put("complete", &[])
            }
        }
    }

    /// The scales of every pair whose readers are all rounded.
    fn scales(
        &self,
        graph: &Graph,
        weights: &[Weight],
        statistics: &Scratch,
        results: &Scratch,
    ) -> Result<Vec<Scale>, CompileError> {
        let pairs = pairs(graph);
        self.progress.start("calibrate: scales", pairs.len() as u64);
        let mut scales = Vec::new();
        for pair in pairs {
            self.go_on()?;
            let readers: Option<Vec<&Weight>> =
                pair.readers.iter().map(|r| weights.iter().find(|w| w.node == *r)).collect();
            if let Some(readers) = readers {
                let name = format!("{}.scales", value_name(pair.input));
                let by = match results.get(&name)?.and_then(|bytes| decode_scales(&bytes, pair.scales)) {
                    Some(by) => by,
                    None => {
                        let by = self.search(graph, &pair, &readers, statistics)?;
                        results.put(&name, &by.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<u8>>())?;
                        by
                    }
                };
                if by.iter().any(|s| *s != 1.0) {
                    scales.push(Scale { pair, by });
                }
            }
            self.progress.advance(1);
        }
        Ok(scales)
    }

    fn search(
        &self,
        graph: &Graph,
        pair: &Pair,
        readers: &[&Weight],
        statistics: &Scratch,
    ) -> Result<Vec<f32>, CompileError> {
        let moment = moment(statistics, pair.input)?;
        let samples = readers.iter().map(|w| {
            let (n, _) = recipe(graph, w.node)?.matrix();
            let step = n.div_ceil(SAMPLED_ROWS).max(1);
            let rows = (0..n).step_by(step).map(|r| self.values(graph, w.node, r..r + 1));
            let values = rows.collect::<Result<Vec<_>, _>>()?.concat();
            Ok(Sample { values, scheme: w.scheme })
        });
        let samples: Vec<Sample> = samples.collect::<Result<_, CompileError>>()?;
        let share = |i: usize| pair.scale_of(i, moment.k);
        let found = awq::search(&samples, &moment, pair.scales, &share);
        Ok(found.unwrap_or_else(|| vec![1.0; pair.scales]))
    }

    /// Rounds every weight and lets the graph read the codes.
    fn round(
        &self,
        graph: &mut Graph,
        weights: &[Weight],
        scales: &[Scale],
        statistics: &Scratch,
        results: &Scratch,
    ) -> Result<Codes, CompileError> {
        self.progress.start("calibrate: codes", weights.len() as u64);
        let mut codes = Codes::default();
        // Weights that share an input follow each other, and share what is made of its moment.
        let mut shared: Option<(Value, Prepared)> = None;
        for weight in weights {
            self.go_on()?;
            let recipe = recipe(graph, weight.node)?.clone();
            let name = format!("{}.codes", weight.node.number());
            let bytes = match results.get(&name)? {
                Some(bytes) => bytes,
                None => {
                    if shared.as_ref().is_none_or(|(input, _)| *input != weight.input) {
                        drop(shared.take());
                        shared = Some((weight.input, self.prepare(weight.input, scales, statistics)?));
                    }
                    let Some((_, prepared)) = &shared else { continue };
                    let body = self.codes(graph, weight, prepared)?;
                    results.put(&name, &body)?;
                    let lost =
                        || CompileError::Calibration(format!("{name}: the scratch lost what it was given"));
                    results.get(&name)?.ok_or_else(lost)?
                }
            };
            // The hash that ends the file, and before it two sums.
            let tail = bytes.len().saturating_sub(48);
            let number =
                |at: usize| bytes.get(at..at + 8).and_then(|b| Some(f64::from_le_bytes(b.try_into().ok()?)));
            let (lost, size) = (number(tail).unwrap_or(0.0), number(tail + 8).unwrap_or(0.0));
            codes
                .errors
                .push((graph.name(weight.node).into(), if size > 0.0 { (lost / size).sqrt() } else { 0.0 }));
            let key = Hash::of(&bytes[..tail]).to_string();
            codes.held.insert(key.clone(), bytes);
            let name = recipe.source_names().next().unwrap_or("(constant)").to_string();
            let origin = Origin::Rounded { name, key, scheme: weight.scheme };
            let recipe = Recipe { origin, shape: recipe.shape, transforms: Vec::new() };
            graph
                .set_op(weight.node, Op::Const { recipe })
                .map_err(|e| CompileError::Calibration(e.to_string()))?;
            self.progress.advance(1);
        }
        Ok(codes)
    }

    fn prepare(
        &self,
        input: Value,
        scales: &[Scale],
        statistics: &Scratch,
    ) -> Result<Prepared, CompileError> {
        let mut moment = moment(statistics, input)?;
        if let Some(scale) = scales.iter().find(|s| s.pair.input == input) {
            moment = moment.divided(&scale.pair.expand(&scale.by, moment.k));
        }
        let factor = self.options.method.compensates().then(|| Factor::new(&moment)).transpose();
        Ok(Prepared { full: moment.full(), factor: factor.map_err(CompileError::Calibration)?, k: moment.k })
    }

    /// The codes of a weight, then the sums of squares of what its outputs lose and of what they are.
    fn codes(&self, graph: &Graph, weight: &Weight, prepared: &Prepared) -> Result<Vec<u8>, CompileError> {
        let (n, k) = recipe(graph, weight.node)?.matrix();
        let (mut out, mut lost, mut size) = (Vec::new(), 0.0, 0.0);
        let step = (BLOCK / k.max(1)).max(1);
        for start in (0..n).step_by(step) {
            self.go_on()?;
            let values = self.values(graph, weight.node, start..n.min(start + step))?;
            let grid = match self.options.method.scales() {
                true => Grid::shrunk(&weight.scheme, k, &values, &prepared.full),
                false => Grid::whole(&weight.scheme, k, &values),
            };
            let rows = match &prepared.factor {
                Some(factor) => factor.round(&values, grid),
                None => grid.round(&values),
            };
            let error: Vec<f32> = rows.values().iter().zip(&values).map(|(q, v)| q - v).collect();
            lost += awq::squared(&error, &prepared.full, prepared.k);
            size += awq::squared(&values, &prepared.full, prepared.k);
            out.extend(rounded::encode(&rows));
        }
        out.extend(lost.to_le_bytes());
        out.extend(size.to_le_bytes());
        Ok(out)
    }

    fn values(
        &self,
        graph: &Graph,
        node: NodeId,
        rows: std::ops::Range<usize>,
    ) -> Result<Vec<f32>, CompileError> {
        let recipe = recipe(graph, node)?;
        let error = |why| CompileError::Weight { tensor: graph.name(node).into(), why };
        let values = recipe.rows(self.checkpoint, rows).map_err(error)?.values();
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(error(format!("element {at} is {}; the checkpoint is damaged", values[at]))),
            None => Ok(values),
        }
    }

    fn go_on(&self) -> Result<(), CompileError> {
        if self.progress.cancelled() { Err(CompileError::Interrupted) } else { Ok(()) }
    }
}

/// What is made of one input's moment.
struct Prepared {
    full: Vec<f32>,
    factor: Option<Factor>,
    k: usize,
}

fn eager(e: bessemer_eager::EagerError) -> CompileError {
    CompileError::Calibration(e.to_string())
}

fn recipe(graph: &Graph, node: NodeId) -> Result<&Recipe, CompileError> {
    match graph.op(node) {
        Op::Const { recipe } => Ok(recipe),
        _ => Err(CompileError::Calibration(format!("{} is no constant", graph.name(node)))),
    }
}

/// Node numbers follow from the source, so they name results among those of one source.
fn value_name(value: Value) -> String {
    format!("{}.{}", value.node.number(), value.result)
}

fn moment_name(input: Value) -> String {
    format!("{}.moment", value_name(input))
}

fn moment(scratch: &Scratch, input: Value) -> Result<Moment, CompileError> {
    let bytes = scratch.get(&moment_name(input))?;
    let moment = bytes.and_then(|bytes| Some(Moment::decode(&bytes)?.0));
    moment.ok_or_else(|| {
        CompileError::Calibration(format!(
            "the statistics of input {} are damaged; empty the scratch folder",
            value_name(input)
        ))
    })
}

fn decode_scales(bytes: &[u8], count: usize) -> Option<Vec<f32>> {
    let body = bytes.get(..count.checked_mul(4)?)?;
    Some(body.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}
