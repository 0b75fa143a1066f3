//! A budget instead of a precision: how sensitive the model is to each of its weights is measured, a knapsack gives the best precisions of
//! every size, and of those the engine gets the smallest that holds on text that nothing was calibrated on.

use super::quality::Base;
use super::search::Search;
use super::{Calibrate, Codes, Ground, Moments, Reading, reading, recipe, result_name, text};
use crate::compile::Amount;
use crate::error::CompileError;
use crate::tuning::{self, Reads, Tuning};
use bessemer_calibrate::Grid;
use bessemer_calibrate::knapsack::Choice;
use bessemer_format::QuantScheme;
use bessemer_format::manifest::Quality;
use bessemer_ir::{Graph, NodeId, Op};
use bessemer_passes::pipeline::{Context, Refine};
use bessemer_passes::{Assigned, is_assignable};

/// What an engine must hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Mean KL divergence on held-out text, at most.
    Kl(f64),
    /// Perplexity of held-out text: at most so many hundredths above the source's.
    Perplexity(f64),
    /// Bits a weight over all matrices, at most.
    Bits(f64),
    /// Bytes of the engine, at most.
    Size(u64),
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kl(kl) => write!(f, "a mean KL divergence of {kl}"),
            Self::Perplexity(percent) => write!(f, "a perplexity {percent} % above the source's"),
            Self::Bits(bits) => write!(f, "{bits} bits a weight"),
            Self::Size(bytes) => write!(f, "{bytes} bytes"),
        }
    }
}

/// What weights may become beside what they are, all of them integers to the kernels of CPUs. Of each width one around zero and one
/// with minima, of groups whose scales are bytes under a number a row: as good as 16 bits a group, in half of them. Of four bits also the
/// integers of a codebook that lie as dense as weights do: stories15M loses 0.75 of what it loses with equal steps.
pub(crate) const SCHEMES: [&str; 11] = [
    "u4:s8x32*f16x0-8",
    "iq4:s8x32*f16x0",
    "u4:u8x32*f16x0+u8*f16",
    "u2:u8x32*f16x0+u8*f16",
    "u3:s8x32*f16x0-4",
    "u3:u8x32*f16x0+u8*f16",
    "u5:s8x32*f16x0-16",
    "u5:u8x32*f16x0+u8*f16",
    "u6:s8x32*f16x0-32",
    "u6:u8x32*f16x0+u8*f16",
    "s8:u8x32*f16x0",
];
/// Windows of text that sensitivities are measured on, and their tokens at most.
const PROBE_WINDOWS: usize = 4;
const PROBE_TOKENS: usize = 128;
/// The largest unit decides by itself if it holds such a part of all bytes.
const LARGE: u64 = 8;
/// Rows of a weight that stand for it when its errors are estimated.
const SAMPLED_ROWS: usize = 128;
/// Weights that get the same precision: those that share an input, since they become one step.
pub(super) struct Unit {
    pub weights: Vec<NodeId>,
    /// `None`: as the source has it.
    pub schemes: Vec<Option<QuantScheme>>,
    /// For each scheme: bytes, how long a token waits for them (in bytes that memory delivers meanwhile), and squared error of the outputs on
    /// the calibration text.
    sizes: Vec<u64>,
    waits: Vec<f64>,
    errors: Vec<f64>,
}

impl Unit {
    /// What each scheme takes and loses. With `time` the wait counts as much as the bytes: where every token reads all of a weight that waits
    /// for memory alone, nothing changes by that. It tells apart what is read seldom (tables that are no heads, experts), and schemes that take
    /// long to decode.
    fn choices(&self, losses: &[f64], time: bool) -> Vec<Choice> {
        let size = |(size, wait): (&u64, &f64)| match time {
            true => (*size + wait.ceil() as u64).div_ceil(2),
            false => *size,
        };
        let sizes = self.sizes.iter().zip(&self.waits).map(size);
        sizes.zip(losses).map(|(size, loss)| Choice { size, loss: *loss }).collect()
    }
}

/// The largest unit, if it holds so much that it decides by itself.
pub(super) fn decisive(units: &[Unit]) -> Option<usize> {
    let own = |unit: &Unit| unit.sizes.last().copied().unwrap_or(0);
    let all: u64 = units.iter().map(own).sum();
    let (at, largest) = units.iter().enumerate().max_by_key(|(_, unit)| own(unit))?;
    (own(largest) >= all / LARGE).then_some(at)
}

