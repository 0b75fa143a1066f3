//! Threads and the memory that they share: the island of the runtime that knows about races.
//!
//! A [`Pool`] runs one job at a time on all its threads; inside a job threads meet at a [`Barrier`]. Memory that
//! several threads of a job touch is reached through [`SharedBytes`], whose rule of disjointness is what every
//! `unsafe` block of this module rests on.
//!
//! The thread that calls [`Pool::run`] is thread 0. All threads are pinned, one a core, unless that is turned off: the caller
//! for the length of a job only, after which it may run wherever it might before. (Left alone, the operating system at
//! times puts it on another thread's core, where each waits for the other.) The others wait for the next job first by
//! spinning (the next token comes soon), then parked.

mod affinity;
mod barrier;
#[cfg(feature = "race-check")]
mod ledger;
mod shared;

pub use affinity::allowed_cores;
pub use barrier::{Aborted, Barrier};
pub(crate) use shared::{SharedBytes, SharedMemory};

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a pool runs: called on every thread with the thread's number and the job's barrier.
pub type Job<'a> = &'a (dyn Fn(usize, &Barrier) + Sync);

/// How long an idle thread spins before it parks: longer than it takes to choose a token, short enough not to burn a
/// core of a process that has gone quiet.
const SPIN: Duration = Duration::from_micros(200);

/// A fixed set of threads that run one job at a time.
pub struct Pool {
    shared: Arc<Control>,
    workers: Vec<JoinHandle<()>>,
    /// Held during a job: `run` may be called from several threads, one after the other.
    turn: Mutex<()>,
    /// Where the caller of `run` is bound meanwhile.
    caller_core: Option<usize>,
}

/// A panic that ended a job on some thread.
#[derive(Debug, thiserror::Error)]
#[error("thread {thread} of the pool panicked: {message}")]
pub struct JobPanicked {
    /// The thread.
    pub thread: usize,
    /// The panic's message.
    pub message: String,
}

struct Control {
    barrier: Barrier,
    /// Counts jobs; a change is the signal to start. Odd while the pool is shutting down.
    generation: AtomicU32,
    /// Workers that have not finished the job yet.
    running: AtomicUsize,
    /// The job of this generation.
    job: Mutex<Option<JobPtr>>,
    wake: Condvar,
    done: Mutex<()>,
    finished: Condvar,
    panic: Mutex<Option<JobPanicked>>,
    spin: Duration,
}

