//! What this machine can do at most: how fast it reads memory, and how fast it multiplies.

use super::clock::median;
use super::tile::Tile;
use bessemer_format::Compute;
use bessemer_kernels::peak::{Arithmetic, multiply_adds, read};
use bessemer_runtime::Engine;
use serde::Serialize;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a sample of each ceiling takes.
const SPAN: Duration = Duration::from_millis(120);
/// A buffer is so many times larger than the last-level cache, within bounds. Caches that keep some lines of a cycle longer than
/// the cycle lasts serve part of a buffer that is only a few times their size: 128 MB beside a cache of 32 MB read at up to 1.8 times
/// the speed of memory.
const TIMES_CACHE: u64 = 16;
const BUFFER: std::ops::RangeInclusive<u64> = (256 << 20)..=(1 << 30);

/// Ceilings of this machine with some threads.
#[derive(Clone, Debug, Serialize)]
pub struct Ceilings {
    /// Bytes a second that all threads together read from memory.
    pub read_bytes_s: f64,
    /// Bytes of the buffer that was read.
    pub buffer_bytes: u64,
    /// Multiply-adds of binary32 a second.
    pub f32_multiply_adds_s: f64,
    /// Multiply-adds of bfloat16 a second.
    pub bf16_multiply_adds_s: f64,
    /// Multiply-adds of bytes a second.
    pub int8_multiply_adds_s: f64,
    /// Multiply-adds a second of the engine's own [`Tile`]: what prompts could reach if nothing but their products took time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tile_multiply_adds_s: Option<f64>,
}

/// Multiply-adds, by what is multiplied.
#[derive(Clone, Copy, Debug, Default)]
pub struct MultiplyAdds {
    f32: u64,
    bf16: u64,
    int8: u64,
}

impl MultiplyAdds {
    /// Counts those of a step.
    pub fn add(&mut self, compute: Compute, count: u64) {
        match compute {
            Compute::F32 => self.f32 += count,
            Compute::Bf16 => self.bf16 += count,
            Compute::Int8 { .. } => self.int8 += count,
        }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.f32 + self.bf16 + self.int8
    }

    /// Seconds that they take at the ceilings.
    pub fn seconds(&self, c: &Ceilings) -> f64 {
        self.f32 as f64 / c.f32_multiply_adds_s
            + self.bf16 as f64 / c.bf16_multiply_adds_s
            + self.int8 as f64 / c.int8_multiply_adds_s
    }
}

impl std::ops::AddAssign for MultiplyAdds {
    fn add_assign(&mut self, other: Self) {
        self.f32 += other.f32;
        self.bf16 += other.bf16;
        self.int8 += other.int8;
    }
}

impl Ceilings {
    /// The median of each over some samples.
    ///
    /// # Panics
    /// Without a sample.
    pub fn median(samples: &[Ceilings]) -> Self {
        let of = |f: fn(&Ceilings) -> f64| median(&samples.iter().map(f).collect::<Vec<_>>());
        Self {
            read_bytes_s: of(|c| c.read_bytes_s),
            buffer_bytes: samples[0].buffer_bytes,
            f32_multiply_adds_s: of(|c| c.f32_multiply_adds_s),
            bf16_multiply_adds_s: of(|c| c.bf16_multiply_adds_s),
            int8_multiply_adds_s: of(|c| c.int8_multiply_adds_s),
            tile_multiply_adds_s: samples[0]
                .tile_multiply_adds_s
                .map(|_| of(|c| c.tile_multiply_adds_s.unwrap_or(0.0))),
        }
    }
}

/// Samples the ceilings. On a machine that is shared they change within seconds, memory's above all, so a sample belongs beside
/// each measurement that is compared with them.
pub struct Sampler {
    threads: usize,
    buffer: Vec<u64>,
    tile: Option<Tile>,
}

