//! Proof by observation of the rule of [`SharedBytes`](super::SharedBytes): what each thread touched between two
//! barriers, compared when all have arrived. Only with the feature `race-check`, which tests run with: it finds every
//! overlap that a partition allows, whether or not threads happened to meet there.

use std::cell::RefCell;
use std::sync::Mutex;

/// A range of addresses that one thread touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    start: usize,
    end: usize,
    write: bool,
    /// Number of the thread, in the order of arrival.
    thread: usize,
}

thread_local! {
    static CLAIMS: RefCell<Vec<Claim>> = const { RefCell::new(Vec::new()) };
}

/// What the threads touched between two barriers.
#[derive(Default)]
pub(super) struct Ledger {
    phase: Mutex<Phase>,
}

#[derive(Default)]
struct Phase {
    claims: Vec<Claim>,
    /// Threads that have handed in theirs.
    threads: usize,
}

/// Forgets what this thread touched outside any job.
pub(super) fn begin() {
    CLAIMS.take();
}

/// Notes that this thread touches some memory.
pub(super) fn note(start: usize, bytes: usize, write: bool) {
    CLAIMS.with_borrow_mut(|claims| {
        if let Some(last) = claims.last_mut()
            && (last.end, last.write) == (start, write)
        {
            last.end += bytes;
        } else if bytes > 0 {
            claims.push(Claim { start, end: start + bytes, write, thread: 0 });
        }
    });
}

impl Ledger {
    /// Takes what the calling thread has touched since it was last asked.
    pub(super) fn hand_in(&self) {
        let mut phase = super::lock(&self.phase);
        let thread = phase.threads;
        phase.threads += 1;
        phase.claims.extend(CLAIMS.take().into_iter().map(|claim| Claim { thread, ..claim }));
    }

    /// Forgets everything.
    pub(super) fn reset(&self) {
        *super::lock(&self.phase) = Phase::default();
    }

    /// Compares the threads and starts a new phase.
    ///
    /// # Panics
    /// If one thread touched what another wrote.
    pub(super) fn close(&self) {
        let mut claims = std::mem::take(&mut *super::lock(&self.phase)).claims;
        claims.sort_unstable();
        // Claims that reach beyond the start of the one at hand.
        let mut open: Vec<Claim> = Vec::new();
        for claim in claims {
            open.retain(|o| o.end > claim.start);
            let race = open.iter().find(|o| o.thread != claim.thread && (o.write || claim.write));
            if let Some(other) = race {
                panic!("two threads share memory between barriers: {other:x?} and {claim:x?}");
            }
            // Of one thread and kind only the furthest end matters.
            match open.iter_mut().find(|o| (o.thread, o.write) == (claim.thread, claim.write)) {
                Some(o) => o.end = o.end.max(claim.end),
                None => open.push(claim),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Pool, SharedMemory};

    fn share(bounds: fn(usize) -> std::ops::Range<usize>, read: bool) -> bool {
        let memory = SharedMemory::reserve(4096).unwrap();
        let result = Pool::new(2, true).unwrap().run(&|thread, barrier| {
            let bytes = memory.bytes();
            bytes.get_mut::<u8>(bounds(thread)).fill(1);
            if !read {
                let _ = barrier.wait();
            }
            bytes.get::<u8>(0..64);
        });
        result.is_ok()
    }

    #[test]
    fn overlap_is_found_and_disjointness_passes() {
        assert!(share(|thread| thread * 32..thread * 32 + 32, false));
        assert!(!share(|thread| thread * 31..thread * 32 + 32, false), "both write byte 31");
        assert!(!share(|thread| thread * 32..thread * 32 + 32, true), "one reads what the other writes");
    }
}
