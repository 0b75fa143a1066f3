//! Looking into a forward pass: what each step computed, and where the time went.

use super::{Pass, Stop, Thread};
use crate::bind::{BoundBuffer, BoundStep};
use std::cell::Cell;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What a step wrote, in the moment it is complete.
#[derive(Debug)]
#[non_exhaustive]
pub struct StepResult<'a> {
    /// Name of the graph's node that the step stands for.
    pub source: &'a str,
    /// The arrays of activations that it wrote, `[rows][width]` each, in the order of the node's results. The cache
    /// and what only kernels read (codes, partial softmaxes) are not among them.
    pub outputs: Vec<&'a [f32]>,
}

/// Times of the steps of one program.
///
/// Fill it by [`Worker::forward_profiled`](crate::Worker::forward_profiled): every pass adds to it.
#[derive(Debug, Default)]
pub struct Profile {
    /// Passes measured, by the program that ran them: an index into the plan's programs.
    passes: Vec<u64>,
    /// `[program][thread][step]`
    times: Vec<Vec<Mutex<Vec<StepTime>>>>,
}

/// Time that one thread spent in one step, over all passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTime {
    /// In the step's own work.
    pub busy: Duration,
    /// At barriers within and after it: for other threads to finish.
    pub waiting: Duration,
}

impl Profile {
    /// An empty profile.
    pub fn new() -> Self {
        Self::default()
    }

    /// Passes that `program` (an index into the plan's programs) has run.
    pub fn passes(&self, program: usize) -> u64 {
        self.passes.get(program).copied().unwrap_or(0)
    }

    /// The times of each of `program`'s steps in order, a vector of all threads each. Empty if it never ran.
    pub fn steps(&self, program: usize) -> Vec<Vec<StepTime>> {
        let threads: Vec<_> = self.times.get(program).into_iter().flatten().map(lock).collect();
        let steps = threads.first().map_or(0, |t| t.len());
        (0..steps).map(|step| threads.iter().map(|t| t[step]).collect()).collect()
    }

    /// Adds the time of a step that one thread, or a device as a whole, was busy with.
    #[cfg(any(feature = "cuda", all(target_os = "macos", feature = "metal")))]
    pub(crate) fn add(&mut self, program: usize, step: usize, busy: Duration) {
        if let Some(thread) = self.times.get(program).and_then(|threads| threads.first())
            && let Some(time) = lock(thread).get_mut(step)
        {
            time.busy += busy;
        }
    }

    /// Makes room for a pass of a program, and counts it.
    pub(crate) fn begin(&mut self, program: usize, threads: usize, steps: usize) {
        if self.times.len() <= program {
            self.passes.resize(program + 1, 0);
            self.times.resize_with(program + 1, Vec::new);
        }
        self.passes[program] += 1;
        let times = &mut self.times[program];
        if times.len() != threads || times.iter().any(|t| lock(t).len() != steps) {
            *times = (0..threads).map(|_| Mutex::new(vec![StepTime::default(); steps])).collect();
        }
    }
}

/// What to look at during a pass.
pub(crate) enum Watch<'a> {
    /// Each step's results, shown on the calling thread while the others wait.
    Results(&'a mut (dyn FnMut(&StepResult<'_>) + Send)),
    /// The times of each step.
    Times(&'a mut Profile),
}

/// A [`Watch`] as the threads of one pass share it.
pub(crate) enum Watching<'a> {
    Results(Mutex<&'a mut (dyn FnMut(&StepResult<'_>) + Send)>),
    Times(&'a [Mutex<Vec<StepTime>>]),
}

impl<'a> Watch<'a> {
    /// Ready for a pass of `program`.
    pub(crate) fn pass(&mut self, program: usize, threads: usize, steps: usize) -> Watching<'_> {
        match self {
            Watch::Results(see) => Watching::Results(Mutex::new(&mut **see)),
            Watch::Times(profile) => {
                profile.begin(program, threads, steps);
                Watching::Times(&profile.times[program])
            }
        }
    }
}

/// Time that a thread has waited for others; kept only where somebody watches.
#[derive(Default)]
pub(crate) struct Waited(Cell<Duration>);

impl Waited {
    pub(crate) fn during<T>(&self, wait: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = wait();
        self.0.set(self.0.get() + started.elapsed());
        result
    }
}

impl Pass<'_> {
    /// Runs step `index` under a watch. `run` is the step with its barrier.
    pub(super) fn watched(
        &self,
        watching: &Watching<'_>,
        (index, step): (usize, &BoundStep),
        thread: &Thread<'_>,
        run: impl FnOnce() -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        match watching {
            Watching::Results(see) => {
                run()?;
                // Every thread is done before thread 0 looks, and none goes on before it has.
                thread.meet()?;
                if thread.index == 0 {
                    let outputs = step.outputs.iter().map(|b| self.floats_of(b)).collect();
                    lock(see)(&StepResult { source: &step.source, outputs });
                }
                thread.meet()
            }
            Watching::Times(times) => {
                thread.waited.0.take();
                let started = Instant::now();
                run()?;
                let (all, waiting) = (started.elapsed(), thread.waited.0.take());
                let mut times = lock(&times[thread.index]);
                times[index].busy += all.saturating_sub(waiting);
                times[index].waiting += waiting;
                Ok(())
            }
        }
    }

    fn floats_of(&self, buffer: &BoundBuffer) -> &[f32] {
        self.buffer(buffer).get(0..self.rows(buffer.rows) * buffer.row_elems)
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
