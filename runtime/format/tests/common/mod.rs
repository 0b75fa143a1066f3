//! A small engine that is valid, and ways to damage it.

#![allow(dead_code, reason = "each test file uses a part of it")]

use bessemer_format::act::Int8Layout;
use bessemer_format::file::{Bytes, EngineFile};
use bessemer_format::gpu::{GpuArg, GpuCode, GpuKernel, Groups, Launch};
use bessemer_format::header::{Frame, HEADER_BYTES, SectionKind};
use bessemer_format::manifest::{CodeEntry, CodeIsa, Hash, KvElem, Manifest, Report, Source, TensorEntry};
use bessemer_format::nest::{
    Base, Extent, Index, Int, Nest, Op, ReduceKind, Reg, Stmt, Sym, View, ViewElem, ViewId,
};
use bessemer_format::plan::*;
use bessemer_format::variant::{CodeSlice, CudaBinary, DeviceCode, KernelUsage, Variant, VariantPlan};
use bessemer_format::write::{Sections, write_engine};
use bessemer_format::{Compute, FormatError, PanelLayout, QuantScheme, kv};
use std::path::Path;

pub const VOCAB: u32 = 48;
pub const HIDDEN: u32 = 32;
pub const HEAD_DIM: u32 = 16;
pub const CONTEXT: u32 = 64;
pub const MAX_ROWS: u32 = 4;

/// Positions of steps in the small plan.
pub mod at {
    pub const EMBED: usize = 0;
    pub const NORM: usize = 1;
    pub const QKV: usize = 2;
    pub const APPEND: usize = 3;
    pub const ATTENTION: usize = 4;
    pub const OUT: usize = 5;
    pub const GATE_UP: usize = 6;
    pub const SELECT: usize = 7;
    pub const HEAD: usize = 8;
}

/// Ids of weights in the small plan.
pub mod weight {
    pub const TABLE: u32 = 0;
    pub const NORM: u32 = 1;
    pub const QKV: u32 = 2;
    pub const BIAS: u32 = 3;
    pub const OUT: u32 = 4;
    pub const GATE: u32 = 5;
    pub const UP: u32 = 6;
}

/// Ids of buffers in the small plan.
pub mod buffer {
    pub const TOKENS: u32 = 0;
    pub const SLOTS: u32 = 1;
    pub const LOGIT_ROWS: u32 = 2;
    pub const X: u32 = 3;
    pub const NORMED: u32 = 4;
    pub const QKV: u32 = 5;
    pub const ATTENDED: u32 = 6;
    pub const PARTIAL: u32 = 7;
    pub const HIDDEN: u32 = 8;
    pub const LAST: u32 = 9;
    pub const LOGITS: u32 = 10;
    pub const INT8: u32 = 11;
    pub const STARTS: u32 = 12;
    pub const TABLE: u32 = 13;
}

fn view(name: &str, elem: ViewElem, store: bool) -> View {
    View { name: name.into(), elem, store }
}

fn row(width: u32, axis: u8) -> Index {
    Index::axis(0) * i64::from(width) + Index::axis(axis)
}

fn loop_of(n: u32) -> Extent {
    Extent::constant(i64::from(n))
}

