//! Executing the steps of a program on the threads of a pool.
//!
//! Every thread walks the same list of steps and takes its part of each: a share that depends on the shapes and the number of threads
//! alone, or, in the products and the attention of many rows, piece after piece, so that a thread whose core is slower just now does
//! less. No sum is ever split between threads except in the fixed chunks of attention, which are merged in order: so neither the number
//! of threads nor who took what changes a bit of the result.

mod attention;
mod experts;
mod linear;
mod nests;
mod staging;
mod watch;

pub(crate) use nests::{BoundNest, ViewBinding};
pub use watch::{Profile, StepResult, StepTime};
pub(crate) use watch::{Waited, Watch, Watching};

use crate::bind::{BoundBuffer, BoundKind, BoundStep};
use crate::device::HostBlocks;
use crate::error::RunError;
use crate::pool::{Aborted, Barrier, Pool, SharedBytes};
use bessemer_format::plan::{Home, Input, RowCount};
use bessemer_kernels::embed;
use std::cell::Cell;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Consecutive rows of a batch that belong to one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// First row of the batch.
    pub(crate) first_row: usize,
    /// Number of rows.
    pub(crate) rows: usize,
    /// Row of the block table.
    pub(crate) sequence: usize,
    /// Position of the first row in its sequence.
    pub(crate) position: usize,
}

/// The arrays of a forward pass ([`Input`]).
#[derive(Default)]
pub(crate) struct Inputs {
    pub(crate) tokens: Vec<i32>,
    pub(crate) positions: Vec<i32>,
    pub(crate) slots: Vec<i32>,
    /// Slots of rows that are staged, the same in every pass: see [`staging`].
    pub(crate) staged_slots: Vec<i32>,
    pub(crate) sequences: Vec<i32>,
    pub(crate) logit_rows: Vec<i32>,
    pub(crate) block_table: Vec<i32>,
    pub(crate) table_starts: Vec<i32>,
    pub(crate) token_types: Vec<i32>,
    pub(crate) first_rows: Vec<i32>,
    pub(crate) last_positions: Vec<i32>,
    pub(crate) carried_blocks: Vec<i32>,
    pub(crate) table_stride: usize,
    pub(crate) spans: Vec<Span>,
}

impl Inputs {
    /// The [`Sym`](bessemer_format::nest::Sym)s in their order.
    pub(crate) fn syms(&self) -> [i64; 4] {
        [self.tokens.len(), self.logit_rows.len(), self.spans.len(), self.table_stride].map(|n| n as i64)
    }

    /// The elements of an array.
    pub(crate) fn array(&self, input: Input) -> &[i32] {
        match input {
            Input::Tokens => &self.tokens,
            Input::Positions => &self.positions,
            Input::Slots => &self.slots,
            Input::Sequences => &self.sequences,
            Input::LogitRows => &self.logit_rows,
            Input::BlockTable => &self.block_table,
            Input::TableStarts => &self.table_starts,
            Input::TokenTypes => &self.token_types,
            Input::FirstRows => &self.first_rows,
            Input::LastPositions => &self.last_positions,
            Input::CarriedBlocks => &self.carried_blocks,
        }
    }
}

/// Memory that one thread needs for itself.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) floats: Vec<f32>,
    pub(crate) visible: Vec<u32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) bytes: Vec<u8>,
    /// The input of a linear, rounded for this thread alone.
    pub(crate) converted: Vec<f32>,
    pub(crate) order: Vec<u32>,
    pub(crate) ends: Vec<usize>,
    pub(crate) staged: staging::Staged,
}

/// One pass of one program, or of its first steps, over at most its number of rows.
pub(crate) struct Pass<'a> {
    pub(crate) steps: &'a [BoundStep],
    /// The engine file, which weights are ranges of.
    pub(crate) file: &'a [u8],
    pub(crate) nests: &'a [BoundNest],
    pub(crate) arena: SharedBytes<'a>,
    /// The logits of this pass's rows only.
    pub(crate) logits: SharedBytes<'a>,
    pub(crate) inputs: &'a Inputs,
    /// The [`Sym`](bessemer_format::nest::Sym)s in their order.
    pub(crate) syms: [i64; 4],
    pub(crate) state: &'a HostBlocks,
    pub(crate) scratch: &'a [Mutex<Scratch>],
    pub(crate) cancel: Option<&'a AtomicBool>,
    pub(crate) watching: Option<Watching<'a>>,
}

/// Why a thread stopped before the last step.
pub(crate) enum Stop {
    /// It has something to say.
    Error(RunError),
    /// Another thread did.
    Aborted,
}

impl From<Aborted> for Stop {
    fn from(_: Aborted) -> Self {
        Stop::Aborted
    }
}

/// How many things of this loop of claims, and of the one before or after it, have been taken: see [`Thread::claim`].
#[derive(Default)]
struct Claims([Count; 2]);

/// On cache lines of its own, which threads pass to each other.
#[derive(Default)]
#[repr(align(128))]
struct Count(AtomicUsize);

/// One thread's place in a job.
pub(crate) struct Thread<'a> {
    pub(crate) index: usize,
    pub(crate) barrier: &'a Barrier,
    claims: &'a Claims,
    /// Loops of claims so far, the same on every thread, and whether no barrier has followed the last one yet.
    loops: Cell<usize>,
    claiming: Cell<bool>,
    /// Whether somebody wants to know how long this thread waits.
    timed: bool,
    waited: Waited,
}

