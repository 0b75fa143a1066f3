//! How long a token waits for weights of a scheme: what a budget weighs beside their bytes.
//!
//! All threads multiply one row with a matrix of as many weights as the model has, by the kernels of this host, as decoding does: a model
//! that fits a cache is read from there, again and again.

use crate::error::CompileError;
use bessemer_format::{PanelLayout, QuantScheme};
use bessemer_ir::{Graph, Op, TargetInfo};
use bessemer_kernels::KernelSet;
use bessemer_kernels::linear::Product;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// What is timed: nothing else may use it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadKey {
    /// The CPU's model, and how many threads ran.
    pub machine: String,
    /// The compiler's version ([`bessemer_format::PRODUCER`]).
    pub producer: String,
    /// The target.
    pub target: String,
    /// Weights of the model, or [`MOST`] if it has more.
    pub weights: u64,
    /// Their scheme.
    pub scheme: QuantScheme,
}

/// Weights that are read at most: more than any cache holds.
pub const MOST: u64 = 1 << 27;
/// Elements of a row.
const K: usize = 1024;
/// Rounds that count. One before them does not.
const ROUNDS: usize = 7;
/// A byte that makes numbers of usual size of every element and scale.
const PATTERN: u8 = 0x31;

/// Nanoseconds in which weights of each scheme are read.
#[derive(Clone, Debug, Default)]
pub struct Reads(pub(super) BTreeMap<QuantScheme, u64>);

impl Reads {
    /// How long a token waits for a weight of `scheme`, in bytes that memory delivers meanwhile: those of the scheme whose bytes came
    /// fastest, as [`TargetInfo::read_cost`] counts them. `None` if it was not timed.
    pub fn cost(&self, scheme: &QuantScheme, k: u64) -> Option<f64> {
        let bytes = |scheme: &QuantScheme, k: usize| scheme.bits_per_weight(k) / 8.0;
        let wait = |ns: u64, scheme: &QuantScheme| ns.max(1) as f64 / bytes(scheme, K);
        let fastest = self.0.iter().map(|(scheme, ns)| wait(*ns, scheme)).reduce(f64::min)?;
        let found = wait(*self.0.get(scheme)?, scheme);
        Some(bytes(scheme, k as usize) * found / fastest)
    }
}

/// Of a canonical graph: how many weights its matrices have, as keys count them, and what their schemes are.
pub fn weights(graph: &Graph) -> (u64, BTreeSet<QuantScheme>) {
    let (mut count, mut schemes) = (0u64, BTreeSet::new());
    for node in graph.order() {
        let Op::Const { recipe } = graph.op(node) else { continue };
        if recipe.shape.len() == 2 {
            let (n, k) = recipe.matrix();
            count = count.saturating_add((n as u64).saturating_mul(k as u64));
            schemes.insert(recipe.scheme());
        }
    }
    (count.min(MOST), schemes)
}

/// Nanoseconds in which `threads` threads multiply one row with so many weights, the median of some rounds.
pub(super) fn nanoseconds(
    target: &dyn TargetInfo,
    scheme: &QuantScheme,
    weights: u64,
    threads: usize,
) -> Result<u64, CompileError> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        given => given,
    };
    let error = |why: String| CompileError::Calibration(format!("{scheme} is not timed: {why}"));
    let n = (weights.min(MOST) as usize).div_ceil(K).next_multiple_of(16 * threads);
    let layout = PanelLayout::new(scheme, n, K).map_err(error)?;
    let compute = target.default_compute(scheme, K as u64);
    let product = Product::new(KernelSet::host(), &layout, compute, &[1.0; K]).map_err(error)?;
    let weight = vec![PATTERN; layout.total_bytes()];
    let barrier = Barrier::new(threads);
    let share = layout.panels() / threads;
    let run = |thread: usize| -> Vec<Duration> {
        let round = |_| {
            barrier.wait();
            let started = Instant::now();
            product.run(&weight, thread * share..(thread + 1) * share);
            barrier.wait();
            started.elapsed()
        };
        (0..=ROUNDS).map(round).collect()
    };
    let mut times = std::thread::scope(|scope| {
        for thread in 1..threads {
            scope.spawn(move || run(thread));
        }
        run(0)
    });
    times.remove(0);
    times.sort();
    Ok(times[times.len() / 2].as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bessemer_targets::cpu::CpuTarget;

    #[test]
    fn every_kind_of_product_is_timed() {
        for scheme in ["f32", "bf16", "e4m3:f32x0", "s8:u8x32*f16x0", "u5:u8x32*f16x0+u8*f16", "u4:f16x32-8"]
        {
            let scheme = scheme.parse().unwrap();
            for threads in [1, 3] {
                let found = nanoseconds(&CpuTarget::default(), &scheme, 1 << 16, threads).unwrap();
                assert!(found > 0, "{scheme}");
            }
        }
    }

    #[test]
    fn costs_are_bytes_at_the_rate_of_the_fastest() {
        let [four, six]: [QuantScheme; 2] = ["u4:f16x32-8", "u6:f16x32-32"].map(|s| s.parse().unwrap());
        // 4.5 and 6.5 bits a weight: the first waits for its bytes alone, the second for twice as many.
        let reads = Reads(BTreeMap::from([(four, 4500), (six, 13000)]));
        let near = |found: Option<f64>, expected: f64| assert!((found.unwrap() - expected).abs() < 1e-9);
        near(reads.cost(&four, 288), 4.5 / 8.0);
        near(reads.cost(&six, 288), 13.0 / 8.0);
        assert_eq!(reads.cost(&QuantScheme::F32, 288), None);
    }
}
