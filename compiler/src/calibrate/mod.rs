//! Calibration: statistics of a text, and on them scales, ranges and codes of weights.
//!
//! Statistics are those of the source's own weights, so they serve every precision and method. A segment of the model is in memory at a
//! time while they are gathered, and a block of rows of one weight while codes are made. Every result goes to the scratch at once.

mod budget;
mod quality;
mod text;

pub use budget::Budget;
pub use text::{Corpus, Text};

use crate::compile::{Amount, Progress, source_hash};
use crate::error::CompileError;
use crate::import::Checkpoint;
use crate::options::{CompileOptions, RunOptions};
use crate::scratch::Scratch;
use bessemer_calibrate::awq::{self, Sample};
use bessemer_calibrate::gptq::Factor;
use bessemer_calibrate::{Gather, Grid, Moment, grid};
use bessemer_eager::Streamed;
use bessemer_format::QuantScheme;
use bessemer_format::file::Bytes;
use bessemer_format::manifest::Hash;
use bessemer_format::rows::Rows;
use bessemer_ir::{Graph, NodeId, Op, Origin, Recipe, Value, WeightSource, rounded};
use bessemer_passes::pipeline::{Context, EQUALISE, Refine, apply};
use bessemer_passes::{Pair, Scale, pairs, scheme_of};
use std::collections::BTreeMap;
use std::sync::Arc;

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
    _scratch: Option<Arc<tempfile::TempDir>>,
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

/// A matrix that can be calibrated.
struct Weight {
    node: NodeId,
    reading: Reading,
    scheme: QuantScheme,
}

/// How a matrix is read: by linears, all of one input.
#[derive(Clone, Copy, PartialEq)]
struct Reading {
    input: Value,
    /// The matrix, if it is a table of embeddings too.
    table: Option<NodeId>,
}

/// What calibration works with.
pub(crate) struct Calibrate<'a> {
    pub checkpoint: &'a Checkpoint,
    pub options: &'a CompileOptions,
    pub run: &'a RunOptions,
    pub context: Context<'a>,
    pub progress: &'a dyn Progress,
}

/// What rounding stands on: the calibration text, what was gathered of it, and a place for results.
pub(crate) struct Ground {
    windows: Vec<Vec<u32>>,
    /// `None` for a method that needs none.
    statistics: Option<Scratch>,
    results: Scratch,
}

