//! Calibration: statistics of a text, and on them scales, ranges and codes of weights.
//!
//! Statistics are those of the source's own weights, so they serve every precision and method. A segment of the model is in memory at a
//! time while they are gathered, and a block of rows of one weight while codes are made. Every result goes to the scratch at once.

mod budget;
mod quality;
mod search;
mod statistics;
mod text;

pub use budget::Budget;
pub(crate) use budget::SCHEMES;
pub use statistics::{Channels, Gathered, OUTLIER, Statistics, StatisticsError, gather};
pub use text::{Corpus, Text};

use crate::compile::{Amount, Progress, source_hash};
use crate::error::CompileError;
use crate::import::Checkpoint;
use crate::options::{CompileOptions, RunOptions};
use crate::scratch::Scratch;
use bessemer_calibrate::awq::{self, Sample};
use bessemer_calibrate::gptq::Factor;
use bessemer_calibrate::refine::refine;
use bessemer_calibrate::{Gather, Grid, Method, Moment, Reach, grid, smooth};
use bessemer_eager::{Observer, Streamed};
use bessemer_format::QuantScheme;
use bessemer_format::file::Bytes;
use bessemer_format::manifest::Hash;
use bessemer_format::rows::Rows;
use bessemer_ir::{Graph, NodeId, Op, Origin, Recipe, Value, WeightSource, rounded};
use bessemer_passes::pipeline::{Context, EQUALISE, Refine, apply};
use bessemer_passes::{Pair, Scale, makes_routes, pairs, scheme_of};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Rows of a weight that stand for it in the search of scales and in the report: so many elements, between these numbers of rows.
const SAMPLED: usize = 1 << 19;
const SAMPLED_ROWS: std::ops::RangeInclusive<usize> = 64..=256;
/// How much more an error of a table counts where it is read than where it makes logits. A table of four bits of stories15M lost 0.94 of
/// what rounding to nearest loses on a story with as much power beside the moment as its mean diagonal, and 0.84 with three times as much.
const READING: f32 = 4.0;
/// Rows of a weight that a thread rounds at a time.
const ROWS: usize = 64;

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
    moments: Moments,
    results: Scratch,
}

/// Where the moments of inputs are.
enum Moments {
    /// A method that needs none.
    None,
    /// Gathered by this compilation or one before it.
    Scratch(Scratch),
    /// Given. Inputs by the weight that the file names them by.
    File(Arc<Statistics>, BTreeMap<Value, String>),
}

impl Ground {
    /// The moment of an input.
    fn moment(&self, input: Value) -> Result<Moment, CompileError> {
        if let Moments::File(file, names) = &self.moments {
            return Ok(file.moment(names.get(&input).map_or("", String::as_str))?);
        }
        let moment = self.encoded(input)?;
        Moment::decode(&moment).map(|(moment, _)| moment).ok_or_else(|| damaged(input))
    }

    /// The moment of an input, as it was gathered into the scratch.
    fn encoded(&self, input: Value) -> Result<Bytes, CompileError> {
        let Moments::Scratch(scratch) = &self.moments else { return Err(damaged(input)) };
        scratch.get(&moment_name(input))?.ok_or_else(|| damaged(input))
    }
}

fn damaged(input: Value) -> CompileError {
    CompileError::Calibration(format!(
        "the statistics of input {} are damaged; empty the scratch folder",
        value_name(input)
    ))
}