impl Thread<'_> {
    /// Waits for all threads of the pass.
    pub(crate) fn meet(&self) -> Result<(), Stop> {
        let wait = || self.barrier.wait();
        if self.timed {
            self.waited.during(wait)?
        } else {
            wait()?
        }
        self.claiming.set(false);
        Ok(())
    }

    /// This thread's part of `count` equal things: consecutive, and none is left out or taken twice.
    pub(crate) fn share(&self, count: usize) -> Range<usize> {
        let threads = self.barrier.threads();
        count * self.index / threads..count * (self.index + 1) / threads
    }

    /// Things that this thread takes, each when it has done the one before: together the threads take all of them, once. All threads
    /// have to ask with the same things, and to [meet](Self::meet) before they ask again.
    pub(crate) fn claim<T>(&self, mut things: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
        debug_assert!(!self.claiming.replace(true), "threads meet between two loops of claims");
        let this = self.loops.replace(self.loops.get() + 1);
        let [count, next] = [this, this + 1].map(|i| &self.claims.0[i % 2].0);
        if self.index == 0 {
            // Nobody counts with it: the loop before this one ended at a barrier, and the next begins behind another, which also lets
            // all threads see it.
            next.store(0, Ordering::Relaxed);
        }
        let mut passed = 0;
        std::iter::from_fn(move || {
            let taken = count.fetch_add(1, Ordering::Relaxed);
            let skipped = taken - std::mem::replace(&mut passed, taken + 1);
            things.nth(skipped)
        })
    }
}

impl Pass<'_> {
    /// Runs all steps on all threads.
    pub(crate) fn run(&self, pool: &Pool) -> Result<(), RunError> {
        let error = Mutex::new(None);
        let claims = Claims::default();
        let timed = matches!(self.watching, Some(Watching::Times(_)));
        pool.run(&|index, barrier| {
            let (loops, claiming) = (Cell::new(0), Cell::new(false));
            let thread =
                Thread { index, barrier, claims: &claims, loops, claiming, timed, waited: Waited::default() };
            if let Err(stop) = self.thread(&thread) {
                if let Stop::Error(e) = stop {
                    error.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
                }
                barrier.abort();
            }
        })?;
        match error.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn thread(&self, thread: &Thread<'_>) -> Result<(), Stop> {
        // Nobody else asks for this thread's scratch; the lock only proves it.
        let mut scratch = self.scratch[thread.index].lock().unwrap_or_else(|e| e.into_inner());
        for (index, step) in self.steps.iter().enumerate() {
            // One thread looks, so that all agree: the others learn it at their next barrier.
            if thread.index == 0 && self.cancel.is_some_and(|c| c.load(Ordering::Relaxed)) {
                return Err(Stop::Error(RunError::Cancelled));
            }
            let mut run = || {
                self.step(step, thread, &mut scratch)?;
                if step.barrier { thread.meet() } else { Ok(()) }
            };
            match &self.watching {
                None => run()?,
                Some(watching) => self.watched(watching, (index, step), thread, run)?,
            }
        }
        Ok(())
    }

    fn step(&self, step: &BoundStep, thread: &Thread<'_>, scratch: &mut Scratch) -> Result<(), Stop> {
        match &step.kind {
            BoundKind::Embed { tokens, table, layout, out } => {
                let rows = thread.share(self.rows(out.rows));
                let (ids, k) = (self.buffer(tokens), layout.k());
                for row in rows {
                    let id = ids.get::<i32>(row..row + 1)[0] as usize;
                    embed::gather_row(layout, &self.file[table.clone()], id, self.row_mut(out, row, 0..k));
                }
                Ok(())
            }
            BoundKind::Linear(linear) => self.linear(linear, thread, scratch),
            BoundKind::Route(route) => {
                self.route(route, thread, scratch);
                Ok(())
            }
            BoundKind::GroupedLinear(grouped) => self.grouped(grouped, &step.source, thread, scratch),
            BoundKind::Attention(attention) => self.attention(attention, thread, scratch),
            BoundKind::Nest { nest, rows, args, appends } => {
                let rows = thread.share(self.rows(*rows));
                let ran = match appends {
                    Some(appends) if self.state.layout.kv.is_scaled() => {
                        self.staged_nest(*nest, rows, args, appends, &mut scratch.staged)
                    }
                    _ => self.nest(*nest, rows, args, None),
                };
                ran.map_err(|why| Stop::Error(RunError::Index { step: step.source.clone(), why }))
            }
        }
    }

    /// Rows of this pass.
    pub(crate) fn rows(&self, count: RowCount) -> usize {
        match count {
            RowCount::Tokens => self.inputs.tokens.len(),
            RowCount::Logits => self.inputs.logit_rows.len(),
        }
    }

    /// The rows of a buffer that this pass uses.
    pub(crate) fn buffer(&self, buffer: &BoundBuffer) -> SharedBytes<'_> {
        match buffer.home {
            Home::Arena { offset } => {
                let start = offset as usize;
                self.arena.slice(start..start + self.rows(buffer.rows) * buffer.row_bytes)
            }
            Home::Logits => self.logits,
            Home::Input(input) => SharedBytes::read_only(self.inputs.array(input)),
        }
    }

    /// `columns` of a row of an f32 buffer, to be read.
    pub(crate) fn row(&self, buffer: &BoundBuffer, row: usize, columns: Range<usize>) -> &[f32] {
        let start = row * buffer.row_elems;
        self.buffer(buffer).get(start + columns.start..start + columns.end)
    }

    /// `columns` of a row of an f32 buffer that this thread alone may touch.
    #[allow(clippy::mut_from_ref, reason = "exclusive by the rule of disjointness of SharedBytes")]
    pub(crate) fn row_mut(&self, buffer: &BoundBuffer, row: usize, columns: Range<usize>) -> &mut [f32] {
        let start = row * buffer.row_elems;
        self.buffer(buffer).get_mut(start + columns.start..start + columns.end)
    }
}
