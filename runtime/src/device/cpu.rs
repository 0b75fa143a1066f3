//! The CPU: threads that walk a program's steps together.

use super::{Device, DevicePass, HostBlocks, Room};
use crate::engine::Engine;
use crate::error::{EngineError, RunError};
use crate::exec::{BoundNest, Pass, Scratch};
use crate::pool::{Pool, SharedBytes, SharedMemory, allowed_cores};
use crate::worker::WorkerOptions;
use std::sync::{Arc, Mutex};

/// Threads, activations, and what the steps need.
pub(super) struct Cpu {
    engine: Engine,
    pool: Pool,
    state: Arc<HostBlocks>,
    arena: SharedMemory,
    nests: Vec<BoundNest>,
    scratch: Vec<Mutex<Scratch>>,
}

impl Cpu {
    /// Starts the threads and reserves memory.
    pub(super) fn new(
        engine: &Engine,
        options: &WorkerOptions,
        room: &Room,
    ) -> Result<(Self, Arc<HostBlocks>), EngineError> {
        let resource = |what: &str| {
            let what = what.to_string();
            move |source| EngineError::Resource { what, source }
        };
        let threads = if options.threads == 0 { allowed_cores().len() } else { options.threads };
        let arena = engine.programs_for(room.rows).iter().map(|p| p.arena_bytes).max().unwrap_or(0);
        let state = HostBlocks::reserve(room);
        let state = Arc::new(state.map_err(resource("memory for the KV cache"))?);
        let cpu = Self {
            pool: Pool::new(threads, options.pin).map_err(resource("threads"))?,
            state: Arc::clone(&state),
            arena: SharedMemory::reserve(arena).map_err(resource("memory for activations"))?,
            nests: BoundNest::all(engine, options.kv.written(), options.nests)?,
            scratch: (0..threads).map(|_| Mutex::default()).collect(),
            engine: engine.clone(),
        };
        Ok((cpu, state))
    }
}

impl Device for Cpu {
    fn threads(&self) -> usize {
        self.pool.threads()
    }

    fn run(&mut self, pass: DevicePass<'_, '_>) -> Result<(), RunError> {
        self.run_before(pass, |_| usize::MAX).map(drop)
    }
}

impl Cpu {
    /// Activations of the last pass.
    #[cfg(feature = "cuda")]
    pub(super) fn activations(&self, range: std::ops::Range<usize>) -> &[u8] {
        self.arena.bytes().get(range)
    }

    /// Runs a pass up to the step that `end` says for its program. Gives the program.
    pub(super) fn run_before(
        &mut self,
        pass: DevicePass<'_, '_>,
        end: impl Fn(usize) -> usize,
    ) -> Result<usize, RunError> {
        let DevicePass { inputs, logits, cancel, watch } = pass;
        let programs = self.engine.programs_for(inputs.tokens.len());
        let index = programs.len() - 1;
        let program = &programs[index];
        let threads = self.pool.threads();
        let pass = Pass {
            steps: &program.steps[..end(index).min(program.steps.len())],
            file: self.engine.bytes(),
            nests: &self.nests,
            arena: self.arena.bytes(),
            logits: SharedBytes::read_write(logits),
            inputs,
            syms: inputs.syms(),
            state: &self.state,
            scratch: &self.scratch,
            cancel,
            watching: watch.map(|w| w.pass(programs.len() - 1, threads, program.steps.len())),
        };
        pass.run(&self.pool)?;
        Ok(index)
    }
}