impl Calibrate<'_> {
    /// Gathers what the method needs to know of a canonical graph.
    pub fn ground(&self, graph: &Graph) -> Result<Option<Ground>, CompileError> {
        let method = self.options.method;
        if !method.calibrates() && self.options.budget.is_none() {
            return Ok(None);
        }
        let reach = if method.compensates() { Reach::Whole } else { Reach::Near };
        self.ground_on(graph, self.source()?, method.calibrates().then_some(reach)).map(Some)
    }

    /// Hash of the source.
    fn source(&self) -> Result<Hash, CompileError> {
        self.run.source_hash.map_or_else(|| source_hash(self.checkpoint, self.progress), Ok)
    }

    /// The calibration text and, if there shall be `moments`, those of every input of a linear.
    fn ground_on(&self, graph: &Graph, source: Hash, moments: Option<Reach>) -> Result<Ground, CompileError> {
        let given = self.options.statistics.as_ref();
        let windows = match given {
            Some(file) => {
                file.check(source)?;
                file.windows().to_vec()
            }
            None => self.options.calibration.cut(self.checkpoint)?,
        };
        let on = statistics::on(given.map(|file| &**file), &windows);
        let inputs = format!("{}\n{source}\n{on}", bessemer_format::PRODUCER);
        let scratch = |what: &str| Scratch::new(self.run.scratch.as_deref(), &format!("{what}\n{inputs}"));
        let moments = match (given, moments) {
            (_, None) => Moments::None,
            (Some(file), Some(_)) => Moments::File(file.clone(), statistics::names(graph)),
            (None, Some(reach)) => {
                let scratch = scratch(&format!("statistics {reach:?}"))?;
                self.gather(graph, &windows, reach, &scratch)?;
                Moments::Scratch(scratch)
            }
        };
        Ok(Ground { windows, moments, results: scratch(&format!("codes {}", self.options.method))? })
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
    fn gather(
        &self,
        graph: &Graph,
        windows: &[Vec<u32>],
        reach: Reach,
        scratch: &Scratch,
    ) -> Result<(), CompileError> {
        if scratch.holds("complete") {
            return Ok(());
        }
        // What an interrupted run has gathered is not gathered again; its activations are made again.
        let held = |input: Value| scratch.holds(&moment_name(input));
        let work = work(graph, &held, reach);
        let tokens: usize = windows.iter().map(Vec::len).sum();
        let all: u64 = work.values().map(|work| work.row * work.rows).sum();
        self.progress.start("calibrate: statistics", Amount::Work(tokens as u64 * all));
        let mut failure = None;
        let mut sink = |_: usize, _: usize, moments: Vec<(Value, Moment)>| {
            let kept =
                moments.iter().try_for_each(|(input, m)| scratch.put(&moment_name(*input), &m.encode()));
            kept.map_err(|e| {
                let message = e.to_string();
                failure = Some(e);
                message
            })
        };
        let gather = Gather::new(graph, &held, reach, &mut sink);
        let streamed = Streamed::new(graph, self.checkpoint, self.run.threads).map_err(eager)?;
        let ran = streamed.run(windows, &mut Watched { gather, work, progress: self.progress });
        match (failure, ran) {
            (Some(e), _) => Err(e),
            (None, Err(_)) if self.progress.cancelled() => Err(CompileError::Interrupted),
            (None, ran) => {
                ran.map_err(eager)?;
                scratch.put("complete", &[])
            }
        }
    }

    /// The scales of every pair whose readers are all rounded, but for a router.
    fn scales(&self, graph: &Graph, weights: &[Weight], ground: &Ground) -> Result<Vec<Scale>, CompileError> {
        let pairs = pairs(graph);
        let work = |pair: &Pair| {
            let k = graph.ty(pair.input).const_dim(1).unwrap_or(1);
            k * k * pair.readers.len() as u64
        };
        self.progress.start("calibrate: scales", Amount::Work(pairs.iter().map(&work).sum()));
        let mut scales = Vec::new();
        for pair in pairs {
            self.go_on()?;
            let done = work(&pair);
            let (routers, readers): (Vec<NodeId>, Vec<NodeId>) =
                pair.readers.iter().partition(|r| makes_routes(graph, **r));
            let rounded: Vec<&Weight> =
                readers.iter().filter_map(|r| weights.iter().find(|w| w.node == *r)).collect();
            // A router, which nobody rounds, is scaled with the others.
            if !readers.is_empty() && rounded.len() + routers.len() == pair.readers.len() {
                let readers = rounded;
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
            self.progress.advance(done);
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
        let moment = ground.moment(pair.input)?;
        let share = |i: usize| pair.scale_of(i, moment.k);
        if self.options.method == Method::Smooth {
            let weights = self.column_maxima(graph, readers)?;
            return Ok(smooth::scales(&moment.maxima, &weights, pair.scales, &share));
        }
        let samples = readers.iter().map(|w| {
            let values = self.sample(graph, w.node, sampled_rows(moment.k))?;
            Ok(Sample { values, scheme: w.scheme })
        });
        let samples: Vec<Sample> = samples.collect::<Result<_, CompileError>>()?;
        let found = awq::search(&samples, &moment, pair.scales, &share);
        Ok(found.unwrap_or_else(|| vec![1.0; pair.scales]))
    }

    /// The largest magnitude of each column over several weights.
    fn column_maxima(&self, graph: &Graph, weights: &[&Weight]) -> Result<Vec<f32>, CompileError> {
        let mut maxima = Vec::new();
        for weight in weights {
            let (n, k) = recipe(graph, weight.node)?.matrix();
            maxima.resize(k, 0f32);
            for start in (0..n).step_by(ROWS) {
                let values = self.values(graph, weight.node, start..n.min(start + ROWS))?;
                for row in values.chunks_exact(k.max(1)) {
                    maxima.iter_mut().zip(row).for_each(|(m, v)| *m = m.max(v.abs()));
                }
            }
        }
        Ok(maxima)
    }

    /// Rounds every weight and lets the graph read the codes.
    fn round(
        &self,
        graph: &mut Graph,
        weights: &[Weight],
        scales: &[Scale],
        ground: &Ground,
    ) -> Result<Codes, CompileError> {
        let work = |graph: &Graph, weight: &Weight| -> Result<u64, CompileError> {
            let (n, k) = recipe(graph, weight.node)?.matrix();
            Ok((n * k) as u64)
        };
        let all = weights.iter().map(|w| work(graph, w)).sum::<Result<u64, _>>()?;
        self.progress.start("calibrate: codes", Amount::Work(all));
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
            let names = recipe.source_names().map(String::from).collect();
            let origin = Origin::Rounded { names, key, scheme: weight.scheme };
            let recipe = Recipe { origin, shape: recipe.shape, transforms: Vec::new() };
            graph
                .set_op(weight.node, Op::Const { recipe })
                .map_err(|e| CompileError::Calibration(e.to_string()))?;
            self.progress.advance(work(graph, weight)?);
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
        let mut moment = ground.moment(input)?;
        if let Some(table) = table {
            // Rows are read as they are, too. Of both uses the errors count relative to their sizes, those of reading more: they go
            // through the whole model.
            let values = self.sample(graph, table, sampled_rows(moment.k))?;
            let product = awq::squared(&values, &moment.full(), moment.k);
            let rows: f64 = values.iter().map(|v| f64::from(v * v)).sum();
            moment = moment.plus_diagonal(if rows > 0.0 { READING * (product / rows) as f32 } else { 0.0 });
        }
        if let Some(scale) = scales.iter().find(|s| s.pair.input == input) {
            let by = scale.pair.expand(&scale.by, moment.k);
            moment = moment.divided(&by);
        }
        let factor = self.options.method.compensates().then(|| Factor::new(&moment)).transpose();
        Ok(Prepared { full: moment.full(), factor: factor.map_err(CompileError::Calibration)?, k: moment.k })
    }

    /// Rows of a weight, rounded by the method.
    fn rounded(&self, scheme: &QuantScheme, values: &[f32], prepared: &Prepared) -> Rows {
        let grid = match self.options.method.shrinks() {
            true => Grid::shrunk(scheme, prepared.k, values, &prepared.full),
            false => Grid::whole(scheme, prepared.k, values),
        };
        match &prepared.factor {
            Some(factor) => refine(factor.round(values, grid), values, &prepared.full, factor.damping()),
            None => grid.round(values),
        }
    }

    /// The codes of a weight, then of sampled rows the sums of squares of what outputs lose and of what they are.
    fn codes(&self, graph: &Graph, weight: &Weight, prepared: &Prepared) -> Result<Vec<u8>, CompileError> {
        let (n, k) = recipe(graph, weight.node)?.matrix();
        let step = n.div_ceil(sampled_rows(k)).max(1);
        let pieces = (0..n.div_ceil(ROWS)).into_par_iter().map(|piece| {
            self.go_on()?;
            let rows = piece * ROWS..n.min((piece + 1) * ROWS);
            let values = self.values(graph, weight.node, rows.clone())?;
            let rounded = self.rounded(&weight.scheme, &values, prepared);
            let sampled = rows.clone().filter(|r| r % step == 0).map(|r| r - rows.start);
            let (mut errors, mut sizes) = (Vec::new(), Vec::new());
            for row in sampled {
                let values = &values[row * k..(row + 1) * k];
                errors.extend(values.iter().enumerate().map(|(i, v)| rounded.value(row, i) - v));
                sizes.extend(values);
            }
            Ok((rounded::encode(&rounded), errors, sizes))
        });
        let pieces = pieces.collect::<Result<Vec<(Vec<u8>, Vec<f32>, Vec<f32>)>, CompileError>>()?;
        let squared = |values: Vec<f32>| awq::squared(&values, &prepared.full, prepared.k);
        let lost = squared(pieces.iter().flat_map(|(_, errors, _)| errors).copied().collect());
        let size = squared(pieces.iter().flat_map(|(.., sizes)| sizes).copied().collect());
        let mut out = pieces.into_iter().map(|(codes, ..)| codes).collect::<Vec<_>>().concat();
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

/// What statistics cost for a linear.
struct Work {
    /// Multiplications of a row of its input.
    row: u64,
    /// Such rows a token.
    rows: u64,
}

/// The work of every linear: its product, and the moment of its input if it is the first to read one that is not `held`.
fn work(graph: &Graph, held: &dyn Fn(Value) -> bool, reach: Reach) -> BTreeMap<NodeId, Work> {
    let mut seen = BTreeSet::new();
    let linear = |node: NodeId| {
        let (input, weight) = statistics::read_by(graph, node)?;
        let Op::Const { recipe } = graph.op(weight) else { return None };
        let (n, k) = recipe.matrix();
        let rows = graph.ty(input).const_dim(1)? as usize / k.max(1);
        // What a token reads of a stack, shared out among the rows that it has there.
        let outputs = match graph.op(node) {
            Op::GroupedLinear { groups, slots, .. } => n / *groups as usize * *slots as usize / rows.max(1),
            _ => n,
        };
        // The product that makes logits is left out.
        let last =
            graph.uses(node.into()).iter().all(|(reader, _)| matches!(graph.op(*reader), Op::Output {}));
        let product = if last { 0 } else { outputs * k };
        let moment = if !held(input) && seen.insert(input) { k * reach.stretch(k) / 2 } else { 0 };
        Some((node, Work { row: (product + moment) as u64, rows: rows as u64 }))
    };
    graph.order().into_iter().filter_map(linear).collect()
}

/// Gathers, and tells how far it is.
struct Watched<'a> {
    gather: Gather<'a>,
    work: BTreeMap<NodeId, Work>,
    progress: &'a dyn Progress,
}

impl Observer for Watched<'_> {
    fn linear(&mut self, linear: NodeId, x: &[f32], width: usize) {
        self.gather.linear(linear, x, width);
        let rows = x.len().checked_div(width).unwrap_or(0);
        self.progress.advance(rows as u64 * self.work.get(&linear).map_or(0, |work| work.row));
    }

    fn window(&mut self) -> Result<(), String> {
        if self.progress.cancelled() { Err("interrupted".into()) } else { Ok(()) }
    }

    fn segment(&mut self, done: usize, of: usize) -> Result<(), String> {
        self.gather.segment(done, of)
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
    let (input, _) = statistics::read_by(graph, linears.first()?.0)?;
    // Of a stack, whose weights see different rows, the moment is that of all rows.
    let linear = |(n, _): &(NodeId, usize)| statistics::read_by(graph, *n) == Some((input, node));
    linears.iter().all(linear).then_some(Reading { input, table: (!tables.is_empty()).then_some(node) })
}

/// Rows of `k` elements that stand for a weight.
fn sampled_rows(k: usize) -> usize {
    (SAMPLED / k.max(1)).clamp(*SAMPLED_ROWS.start(), *SAMPLED_ROWS.end())
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

fn decode_scales(bytes: &[u8], count: usize) -> Option<Vec<f32>> {
    let body = bytes.get(..count.checked_mul(4)?)?;
    Some(body.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}
