//! The random numbers behind sampling.

/// PCG32 (M. E. O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for Random
/// Number Generation", 2014; variant XSH RR 64/32). Small, fast, and the same everywhere, so that a seed names a text
/// for good; not for secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pcg32 {
    state: u64,
    increment: u64,
}

const MULTIPLIER: u64 = 6364136223846793005;
/// The stream of the reference implementation's static initialiser.
const STREAM: u64 = 1442695040888963407 >> 1;

impl Pcg32 {
    /// The sequence that belongs to a seed.
    pub fn new(seed: u64) -> Self {
        Self::with_stream(seed, STREAM)
    }

    fn with_stream(seed: u64, stream: u64) -> Self {
        let mut random = Pcg32 { state: 0, increment: stream << 1 | 1 };
        random.next_u32();
        random.state = random.state.wrapping_add(seed);
        random.next_u32();
        random
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        let old = self.state;
        self.state = old.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
        let xorshifted = (((old >> 18) ^ old) >> 27) as u32;
        xorshifted.rotate_right((old >> 59) as u32)
    }

    /// A number in [0, 1) with 53 random bits.
    pub fn next_f64(&mut self) -> f64 {
        let bits = u64::from(self.next_u32()) << 32 | u64::from(self.next_u32());
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_numbers_of_the_reference_demo() {
        // What the reference implementation's pcg32-demo prints for seed 42, stream 54.
        let mut random = Pcg32::with_stream(42, 54);
        let first: Vec<u32> = (0..6).map(|_| random.next_u32()).collect();
        assert_eq!(first, [0xa15c02b7, 0x7b47f409, 0xba1d3330, 0x83d2f293, 0xbfa4784b, 0xcbed606e]);
    }

    #[test]
    fn floats_stay_below_one() {
        let mut random = Pcg32::new(1);
        let mean =
            (0..10_000).map(|_| random.next_f64()).inspect(|x| assert!((0.0..1.0).contains(x))).sum::<f64>();
        assert!((mean / 10_000.0 - 0.5).abs() < 0.02);
    }
}