/// The share of a matrix that one token reads.
fn read_share(graph: &Graph, node: NodeId) -> f64 {
    let share = |(reader, _): (NodeId, usize)| match graph.op(reader) {
        Op::Embed {} => 0.0,
        Op::GroupedLinear { groups, slots, routed: true, .. } => {
            f64::from(*slots) / f64::from(*groups).max(1.0)
        }
        _ => 1.0,
    };
    graph.uses(node.into()).into_iter().map(share).fold(0.0, f64::max)
}

pub(super) fn unreachable(budget: Budget, best: String) -> CompileError {
    CompileError::Budget { asked: budget.to_string(), best }
}

/// Precisions that hold a budget.
pub(crate) struct Fitted {
    /// What each weight becomes.
    pub assigned: Assigned,
    /// The graph that reads `codes`.
    pub graph: Graph,
    pub codes: Codes,
    /// On the held-out text.
    pub quality: Quality,
}

/// The bytes of the engine that a canonical graph becomes under what is assigned, with a report of such a quality.
pub(crate) type EngineSize<'a> = &'a dyn Fn(&Graph, &Assigned, &Quality) -> Result<u64, CompileError>;

impl Calibrate<'_> {
    /// The smallest engine that holds the budget, or the best that fits it.
    pub fn fit(
        &self,
        budget: Budget,
        source: &Graph,
        ground: &Ground,
        held_out: &Base,
        size: EngineSize<'_>,
    ) -> Result<Fitted, CompileError> {
        let units = self.units(source, ground)?;
        let losses = self.sensitivities(source, &units, ground)?;
        // A size that was asked for is to be used up. What is as small as possible is to be fast as well.
        let sized = matches!(budget, Budget::Bits(_) | Budget::Size(_));
        let items: Vec<Vec<Choice>> =
            units.iter().zip(&losses).map(|(unit, losses)| unit.choices(losses, !sized)).collect();
        let search = Search::new(self, source, ground, held_out, &units, &items);
        match budget {
            Budget::Bits(bits) => {
                let fixed = self.fixed_size(source, &units)?;
                let most = (bits * fixed.elements as f64 / 8.0) as u64;
                let found = search.least_loss(most.saturating_sub(fixed.bytes), &|_| Ok(0))?;
                found.into_iter().next().ok_or_else(|| {
                    let least = search.least_size() + fixed.bytes;
                    let reached = least as f64 * 8.0 / fixed.elements.max(1) as f64;
                    unreachable(budget, format!("{reached:.3} bits a weight"))
                })
            }
            Budget::Size(bytes) => search.within(bytes, size, budget),
            Budget::Kl(limit) => search.smallest(limit, budget, &|q| q.mean_kl),
            Budget::Perplexity(limit) => {
                search.smallest(limit, budget, &|q| 100.0 * (q.perplexity / q.source_perplexity - 1.0))
            }
        }
    }

    /// What can be chosen for, in execution order.
    fn units(&self, source: &Graph, ground: &Ground) -> Result<Vec<Unit>, CompileError> {
        let mut units: Vec<(Option<Reading>, Unit)> = Vec::new();
        for node in source.order() {
            if !is_assignable(source, node, &self.context) {
                continue;
            }
            let reading = reading(source, node);
            let known = units.iter().position(|(other, _)| reading.is_some() && *other == reading);
            match known {
                Some(at) => units[at].1.weights.push(node),
                None => {
                    let unit = Unit {
                        weights: vec![node],
                        schemes: Vec::new(),
                        sizes: Vec::new(),
                        waits: Vec::new(),
                        errors: Vec::new(),
                    };
                    units.push((reading, unit));
                }
            }
        }
        self.progress.start("estimate errors", Amount::Pieces(units.len()));
        let reads = self.reads(source);
        let measured = units.into_iter().map(|(reading, mut unit)| {
            self.go_on()?;
            self.estimate(source, reading, &mut unit, ground, &reads)?;
            self.progress.advance(1);
            Ok(unit)
        });
        measured.collect()
    }

    /// What a tuning cache says of how long a token waits for weights.
    fn reads(&self, source: &Graph) -> Reads {
        let (weights, _) = tuning::reads::weights(source);
        let found = |t: &Tuning| t.cache.reads(&t.machine, &self.context.target.name(), weights);
        self.options.tuning.as_ref().map(found).unwrap_or_default()
    }

    /// Fills in what a unit may become.
    fn estimate(
        &self,
        source: &Graph,
        reading: Option<Reading>,
        unit: &mut Unit,
        ground: &Ground,
        reads: &Reads,
    ) -> Result<(), CompileError> {
        let mut matrices = Vec::new();
        for node in &unit.weights {
            let recipe = recipe(source, *node)?;
            matrices.push((recipe.matrix(), recipe.scheme(), self.sample(source, *node, SAMPLED_ROWS)?));
        }
        let prepared = match reading {
            Some(reading) if !matches!(ground.moments, Moments::None) => {
                Some(self.prepare(source, reading, &[], ground)?)
            }
            _ => None,
        };
        let bits = |scheme: &QuantScheme| -> f64 {
            matrices.iter().map(|((n, k), ..)| (n * k) as f64 * scheme.bits_per_weight(*k)).sum()
        };
        let own: f64 = matrices.iter().map(|((n, k), own, _)| (n * k) as f64 * own.bits_per_weight(*k)).sum();
        let read: Vec<f64> = unit.weights.iter().map(|node| read_share(source, *node)).collect();
        let wait = |scheme: Option<&QuantScheme>| -> f64 {
            let wait = |(((n, k), own, _), share): (&((usize, usize), QuantScheme, _), &f64)| {
                let (scheme, k) = (scheme.unwrap_or(own), *k as u64);
                let predicted = || self.context.target.read_cost(scheme, k);
                share * *n as f64 * k as f64 * reads.cost(scheme, k).unwrap_or_else(predicted)
            };
            matrices.iter().zip(&read).map(wait).sum()
        };
        for scheme in SCHEMES {
            let scheme: QuantScheme = scheme.parse().map_err(CompileError::Calibration)?;
            if bits(&scheme) >= own || self.context.target.supports(&scheme).is_err() {
                continue;
            }
            let errors = matrices.iter().map(|((n, k), _, values)| {
                let rounded = match &prepared {
                    Some(prepared) => self.rounded(&scheme, values, prepared),
                    None => Grid::whole(&scheme, *k, values).round(values),
                };
                let error: Vec<f32> = rounded.values().iter().zip(values).map(|(q, v)| q - v).collect();
                let lost = match &prepared {
                    Some(prepared) => bessemer_calibrate::awq::squared(&error, &prepared.full, *k),
                    None => error.iter().map(|e| f64::from(e * e)).sum(),
                };
                lost * *n as f64 / (values.len() / k).max(1) as f64
            });
            unit.errors.push(errors.sum());
            unit.schemes.push(Some(scheme));
            unit.sizes.push((bits(&scheme) / 8.0).ceil() as u64);
            unit.waits.push(wait(Some(&scheme)));
        }
        unit.schemes.push(None);
        unit.errors.push(0.0);
        unit.sizes.push((own / 8.0).ceil() as u64);
        unit.waits.push(wait(None));
        Ok(())
    }

    /// The divergence that each choice for each unit causes by itself, rounded as the method rounds: errors that it leaves lie in other
    /// directions than those of rounding to nearest, and cost less by a factor that differs from unit to unit. One choice is measured and the
    /// others are taken to lose in proportion to their squared errors. What decides by itself (in small models a table that is the head too) is
    /// measured with every choice: its losses are not in proportion.
    fn sensitivities(
        &self,
        source: &Graph,
        units: &[Unit],
        ground: &Ground,
    ) -> Result<Vec<Vec<f64>>, CompileError> {
        let probe = self.probe(ground)?;
        let text = text::hash_of(&probe);
        let mut base = None;
        // What is overridden loses the same whatever is chosen for the others, and would hide them.
        let refine = Refine { overrides: &[], ..self.context.refine };
        let alone = Calibrate { context: Context { refine, ..self.context }, ..*self };
        let mut lost = |unit: &Unit, scheme: QuantScheme| -> Result<f64, CompileError> {
            self.go_on()?;
            let assigned: Assigned = unit.weights.iter().map(|node| (*node, scheme)).collect();
            let name = result_name("loss", &[&format!("{assigned:?} {text}")]);
            let kept = ground.results.get(&name)?;
            if let Some(kept) = kept.and_then(|bytes| Some(f64::from_le_bytes(*bytes.first_chunk()?))) {
                return Ok(kept);
            }
            let base = match &mut base {
                Some(base) => base,
                None => base.insert(self.base(source, probe.clone())?),
            };
            let (with, mut graph) = (alone.with(&assigned), source.clone());
            let codes = with.lower(&mut graph, ground)?;
            let found = with.divergence(base, &graph, &codes)?.0.mean_kl();
            ground.results.put(&name, &found.to_le_bytes())?;
            Ok(found)
        };
        let decisive = decisive(units);
        self.progress.start("measure sensitivity", Amount::Pieces(units.len()));
        let losses = units.iter().enumerate().map(|(at, unit)| {
            let large = decisive == Some(at);
            // The first of the schemes has four bits: coarse enough to stand out, fine enough to be in proportion.
            let mut sensitivity = None;
            let choices =
                unit.schemes.iter().zip(&unit.errors).map(|(scheme, error)| match (scheme, sensitivity) {
                    (Some(_), Some(sensitivity)) if !large => Ok(error * sensitivity),
                    (Some(scheme), _) => {
                        let lost = lost(unit, *scheme)?;
                        sensitivity = Some(lost / error.max(f64::MIN_POSITIVE));
                        Ok(lost)
                    }
                    (None, _) => Ok(0.0),
                });
            let choices = choices.collect::<Result<Vec<f64>, CompileError>>()?;
            self.progress.advance(1);
            Ok(choices)
        });
        losses.collect()
    }

    /// The text that sensitivities are measured on: of the held-out text what no trial is judged by, as codes fit the calibration text
    /// better than any other. If there is too little of it, the calibration text.
    fn probe(&self, ground: &Ground) -> Result<Vec<Vec<u32>>, CompileError> {
        let held_out =
            self.options.measure.as_ref().map(|corpus| corpus.rest(self.checkpoint)).transpose()?;
        let windows = held_out.filter(|rest| rest.len() >= PROBE_WINDOWS);
        let windows = windows.as_ref().unwrap_or(&ground.windows);
        // From all over the text, whose parts may be of several kinds.
        let spread = |i: usize| i * windows.len() / PROBE_WINDOWS.min(windows.len()).max(1);
        let chosen = (0..PROBE_WINDOWS.min(windows.len())).filter_map(|i| windows.get(spread(i)));
        Ok(chosen.map(|w| w[..w.len().min(PROBE_TOKENS)].to_vec()).collect())
    }

    /// What is not chosen for, and all elements.
    fn fixed_size(&self, source: &Graph, units: &[Unit]) -> Result<FixedSize, CompileError> {
        let mut found = FixedSize { bytes: 0, elements: 0 };
        for node in source.order() {
            let Op::Const { recipe } = source.op(node) else { continue };
            if recipe.shape.len() != 2 {
                continue;
            }
            let (n, k) = recipe.matrix();
            found.elements += (n * k) as u64;
            if !units.iter().any(|u| u.weights.contains(&node)) {
                let scheme =
                    bessemer_passes::scheme_of(source, node, &self.context).unwrap_or(recipe.scheme());
                found.bytes += ((n * k) as f64 * scheme.bits_per_weight(k) / 8.0) as u64;
            }
        }
        Ok(found)
    }

    /// The same under other precisions.
    pub(super) fn with<'b>(&'b self, assigned: &'b Assigned) -> Calibrate<'b> {
        let refine = Refine { assigned: Some(assigned), ..self.context.refine };
        Calibrate { context: Context { refine, ..self.context }, ..*self }
    }
}

