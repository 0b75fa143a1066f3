//! Speed of the linear kernels of every instruction set that this host runs, on one thread:
//! `cargo run --release -p bessemer-kernels --example linear_bench [FILTER]`.
//!
//! GB/s counts packed weight bytes once a pass; GOPS counts two operations a multiply-add. A matrix smaller than a
//! cache is read from that cache after the first pass.

use bessemer_format::act::Bf16Layout;
use bessemer_format::panel::COLUMNS;
use bessemer_format::{Elem, PanelLayout, ScaleType};
use bessemer_kernels::linear::{Lane, RowsF32};
use bessemer_kernels::{Isa, KernelSet, LinearBf16, LinearF32};
use std::cell::LazyCell;
use std::hint::black_box;
use std::time::Instant;

const SHAPES: [(usize, usize); 8] = [
    (576, 576),
    (1536, 576),
    (576, 1536),
    (49152, 576),
    (8192, 2048),
    (2048, 8192),
    (4096, 4096),
    (131072, 2048),
];
const SCHEMES: [&str; 16] = [
    "f32",
    "bf16",
    "f16",
    "s8:f16x32",
    "s8:f16x0",
    "u4:f16x32-8",
    "u4:f16x32+f16",
    "u2:f16x32-2",
    "u3:f16x32-4",
    "u5:f16x32-16",
    "u6:f16x32-32",
    "e4m3:f16x0",
    "e5m2:f16x0",
    "e2m1:e8m0x32",
    "e2m1:e4m3x16*f32x0",
    "iq4:f16x32",
];

fn main() {
    let filter: Vec<String> = std::env::args().skip(1).collect();
    println!(
        "{:<9} {:<14} {:<8} {:>11} {:>5} {:>8} {:>8}",
        "isa", "scheme", "compute", "n x k", "rows", "GB/s", "GOPS"
    );
    for scheme in SCHEMES {
        for (n, k) in SHAPES {
            let layout = PanelLayout::new(&scheme.parse().expect("a scheme"), n, k).expect("a shape");
            let weight = LazyCell::new(|| random_weight(&layout));
            for &isa in Isa::ALL {
                let Some(set) = KernelSet::for_isa(isa) else { continue };
                for rows in [1, 8, 64, 512] {
                    // Large products by slow kernels tell nothing new.
                    if rows == 512 && n * k > 1 << 25 || isa == Isa::Portable && rows * n * k > 1 << 27 {
                        continue;
                    }
                    for compute in ["f32", "bf16", "int8x32"] {
                        let line = format!(
                            "{:<9} {scheme:<14} {compute:<8} {:>11} {rows:>5}",
                            isa.name(),
                            format!("{n}x{k}")
                        );
                        if filter.iter().all(|f| line.contains(f.as_str())) {
                            let Some(seconds) = time(set, &layout, &weight, rows, compute) else { continue };
                            let gb = weight.len() as f64 / seconds / 1e9;
                            let gops = 2.0 * (n * k * rows) as f64 / seconds / 1e9;
                            println!("{line} {gb:>8.1} {gops:>8.1}");
                        }
                    }
                }
            }
        }
    }
}

