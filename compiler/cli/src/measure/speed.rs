//! Tokens a second, and the work behind a token.

use super::ceilings::{Ceilings, MultiplyAdds};
use super::profile::Passes;
use crate::exit::Failure;
use bessemer_format::plan::{Linear, ModelFacts, Plan, Program, RowCount, StepKind};
use bessemer_runtime::sample::Pcg32;
use bessemer_runtime::{Batch, Engine, KvElem, Profile, Sequence, Want, Worker};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// What is measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Load {
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens that each sequence generates; none where the model reads whole texts.
    pub generate: usize,
    /// Tokens that each sequence holds before.
    pub depth: usize,
    /// Sequences.
    pub sequences: usize,
}

/// Tokens a second, of all sequences together.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Speed {
    /// Processing prompts.
    pub prefill: f64,
    /// Generating, where the load does.
    pub decode: Option<f64>,
}

impl Load {
    /// Tokens that a sequence holds at most.
    pub fn longest(&self) -> usize {
        self.depth + self.prompt.max(self.generate)
    }

    /// What of the load there is for `model`; an error if a sequence does not fit into its context.
    pub fn on(self, model: &ModelFacts) -> Result<Self, Failure> {
        if self.prompt == 0 || self.generate == 0 {
            return Err(Failure::usage("-p and -n must be 1 or more"));
        }
        if model.whole && self.depth > 0 {
            return Err(Failure::usage("this model reads whole texts, to which -d can add nothing"));
        }
        let load = Self { generate: if model.whole { 0 } else { self.generate }, ..self };
        load.fits(model.context as usize)?;
        Ok(load)
    }

    fn fits(&self, context: usize) -> Result<(), Failure> {
        if self.longest() <= context {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "a sequence would hold {} tokens and the context is {context}; lower -p, -n or -d",
            self.longest()
        )))
    }

    /// Tokens from a fixed seed.
    pub fn tokens(&self, vocab: u32) -> Vec<u32> {
        let mut random = Pcg32::new(1);
        (0..self.longest()).map(|_| random.next_u32() % vocab.max(1)).collect()
    }
}

/// An engine under load.
pub struct Subject {
    worker: Worker,
    load: Load,
    tokens: Vec<u32>,
}

impl Subject {
    /// Puts `load` on a worker.
    pub fn new(worker: Worker, load: Load) -> Self {
        let tokens = load.tokens(worker.engine().plan().model.vocab);
        Self { worker, load, tokens }
    }

    /// The worker.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Measures once. The decoded tokens are given, not sampled: choosing is not what is measured.
    pub fn measure(&mut self) -> Result<Speed, Failure> {
        let Load { prompt, generate, depth, sequences } = self.load;
        let deep = self.deep()?;

        let mut all: Vec<Sequence> = (0..sequences).map(|_| deep.fork()).collect();
        let started = Instant::now();
        self.step(&mut all, depth..depth + prompt)?;
        let prefill = (prompt * sequences) as f64 / started.elapsed().as_secs_f64();

        self.rewind(&mut all, &deep);
        let started = Instant::now();
        for at in depth..depth + generate {
            self.step(&mut all, at..at + 1)?;
        }
        let decode = (generate * sequences) as f64 / started.elapsed().as_secs_f64();
        Ok(Speed { prefill, decode: (generate > 0).then_some(decode) })
    }

    /// The same work, its steps timed: `repetitions` prefills, and as many decodes.
    pub fn profile(&mut self, repetitions: usize) -> Result<[(Profile, Passes); 2], Failure> {
        let Load { prompt, generate, depth, sequences } = self.load;
        let deep = self.deep()?;
        let (mut prefill, mut decode) = (Profile::new(), Profile::new());
        let mut walls = [std::time::Duration::ZERO; 2];
        for _ in 0..repetitions {
            let mut all: Vec<Sequence> = (0..sequences).map(|_| deep.fork()).collect();
            let started = Instant::now();
            self.step_with(&mut all, depth..depth + prompt, Some(&mut prefill))?;
            walls[0] += started.elapsed();
            self.rewind(&mut all, &deep);
            let started = Instant::now();
            for at in depth..depth + generate {
                self.step_with(&mut all, at..at + 1, Some(&mut decode))?;
            }
            walls[1] += started.elapsed();
        }
        let passes = |tokens: usize, visible, wall| {
            let rows = (tokens * sequences).min(self.worker.max_rows());
            Passes { rows, visible, sequences, logits: sequences, wall }
        };
        Ok([
            (prefill, passes(prompt, depth + prompt.div_ceil(2), walls[0])),
            (decode, passes(1, depth + generate.div_ceil(2), walls[1])),
        ])
    }

