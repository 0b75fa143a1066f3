//! A budget instead of a precision: how sensitive the model is to each of its weights is measured, a knapsack gives the best precisions of
//! every size, and of those the engine gets the smallest that holds on text that nothing was calibrated on.

use super::quality::Base;
use super::{Calibrate, Codes, Ground, Moments, Reading, reading, recipe, result_name, text};
use crate::compile::Amount;
use crate::error::CompileError;
use crate::tuning::{self, Reads, Tuning};
use bessemer_calibrate::Grid;
use bessemer_calibrate::knapsack::{Assignment, Choice, frontier};
use bessemer_format::QuantScheme;
use bessemer_format::manifest::Quality;
use bessemer_ir::{Graph, NodeId, Op};
use bessemer_passes::pipeline::{Context, Refine};
use bessemer_passes::{Assigned, is_assignable};
use std::collections::BTreeMap;

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
/// A unit that holds such a part of all bytes is measured with every choice.
const LARGE: u64 = 8;
/// Rows of a weight that stand for it when its errors are estimated.
const SAMPLED_ROWS: usize = 128;
/// Engines that are tried, at most.
const TRIALS: usize = 8;
/// Schemes for all weights alike that are tried beside what the knapsack gives, at most, and the share of its size that they must reach:
/// predictions are made one weight at a time, and how errors add up is not part of them.
const RIVALS: usize = 2;
const RIVAL_SIZE: f64 = 0.9;
/// A size within this share of another counts as the same, and a value this near to its limit as used up.
const FINE: f64 = 0.001;
const USED_UP: f64 = 0.99;

