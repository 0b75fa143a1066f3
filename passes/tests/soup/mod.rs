//! Random graphs: patterns that passes look for, amid values that others read, operands the other way round, doubled and dead nodes.

use bessemer_format::plan::Input;
use bessemer_format::{Compute, Elem, Offset, QuantScheme, ScaleType};
use bessemer_ir::attr::{BinaryKind, Epilogue, RopeStyle, Segment, UnaryKind};
use bessemer_ir::recipe::Origin;
use bessemer_ir::{Graph, Op, Recipe, Value};

/// Width of every value in the pool.
pub const HIDDEN: u64 = 32;
/// Rows of the embedding.
pub const VOCAB: u64 = 24;

/// A small generator of reproducible choices (xorshift64*).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

struct Soup {
    graph: Graph,
    rng: Rng,
    positions: Value,
    tables: Vec<(u64, Value)>,
    constants: u64,
    states: Vec<Value>,
    pool: Vec<Value>,
}

/// A graph in phase `Imported`: the same for the same seed.
pub fn graph(seed: u64) -> Graph {
    let mut graph = Graph::default();
    let mut input = |input| graph.add(format!("{input:?}"), Op::Input { input }, &[]).unwrap().into();
    let (tokens, positions, rows) = (input(Input::Tokens), input(Input::Positions), input(Input::LogitRows));
    let mut s = Soup {
        graph,
        rng: Rng::new(seed),
        positions,
        tables: Vec::new(),
        constants: 0,
        states: Vec::new(),
        pool: Vec::new(),
    };
    let table = s.constant(&[VOCAB, HIDDEN]);
    let x = s.add("embed", Op::Embed {}, &[tokens, table]);
    s.pool.push(x);
    for _ in 0..3 + s.rng.below(8) {
        let value = match s.rng.below(6) {
            0 | 1 => s.attention(),
            2 | 3 => s.feed_forward(),
            4 => s.scalars(),
            _ => s.norm_of_sum(),
        };
        s.pool.push(value);
    }
    let last = s.pool[s.pool.len() - 1];
    let x = s.add("select_rows", Op::SelectRows {}, &[last, rows]);
    let x = s.norm(x);
    let head = if s.rng.one_in(2) { table } else { s.constant(&[VOCAB, HIDDEN]) };
    let logits = s.linear_over(x, head, VOCAB);
    let outputs: Vec<Value> = [logits].into_iter().chain(s.states.iter().copied()).collect();
    s.add("output", Op::Output {}, &outputs);
    bessemer_ir::verify::verify(&s.graph).unwrap();
    s.graph
}

impl Soup {
    fn add(&mut self, name: &str, op: Op, operands: &[Value]) -> Value {
        self.graph.add(name, op, operands).unwrap().into()
    }

    /// A constant in one of many encodings; now and then one that was there before.
    fn constant(&mut self, shape: &[u64]) -> Value {
        self.constants += u64::from(!self.rng.one_in(8));
        let mut recipe = Recipe {
            origin: Origin::Random { seed: self.constants, scale: 0.4 },
            shape: shape.to_vec(),
            transforms: Vec::new(),
        };
        let schemes = [
            QuantScheme::F32,
            QuantScheme::F16,
            QuantScheme::BF16,
            QuantScheme::Q4_1,
            QuantScheme::Q8_0,
            QuantScheme::grouped(Elem::U(4), 16, ScaleType::F16, Offset::Const(8)),
        ];
        let (count, known) = if shape.len() == 2 { (3, 6) } else { (2, 3) };
        for _ in 0..self.rng.below(count) {
            let scheme = self.rng.pick(&schemes[..known]);
            recipe.transforms.push(bessemer_ir::recipe::Transform::Convert(scheme));
        }
        self.add(&format!("c{}", self.constants), Op::Const { recipe }, &[])
    }

    /// A value of the pool, most often the last.
    fn some(&mut self) -> Value {
        if self.rng.one_in(4) { self.rng.pick(&self.pool) } else { self.pool[self.pool.len() - 1] }
    }

    fn linear(&mut self, x: Value, n: u64) -> Value {
        let k = self.graph.ty(x).const_dim(1).unwrap();
        let w = self.constant(&[n, k]);
        self.linear_over(x, w, n)
    }

    fn linear_over(&mut self, x: Value, w: Value, width: u64) -> Value {
        let bias = self.rng.one_in(3);
        let mut operands = vec![x, w];
        if bias {
            operands.push(self.constant(&[width]));
        }
        let name = self.graph.name(w.node).to_string();
        let segments = vec![Segment { name: name.clone(), width, bias }];
        let value = self.add(
            &name,
            Op::Linear { segments, epilogue: Epilogue::None, compute: Compute::F32.into() },
            &operands,
        );
        self.disturb(value)
    }

    /// Now and then gives a value another reader: one that is dead, or one that reaches the output.
    fn disturb(&mut self, value: Value) -> Value {
        if self.rng.one_in(12) {
            self.add("dead", Op::Unary { kind: UnaryKind::Neg }, &[value]);
        }
        if self.rng.one_in(12) && self.graph.ty(value) == self.graph.ty(self.pool[0]) {
            self.pool.push(value);
        }
        value
    }

    fn norm(&mut self, x: Value) -> Value {
        let n = self.graph.ty(x).const_dim(1).unwrap();
        // Now and then of each half of a row.
        let halves = n.is_multiple_of(2) && self.rng.one_in(6);
        let w = self.constant(&[if halves { n / 2 } else { n }]);
        self.add("norm", Op::RmsNorm { eps: 1e-5 }, &[x, w])
    }

