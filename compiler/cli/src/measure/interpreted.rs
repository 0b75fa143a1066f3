//! The interpreted side of a comparison: the graph before fusion, node by node, weights unpacked to f32.

use super::graph;
use super::speed::{Load, Speed};
use crate::exit::Failure;
use bessemer_eager::{Eager, EagerOptions, SequenceRows, Wanted};
use bessemer_ir::Phase;
use bessemer_runtime::Engine;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

/// The eager executor under load.
pub struct Interpreter {
    eager: Eager,
    load: Load,
    tokens: Vec<u32>,
}

impl Interpreter {
    /// Puts `load` on the graph of `source`, of which `engine` must have been compiled.
    pub fn new(engine: &Engine, source: &Path, threads: usize, load: Load) -> Result<Self, Failure> {
        let checkpoint = graph::source_of(engine, source)?;
        let prepared = graph::prepared(engine, &checkpoint, Some(Phase::Canonical))?;
        let options = EagerOptions { threads, ..EagerOptions::default() };
        let eager = Eager::new(&prepared.graph, &checkpoint, options)?;
        let mut interpreter = Self { eager, load, tokens: load.tokens(prepared.facts.vocab) };
        if load.depth > 0 {
            interpreter.step(0..load.depth, Wanted::None)?;
        }
        Ok(interpreter)
    }

    /// Measures once, on the same tokens as the engine.
    pub fn measure(&mut self) -> Result<Speed, Failure> {
        let Load { prompt, generate, depth, sequences } = self.load;
        let started = Instant::now();
        self.step(depth..depth + prompt, Wanted::Last)?;
        let prefill = (prompt * sequences) as f64 / started.elapsed().as_secs_f64();

        self.rewind();
        let started = Instant::now();
        for at in depth..depth + generate {
            self.step(at..at + 1, Wanted::Last)?;
        }
        let decode = (generate * sequences) as f64 / started.elapsed().as_secs_f64();
        self.rewind();
        Ok(Speed { prefill, decode: (generate > 0).then_some(decode) })
    }

    fn rewind(&mut self) {
        (0..self.load.sequences).for_each(|s| self.eager.truncate(s, self.load.depth));
    }

    /// Appends the tokens at `range` to every sequence.
    fn step(&mut self, range: Range<usize>, logits: Wanted) -> Result<(), Failure> {
        let tokens = &self.tokens[range];
        let parts: Vec<_> = (0..self.load.sequences)
            .map(|sequence| SequenceRows { sequence, tokens, types: &[], logits })
            .collect();
        self.eager.forward(&parts)?;
        Ok(())
    }
}