/// Weights that get the same precision: those that share an input, since they become one step.
struct Unit {
    weights: Vec<NodeId>,
    /// `None`: as the source has it.
    schemes: Vec<Option<QuantScheme>>,
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

/// One scheme for all weights that may have it, the others as the source has them; for each scheme, smallest first.
fn uniform(units: &[Unit], items: &[Vec<Choice>]) -> Vec<Assignment> {
    let of = |scheme: &str| {
        let scheme: Option<QuantScheme> = scheme.parse().ok();
        let choice = |unit: &Unit| {
            let own = unit.schemes.len() - 1;
            unit.schemes.iter().position(|s| s.is_some() && *s == scheme).unwrap_or(own)
        };
        let choices: Vec<usize> = units.iter().map(choice).collect();
        let chosen = || items.iter().zip(&choices).map(|(item, choice)| &item[*choice]);
        let (size, loss) = (chosen().map(|c| c.size).sum(), chosen().map(|c| c.loss).sum());
        Assignment { choices, size, loss }
    };
    let mut found: Vec<Assignment> = SCHEMES.into_iter().map(of).collect();
    found.sort_by_key(|a| a.size);
    found
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
        let assignments = frontier(&items);
        let uniform = uniform(&units, &items);
        let fixed = self.fixed_size(source, &units)?;
        let search = Search {
            of: self,
            source,
            ground,
            held_out,
            units: &units,
            assignments: &assignments,
            uniform: &uniform,
        };
        match budget {
            Budget::Bits(bits) => {
                let most = bits * fixed.elements as f64 / 8.0;
                let fits = |a: &Assignment| (a.size + fixed.bytes) as f64 <= most;
                match assignments.iter().rposition(fits) {
                    Some(at) => {
                        let found = search.trial(&assignments[at])?;
                        let rivals = uniform.iter().rev().filter(|a| fits(a));
                        let least = RIVAL_SIZE * assignments[at].size as f64;
                        let rivals = rivals.take_while(|a| a.size as f64 >= least).take(RIVALS);
                        search.better(found, rivals, |_| Ok(true))
                    }
                    None => {
                        let least = assignments.first().map_or(0, |a| a.size) + fixed.bytes;
                        let reached = least as f64 * 8.0 / fixed.elements.max(1) as f64;
                        Err(unreachable(budget, format!("{reached:.3} bits a weight")))
                    }
                }
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
    /// others are taken to lose in proportion to their squared errors. A unit of so many weights that it decides by itself (a table that is the
    /// head too) is measured with every choice: what it loses is not in proportion.
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
        let own = |unit: &Unit| unit.sizes.last().copied().unwrap_or(0);
        let all: u64 = units.iter().map(own).sum();
        self.progress.start("measure sensitivity", Amount::Pieces(units.len()));
        let losses = units.iter().map(|unit| {
            let large = own(unit) >= all / LARGE;
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
    fn with<'b>(&'b self, assigned: &'b Assigned) -> Calibrate<'b> {
        let refine = Refine { assigned: Some(assigned), ..self.context.refine };
        Calibrate { context: Context { refine, ..self.context }, ..*self }
    }
}

struct FixedSize {
    bytes: u64,
    elements: u64,
}

/// Engines on the frontier, of which few are made.
struct Search<'a> {
    of: &'a Calibrate<'a>,
    source: &'a Graph,
    ground: &'a Ground,
    held_out: &'a Base,
    units: &'a [Unit],
    assignments: &'a [Assignment],
    /// Of [`uniform`].
    uniform: &'a [Assignment],
}

impl Search<'_> {
    fn assigned(&self, assignment: &Assignment) -> Assigned {
        let mut assigned = BTreeMap::new();
        for (unit, choice) in self.units.iter().zip(&assignment.choices) {
            if let Some(scheme) = unit.schemes[*choice] {
                assigned.extend(unit.weights.iter().map(|node| (*node, scheme)));
            }
        }
        assigned
    }

    /// Rounds the weights of one assignment and measures what is lost.
    fn trial(&self, assignment: &Assignment) -> Result<Fitted, CompileError> {
        self.of.go_on()?;
        let assigned = self.assigned(assignment);
        let with = self.of.with(&assigned);
        let mut graph = self.source.clone();
        let codes = with.lower(&mut graph, self.ground)?;
        let quality = with.quality(self.held_out, &graph, &codes)?;
        Ok(Fitted { assigned, graph, codes, quality })
    }

    /// `found`, or one of its rivals that `fits` and loses less.
    fn better<'b>(
        &self,
        mut found: Fitted,
        rivals: impl Iterator<Item = &'b Assignment>,
        fits: impl Fn(&Fitted) -> Result<bool, CompileError>,
    ) -> Result<Fitted, CompileError> {
        for rival in rivals {
            let rival = self.trial(rival)?;
            if rival.quality.mean_kl < found.quality.mean_kl && fits(&rival)? {
                found = rival;
            }
        }
        Ok(found)
    }

    /// The smallest whose `value` is at most `limit`. Losses say where to look, as far as they were right so far.
    fn smallest(
        &self,
        limit: f64,
        budget: Budget,
        value: &dyn Fn(&Quality) -> f64,
    ) -> Result<Fitted, CompileError> {
        let last = self.last()?;
        // Fails below `low`, holds from `high` on; of the nearest on each side, loss and value.
        let (mut low, mut high, mut held) = (0, last, None);
        let (mut failing, mut holding): (Option<Point>, Option<Point>) = (None, None);
        for _ in 0..TRIALS {
            let known = held.is_some();
            if known
                && (low >= high
                    || self.assignments[low].size as f64 >= self.assignments[high].size as f64 * (1.0 - FINE))
            {
                break;
            }
            let top = if known { high - 1 } else { high };
            // A little below the limit, so that a trial holds more often than not; less below it once one does.
            let aim = if known { 0.995 } else { 0.97 };
            let wanted = wanted_loss(aim * limit, failing, holding);
            let likely = self.assignments.partition_point(|a| a.loss > wanted);
            // Never all the way to an end that is known, so that the stretch shrinks.
            let margin = if failing.is_some() && known { (top - low) / 8 } else { 0 };
            let at = likely.clamp(low + margin, top - margin);
            let found = self.trial(&self.assignments[at])?;
            let reached = value(&found.quality);
            let point = Some((self.assignments[at].loss, reached));
            if reached <= limit {
                (high, held, holding) = (at, Some(found), point);
                if reached >= USED_UP * limit {
                    break;
                }
            } else if at == last {
                return Err(unreachable(budget, describe(budget, reached)));
            } else {
                (low, failing) = (at + 1, point);
            }
        }
        match held {
            Some(held) => {
                let size = self.assignments[high].size as f64;
                let sizes = RIVAL_SIZE * size..size * (1.0 - FINE);
                let smaller = self.uniform.iter().rev().filter(|a| sizes.contains(&(a.size as f64)));
                let mut smallest = held;
                for rival in smaller.take(RIVALS) {
                    let rival = self.trial(rival)?;
                    if value(&rival.quality) <= limit {
                        smallest = rival;
                    }
                }
                Ok(smallest)
            }
            None => {
                let found = self.trial(&self.assignments[last])?;
                let reached = value(&found.quality);
                if reached <= limit { Ok(found) } else { Err(unreachable(budget, describe(budget, reached))) }
            }
        }
    }

    /// The one that loses least among those whose engine has at most so many bytes.
    fn within(&self, bytes: u64, size: EngineSize<'_>, budget: Budget) -> Result<Fitted, CompileError> {
        let last = self.last()?;
        // What a quality takes in a report does not depend on what it says.
        let weights = self.units.iter().flat_map(|unit| &unit.weights);
        let weights = weights.map(|node| (self.source.name(*node).into(), 0.0)).collect();
        let quality = Quality { weights, ..self.held_out.nothing_lost() };
        let sized = |a: &Assignment| size(self.source, &self.assigned(a), &quality);
        let least = sized(&self.assignments[0])?;
        if least > bytes {
            return Err(unreachable(budget, format!("{least} bytes")));
        }
        // To assemble an engine takes a while, and what there is beside the weights hardly differs from one to the next. So the first says
        // which is likely to be the largest that fits, and one or two more where that is.
        let (mut low, mut high) = (0, last + 1);
        let mut beside = least.saturating_sub(self.assignments[0].size);
        while high - low > 1 {
            self.of.go_on()?;
            let likely = self.assignments.partition_point(|a| a.size + beside <= bytes);
            let at = likely.saturating_sub(1).clamp(low + 1, high - 1);
            let found = sized(&self.assignments[at])?;
            beside = found.saturating_sub(self.assignments[at].size);
            if found > bytes {
                high = at;
            } else {
                low = at;
                // The next is larger by more than is left.
                if self.assignments.get(at + 1).is_none_or(|next| next.size + beside > bytes) {
                    break;
                }
            }
        }
        // Scales that are folded may take a few bytes more.
        let fits = |f: &Fitted| Ok(size(&f.graph, &f.assigned, &f.quality)? <= bytes);
        for assignment in self.assignments[..=low].iter().rev().take(TRIALS) {
            let found = self.trial(assignment)?;
            if fits(&found)? {
                let least = RIVAL_SIZE * assignment.size as f64;
                let rivals = self.uniform.iter().rev().skip_while(|a| a.size > self.assignments[low].size);
                let rivals = rivals.take_while(|a| a.size as f64 >= least).take(RIVALS);
                return self.better(found, rivals, fits);
            }
        }
        Err(unreachable(budget, format!("about {least} bytes")))
    }

    /// The largest.
    fn last(&self) -> Result<usize, CompileError> {
        let none = || CompileError::Calibration("there is no weight to choose a precision for".into());
        self.assignments.len().checked_sub(1).ok_or_else(none)
    }
}

/// The predicted loss and the measured value of an assignment.
type Point = (f64, f64);

/// The predicted loss at which the value is likely to be `target`: in proportion to a known point, on the line between two where values
/// and losses are logarithms.
fn wanted_loss(target: f64, failing: Option<Point>, holding: Option<Point>) -> f64 {
    let log = |(loss, value): Point| (libm::log(loss.max(1e-12)), libm::log(value.max(1e-12)));
    let target_log = libm::log(target.max(1e-12));
    match (failing.map(log), holding.map(log)) {
        (Some((x0, y0)), Some((x1, y1))) if y0 > y1 => {
            libm::exp(x1 + (x0 - x1) * (target_log - y1) / (y0 - y1))
        }
        (Some((x, y)), _) | (_, Some((x, y))) => libm::exp(x + target_log - y),
        (None, None) => target,
    }
}

fn unreachable(budget: Budget, best: String) -> CompileError {
    CompileError::Budget { asked: budget.to_string(), best }
}

fn describe(budget: Budget, reached: f64) -> String {
    match budget {
        Budget::Perplexity(_) => format!("{reached:.3} % above"),
        _ => format!("{reached:.6}"),
    }
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