/// Nests of the small plan: a norm, an append to the cache, a selection of rows.
pub fn nests() -> Vec<Nest> {
    let f32_in = |name| view(name, ViewElem::F32, false);
    let norm = Nest {
        name: "norm".into(),
        views: vec![f32_in("x"), f32_in("w"), view("out", ViewElem::F32, true)],
        body: vec![
            Stmt::Reduce { dst: Reg(2), kind: ReduceKind::Sum, value: Reg(1), extent: loop_of(HIDDEN) },
            Stmt::Load { dst: Reg(0), view: ViewId(0), index: row(HIDDEN, 1) },
            Stmt::Let { dst: Reg(1), op: Op::Mul(Reg(0), Reg(0)) },
            Stmt::End,
            Stmt::For { extent: loop_of(HIDDEN) },
            Stmt::Load { dst: Reg(3), view: ViewId(0), index: row(HIDDEN, 1) },
            Stmt::Load { dst: Reg(4), view: ViewId(1), index: Index::axis(1) },
            Stmt::Let { dst: Reg(5), op: Op::Mul(Reg(3), Reg(4)) },
            Stmt::Let { dst: Reg(6), op: Op::Div(Reg(5), Reg(2)) },
            Stmt::Store { view: ViewId(2), index: row(HIDDEN, 1), src: Reg(6) },
            Stmt::End,
        ],
    };
    let tokens = kv::TOKENS as u32;
    let slot = Int(0);
    let value = Index::div(Base::Int(slot), tokens) * state_elems() as i64
        + Index::axis(1) * 2
        + Index::div_rem(Base::Int(slot), 2, tokens / 2) * i64::from(2 * HEAD_DIM)
        + Index::rem(Base::Int(slot), 2);
    let append = Nest {
        name: "append".into(),
        views: vec![f32_in("v"), view("slots", ViewElem::I32, false), view("cache", ViewElem::Kv, true)],
        body: vec![
            Stmt::LoadInt {
                dst: slot,
                view: ViewId(1),
                index: Index::axis(0),
                limit: Index::constant(i64::from(i32::MAX)),
            },
            Stmt::For { extent: loop_of(HEAD_DIM) },
            Stmt::Load { dst: Reg(0), view: ViewId(0), index: row(4 * HEAD_DIM, 1).plus(48) },
            Stmt::Store {
                view: ViewId(2),
                index: value.plus(kv::head_elems(HEAD_DIM as usize) as i64),
                src: Reg(0),
            },
            Stmt::End,
        ],
    };
    let select = Nest {
        name: "select".into(),
        views: vec![f32_in("x"), view("rows", ViewElem::I32, false), view("out", ViewElem::F32, true)],
        body: vec![
            Stmt::LoadInt {
                dst: Int(0),
                view: ViewId(1),
                index: Index::axis(0),
                limit: Index::sym(Sym::Rows),
            },
            Stmt::For { extent: loop_of(HIDDEN) },
            Stmt::Load {
                dst: Reg(0),
                view: ViewId(0),
                index: Index::int(Int(0)) * i64::from(HIDDEN) + Index::axis(1),
            },
            Stmt::Store { view: ViewId(2), index: row(HIDDEN, 1), src: Reg(0) },
            Stmt::End,
        ],
    };
    vec![norm, append, select]
}

/// Elements of a block of the small plan.
pub fn state_elems() -> u64 {
    kv::layer_elems(1, HEAD_DIM as usize) as u64
}

fn weights() -> Vec<WeightSlice> {
    let panel = |n, k, scheme| (n, k, scheme, WeightLayout::Panel);
    let shapes = [
        panel(VOCAB, HIDDEN, QuantScheme::Q8_0),
        (1, HIDDEN, QuantScheme::F32, WeightLayout::Dense),
        panel(4 * HEAD_DIM, HIDDEN, QuantScheme::Q4_0),
        (1, 4 * HEAD_DIM, QuantScheme::F32, WeightLayout::Dense),
        panel(HIDDEN, 2 * HEAD_DIM, QuantScheme::F32),
        panel(HIDDEN, HIDDEN, QuantScheme::BF16),
        panel(HIDDEN, HIDDEN, QuantScheme::F16),
    ];
    let mut offset = 0;
    let slice = |(n, k, scheme, layout): (u32, u32, QuantScheme, WeightLayout)| {
        let len = match layout {
            WeightLayout::Panel => {
                PanelLayout::new(&scheme, n as usize, k as usize).unwrap().total_bytes() as u64
            }
            WeightLayout::Dense => u64::from(n * k * 4),
        };
        let slice = WeightSlice { offset, len, n, k, scheme, layout };
        offset = (offset + len).next_multiple_of(64);
        slice
    };
    shapes.into_iter().map(slice).collect()
}

