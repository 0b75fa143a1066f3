//! The arithmetic of an engine against the meaning of its graph.

use serde::Serialize;

/// What the arithmetic of an engine is worth.
#[derive(Clone, Debug, Serialize)]
pub struct Numerics {
    /// Every step, in the order of execution.
    pub steps: Vec<Step>,
    /// Every row of logits.
    pub positions: Vec<Position>,
}

/// A step against the oracle on the same operands: the inputs are the engine's own, so that the error is the step's own.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// The node of the graph after all passes.
    pub node: String,
    /// Its op.
    pub op: &'static str,
    /// Whether it rounds numbers that it has accumulated itself: the weights of attention.
    pub rounds_inside: bool,
    /// Largest relative distance (‖engine − oracle‖ / ‖oracle‖) over the batches that were tried.
    pub error: f64,
}

/// Relative distances of one row of logits.
#[derive(Clone, Debug, Serialize)]
pub struct Position {
    /// Position in the sequence.
    pub position: usize,
    /// From the oracle with every rounding that the plan declares: what kernels may differ by is accumulation.
    pub declared: f64,
    /// From the oracle without rounding of activations: quality, not correctness.
    pub exact: f64,
}

#[cfg(feature = "compile")]
pub use compare::compare;

#[cfg(feature = "compile")]
mod compare {
    use super::{Numerics, Position, Step};
    use crate::exit::{Code, Failure};
    use crate::measure::graph;
    use crate::progress::{Meter, Unit};
    use bessemer_format::Compute;
    use bessemer_ir::exec::{SequenceRows, Wanted};
    use bessemer_ir::{Graph, Op};
    use bessemer_oracle::{Oracle, OracleError, Reading, StepError, TracedStep};
    use bessemer_runtime::sample::Pcg32;
    use bessemer_runtime::{Batch, Engine, KvElem, Sequence, Want, Worker, WorkerOptions};
    use std::collections::BTreeSet;
    use std::path::Path;

    /// Tokens of the batches, one after the other: a prefill that leaves the first block of the KV cache, a single row, and
    /// a few. Together they reach the programs for one row, for few and for many.
    const BATCHES: [usize; 3] = [35, 1, 4];

    /// Runs a fixed prompt through `engine` and through the oracle of `source`, both with an f32 cache.
    pub fn compare(engine: &Engine, source: &Path) -> Result<Numerics, Failure> {
        let checkpoint = graph::source_of(engine, source)?;
        let prepared = graph::prepared(engine, &checkpoint, None)?;
        let oracle = |reading| Oracle::new(&prepared.graph, &checkpoint, reading).map_err(internal);
        let model = &engine.plan().model;
        let mut random = Pcg32::new(1);
        let length = BATCHES.iter().sum::<usize>().min(model.context as usize);
        let tokens: Vec<u32> = (0..length).map(|_| random.next_u32() % model.vocab.max(1)).collect();

        let meter = Meter::new(Unit::Items);
        // A model that takes whole sequences gets one.
        let batches = if model.whole { &[usize::MAX][..] } else { &BATCHES[..] };
        meter.start("oracle", batches.len() as u64 + 2);
        let declared = Reading::Declared { kv: KvElem::F32 };
        let mut worker = Worker::new(engine, WorkerOptions::default().kv(KvElem::F32))?;
        let mut sequence = worker.sequence();
        let mut lockstep = Lockstep { oracle: oracle(declared)?, steps: Vec::new() };
        let (mut ours, mut rest) = (Vec::new(), &tokens[..]);
        for rows in batches {
            let (batch, later) = rest.split_at((*rows).min(rest.len()));
            if !batch.is_empty() {
                ours.extend(lockstep.forward(&mut worker, &mut sequence, batch)?);
            }
            rest = later;
            meter.advance(1);
        }

        let meaning = |reading| -> Result<Vec<f32>, Failure> {
            let rows = SequenceRows { sequence: 0, tokens: &tokens, types: &[], logits: Wanted::All };
            let logits = oracle(reading)?.forward(&[rows]).map_err(internal)?.values;
            meter.advance(1);
            Ok(logits)
        };
        let (declared, exact) = (meaning(declared)?, meaning(Reading::Exact)?);
        let rows = |logits: &[f32]| {
            logits.chunks(model.output_width() as usize).map(<[f32]>::to_vec).collect::<Vec<_>>()
        };
        let all = rows(&ours).into_iter().zip(rows(&declared)).zip(rows(&exact)).enumerate();
        let positions = all.map(|(position, ((ours, declared), exact))| Position {
            position,
            declared: distance(&ours, &declared),
            exact: distance(&ours, &exact),
        });
        let mut steps = lockstep.steps;
        let inside = rounding_inside(&prepared.graph);
        steps.iter_mut().for_each(|step| step.rounds_inside = inside.contains(step.node.as_str()));
        Ok(Numerics { steps, positions: positions.collect() })
    }

    /// The nodes that round numbers which they have accumulated themselves.
    fn rounding_inside(graph: &Graph) -> BTreeSet<&str> {
        let rounds = |op: &Op| match op {
            Op::Attention { compute, .. }
            | Op::FullAttention { compute, .. }
            | Op::LatentAttention { compute, .. } => compute.all().any(|c| c != Compute::F32),
            _ => false,
        };
        let nodes = graph.order().into_iter().filter(|node| rounds(graph.op(*node)));
        nodes.map(|node| graph.name(node)).collect()
    }

    /// The oracle, led through the engine's steps: it answers each from the engine's own operands.
    struct Lockstep {
        oracle: Oracle,
        steps: Vec<Step>,
    }

    impl Lockstep {
        /// One batch through both; gives the engine's logits.
        fn forward(
            &mut self,
            worker: &mut Worker,
            sequence: &mut Sequence,
            tokens: &[u32],
        ) -> Result<Vec<f32>, Failure> {
            let mut trace: Vec<TracedStep> = Vec::new();
            let mut batch = Batch::new();
            batch.push(sequence, tokens, Want::All);
            let mut see = |step: &bessemer_runtime::StepResult<'_>| {
                trace.push((step.source.into(), step.outputs.iter().map(|o| o.to_vec()).collect()));
            };
            let logits = worker.forward_traced(&mut batch, &mut see)?.all().as_slice().to_vec();

            let rows = SequenceRows { sequence: 0, tokens, types: &[], logits: Wanted::All };
            let steps = self.oracle.follow(&[rows], trace).map_err(internal)?;
            let named = |s: StepError| Step { node: s.node, op: s.op, rounds_inside: false, error: s.error };
            let steps: Vec<Step> = steps.into_iter().map(named).collect();
            if self.steps.is_empty() {
                self.steps = steps;
            } else {
                for (worst, step) in self.steps.iter_mut().zip(steps) {
                    worst.error = worse(worst.error, step.error);
                }
            }
            Ok(logits)
        }
    }

    fn internal(error: OracleError) -> Failure {
        Failure::new(Code::Internal, error)
    }

    /// The larger distance; one that is no number is larger than any.
    fn worse(a: f64, b: f64) -> f64 {
        if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
    }

    fn distance(ours: &[f32], reference: &[f32]) -> f64 {
        let wide = |x: &[f32]| x.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        ratio(&wide(ours), &wide(reference))
    }

    fn ratio(ours: &[f64], reference: &[f64]) -> f64 {
        let difference: f64 = ours.iter().zip(reference).map(|(a, b)| (a - b) * (a - b)).sum();
        let norm: f64 = reference.iter().map(|b| b * b).sum();
        (difference / norm.max(f64::MIN_POSITIVE)).sqrt()
    }
}
