//! An engine on a device against the same engine on the CPU: what every step computes for the same tokens, and the logits.

use crate::exit::Failure;
use bessemer_format::plan::{Plan, StepKind};
use bessemer_format::{Compute, kv};
use bessemer_runtime::sample::Pcg32;
use bessemer_runtime::{
    Batch, DeviceChoice, DeviceKind, Engine, KvElem, Sequence, Want, Worker, WorkerOptions,
};
use serde::Serialize;

/// Rows of the passes of the one sequence: for each program of the plan, the largest first, the fewest that it serves; a prefill that leaves
/// the first block of the cache; single rows that a device records and replays; a few rows.
fn passes(engine: &Engine) -> Vec<usize> {
    let model = &engine.plan().model;
    if model.whole {
        return vec![usize::MAX];
    }
    let programs = engine.plan().programs.iter().rev().map(|p| p.regime.min_rows as usize);
    programs.chain([kv::TOKENS + 3, 1, 1, 4, 1]).collect()
}

/// Relative distances (‖device − CPU‖ / ‖CPU‖).
#[derive(Clone, Debug, Serialize)]
pub struct Devices {
    /// The device, as it describes itself.
    pub device: String,
    /// Whether both round no activations: only the order of sums and roundings of the cache tell them apart then.
    pub exact: bool,
    /// The largest distance of each step that both have, over all passes.
    pub steps: Vec<(String, f64)>,
    /// Of each row of logits.
    pub positions: Vec<f64>,
    /// Whether passes that were recorded gave the bits of passes that were launched step by step.
    pub replay_is_exact: bool,
}

/// Runs the same tokens on `device`, which may take the last `layers` only, and on the CPU.
pub fn compare(engine: &Engine, device: DeviceChoice, layers: Option<usize>) -> Result<Devices, Failure> {
    // A device has kernels for one element type of the cache.
    let of_device = engine.variants().find(|v| v.device.kind() != DeviceKind::Cpu);
    let kv = of_device.and_then(|v| v.gpu).map_or(KvElem::Bf16, |code| code.kv);
    let worker = |device, layers| {
        let mut options = WorkerOptions::default().kv(kv).device(device);
        options.gpu_layers = layers;
        Worker::new(engine, options.max_tokens(2 * tokens(engine).next_multiple_of(kv::TOKENS)))
    };
    let (mut theirs, mut ours) = (worker(device, layers)?, worker(DeviceChoice::Cpu, None)?);
    let exact = [ours.plan(), theirs.plan()].into_iter().all(rounds_nothing);
    let model = &engine.plan().model;
    let mut random = Pcg32::new(1);
    let all: Vec<u32> = (0..tokens(engine)).map(|_| random.next_u32() % model.vocab.max(1)).collect();

    let (mut a, mut b, mut c) = (theirs.sequence(), ours.sequence(), theirs.sequence());
    let mut steps: Vec<(String, f64)> = Vec::new();
    let (mut positions, mut replay_is_exact, mut rest) = (Vec::new(), true, &all[..]);
    for rows in passes(engine) {
        let (some, later) = rest.split_at(rows.min(rest.len()));
        rest = later;
        if some.is_empty() {
            continue;
        }
        let (found, trace) = traced(&mut theirs, &mut a, some)?;
        let (expected, reference) = traced(&mut ours, &mut b, some)?;
        let mut batch = Batch::new();
        batch.push(&mut c, some, Want::All);
        let again = theirs.forward(&mut batch)?.all();
        replay_is_exact &= again.as_slice().iter().map(|x| x.to_bits()).eq(found.iter().map(|x| x.to_bits()));
        for (source, outputs) in trace {
            let same = |(name, other): &&(String, Vec<f32>)| *name == source && other.len() == outputs.len();
            let Some((_, reference)) = reference.iter().find(same) else { continue };
            let error = distance(&outputs, reference);
            match steps.iter_mut().find(|(name, _)| *name == source) {
                Some((_, worst)) => *worst = worse(*worst, error),
                None => steps.push((source, error)),
            }
        }
        let width = model.output_width() as usize;
        positions.extend(found.chunks(width).zip(expected.chunks(width)).map(|(a, b)| distance(a, b)));
    }
    Ok(Devices { device: theirs.device().into(), exact, steps, positions, replay_is_exact })
}

/// Tokens of the sequence: as many as the passes take, or as the model does. Of whole sequences, a few blocks.
fn tokens(engine: &Engine) -> usize {
    let all = passes(engine).into_iter().fold(0, usize::saturating_add).min(4 * kv::TOKENS);
    all.min(engine.plan().model.context as usize)
}

/// Whether no step of a plan rounds activations.
fn rounds_nothing(plan: &Plan) -> bool {
    let mut steps = plan.programs.iter().flat_map(|p| &p.steps);
    steps.all(|step| match &step.kind {
        StepKind::Linear(linear) => linear.compute == Compute::F32,
        StepKind::GroupedLinear(grouped) => grouped.linear.compute == Compute::F32,
        StepKind::Attention(attention) => attention.compute == Compute::F32,
        _ => true,
    })
}

/// What the steps made, in their order; results of one node are joined.
type Trace = Vec<(String, Vec<f32>)>;

fn traced(
    worker: &mut Worker,
    sequence: &mut Sequence,
    tokens: &[u32],
) -> Result<(Vec<f32>, Trace), Failure> {
    let mut trace = Trace::new();
    let mut batch = Batch::new();
    batch.push(sequence, tokens, Want::All);
    let mut see = |step: &bessemer_runtime::StepResult<'_>| {
        let outputs = step.outputs.concat();
        match trace.last_mut() {
            Some((last, all)) if last == step.source => all.extend(outputs),
            _ => trace.push((step.source.into(), outputs)),
        }
    };
    let logits = worker.forward_traced(&mut batch, &mut see)?.all().as_slice().to_vec();
    Ok((logits, trace))
}

/// The larger distance; one that is no number is larger than any.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn distance(found: &[f32], reference: &[f32]) -> f64 {
    let wide = |x: &f32| f64::from(*x);
    let pairs = found.iter().map(wide).zip(reference.iter().map(wide));
    let difference: f64 = pairs.map(|(a, b)| (a - b) * (a - b)).sum();
    let norm: f64 = reference.iter().map(wide).map(|b| b * b).sum();
    (difference / norm.max(f64::MIN_POSITIVE)).sqrt()
}
