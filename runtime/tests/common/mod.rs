//! A small decoder built by hand: random weights, a plan of every step kind, and its meaning in f64.
//!
//! ```text
//! x = table[token]
//! a layer:   qkv = x Wqkv (+ bias on q);  append k, v;  x += attention(q) Wo;  x += (silu(x Wg + bias) * (x Wu)) Wd
//! logits = x Whead
//! ```
//!
//! There are no norms and no rotations: what the nests of a real model add is tested with them. Every layer's output is
//! kept small by small weights instead.

#![allow(dead_code, reason = "each test file uses its part")]

mod plan;
mod reference;

use bessemer_format::file::EngineFile;
use bessemer_format::manifest::{CodeEntry, Hash, Manifest, Report, Source};
use bessemer_format::rows::Rows;
use bessemer_format::variant::{DeviceCode, Variant, VariantPlan};
use bessemer_format::write::{Sections, write_engine};
use bessemer_format::{Compute, Offset, PanelLayout, QuantScheme};
use bessemer_runtime::{Batch, Engine, KvElem, Sequence, Want, Worker, WorkerOptions};
use std::io::{Cursor, Write};
use std::path::Path;

#[allow(unused_imports, reason = "each test file uses its part")]
pub use reference::Reference;

/// Largest number of rows of the model's largest program: longer inputs are cut.
pub const CHUNK_ROWS: usize = 24;
/// Tokens of an attention chunk: the context has several.
pub const ATTENTION_CHUNK: u32 = 64;

/// Sizes and precision of a model.
#[derive(Clone, Debug)]
pub struct Shape {
    pub vocab: usize,
    pub context: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ff: usize,
    pub scheme: QuantScheme,
    pub compute: Compute,
    /// What attention computes in.
    pub attention: Compute,
    /// What the odd layers' attention does beside.
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    /// Whether every layer has a sink a head.
    pub sinks: bool,
}

impl Default for Shape {
    /// Sizes that are no multiple of anything convenient.
    fn default() -> Self {
        Shape {
            vocab: 53,
            context: 210,
            layers: 2,
            heads: 6,
            kv_heads: 2,
            head_dim: 10,
            ff: 44,
            scheme: QuantScheme::F32,
            compute: Compute::F32,
            attention: Compute::F32,
            window: None,
            softcap: None,
            sinks: false,
        }
    }
}

impl Shape {
    pub fn int8() -> Self {
        Shape { scheme: QuantScheme::Q8_0, compute: Compute::Int8 { group: 32 }, ..Shape::default() }
    }

    /// A window that ends in the middle of a block, caps that bite, and sinks.
    pub fn windowed() -> Self {
        Shape { window: Some(45), softcap: Some(0.7), sinks: true, ..Shape::default() }
    }

    pub fn bf16() -> Self {
        Shape {
            scheme: QuantScheme::BF16,
            compute: Compute::Bf16,
            attention: Compute::Bf16,
            ..Shape::default()
        }
    }

    pub fn hidden(&self) -> usize {
        self.heads * self.head_dim
    }

    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// One linear: its rows and perhaps a bias.
pub struct Matrix {
    pub rows: Rows,
    pub bias: Option<Vec<f32>>,
}

pub struct Layer {
    pub q: Matrix,
    pub k: Matrix,
    pub v: Matrix,
    pub o: Matrix,
    pub gate: Matrix,
    pub up: Matrix,
    pub down: Matrix,
    pub sinks: Option<Vec<f32>>,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
}

pub struct Model {
    pub shape: Shape,
    pub table: Rows,
    pub head: Matrix,
    pub layers: Vec<Layer>,
}

/// A small random generator (splitmix64): the same numbers on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in -1..1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn tokens(&mut self, count: usize, vocab: usize) -> Vec<u32> {
        (0..count).map(|_| (self.next() % vocab as u64) as u32).collect()
    }
}

impl Model {
    pub fn random(shape: Shape, seed: u64) -> Self {
        let mut random = Random(seed);
        let (h, kv, ff) = (shape.hidden(), shape.kv_width(), shape.ff);
        let scheme = shape.scheme;
        let table = random_rows(&mut random, scheme, shape.vocab, h, 1.0);
        let mut matrix = |n: usize, k: usize, bias: bool| Matrix {
            rows: random_rows(&mut random, scheme, n, k, 1.5 / (k as f32).sqrt()),
            bias: bias.then(|| (0..n).map(|_| random.float()).collect()),
        };
        let head = matrix(shape.vocab, h, false);
        let layers = (0..shape.layers).map(|l| Layer {
            sinks: shape.sinks.then(|| (0..shape.heads).map(|h| h as f32 - l as f32).collect()),
            window: shape.window.filter(|_| l % 2 == 1),
            softcap: shape.softcap.filter(|_| l % 2 == 0),
            q: matrix(h, h, true),
            k: matrix(kv, h, false),
            v: matrix(kv, h, false),
            o: matrix(h, h, false),
            gate: matrix(ff, h, true),
            up: matrix(ff, h, false),
            down: matrix(h, ff, false),
        });
        Model { layers: layers.collect(), table, head, shape }
    }