/// A plan that uses every kind of step.
pub fn plan() -> Plan {
    let weights = weights();
    let attention = Attention {
        query: buffer::QKV,
        query_column: 0,
        state: 0,
        layer_elems: 0,
        out: buffer::ATTENDED,
        heads: 2,
        kv_heads: 1,
        head_dim: HEAD_DIM,
        compute: Compute::F32,
        scale: 0.25,
        causal: true,
        window: None,
        softcap: None,
        latent: None,
        sinks: None,
        bias: None,
        chunk: 32,
        scratch: Some(buffer::PARTIAL),
    };
    let q = &weights[weight::QKV as usize];
    let act = Int8Layout::new(&PanelLayout::new(&q.scheme, q.n as usize, q.k as usize).unwrap(), 32).unwrap();
    let int8_bytes = act.row_bytes() as u64;
    let partial_bytes = attention.scratch_row_bytes(CONTEXT);
    let mut arena = 0u64;
    let (token_rows, logit_rows) = (RowCount::Tokens, RowCount::Logits);
    let mut buffers = Vec::new();
    let mut add = |name: &str, elem: BufferElem, rows, row_elems: u64, home: Option<Home>| {
        let home = home.unwrap_or_else(|| {
            let offset = arena;
            arena += (row_elems * elem.bytes() * u64::from(MAX_ROWS)).next_multiple_of(64);
            Home::Arena { offset }
        });
        buffers.push(Buffer { name: name.into(), elem, rows, row_elems, home });
    };
    let (f32s, i32s, bytes) = (BufferElem::F32, BufferElem::I32, BufferElem::Bytes);
    let hidden = u64::from(HIDDEN);
    add("tokens", i32s, token_rows, 1, Some(Home::Input(Input::Tokens)));
    add("slots", i32s, token_rows, 1, Some(Home::Input(Input::Slots)));
    add("logit_rows", i32s, logit_rows, 1, Some(Home::Input(Input::LogitRows)));
    add("x", f32s, token_rows, hidden, None);
    add("normed", f32s, token_rows, hidden, None);
    add("qkv", f32s, token_rows, u64::from(4 * HEAD_DIM), None);
    add("attended", f32s, token_rows, hidden, None);
    add("partial", bytes, token_rows, partial_bytes, None);
    add("hidden", f32s, token_rows, hidden, None);
    add("last", f32s, logit_rows, hidden, None);
    add("logits", f32s, logit_rows, u64::from(VOCAB), Some(Home::Logits));
    add("int8", bytes, token_rows, int8_bytes, None);
    add("table_starts", i32s, token_rows, 1, Some(Home::Input(Input::TableStarts)));
    add("block_table", i32s, token_rows, 1, Some(Home::Input(Input::BlockTable)));
    let linear = |input, rows, segments: &[(u32, Option<u32>, u32)], epilogue, out| Linear {
        input,
        rows,
        compute: Compute::F32,
        scratch: None,
        segments: segments.iter().map(|&(weight, bias, column)| Segment { weight, bias, column }).collect(),
        epilogue,
        out,
    };
    let mut qkv = linear(
        buffer::NORMED,
        token_rows,
        &[(weight::QKV, Some(weight::BIAS), 0)],
        Epilogue::None,
        buffer::QKV,
    );
    (qkv.compute, qkv.scratch) = (Compute::Int8 { group: 32 }, Some(buffer::INT8));
    let residual = Epilogue::Residual(buffer::X);
    let out = linear(buffer::ATTENDED, token_rows, &[(weight::OUT, None, 0)], residual, buffer::X);
    let gate_up = [(weight::GATE, None, 0), (weight::UP, None, 0)];
    let gate_up = linear(buffer::X, token_rows, &gate_up, Epilogue::Gated(Gate::Silu), buffer::HIDDEN);
    let head = linear(buffer::LAST, logit_rows, &[(weight::TABLE, None, 0)], Epilogue::None, buffer::LOGITS);
    let nest = |nest, rows, args: Vec<Arg>| StepKind::Nest { nest, rows, args };
    let (b, w) = (Arg::Buffer, Arg::Weight);
    let kinds = [
        (StepKind::Embed { tokens: buffer::TOKENS, table: weight::TABLE, out: buffer::X }, false, "embed"),
        (nest(0, token_rows, vec![b(buffer::X), w(weight::NORM), b(buffer::NORMED)]), true, "norm"),
        (StepKind::Linear(qkv), true, "qkv"),
        (nest(1, token_rows, vec![b(buffer::QKV), b(buffer::SLOTS), Arg::State(0)]), true, "append"),
        (StepKind::Attention(attention), true, "attention"),
        (StepKind::Linear(out), true, "out"),
        (StepKind::Linear(gate_up), true, "gate_up"),
        (
            nest(2, logit_rows, vec![b(buffer::HIDDEN), b(buffer::LOGIT_ROWS), b(buffer::LAST)]),
            true,
            "select",
        ),
        (StepKind::Linear(head), true, "head"),
    ];
    let steps = kinds
        .into_iter()
        .map(|(kind, barrier, source)| Step { kind, place: 0, barrier, source: source.into() })
        .collect();
    let cuts = vec![Cut { step: 1, live: vec![buffer::X] }];
    let regime = Regime { min_rows: 1, max_rows: MAX_ROWS };
    let program = Program { regime, arena_bytes: arena, buffers, steps, cuts };
    Plan {
        model: ModelFacts {
            vocab: VOCAB,
            context: CONTEXT,
            hidden: HIDDEN,
            layers: 1,
            output: Output::Logits,
            whole: false,
        },
        weights,
        states: vec![StateDecl::Blocks { elems: state_elems() }],
        nests: nests(),
        programs: vec![program],
    }
}

