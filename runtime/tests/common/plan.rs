//! The plan of the test model.

use super::{ATTENTION_CHUNK, CHUNK_ROWS, Matrix, Model, Shape, pack};
use bessemer_format::act::{Bf16Layout, Int8Layout};
use bessemer_format::nest::{Base, Extent, Index, Int, Nest, Reg, Stmt, Sym, View, ViewElem, ViewId};
use bessemer_format::plan::*;
use bessemer_format::rows::Rows;
use bessemer_format::{Compute, PanelLayout, QuantScheme, kv};

/// The plan and the bytes of its weights.
pub fn build(model: &Model) -> (Plan, Vec<Vec<u8>>) {
    let s = &model.shape;
    let mut weights = Weights::default();
    let table = weights.matrix(&model.table);
    let head = weights.segment(&model.head);
    let layers: Vec<_> = model
        .layers
        .iter()
        .map(|l| [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down].map(|m| weights.segment(m)))
        .collect();
    let sinks: Vec<_> =
        model.layers.iter().map(|l| l.sinks.as_ref().map(|sinks| weights.vector(sinks))).collect();
    let layer_elems = kv::layer_elems(s.kv_heads, s.head_dim);
    let block_elems = s.layers * layer_elems;
    let mut nests: Vec<_> = (0..s.layers).map(|l| append(s, block_elems, l * layer_elems)).collect();
    nests.push(gather(s));

    let program = |min_rows: usize, max_rows: usize, split: bool| {
        let mut b = Builder { max_rows, ..Builder::default() };
        let tokens = b.input("tokens", Input::Tokens);
        let slots = b.input("slots", Input::Slots);
        let logit_rows = b.input("logit_rows", Input::LogitRows);
        let (h, qkv_width) = (s.hidden(), s.hidden() + 2 * s.kv_width());
        let x = b.arena("x", BufferElem::F32, RowCount::Tokens, h as u64);
        let qkv = b.arena("qkv", BufferElem::F32, RowCount::Tokens, qkv_width as u64);
        let out = b.arena("attention", BufferElem::F32, RowCount::Tokens, h as u64);
        let hidden = b.arena("hidden", BufferElem::F32, RowCount::Tokens, s.ff as u64);
        let wanted = b.arena("wanted", BufferElem::F32, RowCount::Logits, h as u64);
        let logits = b.buffer("logits", BufferElem::F32, RowCount::Logits, s.vocab as u64, Home::Logits);
        let scratch = |b: &mut Builder, k: usize, rows: RowCount| match s.compute {
            Compute::F32 => None,
            Compute::Bf16 => {
                let bytes = Bf16Layout { k }.row_bytes();
                Some(b.arena("halves", BufferElem::Bytes, rows, bytes as u64))
            }
            Compute::Int8 { group } => {
                let layout = PanelLayout::new(&s.scheme, 16, k).unwrap();
                let bytes = Int8Layout::new(&layout, group as usize).unwrap().row_bytes();
                Some(b.arena("codes", BufferElem::Bytes, rows, bytes as u64))
            }
        };
        let from_hidden = scratch(&mut b, h, RowCount::Tokens);
        let from_ff = scratch(&mut b, s.ff, RowCount::Tokens);
        let from_wanted = scratch(&mut b, h, RowCount::Logits);
        // A linear that converts its input begins by rows, as these end.
        b.step("embed", s.compute == Compute::F32, StepKind::Embed { tokens, table, out: x });
        let linear = |input, rows, scratch, segments, epilogue, out| {
            StepKind::Linear(Linear { input, rows, compute: s.compute, scratch, segments, epilogue, out })
        };
        let all = RowCount::Tokens;
        for (l, [q, k, v, o, gate, up, down]) in layers.iter().cloned().enumerate() {
            let at = |segment: &Segment, column: usize| Segment { column: column as u32, ..segment.clone() };
            let segments = vec![at(&q, 0), at(&k, h), at(&v, h + s.kv_width())];
            b.step("qkv", true, linear(x, all, from_hidden, segments, Epilogue::None, qkv));
            let args = vec![Arg::Buffer(qkv), Arg::Buffer(slots), Arg::State(0)];
            b.step("append", true, StepKind::Nest { nest: l as u32, rows: all, args });
            let mut attention = Attention {
                query: qkv,
                query_column: 0,
                state: 0,
                layer_elems: (l * layer_elems) as u64,
                out,
                heads: s.heads as u32,
                kv_heads: s.kv_heads as u32,
                head_dim: s.head_dim as u32,
                compute: s.attention,
                scale: 1.0 / (s.head_dim as f32).sqrt(),
                causal: true,
                window: model.layers[l].window.map(|window| window as u32),
                softcap: model.layers[l].softcap,
                latent: None,
                sinks: sinks[l],
                bias: None,
                chunk: ATTENTION_CHUNK,
                scratch: None,
            };
            if split {
                let bytes = attention.scratch_row_bytes(s.context as u32);
                attention.scratch = Some(b.arena("partials", BufferElem::Bytes, all, bytes));
            }
            b.step("attention", true, StepKind::Attention(attention));
            b.step("o", true, linear(out, all, from_hidden, vec![o], Epilogue::Residual(x), x));
            b.step(
                "up",
                true,
                linear(x, all, from_hidden, vec![gate, up], Epilogue::Gated(Gate::Silu), hidden),
            );
            b.step("down", true, linear(hidden, all, from_ff, vec![down], Epilogue::Residual(x), x));
        }
        let args = vec![Arg::Buffer(x), Arg::Buffer(logit_rows), Arg::Buffer(wanted)];
        b.step("wanted", true, StepKind::Nest { nest: s.layers as u32, rows: RowCount::Logits, args });
        let head = vec![head.clone()];
        b.step("head", true, linear(wanted, RowCount::Logits, from_wanted, head, Epilogue::None, logits));
        Program {
            regime: Regime { min_rows: min_rows as u32, max_rows: max_rows as u32 },
            arena_bytes: b.bytes,
            buffers: b.buffers,
            steps: b.steps,
            cuts: Vec::new(),
        }
    };
    let programs = vec![program(1, 1, true), program(2, 5, true), program(6, CHUNK_ROWS, false)];
    let plan = Plan {
        model: ModelFacts {
            vocab: s.vocab as u32,
            context: s.context as u32,
            hidden: s.hidden() as u32,
            layers: s.layers as u32,
            output: Output::Logits,
            whole: false,
        },
        weights: weights.slices,
        states: vec![StateDecl::Blocks { elems: block_elems as u64 }],
        nests,
        programs,
    };
    (plan, weights.bytes)
}