    /// The engine file.
    pub fn engine_bytes(&self) -> Vec<u8> {
        self.engine_with_code(&[], vec![])
    }

    /// The engine file with machine code.
    pub fn engine_with_code(&self, code: &[u8], entries: Vec<CodeEntry>) -> Vec<u8> {
        let (plan, weights) = plan::build(self);
        let manifest = Manifest {
            producer: bessemer_format::PRODUCER.into(),
            source: Source { hash: Hash::of(b"test"), format: "test".into(), architecture: "test".into() },
            options: vec![],
            variants: vec![Variant { target: "cpu".into(), device: DeviceCode::Cpu { features: vec![] } }],
            tensors: vec![],
            weight_hashes: vec![],
            code: entries,
        };
        let report = Report::default();
        let plans = [VariantPlan { plan, gpu: None }];
        let sections = Sections {
            manifest,
            plans: &plans,
            tokenizer: &[],
            code,
            device: &[],
            report: &report,
            debug: "",
        };
        let mut out = Cursor::new(Vec::new());
        write_engine(&mut out, Path::new("test.engine"), sections, &mut |id, sink: &mut dyn Write| {
            sink.write_all(&weights[id as usize])
        })
        .expect("the engine is written");
        out.into_inner()
    }

    pub fn engine(&self) -> Engine {
        Engine::from_bytes(&self.engine_bytes()).expect("the engine opens")
    }

    /// The decoded file, for tests that change it.
    pub fn file(&self) -> EngineFile {
        let bytes = bessemer_format::file::Bytes::copy_of(&self.engine_bytes());
        EngineFile::from_bytes(bytes).expect("the file decodes")
    }
}

/// Random rows that `scheme` holds exactly.
fn random_rows(random: &mut Random, scheme: QuantScheme, n: usize, k: usize, amplitude: f32) -> Rows {
    if scheme.elem.is_float() {
        let values = (0..n * k).map(|_| random.float() * amplitude).collect();
        return Rows::floats(scheme.elem, n, k, values);
    }
    let groups = n * k.div_ceil(scheme.group(k));
    let levels = (1i64 << scheme.elem.bits()) as f32;
    let lowest = if matches!(scheme.elem, bessemer_format::Elem::S(_)) { -levels / 2.0 } else { 0.0 };
    let mut scale = |size: f32| {
        let ty = scheme.scale.expect("an integer scheme has scales").inner.ty;
        (0..groups).map(|_| ty.round((1.5 + random.float()) * size)).collect::<Vec<_>>()
    };
    let scales = scale(amplitude / levels);
    let offsets = if matches!(scheme.offset, Offset::Float(_)) { scale(-amplitude / 2.0) } else { vec![] };
    let codes = (0..n * k).map(|_| (random.next() % (1 << scheme.elem.bits())) as f32 + lowest).collect();
    Rows { codes, scales, offsets, ..Rows::empty(scheme, n, k) }
}

pub fn pack(rows: &Rows) -> Vec<u8> {
    let layout = PanelLayout::new(&rows.scheme, rows.rows, rows.k).unwrap();
    let mut out = vec![0; layout.total_bytes()];
    bessemer_kernels::pack::pack_panels(&layout, rows, &mut out).unwrap();
    out
}

pub fn worker(engine: &Engine, threads: usize, kv: KvElem) -> Worker {
    let options = WorkerOptions::default().threads(threads).kv(kv).max_tokens(1024);
    Worker::new(engine, options).expect("a worker")
}

/// One forward of one sequence, all logits.
pub fn forward(worker: &mut Worker, sequence: &mut Sequence, tokens: &[u32]) -> Vec<f32> {
    let mut batch = Batch::new();
    batch.push(sequence, tokens, Want::All);
    worker.forward(&mut batch).expect("a forward pass").all().as_slice().to_vec()
}

/// `‖a - b‖ / ‖b‖`.
pub fn relative_error(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let diff: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| b * b).sum();
    assert!(norm > 0.0);
    (diff / norm).sqrt()
}
