//! The order of the passes, and what runs them.

use crate::canonical::equalise::Scale;
use crate::error::{Cause, PassError};
use crate::precision::Override;
use crate::{PrecisionPolicy, canonical, fusion, layout, precision};
use bessemer_format::QuantScheme;
use bessemer_format::manifest::PassReport;
use bessemer_ir::verify::verify;
use bessemer_ir::{Graph, NodeId, Phase, TargetInfo};
use std::collections::BTreeMap;
use std::fmt;

/// What a pass may do to results, as the oracle's exact reading has them (rounding of stored results is the plan's affair: a fused step
/// stores less).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: every result keeps its bits.
    BitExact,
    /// The order of additions may change.
    Reassociates,
    /// Numbers are rounded to fewer bits.
    Lossy,
}

/// What passes may know beside the graph.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The target's taste.
    pub target: &'a (dyn TargetInfo + Sync),
    /// What becomes of the weights.
    pub precision: PrecisionPolicy,
    /// Whether every linear computes in f32, even where integer kernels exist.
    pub f32_activations: bool,
    /// Whether activations share a scale as far as weights do.
    pub row_activations: bool,
    /// What is known of single weights.
    pub refine: Refine<'a>,
}

/// Choices for single weights, beyond the one for all.
#[derive(Clone, Copy, Default)]
pub struct Refine<'a> {
    /// Precisions by name; the last that matches counts.
    pub overrides: &'a [Override],
    /// What was chosen for single weights of the canonical graph, by measurement.
    pub assigned: Option<&'a Assigned>,
    /// Scales that `equalise` folds, each with its pair.
    pub scales: &'a [Scale],
}

/// Schemes of single weights.
pub type Assigned = BTreeMap<NodeId, QuantScheme>;

impl Refine<'_> {
    /// None.
    pub const NONE: Self = Self { overrides: &[], assigned: None, scales: &[] };
}

/// A pass.
#[derive(Clone, Copy)]
pub struct Pass {
    /// Name on the command line and in reports.
    pub name: &'static str,
    /// The phase whose rules hold while it runs; the graph reaches that phase when the last pass of the phase has run.
    pub phase: Phase,
    /// What it may do to results.
    pub effect: Effect,
    /// Rewrites the graph; returns how many rewrites it made.
    pub run: fn(&mut Graph, &Context<'_>) -> Result<u32, Cause>,
}

use Effect::{BitExact, Lossy};
use Phase::{Canonical, Fused, Packed, Quantised};

/// Every pass in order.
#[rustfmt::skip]
pub const PASSES: &[Pass] = &[
    // First, since patterns count readers and dead ones would count too.
    pass("dead-code",             Canonical, BitExact, canonical::dead_code::run),
    // Before constants are compared: chains of conversions that differ may fold to the same one.
    pass("fold-constants",        Canonical, BitExact, canonical::fold_constants::run),
    // Before fusion: tied tables become one constant, and patterns recognise a shared operand by identity.
    pass("common-subexpressions", Canonical, BitExact, canonical::common_subexpressions::run),
    // One activation conversion and one dispatch for three linears; keys and values go to the cache as they are made.
    pass("qkv",                   Fused,     BitExact, fusion::qkv::run),
    // Before pointwise, which would take silu and mul; halves the traffic of the widest activations.
    pass("gate-up",               Fused,     BitExact, fusion::gate_up::run),
    // Before add-rms-norm: an addition behind a linear is free there, since the result is in registers.
    pass("residual",              Fused,     BitExact, fusion::residual::run),
    // The additions that no linear could take.
    pass("add-rms-norm",          Fused,     BitExact, fusion::add_rms_norm::run),
    // Last of the fusions: takes what the named patterns left.
    pass("pointwise",             Fused,     BitExact, fusion::pointwise::run),
    // After fusion, so that nothing that fuses is kept apart by the precision of its weights.
    pass("quantise",              Quantised, Lossy,    precision::quantise::run),
    // After quantise: what a linear computes in follows from what its weights are.
    pass("compute",               Quantised, Lossy,    precision::compute::run),
    // Last: a layout depends on the scheme.
    pass(PACK,                    Packed,    BitExact, layout::run),
];

/// Folds the scales that calibration has found. Not among [`PASSES`]: it runs on a canonical graph, between the passes of that phase and
/// the rounding of weights, and a second run would scale a second time.
pub const EQUALISE: Pass = pass("equalise", Canonical, Effect::Reassociates, canonical::equalise::run);

const fn pass(
    name: &'static str,
    phase: Phase,
    effect: Effect,
    run: fn(&mut Graph, &Context<'_>) -> Result<u32, Cause>,
) -> Pass {
    Pass { name, phase, effect, run }
}

/// The pass that no plan does without: no kernel reads a matrix as checkpoints have it. Only the interpreter does.
pub const PACK: &str = "pack";

/// What is switched off like a pass, though it is the schedule's and rewrites no graph: it leaves out barriers where every thread goes on
/// with its own rows.
pub const BARRIERS: &str = "barriers";

/// Which part of the pipeline runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Names of passes that are left out; [`BARRIERS`] may be among them.
    pub disable: Vec<String>,
    /// Stop when the graph has reached this phase.
    pub stop_after: Option<Phase>,
}

/// The pass called `name`.
pub fn find(name: &str) -> Result<&'static Pass, PassError> {
    PASSES.iter().find(|p| p.name == name).ok_or_else(|| PassError::Unknown {
        name: name.into(),
        known: PASSES.iter().map(|p| p.name).chain([BARRIERS]).collect::<Vec<_>>().join(", "),
    })
}

/// Runs the passes of all phases that `graph` has not reached yet.
pub fn run(
    graph: &mut Graph,
    context: &Context<'_>,
    options: &Options,
) -> Result<Vec<PassReport>, PassError> {
    run_observed(graph, context, options, &mut |_, _| {})
}

/// As [`run`]; `observer` sees the graph after every pass.
pub fn run_observed(
    graph: &mut Graph,
    context: &Context<'_>,
    options: &Options,
    observer: &mut dyn FnMut(&Pass, &Graph),
) -> Result<Vec<PassReport>, PassError> {
    for name in options.disable.iter().filter(|name| *name != BARRIERS) {
        find(name)?;
    }
    verify(graph).map_err(PassError::Input)?;
    let mut reports = Vec::new();
    let reached = graph.phase;
    let stop = options.stop_after.unwrap_or(Phase::Packed);
    for phase in Phase::ALL.into_iter().filter(|p| (*p > reached) && (*p <= stop)) {
        graph.phase = phase;
        for pass in PASSES.iter().filter(|p| p.phase == phase && !options.disable.iter().any(|d| d == p.name))
        {
            reports.push(apply(pass, graph, context)?);
            observer(pass, graph);
        }
    }
    Ok(reports)
}

/// Runs one pass, removes what its rewrites left without readers, and verifies the result.
pub fn apply(pass: &Pass, graph: &mut Graph, context: &Context<'_>) -> Result<PassReport, PassError> {
    graph.phase = graph.phase.max(pass.phase);
    let rewrites =
        (pass.run)(graph, context).map_err(|cause| PassError::Failed { pass: pass.name, cause })?;
    if rewrites > 0 {
        graph.remove_dead();
    }
    verify(graph).map_err(|error| PassError::Invalid { pass: pass.name, error })?;
    Ok(PassReport { pass: pass.name.into(), rewrites, nodes: graph.all().len() as u32 })
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Effect::BitExact => "bit-exact",
            Effect::Reassociates => "reassociates",
            Effect::Lossy => "lossy",
        })
    }
}