    fn binary(&mut self, kind: BinaryKind, a: Value, b: Value) -> Value {
        let operands = if self.rng.one_in(2) { [a, b] } else { [b, a] };
        let value =
            self.add(if kind == BinaryKind::Add { "add" } else { "mul" }, Op::Binary { kind }, &operands);
        self.disturb(value)
    }

    fn unary(&mut self, kind: UnaryKind, a: Value) -> Value {
        let value = self.add("unary", Op::Unary { kind }, &[a]);
        self.disturb(value)
    }

    /// The norm of a value, its projection, and mostly the residual addition.
    fn block(&mut self, body: impl FnOnce(&mut Self, Value) -> Value) -> Value {
        let x = self.some();
        let h = self.norm(x);
        let out = body(self, h);
        let out = self.linear(out, HIDDEN);
        if self.rng.one_in(8) { out } else { self.binary(BinaryKind::Add, x, out) }
    }

    fn table(&mut self, head_dim: u64) -> Value {
        let known: Vec<Value> = self.tables.iter().filter(|(d, _)| *d == head_dim).map(|(_, t)| *t).collect();
        if !known.is_empty() && !self.rng.one_in(3) {
            return self.rng.pick(&known);
        }
        let factor = if self.rng.one_in(8) { 1.25 } else { 1.0 };
        let inv_freq = (0..head_dim / 2).map(|i| 0.5f32.powi(i as i32)).collect();
        let table = self.add("table", Op::RopeTable { inv_freq, factor }, &[self.positions]);
        self.tables.push((head_dim, table));
        table
    }

    fn attention(&mut self) -> Value {
        let kv_heads = 1 + self.rng.below(2) as u32;
        let heads = kv_heads * (1 + self.rng.below(3) as u32);
        let head_dim = self.rng.pick(&[2u64, 4, 6]);
        let styles = [RopeStyle::Half, RopeStyle::Interleaved];
        let style = self.rng.pick(&styles);
        let layer = self.states.len() as u32;
        self.block(|s, h| {
            let q = s.linear(h, u64::from(heads) * head_dim);
            let other = if s.rng.one_in(8) { s.pool[0] } else { h };
            let k = s.linear(other, u64::from(kv_heads) * head_dim);
            let v = s.linear(h, u64::from(kv_heads) * head_dim);
            // Some tables turn a part of each head.
            let turned = if s.rng.one_in(4) { 2 } else { head_dim };
            let table = s.table(turned);
            let q = s.add("q.rope", Op::Rope { style, heads }, &[q, table]);
            let (k_table, k_style) =
                if s.rng.one_in(8) { (s.table(turned), s.rng.pick(&styles)) } else { (table, style) };
            let k = s.add("k.rope", Op::Rope { style: k_style, heads: kv_heads }, &[k, k_table]);
            let state = Op::State { layer, kv_heads, head_dim: head_dim as u32 };
            let state = s.add("state", state, &[]);
            let state = s.add("append", Op::Append { kv_heads }, &[state, k, v]);
            s.states.push(state);
            let window = s.rng.one_in(4).then(|| 1 + s.rng.below(6) as u32);
            let softcap = s.rng.one_in(4).then_some(0.25);
            let mut operands = vec![q, state];
            if s.rng.one_in(4) {
                operands.push(s.constant(&[u64::from(heads)]));
            }
            s.add(
                "attention",
                Op::Attention { heads, kv_heads, scale: 0.5, window, softcap, compute: Compute::F32.into() },
                &operands,
            )
        })
    }

    fn feed_forward(&mut self) -> Value {
        let ffn = self.rng.pick(&[32u64, 48, 64]);
        self.block(|s, h| {
            let gate = s.linear(h, ffn);
            let up = if s.rng.one_in(10) { gate } else { s.linear(h, ffn) };
            let kinds =
                [UnaryKind::Silu, UnaryKind::Silu, UnaryKind::Gelu, UnaryKind::GeluTanh, UnaryKind::Neg];
            let kind = s.rng.pick(&kinds);
            let gate = s.unary(kind, gate);
            s.binary(BinaryKind::Mul, gate, up)
        })
    }

    /// A handful of scalar functions, normed so that products do not run away.
    fn scalars(&mut self) -> Value {
        let mut values = vec![self.some(), self.some()];
        for _ in 0..2 + self.rng.below(6) {
            let (a, b) = (self.rng.pick(&values), self.rng.pick(&values));
            let value = match self.rng.below(4) {
                0 => self.unary(UnaryKind::Silu, a),
                1 => self.unary(UnaryKind::Neg, a),
                2 if self.rng.one_in(2) => self.unary(UnaryKind::Tanh, a),
                3 if self.rng.one_in(2) => self.unary(UnaryKind::Scale(1.5), a),
                2 => self.binary(BinaryKind::Add, a, b),
                _ => self.binary(BinaryKind::Mul, a, b),
            };
            values.push(value);
        }
        self.norm(values[values.len() - 1])
    }

    fn norm_of_sum(&mut self) -> Value {
        let (a, b) = (self.some(), self.some());
        let sum = self.binary(BinaryKind::Add, a, b);
        let normed = self.norm(sum);
        match self.rng.below(3) {
            0 => normed,
            1 => self.binary(BinaryKind::Add, sum, normed),
            _ => {
                let again = self.norm(sum);
                self.binary(BinaryKind::Add, again, normed)
            }
        }
    }
}
