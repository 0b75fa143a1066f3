//! Of all assignments of precisions the one to make. Few are tried: each is rounded and measured on held-out text.

use super::Calibrate;
use super::Ground;
use super::budget::{Budget, EngineSize, Fitted, SCHEMES, Unit, decisive, unreachable};
use super::quality::Base;
use crate::error::CompileError;
use bessemer_calibrate::knapsack::{Assignment, Choice, frontier};
use bessemer_format::QuantScheme;
use bessemer_format::manifest::Quality;
use bessemer_ir::Graph;
use bessemer_passes::Assigned;
use std::collections::BTreeMap;

/// Engines that are tried, at most.
const TRIALS: usize = 8;
/// Engines that are tried beside the one that is predicted to be the best of a size, at most: so many others of [`Field`]s, and so many with
/// one scheme for all weights, of such a share of its size at least.
const RIVALS: usize = 2;
const RIVAL_SIZE: f64 = 0.9;
/// A size within this share of another counts as the same, and a value this near to its limit as used up.
const FINE: f64 = 0.001;
const USED_UP: f64 = 0.99;

/// What can be tried.
pub(super) struct Search<'a> {
    of: &'a Calibrate<'a>,
    source: &'a Graph,
    ground: &'a Ground,
    held_out: &'a Base,
    units: &'a [Unit],
    /// What nothing of its size is predicted to better, smallest first.
    assignments: Vec<Assignment>,
    fields: Vec<Field>,
    /// One scheme for all weights that may have it, the others as the source has them; smallest first. How errors of several weights
    /// add up is no part of the predictions.
    uniform: Vec<Assignment>,
}

/// Assignments with one choice for the unit that decides, if one does, and what trials found of them. Losses are predicted on little text,
/// and that choice cannot be made good by the others: how far its prediction is off shows with the first trial.
struct Field {
    /// As those of [`Search`].
    assignments: Vec<Assignment>,
    /// The largest that failed, and the smallest that held.
    failing: Option<Tried>,
    holding: Option<Tried>,
}

/// What a trial found.
#[derive(Clone, Copy)]
struct Tried {
    size: u64,
    /// As predicted.
    loss: f64,
    /// As measured: what is to keep within a limit.
    value: f64,
}

impl Field {
    /// The smallest that is likely to keep within `limit` and takes less than `most`.
    fn next(&self, limit: f64, most: Option<u64>) -> Option<&Assignment> {
        if self.holding.is_some_and(|held| held.value >= USED_UP * limit) {
            return None;
        }
        // A little below the limit, so that a trial holds more often than not; less below it where one is known.
        let aim = if self.failing.or(self.holding).is_some() { 0.995 } else { 0.97 };
        let wanted = wanted_loss(aim * limit, self.failing, self.holding);
        let failed = self.failing.map_or(0, |tried| {
            // Never right behind what fails, so that the stretch shrinks.
            tried.size + most.map_or(0, |most| most.saturating_sub(tried.size) / 8)
        });
        let at = self.assignments.partition_point(|a| a.loss > wanted || a.size <= failed);
        self.assignments.get(at).filter(|a| most.is_none_or(|most| a.size < most))
    }

    fn learn(&mut self, tried: Tried, holds: bool) {
        let place = if holds { &mut self.holding } else { &mut self.failing };
        let nearer = |known: &Tried| if holds { tried.size < known.size } else { tried.size > known.size };
        if place.as_ref().is_none_or(nearer) {
            *place = Some(tried);
        }
    }
}

impl<'a> Search<'a> {
    pub fn new(
        of: &'a Calibrate<'a>,
        source: &'a Graph,
        ground: &'a Ground,
        held_out: &'a Base,
        units: &'a [Unit],
        items: &[Vec<Choice>],
    ) -> Self {
        let field = |assignments| Field { assignments, failing: None, holding: None };
        let assignments = frontier(items);
        let fields = match decisive(units) {
            None => vec![field(assignments.clone())],
            Some(at) => {
                let with = |choice: usize| {
                    let mut items = items.to_vec();
                    items[at] = vec![items[at][choice]];
                    let mut found = frontier(&items);
                    found.iter_mut().for_each(|a| a.choices[at] = choice);
                    field(found)
                };
                (0..items[at].len()).map(with).collect()
            }
        };
        let uniform = uniform(units, items);
        Self { of, source, ground, held_out, units, assignments, fields, uniform }
    }

    /// The smallest size.
    pub fn least_size(&self) -> u64 {
        self.assignments.first().map_or(0, |a| a.size)
    }

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