    /// Every sequence as `deep` is: memory of the old ones is free before the new ones need it.
    fn rewind(&self, all: &mut Vec<Sequence>, deep: &Sequence) {
        all.clear();
        all.extend((0..self.load.sequences).map(|_| deep.fork()));
    }

    /// A sequence that holds as many tokens as the load asks for.
    fn deep(&mut self) -> Result<Sequence, Failure> {
        let mut sequence = self.worker.sequence();
        if self.load.depth > 0 {
            let mut batch = Batch::new();
            batch.push(&mut sequence, &self.tokens[..self.load.depth], Want::None);
            self.worker.forward(&mut batch)?;
        }
        Ok(sequence)
    }

    /// Appends the tokens at `range` to every sequence.
    fn step(&mut self, sequences: &mut [Sequence], range: std::ops::Range<usize>) -> Result<(), Failure> {
        self.step_with(sequences, range, None)
    }

    fn step_with(
        &mut self,
        sequences: &mut [Sequence],
        range: std::ops::Range<usize>,
        profile: Option<&mut Profile>,
    ) -> Result<(), Failure> {
        let mut batch = Batch::new();
        for sequence in sequences {
            batch.push(sequence, &self.tokens[range.clone()], Want::Last);
        }
        match profile {
            None => self.worker.forward(&mut batch)?,
            Some(profile) => self.worker.forward_profiled(&mut batch, profile)?,
        };
        Ok(())
    }
}

/// The work of a load, as the plan states it.
pub struct Work {
    /// Bytes that a decode step reads: every weight once, and the KV of every sequence.
    pub decode_step_bytes: u64,
    /// Multiply-adds of a prompt's token, by weights alone.
    multiply_adds: MultiplyAdds,
}

impl Work {
    /// Of `load` on `plan`.
    pub fn of(engine: &Engine, kv: KvElem, load: Load) -> Self {
        let plan = engine.plan();
        let find = |rows: usize| {
            plan.programs.iter().find(|p| rows <= p.regime.max_rows as usize).or(plan.programs.last())
        };
        let weights = find(load.sequences).map_or(0, |p| weight_bytes(plan, p));
        let block = bessemer_format::kv::TOKENS;
        let kv_token = engine.memory(block, kv, 1).cache / block as u64;
        let held = load.sequences as u64 * (load.depth + load.generate / 2) as u64;
        let multiply_adds = find(load.prompt).map(|p| multiply_adds(plan, p)).unwrap_or_default();
        Self { decode_step_bytes: weights + kv_token * held, multiply_adds }
    }

    /// Seconds that a prompt's token takes at the ceilings.
    pub fn seconds_per_prefill_token(&self, ceilings: &Ceilings) -> f64 {
        self.multiply_adds.seconds(ceilings)
    }

    /// Seconds that it takes at the rate of the engine's tile, where that was measured.
    pub fn tile_seconds_per_prefill_token(&self, ceilings: &Ceilings) -> Option<f64> {
        Some(self.multiply_adds.total() as f64 / ceilings.tile_multiply_adds_s?)
    }
}

/// Bytes of the weights that a program's linears read for one row.
fn weight_bytes(plan: &Plan, program: &Program) -> u64 {
    // A weight that several linears read (never parts of one that differ) is read once.
    let mut read: BTreeMap<u32, f64> = BTreeMap::new();
    for (linear, taken) in linears(program) {
        read.extend(linear.segments.iter().map(|s| (s.weight, taken)));
    }
    let bytes = |(id, taken): (&u32, &f64)| Some(plan.weights.get(*id as usize)?.len as f64 * taken);
    read.iter().filter_map(bytes).sum::<f64>() as u64
}

/// Multiply-adds of a token. The logits of a prompt are wanted once, so its linear is left out.
fn multiply_adds(plan: &Plan, program: &Program) -> MultiplyAdds {
    let mut sum = MultiplyAdds::default();
    for (linear, taken) in linears(program).filter(|(l, _)| l.rows == RowCount::Tokens) {
        let weights = linear.segments.iter().filter_map(|s| plan.weights.get(s.weight as usize));
        let elements: f64 = weights.map(|w| f64::from(w.n) * f64::from(w.k)).sum();
        sum.add(linear.compute, (elements * taken) as u64);
    }
    sum
}

/// The linears of a program, and which share of its weights each row takes.
fn linears(program: &Program) -> impl Iterator<Item = (&Linear, f64)> {
    program.steps.iter().filter_map(|s| match &s.kind {
        StepKind::Linear(linear) => Some((linear, 1.0)),
        StepKind::GroupedLinear(g) => Some((&g.linear, f64::from(g.slots) / f64::from(g.groups.max(1)))),
        _ => None,
    })
}
