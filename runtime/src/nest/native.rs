//! The interpreter and generated code give the same bits: on the nests that lowering makes, on odd lengths, and on random nests.
//!
//! Which NaN an operation gives is not part of a nest's meaning; NaNs are compared as one class.

use super::*;
use crate::code::Code;
use crate::pool::SharedBytes;
use bessemer_format::manifest::{CodeIsa, Hash};
use bessemer_format::nest::{Base, Extent, Index, Int, Op, ReduceKind, Sym, ViewElem};
use bessemer_targets::codegen;
use bessemer_targets::lower::builder::NestBuilder;

/// The host's instruction set, if code is generated for it.
fn host_isa() -> Option<CodeIsa> {
    let isa = [CodeIsa::X86_64V3, CodeIsa::Aarch64].into_iter().find(|i| crate::host::runs(*i));
    if isa.is_none() {
        bessemer_skip::skip(bessemer_skip::HOST, "no code is generated for it");
    }
    isa
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
    /// Numbers of many magnitudes, now and then a special one.
    fn float(&mut self) -> f32 {
        match self.below(40) {
            0 => f32::NAN,
            1 => f32::INFINITY,
            2 => f32::NEG_INFINITY,
            3 => -0.0,
            4 => 1e-40,
            _ => (self.below(2_000_001) as f32 / 1e6 - 1.0) * 10f32.powi(self.below(5) as i32 - 2),
        }
    }
}

/// Bits of f32s or halves with all NaNs made one.
fn classes(bytes: &[u8], elem: ViewElem, kv: KvElem) -> Vec<u32> {
    let is_nan = |bits: u16| match kv {
        KvElem::F16 => half::f16::from_bits(bits).is_nan(),
        _ => half::bf16::from_bits(bits).is_nan(),
    };
    let wide = elem == ViewElem::F32 || (elem == ViewElem::Kv && kv == KvElem::F32);
    if wide {
        let bits = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        bits.map(|b| if f32::from_bits(b).is_nan() { u32::MAX } else { b }).collect()
    } else {
        let bits = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        bits.map(|b| if is_nan(b) { u32::MAX } else { u32::from(b) }).collect()
    }
}