    /// The smallest whose `value` is at most `limit`.
    pub fn smallest(
        mut self,
        limit: f64,
        budget: Budget,
        value: &dyn Fn(&Quality) -> f64,
    ) -> Result<Fitted, CompileError> {
        let mut held: Option<(u64, Fitted)> = None;
        for _ in 0..TRIALS {
            let most = held.as_ref().map(|(size, _)| (*size as f64 * (1.0 - FINE)) as u64);
            let likely = self.fields.iter().enumerate();
            let likely = likely.filter_map(|(i, field)| Some((i, field.next(limit, most)?.clone())));
            let Some((field, assignment)) = likely.min_by_key(|(_, a)| a.size) else { break };
            let found = self.trial(&assignment)?;
            let reached = value(&found.quality);
            let tried = Tried { size: assignment.size, loss: assignment.loss, value: reached };
            self.fields[field].learn(tried, reached <= limit);
            if reached <= limit {
                held = Some((assignment.size, found));
            }
        }
        let Some((size, mut smallest)) = held else {
            let found = self.trial(self.assignments.last().ok_or_else(nothing)?)?;
            let reached = value(&found.quality);
            let best = match budget {
                Budget::Perplexity(_) => format!("{reached:.3} % above"),
                _ => format!("{reached:.6}"),
            };
            return if reached <= limit { Ok(found) } else { Err(unreachable(budget, best)) };
        };
        for rival in self.rivals((size as f64 * (1.0 - FINE)) as u64) {
            let rival = self.trial(rival)?;
            if value(&rival.quality) <= limit {
                smallest = rival;
            }
        }
        Ok(smallest)
    }

    /// The one that loses least of those that take at most `room`, as far as `excess` knows no better: how much more it takes than it may.
    pub fn least_loss(
        &self,
        room: u64,
        excess: &dyn Fn(&Assignment) -> Result<u64, CompileError>,
    ) -> Result<Vec<Fitted>, CompileError> {
        let mut likely = Vec::new();
        for field in &self.fields {
            let mut room = room;
            while let Some(largest) = field.assignments.iter().rfind(|a| a.size <= room) {
                match excess(largest)? {
                    0 => {
                        likely.push(largest);
                        break;
                    }
                    excess => room = largest.size.saturating_sub(excess),
                }
            }
        }
        likely.sort_by(|a, b| a.loss.total_cmp(&b.loss));
        likely.truncate(1 + RIVALS);
        for rival in self.rivals(room) {
            if excess(rival)? == 0 {
                likely.push(rival);
            }
        }
        let mut found = likely.into_iter().map(|a| self.trial(a)).collect::<Result<Vec<_>, _>>()?;
        found.sort_by(|a, b| a.quality.mean_kl.total_cmp(&b.quality.mean_kl));
        Ok(found)
    }

    /// The largest with one scheme for all that take at most `room`.
    fn rivals(&self, room: u64) -> impl Iterator<Item = &Assignment> {
        let sizes = (RIVAL_SIZE * room as f64) as u64..=room;
        self.uniform.iter().rev().filter(move |a| sizes.contains(&a.size)).take(RIVALS)
    }

    /// The one that loses least of those whose engine has at most so many bytes.
    pub fn within(&self, bytes: u64, size: EngineSize<'_>, budget: Budget) -> Result<Fitted, CompileError> {
        // What a quality takes in a report does not depend on what it says.
        let weights = self.units.iter().flat_map(|unit| &unit.weights);
        let weights = weights.map(|node| (self.source.name(*node).into(), 0.0)).collect();
        let quality = Quality { weights, ..self.held_out.nothing_lost() };
        // What there is beside the weights hardly differs from one to another.
        let assembled = |a: &Assignment| {
            self.of.go_on()?;
            size(self.source, &self.assigned(a), &quality)
        };
        let smallest = self.assignments.first().ok_or_else(nothing)?;
        let least = assembled(smallest)?;
        if least > bytes {
            return Err(unreachable(budget, format!("{least} bytes")));
        }
        let room = (bytes - least) + smallest.size;
        let excess = |a: &Assignment| Ok(assembled(a)?.saturating_sub(bytes));
        // Scales that are folded may take a few bytes more.
        for found in self.least_loss(room, &excess)? {
            if size(&found.graph, &found.assigned, &found.quality)? <= bytes {
                return Ok(found);
            }
        }
        Err(unreachable(budget, format!("about {least} bytes")))
    }
}

fn nothing() -> CompileError {
    CompileError::Calibration("there is no weight to choose a precision for".into())
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

/// The predicted loss at which the value is likely to be `target`: in proportion to what one trial found, on the line between two where values
/// and losses are logarithms.
fn wanted_loss(target: f64, failing: Option<Tried>, holding: Option<Tried>) -> f64 {
    let log = |tried: Tried| (libm::log(tried.loss.max(1e-12)), libm::log(tried.value.max(1e-12)));
    let target_log = libm::log(target.max(1e-12));
    match (failing.map(log), holding.map(log)) {
        (Some((x0, y0)), Some((x1, y1))) if y0 > y1 => {
            libm::exp(x1 + (x0 - x1) * (target_log - y1) / (y0 - y1))
        }
        (Some((x, y)), _) | (_, Some((x, y))) => libm::exp(x + target_log - y),
        (None, None) => target,
    }
}
