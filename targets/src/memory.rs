//! The memory planner: arena offsets for buffers with lifetimes.
//!
//! Time is counted in *epochs*: the stretches between barriers. Within an epoch threads are not ordered, so two buffers that are
//! touched in the same epoch never share bytes.

use std::ops::RangeInclusive;

/// A buffer to be placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Bytes.
    pub bytes: u64,
    /// Epochs from the first write to the last read.
    pub live: RangeInclusive<u32>,
}

/// Alignment of every buffer: a cache line.
pub const ALIGN: u64 = 64;

/// Offsets for all requests, and the bytes of the arena. Larger buffers are placed first, each at the lowest offset where no buffer
/// that lives at the same time lies: simple, deterministic, and close to the lower bound for a transformer's few shapes.
pub fn place(requests: &[Request]) -> (Vec<u64>, u64) {
    let mut by_size: Vec<usize> = (0..requests.len()).collect();
    by_size.sort_by_key(|i| (std::cmp::Reverse(requests[*i].bytes), *i));
    let mut offsets = vec![0u64; requests.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for i in by_size {
        let r = &requests[i];
        let mut taken: Vec<(u64, u64)> = placed
            .iter()
            .filter(|j| overlap(&requests[**j].live, &r.live))
            .map(|j| (offsets[*j], offsets[*j] + requests[*j].bytes))
            .collect();
        taken.sort_unstable();
        let mut at = 0u64;
        for (start, end) in taken {
            if at + r.bytes <= start {
                break;
            }
            at = at.max(end.next_multiple_of(ALIGN));
        }
        offsets[i] = at;
        total = total.max(at + r.bytes);
        placed.push(i);
    }
    (offsets, total.next_multiple_of(ALIGN))
}

fn overlap(a: &RangeInclusive<u32>, b: &RangeInclusive<u32>) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_time_share_nothing_and_others_share_all() {
        let r = |bytes, live| Request { bytes, live };
        let (at, total) = place(&[r(100, 0..=1), r(100, 1..=2), r(100, 2..=3), r(64, 3..=3)]);
        assert_eq!(at, [0, 128, 0, 128]);
        assert_eq!(total, 256);
    }

    #[test]
    fn random_requests_never_collide() {
        let mut seed = 1u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for _ in 0..200 {
            let requests: Vec<Request> = (0..30)
                .map(|_| {
                    let start = next(20) as u32;
                    Request { bytes: next(1000) + 1, live: start..=start + next(5) as u32 }
                })
                .collect();
            let (at, total) = place(&requests);
            for i in 0..30 {
                assert!(at[i] % ALIGN == 0 && at[i] + requests[i].bytes <= total);
                for j in 0..i {
                    let apart = at[i] + requests[i].bytes <= at[j] || at[j] + requests[j].bytes <= at[i];
                    assert!(apart || !overlap(&requests[i].live, &requests[j].live));
                }
            }
        }
    }
}