/// Length of the small engine's CODE section.
pub const CODE_BYTES: u64 = 128;

/// What the small engine has for GPUs: a cubin, PTX and text, as far as a reader looks into them.
pub fn device() -> Vec<u8> {
    let parts: [&[u8]; 3] = [b"\x7fELF of kernels", b".version 9.0", b"kernel void"];
    let mut out = Vec::new();
    for part in parts {
        out.resize(out.len().next_multiple_of(64), 0);
        out.extend(part);
    }
    out
}

/// Variants of the small engine: the CPU, and two GPUs that launch the same kernels.
pub fn variants() -> Vec<Variant> {
    let code = |offset, len| CodeSlice { offset, len };
    let usage = vec![KernelUsage { registers: 40, stack: 0, spilled: 0 }; 2];
    let binaries = vec![
        CudaBinary { arch: "sm_80".parse().unwrap(), code: code(0, 15), usage },
        CudaBinary { arch: "compute_80".parse().unwrap(), code: code(64, 12), usage: vec![] },
    ];
    vec![
        Variant { target: "cpu".into(), device: DeviceCode::Cpu { features: vec![] } },
        Variant { target: "cuda".into(), device: DeviceCode::Cuda { driver: 13000, binaries } },
        Variant { target: "metal".into(), device: DeviceCode::Metal { family: 7, text: code(128, 11) } },
    ]
}

