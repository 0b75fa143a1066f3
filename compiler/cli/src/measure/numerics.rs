//! The logits of an engine against the meaning of its graph.

use serde::Serialize;

/// Relative distances (‖engine − oracle‖ / ‖oracle‖) of one row of logits.
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
    use super::Position;
    use crate::exit::{Code, Failure};
    use crate::measure::graph;
    use crate::progress::{Meter, Unit};
    use bessemer_ir::exec::{SequenceRows, Wanted};
    use bessemer_oracle::{Oracle, Reading};
    use bessemer_runtime::sample::Pcg32;
    use bessemer_runtime::{Batch, Engine, KvElem, Want, Worker, WorkerOptions};
    use std::path::Path;

    /// Tokens of the prompt: enough to leave the first block of the KV cache.
    const TOKENS: usize = 40;

    /// Runs a fixed prompt through `engine` and through the oracle of `source`, both with an f32 cache.
    pub fn compare(engine: &Engine, source: &Path) -> Result<Vec<Position>, Failure> {
        let checkpoint = graph::source_of(engine, source)?;
        let prepared = graph::prepared(engine, &checkpoint, None)?;
        let model = &engine.plan().model;
        let mut random = Pcg32::new(1);
        let length = TOKENS.min(model.context as usize);
        let tokens: Vec<u32> = (0..length).map(|_| random.next_u32() % model.vocab.max(1)).collect();

        let mut worker = Worker::new(engine, WorkerOptions::default().kv(KvElem::F32))?;
        let mut sequence = worker.sequence();
        let mut batch = Batch::new();
        batch.push(&mut sequence, &tokens, Want::All);
        let ours = worker.forward(&mut batch)?.all().as_slice().to_vec();

        let meter = Meter::new(Unit::Items);
        meter.start("oracle", 2);
        let meaning = |reading| -> Result<Vec<f32>, Failure> {
            let failed = |e: bessemer_oracle::OracleError| Failure::new(Code::Internal, e);
            let mut oracle = Oracle::new(&prepared.graph, &checkpoint, reading).map_err(failed)?;
            let rows = SequenceRows { sequence: 0, tokens: &tokens, logits: Wanted::All };
            let logits = oracle.forward(&[rows]).map_err(failed)?.values;
            meter.advance(1);
            Ok(logits)
        };
        let declared = meaning(Reading::Declared { kv: KvElem::F32 })?;
        let exact = meaning(Reading::Exact)?;
        let rows =
            |logits: &[f32]| logits.chunks(model.vocab as usize).map(<[f32]>::to_vec).collect::<Vec<_>>();
        let all = rows(&ours).into_iter().zip(rows(&declared)).zip(rows(&exact)).enumerate();
        Ok(all
            .map(|(position, ((ours, declared), exact))| Position {
                position,
                declared: distance(&ours, &declared),
                exact: distance(&ours, &exact),
            })
            .collect())
    }

    fn distance(ours: &[f32], reference: &[f32]) -> f64 {
        let square = |x: f64| x * x;
        let difference: f64 =
            ours.iter().zip(reference).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
        let norm: f64 = reference.iter().map(|b| square(f64::from(*b))).sum();
        (difference / norm.max(f64::MIN_POSITIVE)).sqrt()
    }
}
