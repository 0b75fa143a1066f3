//! Where the threads of a job wait for each other.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// How long a thread spins before it parks. Threads that all run arrive within microseconds of each other; if one
/// does not, the operating system has given its core to somebody else, and spinning would only take the next core from it.
const SPIN: Duration = Duration::from_micros(20);

/// A barrier for a fixed number of threads that can be aborted. Waiting threads spin, then park.
pub struct Barrier {
    threads: usize,
    spin: Duration,
    /// Threads that have arrived in this round.
    arrived: AtomicUsize,
    /// Counts rounds; a change lets the waiting go on.
    round: AtomicU32,
    /// Threads that are parked, or about to be. While there are none, the last to arrive makes no system call.
    parked: AtomicUsize,
    aborted: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
    #[cfg(feature = "race-check")]
    ledger: super::ledger::Ledger,
}

/// Another thread failed; this one is to return at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another thread of the job failed")]
pub struct Aborted;

impl Barrier {
    pub(super) fn new(threads: usize, spin: bool) -> Self {
        Self {
            threads,
            spin: if spin { SPIN } else { Duration::ZERO },
            arrived: AtomicUsize::new(0),
            round: AtomicU32::new(0),
            parked: AtomicUsize::new(0),
            aborted: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            #[cfg(feature = "race-check")]
            ledger: Default::default(),
        }
    }

    /// Number of threads that meet here.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Waits until every thread of the job is here. What threads wrote before is seen by all afterwards.
    pub fn wait(&self) -> Result<(), Aborted> {
        if self.aborted.load(Ordering::Acquire) {
            return Err(Aborted);
        }
        if self.threads == 1 {
            return Ok(());
        }
        // No thread can be a round ahead: it would need this one's arrival.
        let round = self.round.load(Ordering::Acquire);
        // AcqRel chains the arrivals, so that the last one has seen every other's writes and publishes them.
        #[cfg(feature = "race-check")]
        self.ledger.hand_in();
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            #[cfg(feature = "race-check")]
            self.ledger.close();
            self.arrived.store(0, Ordering::Relaxed);
            // SeqCst here and where a thread parks: of the two stores (the round, the count of the parked) one comes
            // first, so either that thread sees the new round or this one sees that it has to wake it.
            self.round.store(round.wrapping_add(1), Ordering::SeqCst);
            if self.parked.load(Ordering::SeqCst) > 0 {
                // Who is about to park holds the lock until it waits.
                drop(super::lock(&self.lock));
                self.wake.notify_all();
            }
            return Ok(());
        }
        if super::spin(self.spin, || self.round.load(Ordering::Acquire) != round) {
            return Ok(());
        }
        let mut guard = super::lock(&self.lock);
        self.parked.fetch_add(1, Ordering::SeqCst);
        let mut result = Ok(());
        while self.round.load(Ordering::SeqCst) == round {
            if self.aborted.load(Ordering::Acquire) {
                result = Err(Aborted);
                break;
            }
            guard = self.wake.wait(guard).unwrap_or_else(|e| e.into_inner());
        }
        self.parked.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Lets every thread that waits here, now or later in this job, return [`Aborted`].
    pub fn abort(&self) {
        let _guard = super::lock(&self.lock);
        self.aborted.store(true, Ordering::Release);
        self.wake.notify_all();
    }

    /// Makes the barrier fit for the next job. No thread may be inside one.
    pub(super) fn reset(&self) {
        #[cfg(feature = "race-check")]
        self.ledger.reset();
        self.arrived.store(0, Ordering::Relaxed);
        self.aborted.store(false, Ordering::Release);
    }
}