impl Sampler {
    /// Of so many threads, for an engine.
    pub fn new(threads: usize, engine: &Engine) -> Self {
        Self { threads, buffer: vec![1; buffer_bytes() as usize / 8], tile: Tile::of(engine) }
    }

    /// Half a second's look, and a little more.
    pub fn sample(&self) -> Ceilings {
        let parts: Vec<&[u64]> = self.buffer.chunks(self.buffer.len().div_ceil(self.threads)).collect();
        let read_bytes_s = rate(parts.len(), &|thread| {
            black_box(read(parts[thread]));
            parts[thread].len() as u64 * 8
        });
        let peak = |arithmetic| rate(self.threads, &|_| multiply_adds(arithmetic, 20_000));
        Ceilings {
            read_bytes_s,
            buffer_bytes: self.buffer.len() as u64 * 8,
            f32_multiply_adds_s: peak(Arithmetic::F32),
            bf16_multiply_adds_s: peak(Arithmetic::Bf16),
            int8_multiply_adds_s: peak(Arithmetic::Int8),
            // One for all threads: they only read it, each from its core's own cache.
            tile_multiply_adds_s: self.tile.as_ref().map(|tile| rate(self.threads, &|_| tile.run())),
        }
    }
}

/// Runs `work` on all threads again and again. Gives what its results add up to in a second.
fn rate(threads: usize, work: &(dyn Fn(usize) -> u64 + Sync)) -> f64 {
    let (barrier, over, total) = (Barrier::new(threads), AtomicBool::new(false), AtomicU64::new(0));
    let started = std::sync::OnceLock::new();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (barrier, over, total, started) = (&barrier, &over, &total, &started);
            scope.spawn(move || {
                barrier.wait();
                let begin = *started.get_or_init(Instant::now);
                let mut done = 0;
                while !over.load(Ordering::Relaxed) {
                    done += work(thread);
                    if begin.elapsed() > SPAN {
                        over.store(true, Ordering::Relaxed);
                    }
                }
                total.fetch_add(done, Ordering::Relaxed);
            });
        }
    });
    let seconds = started.get().map_or(f64::INFINITY, |s: &Instant| s.elapsed().as_secs_f64());
    total.into_inner() as f64 / seconds
}

fn buffer_bytes() -> u64 {
    let wanted = last_level_cache().unwrap_or(64 << 20).saturating_mul(TIMES_CACHE);
    let affordable = super::memory::available().map_or(*BUFFER.end(), |free| free / 4);
    wanted.clamp(*BUFFER.start(), *BUFFER.end()).min(affordable).max(8 << 20)
}

/// Bytes of the last level of cache, where the operating system says.
pub fn last_level_cache() -> Option<u64> {
    let level = |index: u32| {
        let file = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        std::fs::read_to_string(file).ok()?.trim().parse::<crate::size::Size>().ok()
    };
    (0..8).filter_map(level).map(|s| s.0).max()
}

/// What the CPU calls itself, where the operating system says.
pub fn cpu_name() -> String {
    let field = cpu_info();
    let part = || Some(format!("{} part {}", field("CPU implementer")?, field("CPU part")?));
    field("model name").or_else(part).unwrap_or_else(|| std::env::consts::ARCH.into())
}

/// The CPU's model more closely than its name tells, which clouds blur, and the threads that run on it: what a measurement of
/// tactics is valid for.
#[cfg(feature = "compile")]
pub fn machine_name(threads: usize) -> String {
    let field = cpu_info();
    let model = match (field("cpu family"), field("model")) {
        (Some(family), Some(model)) => format!(" (family {family} model {model})"),
        _ => String::new(),
    };
    let threads = if threads == 0 { bessemer_runtime::allowed_cores().len() } else { threads };
    format!("{}{model}, {threads} thread(s)", cpu_name())
}

/// Looks fields up in what Linux tells about the first CPU.
fn cpu_info() -> impl Fn(&str) -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    move |name| {
        let line = info.lines().find(|l| l.split(':').next().is_some_and(|key| key.trim() == name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_string())
    }
}