/// Median seconds of one product, or `None` where the scheme does not compute so.
fn time(set: &KernelSet, layout: &PanelLayout, weight: &[u8], rows: usize, compute: &str) -> Option<f64> {
    let k = layout.k();
    let x: Vec<f32> = noise().take(rows * k).map(|v| v as f32 / u32::MAX as f32 - 0.5).collect();
    let mut out = vec![0.0f32; rows * layout.panels() * COLUMNS];
    let mut store = |panel: usize, first: usize, tile: &mut [Lane]| {
        for (i, lane) in tile.iter().enumerate() {
            let at = (first + i) * layout.panels() * COLUMNS + panel * COLUMNS;
            out[at..][..COLUMNS].copy_from_slice(lane);
        }
    };
    let panels = 0..layout.panels();
    let mut samples = Vec::new();
    let mut measure = |product: &mut dyn FnMut()| {
        let begin = Instant::now();
        while samples.len() < 5 || begin.elapsed().as_millis() < 150 {
            let t = Instant::now();
            product();
            samples.push(t.elapsed().as_secs_f64());
        }
    };
    let by_f32 = |linear: &LinearF32, data: &[f32], store: &mut dyn FnMut(usize, usize, &mut [Lane])| {
        let x = RowsF32 { data, rows, stride: data.len() / rows };
        linear.for_each_tile(black_box(weight), panels.clone(), x, store);
    };
    match compute {
        "int8x32" => {
            let linear = set.linear_int8(layout, 32).ok()?;
            let row_bytes = linear.act().row_bytes();
            let mut q = vec![0u8; rows * row_bytes];
            measure(&mut || {
                for (x, q) in x.chunks(k).zip(q.chunks_mut(row_bytes)) {
                    set.quantise().row(linear.act(), x, q);
                }
                linear.for_each_tile(black_box(weight), panels.clone(), &q, &mut store);
            });
        }
        "bf16" => {
            let (act, round) = (Bf16Layout { k }, set.round_bf16());
            let row_bytes = round.row_bytes(&act);
            let mut bytes = vec![0u8; rows * row_bytes];
            let round_all = |bytes: &mut [u8]| {
                for (x, out) in x.chunks(k).zip(bytes.chunks_mut(row_bytes)) {
                    round.row(&act, x, out);
                }
            };
            match set.linear_bf16(layout) {
                LinearBf16::Native(linear) => measure(&mut || {
                    round_all(&mut bytes);
                    linear.for_each_tile(black_box(weight), panels.clone(), &bytes, &mut store);
                }),
                LinearBf16::Widened(linear) => {
                    // The runtime reads the same memory as bytes and as floats; here they are copied.
                    let mut floats = vec![0f32; bytes.len() / 4];
                    measure(&mut || {
                        round_all(&mut bytes);
                        for (float, bytes) in floats.iter_mut().zip(bytes.as_chunks::<4>().0) {
                            *float = f32::from_le_bytes(*bytes);
                        }
                        by_f32(&linear, &floats, &mut store);
                    });
                }
            }
        }
        _ => {
            let linear = set.linear_f32(layout);
            measure(&mut || by_f32(&linear, &x, &mut store));
        }
    }
    black_box(&out);
    samples.sort_by(f64::total_cmp);
    Some(samples[samples.len() / 2])
}

/// Random codes, and scales, offsets and floats of ordinary size (subnormal products would slow some CPUs down).
fn random_weight(layout: &PanelLayout) -> Vec<u8> {
    let float = match layout.scheme().elem {
        Elem::F32 => Some(ScaleType::F32),
        Elem::F16 => Some(ScaleType::F16),
        Elem::Bf16 => Some(ScaleType::Bf16),
        _ => None,
    };
    if let Some(ty) = float {
        let mut bytes = Vec::with_capacity(layout.total_bytes());
        let values = noise().take(layout.total_bytes() / ty.bytes());
        values.for_each(|v| ty.push(v as f32 / u32::MAX as f32 - 0.5, &mut bytes));
        return bytes;
    }
    let mut bytes: Vec<u8> = noise().take(layout.total_bytes()).map(|v| (v >> 7) as u8).collect();
    for panel in bytes.chunks_mut(layout.panel_bytes()) {
        for r in 0..layout.runs() {
            let at = layout.run_offset(r) + layout.run_code_bytes(r);
            let mut side = Vec::new();
            for i in 0..(layout.scale_bytes() + layout.offset_bytes()) / 2 {
                ScaleType::F16.push(0.01 + i as f32 * 1e-4, &mut side);
            }
            panel[at..at + side.len()].copy_from_slice(&side);
        }
    }
    bytes
}

fn noise() -> impl Iterator<Item = u32> {
    let mut state = 0x1234_5678u32;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    })
}