/// Runs both ways over `rows`; `memory[i]` is view i. Compares results, errors, and every stored byte.
fn compare(nest: &Nest, kv: KvElem, rows: usize, memory: &[Vec<f32>], ints: &[Vec<i32>], syms: [i64; 4]) {
    let Some(isa) = host_isa() else { return };
    let (section, entries) = codegen::section(std::slice::from_ref(nest), &[isa]).unwrap();
    assert!(!entries.is_empty(), "{}: no code was generated", nest.name);
    let code = Code::load(&section, Hash::of(&section), &entries).unwrap();
    let code = code.nest(0, kv).unwrap();
    let interpreter = Interpreter::new(nest, kv).unwrap();
    let run = |go: &dyn Fn(&[ViewBinding<'_>]) -> bool| -> (bool, Vec<Vec<f32>>) {
        let mut memory = memory.to_vec();
        let ints = ints.to_vec();
        let ok = {
            let mut floats = memory.iter_mut();
            let mut integers = ints.iter();
            let views: Vec<ViewBinding<'_>> = nest
                .views
                .iter()
                .map(|v| {
                    let bytes = match v.elem {
                        ViewElem::I32 => SharedBytes::read_only(integers.next().unwrap()),
                        _ => SharedBytes::read_write(floats.next().unwrap()),
                    };
                    ViewBinding { bytes, panel: None }
                })
                .collect();
            go(&views)
        };
        (ok, memory)
    };
    let (ok, interpreted) = run(&|views| interpreter.run(0..rows, views, &syms).is_ok());
    let (native_ok, native) = run(&|views| code.run(0..rows, views, &syms).is_ok());
    assert_eq!(ok, native_ok, "{}: one way failed", nest.name);
    if !ok {
        return;
    }
    let floats = nest.views.iter().filter(|v| v.elem != ViewElem::I32);
    for (view, (a, b)) in floats.zip(interpreted.iter().zip(&native)) {
        let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let (a, b) = (classes(&bytes(a), view.elem, kv), classes(&bytes(b), view.elem, kv));
        let at = a.iter().zip(&b).position(|(x, y)| x != y);
        assert!(at.is_none(), "{} kv {kv:?}: view {} differs at {at:?}", nest.name, view.name);
    }
}

fn floats(r: &mut Random, n: usize) -> Vec<f32> {
    (0..n).map(|_| r.float()).collect()
}

/// `out[r][j] = exp(x - max x) * w[j]`, and the sum of it.
fn softmax(n: i64) -> Nest {
    let mut b = NestBuilder::new("softmax");
    let x = b.input("x", ViewElem::F32);
    let w = b.input("w", ViewElem::Bf16);
    let out = b.output("out", ViewElem::F32);
    let at = |b: &NestBuilder, j| b.row() * n + Index::axis(j);
    let max = b.reduce(ReduceKind::Max, Extent::constant(n), |b, j| b.load(x, at(b, j)));
    let sum = b.reduce(ReduceKind::Sum, Extent::constant(n), |b, j| {
        let v = b.load(x, at(b, j));
        let v = b.sub(v, max);
        b.op(Op::Exp(v))
    });
    b.for_each(Extent::constant(n), |b, j| {
        let v = b.load(x, at(b, j));
        let v = b.sub(v, max);
        let v = b.op(Op::Exp(v));
        let v = b.div(v, sum);
        let w = b.load(w, Index::axis(j));
        let v = b.mul(v, w);
        b.store(out, at(b, j), v);
    });
    b.finish()
}

#[test]
fn odd_lengths() {
    let mut r = Random(1);
    for n in [1, 3, 15, 16, 17, 31, 48, 576] {
        let memory = [floats(&mut r, 3 * n), floats(&mut r, n), vec![0.0; 3 * n]];
        compare(&softmax(n as i64), KvElem::Bf16, 3, &memory, &[], [3, 0, 0, 0]);
    }
}

#[test]
fn sines_and_scattered_halves() {
    let mut r = Random(2);
    for kv in [KvElem::Bf16, KvElem::F16, KvElem::F32] {
        for n in [2i64, 6, 64] {
            let mut b = NestBuilder::new("scatter");
            let x = b.input("x", ViewElem::F32);
            let slots = b.input("slots", ViewElem::I32);
            let cache = b.output("cache", ViewElem::Kv);
            let slot = b.load_int(slots, b.row(), Index::constant(64));
            let position = b.op(Op::FromInt(slot));
            b.for_each(Extent::constant(n), |b, j| {
                let v = b.load(x, b.row() * n + Index::axis(j));
                let angle = b.mul(v, position);
                let (s, c) = (b.op(Op::Sin(angle)), b.op(Op::Cos(angle)));
                let v = b.add(s, c);
                let at = Index::div_rem(Base::Int(slot), 16, 2) * (16 * n)
                    + Index::rem(Base::Int(slot), 16) * 2
                    + Index::div(Base::Axis(j), 2) * 32
                    + Index::rem(Base::Axis(j), 2)
                    + Index::div(Base::Int(slot), 32) * (32 * n);
                b.store(cache, at, v);
            });
            let nest = b.finish();
            let memory = [floats(&mut r, 4 * n as usize), vec![0.0; 64 * n as usize]];
            compare(&nest, kv, 4, &memory, &[vec![3, 33, 16, 63]], [4, 0, 0, 0]);
        }
    }
}

/// Neighbours are rotated and stored side by side: next to each other, and as pairs that lie apart.
#[test]
fn rotated_neighbours() {
    let mut r = Random(4);
    for kv in [KvElem::Bf16, KvElem::F16, KvElem::F32] {
        for n in [2i64, 15, 16, 32, 39] {
            for apart in [2, 32] {
                let mut b = NestBuilder::new("rotate");
                let (x, angles) = (b.input("x", ViewElem::F32), b.input("angles", ViewElem::F32));
                let (out, cache) = (b.output("out", ViewElem::F32), b.output("cache", ViewElem::Kv));
                for view in [out, cache] {
                    b.for_each(Extent::constant(n), |b, j| {
                        let [even, odd] = [0, 1].map(|i| {
                            b.load(x, b.row() * (2 * n) + Index::of(Base::Axis(j)) * 2 + Index::constant(i))
                        });
                        let [cos, sin] = [0, n].map(|i| b.load(angles, Index::axis(j).plus(i)));
                        let (c, s) = (b.mul(even, cos), b.mul(odd, sin));
                        let (d, t) = (b.mul(odd, cos), b.mul(even, sin));
                        let (first, second) = (b.sub(c, s), b.add(d, t));
                        let at = b.row() * (apart * n) + Index::of(Base::Axis(j)) * apart;
                        b.store(view, at.clone(), first);
                        b.store(view, at.plus(1), second);
                    });
                }
                let nest = b.finish();
                let stored = vec![0.0; (3 * apart * n) as usize];
                let memory =
                    [floats(&mut r, 6 * n as usize), floats(&mut r, 2 * n as usize), stored.clone(), stored];
                compare(&nest, kv, 3, &memory, &[], [3, 0, 0, 0]);
            }
        }
    }
}

#[test]
fn integers_beyond_their_limit_stop_both() {
    let gather = |limit: Index| {
        let mut b = NestBuilder::new("gather");
        let ids = b.input("ids", ViewElem::I32);
        let x = b.input("x", ViewElem::F32);
        let out = b.output("out", ViewElem::F32);
        let id = b.load_int(ids, b.row(), limit);
        let v = b.load(x, Index::int(id));
        b.store(out, b.row(), v);
        b.finish()
    };
    let rows = Index::sym(Sym::Rows);
    for (limit, ids, fits) in [
        (Index::constant(3), vec![0, 2], true),
        (Index::constant(3), vec![0, 3], false),
        (Index::constant(3), vec![-1, 0], false),
        (rows.clone(), vec![1, 0], true),
        (rows.clone(), vec![2, 0], false),
        // A negative limit admits nothing.
        (rows.plus(-5), vec![0, 0], false),
    ] {
        let nest = gather(limit);
        let memory = [vec![1.0, 2.0, 3.0], vec![0.0; 2]];
        compare(&nest, KvElem::F32, 2, &memory, std::slice::from_ref(&ids), [2, 0, 0, 0]);
        let (mut x, mut out) = (memory[0].clone(), memory[1].clone());
        let views = [
            SharedBytes::read_only(&ids),
            SharedBytes::read_write(&mut x),
            SharedBytes::read_write(&mut out),
        ]
        .map(|bytes| ViewBinding { bytes, panel: None });
        let result = Interpreter::new(&nest, KvElem::F32).unwrap().run(0..2, &views, &[2, 0, 0, 0]);
        assert_eq!(result.is_ok(), fits, "{ids:?}");
    }
}

/// A random nest over `x[rows][n]` and `w[n]`: a reduction, then an element-wise loop, each a chain of random operations.
fn random_nest(r: &mut Random, n: i64) -> Nest {
    let mut b = NestBuilder::new("random");
    let elems = [ViewElem::F32, ViewElem::Bf16, ViewElem::F16, ViewElem::Kv];
    let x = b.input("x", ViewElem::F32);
    let w = b.input("w", elems[r.below(4) as usize]);
    let ids = b.input("ids", ViewElem::I32);
    let stored = if r.below(2) == 0 { ViewElem::F32 } else { ViewElem::Kv };
    let out = b.output("out", stored);
    let id: Int = b.load_int(ids, b.row(), Index::constant(n));
    let position = b.op(Op::FromInt(id));
    let chain = |b: &mut NestBuilder, r: &mut Random, j: u8, outer: &[bessemer_format::nest::Reg]| {
        let index = match r.below(4) {
            0 => Index::axis(j),
            1 => Index::of(Base::Axis(j)) * -1 + Index::constant(n - 1),
            2 => Index::int(id),
            _ => Index::div(Base::Axis(j), 2),
        };
        let mut values = vec![b.load(x, b.row() * n + Index::axis(j)), b.load(w, index)];
        values.extend(outer);
        for _ in 0..r.below(6) + 1 {
            let p = values[r.below(values.len() as u64) as usize];
            let q = values[r.below(values.len() as u64) as usize];
            let op = match r.below(12) {
                0 => Op::Neg(p),
                1 => Op::Abs(p),
                2 => Op::Sqrt(p),
                3 => Op::Exp(p),
                4 => Op::Add(p, q),
                5 => Op::Sub(p, q),
                6 => Op::Mul(p, q),
                7 => Op::Div(p, q),
                8 => Op::Max(p, q),
                9 => Op::Min(p, q),
                10 => Op::Const(1.5),
                _ => Op::Mul(q, q),
            };
            values.push(b.op(op));
        }
        values[values.len() - 1]
    };
    let kind = if r.below(2) == 0 { ReduceKind::Sum } else { ReduceKind::Max };
    let total = b.reduce(kind, Extent::constant(n), |b, j| chain(b, r, j, &[position]));
    b.for_each(Extent::min(Index::constant(n), Index::int(id).plus(7)), |b, j| {
        let value = chain(b, r, j, &[total, position]);
        b.store(out, b.row() * n + Index::axis(j), value);
    });
    b.finish()
}

/// Numbers of every binade beside the borders of rounding, in vectors and one by one (the rest of 40 behind two sixteens).
#[test]
fn halves_of_every_binade_round_alike() {
    const MANTISSAS: [u32; 10] = [0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x7f_f000, 0x7f_ffff];
    let sizes = (0..256u32).flat_map(|exponent| MANTISSAS.map(|mantissa| exponent << 23 | mantissa));
    let mut numbers: Vec<f32> = sizes.flat_map(|bits| [bits, bits | 1 << 31]).map(f32::from_bits).collect();
    let mut b = NestBuilder::new("copy");
    let x = b.input("x", ViewElem::F32);
    let cache = b.output("cache", ViewElem::Kv);
    b.for_each(Extent::constant(40), |b, j| {
        let v = b.load(x, b.row() * 40 + Index::axis(j));
        b.store(cache, b.row() * 40 + Index::axis(j), v);
    });
    let nest = b.finish();
    let rows = numbers.len() / 40;
    for kv in [KvElem::F16, KvElem::Bf16] {
        for _ in 0..2 {
            numbers.rotate_left(20);
            let memory = [numbers.clone(), vec![0.0; numbers.len()]];
            compare(&nest, kv, rows, &memory, &[], [rows as i64, 0, 0, 0]);
        }
    }
}

#[test]
fn random_nests() {
    let mut r = Random(3);
    for _ in 0..400 {
        let n = [1i64, 2, 7, 16, 33, 64, 100][r.below(7) as usize];
        let nest = random_nest(&mut r, n);
        let rows = 1 + r.below(3) as usize;
        let memory =
            [floats(&mut r, rows * n as usize), floats(&mut r, n as usize), vec![0.0; rows * n as usize]];
        let ids = (0..rows).map(|_| r.below(n as u64) as i32).collect();
        let kv = [KvElem::F32, KvElem::F16, KvElem::Bf16][r.below(3) as usize];
        compare(&nest, kv, rows, &memory, &[ids], [rows as i64, 0, 0, 0]);
    }
}