/// Launches for the small plan: one a step, of two kernels.
pub fn gpu() -> GpuCode {
    let kernel = |name: &str, params| GpuKernel { name: name.into(), threads: 128, params };
    let launch = |step: usize| {
        let grid = [Groups::of_rows(RowCount::Tokens, 2), Groups::fixed(3), Groups::fixed(1)];
        let args = match step {
            at::ATTENTION => {
                vec![GpuArg::State(0), GpuArg::Input(Input::BlockTable), GpuArg::Pass, GpuArg::Fault]
            }
            _ => vec![GpuArg::Buffer(buffer::X), GpuArg::Weight(weight::TABLE)],
        };
        Launch { step: step as u32, kernel: u32::from(step == at::ATTENTION), grid, args }
    };
    GpuCode {
        kv: KvElem::Bf16,
        kernels: vec![kernel("linear_0", 2), kernel("attention_1", 4)],
        programs: vec![(0..=at::HEAD).map(launch).collect()],
    }
}

/// The plans of the small engine's variants.
pub fn plans() -> Vec<VariantPlan> {
    let variant = |gpu| VariantPlan { plan: plan(), gpu };
    vec![variant(None), variant(Some(gpu())), variant(Some(gpu()))]
}

/// A manifest for the small plan.
pub fn manifest() -> Manifest {
    let tensor = |id: u32| TensorEntry {
        name: format!("tensor.{id}"),
        shape: vec![1, 2],
        stored: "F32".into(),
        scheme: QuantScheme::F32,
        weights: vec![id],
        folded: None,
    };
    Manifest {
        producer: "bessemer test".into(),
        source: Source { hash: Hash([7; 32]), format: "gguf".into(), architecture: "llama".into() },
        options: vec![("precision".into(), "source".into())],
        variants: variants(),
        tensors: (0..7).map(tensor).collect(),
        weight_hashes: vec![Hash([0; 32]); 7],
        code: vec![
            CodeEntry { isa: CodeIsa::X86_64V3, nest: 0, kv: None, offset: 0, len: 10 },
            CodeEntry { isa: CodeIsa::X86_64V3, nest: 1, kv: Some(KvElem::F32), offset: 64, len: 64 },
        ],
    }
}

/// The bytes of the small engine.
pub fn engine() -> Vec<u8> {
    let plans = plans();
    let mut out = std::io::Cursor::new(Vec::new());
    let sections = Sections {
        manifest: manifest(),
        plans: &plans,
        tokenizer: b"a tokeniser",
        code: &[0xc3; CODE_BYTES as usize],
        device: &device(),
        report: &Report::default(),
        debug: "text",
    };
    write_engine(&mut out, Path::new("memory"), sections, &mut |id, sink| {
        sink.write_all(&vec![id as u8 + 1; plans[0].plan.weights[id as usize].len as usize])
    })
    .unwrap();
    out.into_inner()
}

/// Opens bytes as a file would be.
pub fn open(bytes: &[u8]) -> Result<EngineFile, FormatError> {
    EngineFile::from_bytes(Bytes::copy_of(bytes))
}

/// Where a section lies in valid bytes.
pub fn section(bytes: &[u8], kind: SectionKind) -> std::ops::Range<usize> {
    let frame = Frame::parse(bytes).unwrap();
    let entry = frame.entry(kind).unwrap();
    entry.offset as usize..(entry.offset + entry.len) as usize
}

/// Makes the hashes of a changed file right again, so that what lies behind them is tested. The table of contents must be intact.
pub fn reseal(bytes: &mut [u8]) {
    let count = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    for i in 0..count {
        let at = HEADER_BYTES * (i + 1);
        let number =
            |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let (offset, len) = (number(bytes, at + 8), number(bytes, at + 16));
        if bytes[at] != SectionKind::Weights as u8 {
            let hash = Hash::of(&bytes[offset..offset + len]);
            bytes[at + 32..at + 64].copy_from_slice(&hash.0);
        }
    }
    reseal_header(bytes);
}

/// Makes the hash of header and table of contents right again.
pub fn reseal_header(bytes: &mut [u8]) {
    let count = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let mut covered = bytes[..32].to_vec();
    covered.extend(&bytes[HEADER_BYTES..HEADER_BYTES * (count + 1)]);
    bytes[32..64].copy_from_slice(&Hash::of(&covered).0);
}

/// Random numbers: the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}