impl Calibrate<'_> {
    /// Gathers what the method needs to know of a canonical graph.
    pub fn ground(&self, graph: &Graph) -> Result<Option<Ground>, CompileError> {
        let method = self.options.method;
        if !method.calibrates() && self.options.budget.is_none() {
            return Ok(None);
        }
        let windows = self.options.calibration.cut(self.checkpoint)?;
        let source = match self.run.source_hash {
            Some(known) => known,
            None => source_hash(self.checkpoint, self.progress)?,
        };
        let inputs = format!("{}\n{source}\n{}", bessemer_format::PRODUCER, text::hash_of(&windows));
        let scratch = |what: &str| Scratch::new(self.run.scratch.as_deref(), &format!("{what}\n{inputs}"));
        let statistics = method.calibrates().then(|| scratch("statistics")).transpose()?;
        if let Some(statistics) = &statistics {
            self.gather(graph, &windows, statistics)?;
        }
        Ok(Some(Ground { windows, statistics, results: scratch(&format!("codes {method}"))? }))
    }

    /// Scales, then rounds the weights of a canonical graph as the context says. Weights that it leaves alone (tables that are only
    /// embeddings, floating-point schemes) are converted later, to nearest.
    pub fn lower(&self, graph: &mut Graph, ground: &Ground) -> Result<Codes, CompileError> {
        let method = self.options.method;
        if !method.calibrates() {
            return Ok(Codes::default());
        }
        let weights = self.weights(graph);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.run.threads).build();
        let pool = pool.map_err(|e| CompileError::Calibration(e.to_string()))?;
        pool.install(|| {
            let scales = if method.scales() { self.scales(graph, &weights, ground)? } else { vec![] };
            let refine = Refine { scales: &scales, ..self.context.refine };
            apply(&EQUALISE, graph, &Context { refine, ..self.context })?;
            self.round(graph, &weights, &scales, ground)
        })
    }

    /// What can be calibrated, in execution order.
    fn weights(&self, graph: &Graph) -> Vec<Weight> {
        let weight = |node: NodeId| {
            let Op::Const { recipe } = graph.op(node) else { return None };
            let scheme = scheme_of(graph, node, &self.context)?;
            let fits = recipe.shape.len() == 2 && recipe.scheme() != scheme && grid::rounds(&scheme);
            fits.then_some(Weight { node, reading: reading(graph, node)?, scheme })
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
                progress.start("calibrate: statistics", Amount::Pieces(of));
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
    fn scales(&self, graph: &Graph, weights: &[Weight], ground: &Ground) -> Result<Vec<Scale>, CompileError> {
        let pairs = pairs(graph);
        self.progress.start("calibrate: scales", Amount::Pieces(pairs.len()));
        let mut scales = Vec::new();
        for pair in pairs {
            self.go_on()?;
            let readers: Option<Vec<&Weight>> =
                pair.readers.iter().map(|r| weights.iter().find(|w| w.node == *r)).collect();
            if let Some(readers) = readers {
                let schemes: Vec<String> = readers.iter().map(|w| w.scheme.to_string()).collect();
                let name = result_name("scales", &[&value_name(pair.input), &schemes.join(" ")]);
                let by = match ground.results.get(&name)?.and_then(|bytes| decode_scales(&bytes, pair.scales))
                {
                    Some(by) => by,
                    None => {
                        let by = self.search(graph, &pair, &readers, ground)?;
                        let bytes: Vec<u8> = by.iter().flat_map(|s| s.to_le_bytes()).collect();
                        ground.results.put(&name, &bytes)?;
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
        ground: &Ground,
    ) -> Result<Vec<f32>, CompileError> {
        let moment = moment(ground, pair.input)?;
        let samples = readers
            .iter()
            .map(|w| Ok(Sample { values: self.sample(graph, w.node, SAMPLED_ROWS)?, scheme: w.scheme }));
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
        ground: &Ground,
    ) -> Result<Codes, CompileError> {
        self.progress.start("calibrate: codes", Amount::Pieces(weights.len()));
        let results = &ground.results;
        let mut codes = Codes { _scratch: results.guard(), ..Codes::default() };
        // Weights that share an input follow each other, and share what is made of its moment.
        let mut shared: Option<(Reading, Prepared)> = None;
        for weight in weights {
            self.go_on()?;
            let recipe = recipe(graph, weight.node)?.clone();
            // The recipe holds the scales, which differ with what other weights become.
            let inputs = [&format!("{} {}", weight.node.number(), weight.scheme), &format!("{recipe:?}")];
            let name = result_name("codes", &inputs.map(String::as_str));
            let bytes = match results.get(&name)? {
                Some(bytes) => bytes,
                None => {
                    if shared.as_ref().is_none_or(|(reading, _)| *reading != weight.reading) {
                        drop(shared.take());
                        shared = Some((weight.reading, self.prepare(graph, weight.reading, scales, ground)?));
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
        graph: &Graph,
        Reading { input, table }: Reading,
        scales: &[Scale],
        ground: &Ground,
    ) -> Result<Prepared, CompileError> {
        let mut moment = moment(ground, input)?;
        if let Some(table) = table {
            // Rows are read as they are, too. Of both uses the errors count relative to their sizes.
            let values = self.sample(graph, table, SAMPLED_ROWS)?;
            let product = awq::squared(&values, &moment.full(), moment.k);
            let rows: f64 = values.iter().map(|v| f64::from(v * v)).sum();
            moment = moment.plus_diagonal(if rows > 0.0 { (product / rows) as f32 } else { 0.0 });
        }
        if let Some(scale) = scales.iter().find(|s| s.pair.input == input) {
            moment = moment.divided(&scale.pair.expand(&scale.by, moment.k));
        }
        let factor = self.options.method.compensates().then(|| Factor::new(&moment)).transpose();
        Ok(Prepared { full: moment.full(), factor: factor.map_err(CompileError::Calibration)?, k: moment.k })
    }

    /// Rows of a weight, rounded by the method.
    fn rounded(&self, scheme: &QuantScheme, values: &[f32], prepared: &Prepared) -> Rows {
        let grid = match self.options.method.scales() {
            true => Grid::shrunk(scheme, prepared.k, values, &prepared.full),
            false => Grid::whole(scheme, prepared.k, values),
        };
        match &prepared.factor {
            Some(factor) => factor.round(values, grid),
            None => grid.round(values),
        }
    }

    /// The codes of a weight, then the sums of squares of what its outputs lose and of what they are.
    fn codes(&self, graph: &Graph, weight: &Weight, prepared: &Prepared) -> Result<Vec<u8>, CompileError> {
        let (n, k) = recipe(graph, weight.node)?.matrix();
        let (mut out, mut lost, mut size) = (Vec::new(), 0.0, 0.0);
        let step = (BLOCK / k.max(1)).max(1);
        for start in (0..n).step_by(step) {
            self.go_on()?;
            let values = self.values(graph, weight.node, start..n.min(start + step))?;
            let rows = self.rounded(&weight.scheme, &values, prepared);
            let error: Vec<f32> = rows.values().iter().zip(&values).map(|(q, v)| q - v).collect();
            lost += awq::squared(&error, &prepared.full, prepared.k);
            size += awq::squared(&values, &prepared.full, prepared.k);
            out.extend(rounded::encode(&rows));
        }
        out.extend(lost.to_le_bytes());
        out.extend(size.to_le_bytes());
        Ok(out)
    }

    /// At most so many rows of a weight, evenly spread.
    fn sample(&self, graph: &Graph, node: NodeId, most: usize) -> Result<Vec<f32>, CompileError> {
        let (n, _) = recipe(graph, node)?.matrix();
        let rows = (0..n).step_by(n.div_ceil(most).max(1)).map(|r| self.values(graph, node, r..r + 1));
        Ok(rows.collect::<Result<Vec<_>, _>>()?.concat())
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

/// How a matrix is read, if calibration knows what its readers see.
fn reading(graph: &Graph, node: NodeId) -> Option<Reading> {
    let readers = graph.uses(node.into());
    let (tables, linears): (Vec<_>, Vec<_>) =
        readers.into_iter().partition(|(n, i)| *i == 1 && matches!(graph.op(*n), Op::Embed {}));
    let input = graph.operands(linears.first()?.0).first().copied()?;
    let linear = |(n, i): &(NodeId, usize)| {
        *i > 0 && matches!(graph.op(*n), Op::Linear { .. }) && graph.operands(*n).first() == Some(&input)
    };
    linears.iter().all(linear).then_some(Reading { input, table: (!tables.is_empty()).then_some(node) })
}

/// Node numbers follow from the source, so they name results among those of one source.
fn value_name(value: Value) -> String {
    format!("{}.{}", value.node.number(), value.result)
}

fn moment_name(input: Value) -> String {
    format!("{}.moment", value_name(input))
}

/// A file name for what follows from `inputs`.
fn result_name(what: &str, inputs: &[&str]) -> String {
    format!("{}.{what}", Hash::of(inputs.join("\n").as_bytes()))
}

fn moment(ground: &Ground, input: Value) -> Result<Moment, CompileError> {
    let bytes = ground.statistics.as_ref().map(|s| s.get(&moment_name(input))).transpose()?.flatten();
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
