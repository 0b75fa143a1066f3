//! Seeded damage to files: the same seed gives the same mutations on every machine.

/// A source of mutations.
#[derive(Debug, Clone)]
pub struct Mutator {
    state: u64,
}

/// Values that readers of lengths, counts and offsets get wrong.
const EDGES: [u64; 14] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 40,
    1 << 61,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

impl Mutator {
    /// A mutator with a seed.
    pub fn new(seed: u64) -> Self {
        Mutator { state: seed }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next_u64() % bound as u64) as usize }
    }

    /// A damaged copy of `original` and what was done to it. Half of the positions lie in the first `head` bytes,
    /// where lengths and counts are.
    pub fn mutate(&mut self, original: &[u8], head: usize) -> (Vec<u8>, String) {
        let mut bytes = original.to_vec();
        let mut done = Vec::new();
        for _ in 0..=self.below(3) {
            done.push(self.step(&mut bytes, head));
        }
        (bytes, done.join(", "))
    }

    fn position(&mut self, len: usize, head: usize) -> usize {
        let bound = if self.next_u64().is_multiple_of(2) { head.min(len) } else { len };
        self.below(bound)
    }

    fn step(&mut self, bytes: &mut Vec<u8>, head: usize) -> String {
        let at = self.position(bytes.len(), head);
        let rest = bytes.len() - at;
        match self.below(8) {
            0 => {
                bytes.truncate(at);
                format!("cut at {at}")
            }
            1 if rest > 0 => {
                let bit = self.below(8);
                bytes[at] ^= 1 << bit;
                format!("flip bit {bit} of byte {at}")
            }
            2 if rest > 0 => {
                let value = self.next_u64() as u8;
                bytes[at] = value;
                format!("set byte {at} to {value}")
            }
            // A length or count of 4 or 8 bytes, or one that nearly fits.
            kind @ 3..=4 => {
                let edge = match self.below(EDGES.len() + 2) {
                    i if i < EDGES.len() => EDGES[i],
                    i if i == EDGES.len() => bytes.len() as u64,
                    _ => (bytes.len() as u64).wrapping_add(self.next_u64() % 64).wrapping_sub(32),
                };
                let width = rest.min(if kind == 3 { 4 } else { 8 });
                bytes[at..at + width].copy_from_slice(&edge.to_le_bytes()[..width]);
                format!("write {edge:#x} in {width} bytes at {at}")
            }
            5 => {
                let len = self.below(rest.min(64));
                bytes.drain(at..at + len);
                format!("remove {len} bytes at {at}")
            }
            6 => {
                let len = self.below(rest.min(64));
                let copy = bytes[at..at + len].to_vec();
                let to = self.position(bytes.len(), head);
                bytes.splice(to..to, copy);
                format!("copy {len} bytes from {at} to {to}")
            }
            _ => {
                let len = self.below(64);
                bytes.splice(at..at, std::iter::repeat_n(0, len));
                format!("insert {len} zeros at {at}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence_and_most_copies_differ() {
        let original: Vec<u8> = (0..200).collect();
        let run = |seed| {
            let mut mutator = Mutator::new(seed);
            (0..500).map(|_| mutator.mutate(&original, 40).0).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert!(run(1).iter().filter(|bytes| **bytes != original).count() > 450);
    }

    #[test]
    fn an_empty_file_is_no_obstacle() {
        let mut mutator = Mutator::new(3);
        for _ in 0..500 {
            mutator.mutate(&[], 10);
        }
    }
}