#[derive(Default)]
struct Weights {
    slices: Vec<WeightSlice>,
    bytes: Vec<Vec<u8>>,
}

impl Weights {
    fn push(
        &mut self,
        n: usize,
        k: usize,
        scheme: QuantScheme,
        layout: WeightLayout,
        bytes: Vec<u8>,
    ) -> WeightId {
        let offset = self.slices.last().map_or(0, |w| (w.offset + w.len).next_multiple_of(64));
        let len = bytes.len() as u64;
        self.slices.push(WeightSlice { offset, len, n: n as u32, k: k as u32, scheme, layout });
        self.bytes.push(bytes);
        self.slices.len() as WeightId - 1
    }

    fn matrix(&mut self, rows: &Rows) -> WeightId {
        self.push(rows.rows, rows.k, rows.scheme, WeightLayout::Panel, pack(rows))
    }

    fn segment(&mut self, matrix: &Matrix) -> Segment {
        let weight = self.matrix(&matrix.rows);
        let bias = matrix.bias.as_ref().map(|bias| self.vector(bias));
        Segment { weight, bias, column: 0 }
    }

    fn vector(&mut self, numbers: &[f32]) -> WeightId {
        let bytes = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.push(1, numbers.len(), QuantScheme::F32, WeightLayout::Dense, bytes)
    }
}

#[derive(Default)]
struct Builder {
    max_rows: usize,
    bytes: u64,
    buffers: Vec<Buffer>,
    steps: Vec<Step>,
}

impl Builder {
    fn buffer(
        &mut self,
        name: &str,
        elem: BufferElem,
        rows: RowCount,
        row_elems: u64,
        home: Home,
    ) -> BufferId {
        self.buffers.push(Buffer { name: name.into(), elem, rows, row_elems, home });
        self.buffers.len() as BufferId - 1
    }