struct FixedSize {
    bytes: u64,
    elements: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tokens_seldom_read_or_decode_slowly_is_weighed_by_the_time_that_it_takes() {
        let unit = |waits: [f64; 2]| Unit {
            weights: Vec::new(),
            schemes: vec![None; 2],
            sizes: vec![400, 800],
            waits: waits.into(),
            errors: vec![0.0; 2],
        };
        let sizes = |unit: Unit, time| {
            let choices = unit.choices(&[0.5, 0.1], time);
            assert_eq!(choices.iter().map(|c| c.loss).collect::<Vec<_>>(), [0.5, 0.1]);
            choices.iter().map(|c| c.size).collect::<Vec<_>>()
        };
        // All of it is read, and memory is what takes time.
        assert_eq!(sizes(unit([400.0, 800.0]), true), [400, 800]);
        // One expert of four, a table that is no head, and a second scheme that takes long to decode.
        assert_eq!(sizes(unit([100.0, 200.0]), true), [250, 500]);
        assert_eq!(sizes(unit([0.0, 0.0]), true), [200, 400]);
        assert_eq!(sizes(unit([400.0, 1600.0]), true), [400, 1200]);
        // A size is a size.
        assert_eq!(sizes(unit([100.0, 1600.0]), false), [400, 800]);
    }
}