/// A job without its lifetime.
#[derive(Clone, Copy)]
struct JobPtr(*const (dyn Fn(usize, &Barrier) + Sync + 'static));

// SAFETY: the pointee is `Sync`, and `Pool::run` does not return before every thread is done with it.
unsafe impl Send for JobPtr {}

const STOP: u32 = 1;
const NEXT: u32 = 2;

impl Pool {
    /// A pool of `threads` threads (at least 1), the caller of [`Pool::run`] included. With `pin` each is bound to a core, if
    /// there are enough of them, the caller during its jobs.
    pub fn new(threads: usize, pin: bool) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let cores = allowed_cores();
        // More threads than cores take turns on them: spinning would only keep others from running.
        let crowded = threads > cores.len();
        let shared = Arc::new(Control {
            barrier: Barrier::new(threads, !crowded),
            generation: AtomicU32::new(0),
            running: AtomicUsize::new(0),
            job: Mutex::new(None),
            wake: Condvar::new(),
            done: Mutex::new(()),
            finished: Condvar::new(),
            panic: Mutex::new(None),
            spin: if crowded { Duration::ZERO } else { SPIN },
        });
        let caller_core = cores.first().copied().filter(|_| pin && !crowded && threads > 1);
        let workers = Vec::with_capacity(threads - 1);
        let mut pool = Self { shared, workers, turn: Mutex::new(()), caller_core };
        for thread in 1..threads {
            let control = Arc::clone(&pool.shared);
            let core = cores.get(thread).copied().filter(|_| pin && !crowded);
            let spawned = std::thread::Builder::new().name(format!("bessemer-{thread}")).spawn(move || {
                if let Some(core) = core {
                    affinity::pin_this_thread(core);
                }
                control.serve(thread);
            });
            pool.workers.push(spawned?);
        }
        Ok(pool)
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job` on every thread and returns when all have finished. A panic on one thread ends the waiting of the
    /// others ([`Aborted`]) and is returned.
    pub fn run(&self, job: Job<'_>) -> Result<(), JobPanicked> {
        let _turn = lock(&self.turn);
        let _pinned = self.caller_core.map(affinity::PinnedFor::core);
        let control = &*self.shared;
        control.barrier.reset();
        *lock(&control.panic) = None;
        if !self.workers.is_empty() {
            // SAFETY: only the lifetime changes. The pointer is used by workers between here and the end of
            // `wait_for_workers` below, during which `job` is borrowed; `WaitOnDrop` waits even on unwinding.
            let job = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
            control.running.store(self.workers.len(), Ordering::Relaxed);
            let mut slot = lock(&control.job);
            *slot = Some(JobPtr(job));
            // Release: a worker that sees the generation sees `running` too. Under the lock, so that no
            // worker can miss it between its look and its wait.
            control.generation.fetch_add(NEXT, Ordering::Release);
            drop(slot);
            control.wake.notify_all();
        }
        let wait = WaitOnDrop(control);
        control.call(0, job);
        drop(wait);
        match lock(&control.panic).take() {
            Some(panic) => Err(panic),
            None => Ok(()),
        }
    }
}

struct WaitOnDrop<'a>(&'a Control);

impl Drop for WaitOnDrop<'_> {
    fn drop(&mut self) {
        self.0.wait_for_workers();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _slot = lock(&self.shared.job);
            self.shared.generation.fetch_or(STOP, Ordering::Release);
        }
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of jobs, so joining cannot fail.
            let _ = worker.join();
        }
    }
}

impl Control {
    /// The life of a worker thread.
    fn serve(&self, thread: usize) {
        let mut seen = 0;
        loop {
            let generation = self.wait_for_job(seen);
            if generation & STOP != 0 {
                return;
            }
            seen = generation;
            let job = *lock(&self.job);
            if let Some(JobPtr(job)) = job {
                // SAFETY: `Pool::run` published the pointer for this generation and waits for this thread
                // before it returns, so the job is still borrowed.
                self.call(thread, unsafe { &*job });
            }
            // Release: what this thread wrote is seen by whoever sees the count.
            if self.running.fetch_sub(1, Ordering::AcqRel) == 1 {
                let _done = lock(&self.done);
                self.finished.notify_one();
            }
        }
    }

    fn wait_for_job(&self, seen: u32) -> u32 {
        spin(self.spin, || self.generation.load(Ordering::Acquire) != seen);
        let mut slot = lock(&self.job);
        loop {
            let generation = self.generation.load(Ordering::Acquire);
            if generation != seen {
                return generation;
            }
            slot = self.wake.wait(slot).unwrap_or_else(|e| e.into_inner());
        }
    }

    fn wait_for_workers(&self) {
        if spin(self.spin, || self.running.load(Ordering::Acquire) == 0) {
            return;
        }
        let mut done = lock(&self.done);
        while self.running.load(Ordering::Acquire) != 0 {
            done = self.finished.wait(done).unwrap_or_else(|e| e.into_inner());
        }
    }

    fn call(&self, thread: usize, job: Job<'_>) {
        #[cfg(feature = "race-check")]
        ledger::begin();
        let result = catch_unwind(AssertUnwindSafe(|| {
            job(thread, &self.barrier);
            // Whoever is last also compares what threads did after the job's own last barrier.
            #[cfg(feature = "race-check")]
            let _ = self.barrier.wait();
        }));
        if let Err(payload) = result {
            lock(&self.panic).get_or_insert_with(|| JobPanicked { thread, message: message(&*payload) });
            self.barrier.abort();
        }
    }
}

/// Spins until `done`, for at most `limit`. Gives whether it is done.
fn spin(limit: Duration, done: impl Fn() -> bool) -> bool {
    if done() {
        return true;
    }
    let started = Instant::now();
    while started.elapsed() < limit {
        for _ in 0..32 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
    }
    done()
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

/// Locks; a poisoned lock is as good as any here, for no invariant spans a panic.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_once_and_meets_the_others() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::new(threads, true).unwrap();
            for _ in 0..50 {
                let arrived: Vec<_> = (0..3).map(|_| AtomicUsize::new(0)).collect();
                pool.run(&|_, barrier| {
                    for phase in &arrived {
                        phase.fetch_add(1, Ordering::Relaxed);
                        barrier.wait().unwrap();
                        assert_eq!(phase.load(Ordering::Relaxed), threads);
                    }
                })
                .unwrap();
            }
        }
    }

    #[test]
    fn a_panic_frees_the_threads_that_wait() {
        for culprit in 0..3 {
            let pool = Pool::new(3, true).unwrap();
            let aborted = AtomicUsize::new(0);
            let result = pool.run(&|thread, barrier| {
                if thread == culprit {
                    panic!("on purpose");
                }
                if barrier.wait().is_err() {
                    aborted.fetch_add(1, Ordering::Relaxed);
                }
            });
            let panic = result.unwrap_err();
            assert_eq!((panic.thread, panic.message.as_str()), (culprit, "on purpose"));
            assert_eq!(aborted.load(Ordering::Relaxed), 2);
            pool.run(&|_, barrier| barrier.wait().unwrap()).expect("the pool still works");
        }
    }

    #[test]
    fn jobs_from_several_threads_take_turns() {
        let pool = Pool::new(2, true).unwrap();
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        pool.run(&|thread, barrier| {
                            if thread == 0 {
                                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            }
                            barrier.wait().unwrap();
                            if thread == 0 {
                                inside.fetch_sub(1, Ordering::SeqCst);
                            }
                        })
                        .unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn parked_threads_wake() {
        let pool = Pool::new(2, true).unwrap();
        std::thread::sleep(10 * SPIN);
        let ran = AtomicUsize::new(0);
        pool.run(&|_, _| {
            ran.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(ran.load(Ordering::Relaxed), 2);
    }
}