    fn input(&mut self, name: &str, input: Input) -> BufferId {
        let rows = if input == Input::LogitRows { RowCount::Logits } else { RowCount::Tokens };
        self.buffer(name, BufferElem::I32, rows, 1, Home::Input(input))
    }

    fn arena(&mut self, name: &str, elem: BufferElem, rows: RowCount, row_elems: u64) -> BufferId {
        let offset = self.bytes;
        self.bytes = (offset + row_elems * elem.bytes() * self.max_rows as u64).next_multiple_of(64);
        self.buffer(name, elem, rows, row_elems, Home::Arena { offset })
    }

    fn step(&mut self, source: &str, barrier: bool, kind: StepKind) {
        self.steps.push(Step { kind, place: 0, barrier, source: source.into() });
    }
}

fn view(name: &str, elem: ViewElem, store: bool) -> View {
    View { name: name.into(), elem, store }
}

/// Each row's key and value go to the row's slot.
fn append(s: &Shape, block_elems: usize, layer: usize) -> Nest {
    let (d, kv_heads) = (s.head_dim as i64, s.kv_heads as i64);
    let width = (s.hidden() + 2 * s.kv_width()) as i64;
    let head_elems = kv::head_elems(s.head_dim) as i64;
    let slot = Base::Int(Int(0));
    let row =
        |column: usize| (Index::axis(0) * width + Index::axis(1) * d + Index::axis(2)).plus(column as i64);
    let head = Index::div(slot, kv::TOKENS as u32) * block_elems as i64
        + (Index::axis(1) * head_elems).plus(layer as i64);
    let key = head.clone()
        + Index::div_rem(slot, kv::COLUMNS as u32, 2) * (kv::COLUMNS as i64 * d)
        + Index::div(Base::Axis(2), 2) * (2 * kv::COLUMNS as i64)
        + Index::rem(slot, kv::COLUMNS as u32) * 2
        + Index::rem(Base::Axis(2), 2);
    let value = head.plus(kv_heads * head_elems)
        + Index::div_rem(slot, 2, kv::TOKENS as u32 / 2) * (2 * d)
        + Index::axis(2) * 2
        + Index::rem(slot, 2);
    Nest {
        name: "append".into(),
        views: vec![
            view("qkv", ViewElem::F32, false),
            view("slots", ViewElem::I32, false),
            view("cache", ViewElem::Kv, true),
        ],
        body: vec![
            Stmt::LoadInt {
                dst: Int(0),
                view: ViewId(1),
                index: Index::axis(0),
                limit: Index::constant(i64::from(i32::MAX)),
            },
            Stmt::For { extent: Extent::constant(kv_heads) },
            Stmt::For { extent: Extent::constant(d) },
            Stmt::Load { dst: Reg(0), view: ViewId(0), index: row(s.hidden()) },
            Stmt::Store { view: ViewId(2), index: key, src: Reg(0) },
            Stmt::Load { dst: Reg(1), view: ViewId(0), index: row(s.hidden() + s.kv_width()) },
            Stmt::Store { view: ViewId(2), index: value, src: Reg(1) },
            Stmt::End,
            Stmt::End,
        ],
    }
}

/// The rows whose logits are wanted.
fn gather(s: &Shape) -> Nest {
    let h = s.hidden() as i64;
    Nest {
        name: "wanted".into(),
        views: vec![
            view("x", ViewElem::F32, false),
            view("logit_rows", ViewElem::I32, false),
            view("out", ViewElem::F32, true),
        ],
        body: vec![
            Stmt::LoadInt {
                dst: Int(0),
                view: ViewId(1),
                index: Index::axis(0),
                limit: Index::sym(Sym::Rows),
            },
            Stmt::For { extent: Extent::constant(h) },
            Stmt::Load { dst: Reg(0), view: ViewId(0), index: Index::int(Int(0)) * h + Index::axis(1) },
            Stmt::Store { view: ViewId(2), index: Index::axis(0) * h + Index::axis(1), src: Reg(0) },
            Stmt::End,
        ],
    }
}
