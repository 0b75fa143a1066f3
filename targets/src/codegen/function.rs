//! One nest as one function.

use super::CodegenError;
use super::arith::Arith;
use super::memory::{contiguous, in_pairs, lanes, resolve, stride, vectorises};
use bessemer_format::manifest::KvElem;
use bessemer_format::nest::{
    Base, Extent, Index, LANES, MAX_AXES, MAX_REGS, Nest, Op, ReduceKind, Stmt, ViewElem,
};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    Block, BlockArg, InstBuilder, MemFlagsData, StackSlot, StackSlotData, StackSlotKind, Type, Value, types,
};
use cranelift_codegen::isa::TargetFrontendConfig;
use cranelift_frontend::FunctionBuilder;
use std::ops::Range;

/// Vectors that a block of sixteen iterations takes.
const PARTS: usize = LANES / 4;

/// A register's value: one number, or sixteen iterations.
#[derive(Clone, Copy)]
enum Reg {
    One(Value),
    Many([Value; PARTS]),
}

/// How statements are being emitted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Scalar,
    /// Sixteen iterations of the loop over this axis.
    Vector(u8),
}

struct Emitter<'f, 'n> {
    b: FunctionBuilder<'f>,
    nest: &'n Nest,
    kv: KvElem,
    ends: Vec<(usize, usize)>,
    views: Vec<Value>,
    syms: [Value; 4],
    axes: [Option<Value>; MAX_AXES],
    ints: [Option<Value>; MAX_REGS],
    regs: [Option<Reg>; MAX_REGS],
    /// Partial results of scalar reductions.
    partial: Option<StackSlot>,
}

/// Memory that no other access traps on; aliasing is left to the generator's caution.
fn plain() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// Bytes of an element.
fn bytes_of(elem: ViewElem) -> i64 {
    if matches!(elem, ViewElem::F32 | ViewElem::I32) { 4 } else { 2 }
}

/// A distance in bytes as instructions hold it.
fn offset(bytes: i64) -> Result<i32, CodegenError> {
    i32::try_from(bytes).map_err(|_| CodegenError::Unsupported("so wide a store"))
}

/// Emits the whole function.
pub(super) fn emit(
    mut b: FunctionBuilder<'_>,
    nest: &Nest,
    kv: KvElem,
    config: TargetFrontendConfig,
) -> Result<(), CodegenError> {
    let ends = nest.loop_ends().ok_or(CodegenError::Failed("loops are not closed".into()))?;
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    let [views_at, syms_at, first, last] = *b.block_params(entry) else {
        return Err(CodegenError::Failed("a nest function has four parameters".into()));
    };
    let views =
        (0..nest.views.len()).map(|i| b.ins().load(types::I64, plain(), views_at, 8 * i as i32)).collect();
    let syms = std::array::from_fn(|i| b.ins().load(types::I64, plain(), syms_at, 8 * i as i32));
    let mut e = Emitter {
        b,
        nest,
        kv,
        ends,
        views,
        syms,
        axes: [None; MAX_AXES],
        ints: [None; MAX_REGS],
        regs: [None; MAX_REGS],
        partial: None,
    };
    e.counted(first, last, 1, &[], |e, row, _| {
        e.axes[0] = Some(row);
        e.body(0..nest.body.len(), 0, Mode::Scalar)?;
        Ok(Vec::new())
    })?;
    let zero = e.b.ins().iconst(types::I64, 0);
    e.b.ins().return_(&[zero]);
    e.b.seal_all_blocks();
    e.b.finalize(config);
    Ok(())
}

impl Emitter<'_, '_> {
    /// `for i in (first..last).step_by(step)` with carried values; leaves the builder behind the loop.
    fn counted(
        &mut self,
        first: Value,
        last: Value,
        step: i64,
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Result<Vec<Value>, CodegenError>,
    ) -> Result<Vec<Value>, CodegenError> {
        let [head, inside, after]: [Block; 3] = std::array::from_fn(|_| self.b.create_block());
        self.b.append_block_param(head, types::I64);
        for v in carried {
            let ty = self.b.func.dfg.value_type(*v);
            self.b.append_block_param(head, ty);
        }
        let arguments = |i: Value, rest: &[Value]| -> Vec<BlockArg> {
            std::iter::once(i).chain(rest.iter().copied()).map(BlockArg::from).collect()
        };
        self.b.ins().jump(head, &arguments(first, carried));
        self.b.switch_to_block(head);
        let parameters = self.b.block_params(head).to_vec();
        let more = self.b.ins().icmp(IntCC::SignedLessThan, parameters[0], last);
        self.b.ins().brif(more, inside, &[], after, &[]);
        self.b.switch_to_block(inside);
        let next = body(self, parameters[0], &parameters[1..])?;
        let step = self.b.ins().iconst(types::I64, step);
        let i = self.b.ins().iadd(parameters[0], step);
        self.b.ins().jump(head, &arguments(i, &next));
        self.b.switch_to_block(after);
        Ok(parameters[1..].to_vec())
    }

    fn index(&mut self, index: &Index) -> Result<Value, CodegenError> {
        let mut sum = self.b.ins().iconst(types::I64, index.constant);
        for t in &index.terms {
            let mut v = match t.base {
                Base::Axis(a) => self.axes.get(usize::from(a)).copied().flatten(),
                Base::Int(i) => self.ints.get(usize::from(i.0)).copied().flatten(),
                Base::Sym(s) => Some(self.syms[s as usize]),
            }
            .ok_or_else(|| {
                CodegenError::Failed(format!("{}: an index reads what is not defined", self.nest.name))
            })?;
            // Bases are never negative, so unsigned division is floor division.
            if t.div > 1 {
                let div = self.b.ins().iconst(types::I64, i64::from(t.div));
                v = self.b.ins().udiv(v, div);
            }
            if t.rem != 0 {
                let rem = self.b.ins().iconst(types::I64, i64::from(t.rem));
                v = self.b.ins().urem(v, rem);
            }
            if t.coef != 1 {
                let coef = self.b.ins().iconst(types::I64, t.coef);
                v = self.b.ins().imul(v, coef);
            }
            sum = self.b.ins().iadd(sum, v);
        }
        Ok(sum)
    }

    fn extent(&mut self, extent: &Extent) -> Result<Value, CodegenError> {
        let mut least = None;
        for index in &extent.0 {
            let v = self.index(index)?;
            least = Some(match least {
                None => v,
                Some(l) => self.b.ins().smin(l, v),
            });
        }
        least.ok_or_else(|| CodegenError::Failed("a loop has no extent".into()))
    }

    /// The statements of `range`, inside `depth` loops.
    fn body(&mut self, range: Range<usize>, depth: u8, mode: Mode) -> Result<(), CodegenError> {
        let nest = self.nest;
        let mut at = range.start;
        while at < range.end {
            if self.store_pair(at..range.end, mode)? {
                at += 2;
                continue;
            }
            match &nest.body[at] {
                Stmt::For { extent } => at = self.open(at, extent, None, depth)?,
                Stmt::Reduce { dst, kind, value, extent } => {
                    let (dst, value) = (usize::from(dst.0), usize::from(value.0));
                    at = self.open(at, extent, Some((dst, *kind, value)), depth)?;
                }
                stmt => self.statement(at, stmt, mode)?,
            }
            at += 1;
        }
        Ok(())
    }

    fn open(
        &mut self,
        at: usize,
        extent: &Extent,
        reduce: Option<(usize, ReduceKind, usize)>,
        depth: u8,
    ) -> Result<usize, CodegenError> {
        let end = self.ends.iter().find(|(open, _)| *open == at).map_or(at, |(_, end)| *end);
        let axis = depth + 1;
        if usize::from(axis) >= MAX_AXES {
            return Err(CodegenError::Failed(format!("{}: loops are nested too deep", self.nest.name)));
        }
        let count = self.extent(extent)?;
        let inner = at + 1..end;
        let body = &self.nest.body[inner.clone()];
        let is_vector = !body.iter().any(|s| matches!(s, Stmt::For { .. } | Stmt::Reduce { .. }));
        let zero = self.b.ins().iconst(types::I64, 0);
        let result = match (is_vector, reduce) {
            (true, reduce) => {
                let wide = vectorises(self.nest, body, axis, self.kv);
                self.vector_loop(inner, count, reduce, axis, wide)?
            }
            (false, None) => {
                self.counted(zero, count, 1, &[], |e, i, _| {
                    e.axes[usize::from(axis)] = Some(i);
                    e.body(inner, axis, Mode::Scalar)?;
                    Ok(Vec::new())
                })?;
                None
            }
            (false, Some((_, kind, value))) => {
                let start = self.neutral(types::F32, kind);
                let total = self.counted(zero, count, 1, &[start], |e, i, carried| {
                    e.axes[usize::from(axis)] = Some(i);
                    e.body(inner, axis, Mode::Scalar)?;
                    let v = e.one(value)?;
                    Ok(vec![Arith { b: &mut e.b }.combine(kind, carried[0], v)])
                })?;
                Some(total[0])
            }
        };
        if let (Some((dst, ..)), Some(value)) = (reduce, result) {
            self.regs[dst] = Some(Reg::One(value));
        }
        self.axes[usize::from(axis)] = None;
        Ok(end)
    }

    fn neutral(&mut self, ty: Type, kind: ReduceKind) -> Value {
        let c = match kind {
            ReduceKind::Sum => 0.0,
            ReduceKind::Max => f32::NEG_INFINITY,
        };
        Arith { b: &mut self.b }.float(ty, c)
    }

    /// A loop without loops: sixteen iterations at a time as far as they go, then one by one.
    fn vector_loop(
        &mut self,
        body: Range<usize>,
        count: Value,
        reduce: Option<(usize, ReduceKind, usize)>,
        axis: u8,
        wide: bool,
    ) -> Result<Option<Value>, CodegenError> {
        let zero = self.b.ins().iconst(types::I64, 0);
        let mut start = zero;
        let mut partial: Vec<Value> = match reduce {
            Some((_, kind, _)) => (0..PARTS).map(|_| self.neutral(types::F32X4, kind)).collect(),
            None => Vec::new(),
        };
        if wide {
            let mask = self.b.ins().iconst(types::I64, !(LANES as i64 - 1));
            let whole = self.b.ins().band(count, mask);
            let inner = body.clone();
            partial = self.counted(zero, whole, LANES as i64, &partial, |e, i, carried| {
                e.axes[usize::from(axis)] = Some(i);
                e.body(inner, axis, Mode::Vector(axis))?;
                let Some((_, kind, value)) = reduce else { return Ok(Vec::new()) };
                let values = e.many(value)?;
                let mut arith = Arith { b: &mut e.b };
                Ok((0..PARTS).map(|p| arith.combine(kind, carried[p], values[p])).collect())
            })?;
            start = self.b.ins().smax(whole, zero);
        }
        let Some((_, kind, value)) = reduce else {
            self.counted(start, count, 1, &[], |e, i, _| {
                e.axes[usize::from(axis)] = Some(i);
                e.body(body, axis, Mode::Scalar)?;
                Ok(Vec::new())
            })?;
            return Ok(None);
        };
        // The rest goes to the partial result that its position names, which only memory can be indexed by.
        let slot = *self.partial.get_or_insert_with(|| {
            self.b.create_sized_stack_slot(StackSlotData::new(
                StackSlotKind::ExplicitSlot,
                4 * LANES as u32,
                4,
            ))
        });
        for (p, v) in partial.iter().enumerate() {
            self.b.ins().stack_store(types::I64, *v, slot, 16 * p as i32);
        }
        let base = self.b.ins().stack_addr(types::I64, slot, 0);
        self.counted(start, count, 1, &[], |e, i, _| {
            e.axes[usize::from(axis)] = Some(i);
            e.body(body, axis, Mode::Scalar)?;
            let v = e.one(value)?;
            let mask = e.b.ins().iconst(types::I64, LANES as i64 - 1);
            let lane = e.b.ins().band(i, mask);
            let two = e.b.ins().iconst(types::I64, 2);
            let offset = e.b.ins().ishl(lane, two);
            let place = e.b.ins().iadd(base, offset);
            let old = e.b.ins().load(types::F32, plain(), place, 0);
            let new = Arith { b: &mut e.b }.combine(kind, old, v);
            e.b.ins().store(plain(), new, place, 0);
            Ok(Vec::new())
        })?;
        let p: Vec<Value> = (0..PARTS)
            .map(|p| self.b.ins().stack_load(types::I64, types::F32X4, slot, 16 * p as i32))
            .collect();
        let mut arith = Arith { b: &mut self.b };
        let (low, high) = (arith.combine(kind, p[0], p[2]), arith.combine(kind, p[1], p[3]));
        let four = arith.combine(kind, low, high);
        let lanes: Vec<Value> = (0..4).map(|l| arith.b.ins().extractlane(four, l)).collect();
        let (first, second) =
            (arith.combine(kind, lanes[0], lanes[2]), arith.combine(kind, lanes[1], lanes[3]));
        Ok(Some(arith.combine(kind, first, second)))
    }

    fn one(&mut self, reg: usize) -> Result<Value, CodegenError> {
        match self.regs.get(reg).copied().flatten() {
            Some(Reg::One(v)) => Ok(v),
            _ => {
                Err(CodegenError::Failed(format!("{}: register {reg} holds no number here", self.nest.name)))
            }
        }
    }

    fn many(&mut self, reg: usize) -> Result<[Value; PARTS], CodegenError> {
        match self.regs.get(reg).copied().flatten() {
            Some(Reg::Many(v)) => Ok(v),
            Some(Reg::One(v)) => Ok([self.b.ins().splat(types::F32X4, v); PARTS]),
            None => Err(CodegenError::Failed(format!("{}: register {reg} is not defined", self.nest.name))),
        }
    }

    fn statement(&mut self, at: usize, stmt: &Stmt, mode: Mode) -> Result<(), CodegenError> {
        match stmt {
            Stmt::Let { dst, op } => {
                let value = self.operation(op, mode)?;
                self.regs[usize::from(dst.0)] = Some(value);
            }
            Stmt::Load { dst, view, index } => {
                let elem = resolve(self.nest.views[usize::from(view.0)].elem, self.kv);
                let address = self.address(usize::from(view.0), elem, index)?;
                let value = match mode {
                    Mode::Vector(axis) if stride(index, axis) == Some(1) => {
                        Reg::Many(std::array::from_fn(|p| {
                            self.load(types::F32X4, elem, address, 4 * p as i32)
                        }))
                    }
                    Mode::Vector(axis) if stride(index, axis) == Some(2) => {
                        // The second four begin at the last of the first, so that nothing behind the last is touched.
                        Reg::Many(std::array::from_fn(|p| {
                            let [a, b] = [8 * p as i32, 8 * p as i32 + 3]
                                .map(|at| self.load(types::F32X4, elem, address, at));
                            Arith { b: &mut self.b }.pick([a, b], [0, 2, 5, 7])
                        }))
                    }
                    _ => Reg::One(self.load(types::F32, elem, address, 0)),
                };
                self.regs[usize::from(dst.0)] = Some(value);
            }
            Stmt::Store { view, index, src } => {
                let elem = resolve(self.nest.views[usize::from(view.0)].elem, self.kv);
                let address = self.address(usize::from(view.0), elem, index)?;
                match (mode, elem) {
                    (Mode::Vector(axis), _) => {
                        let lanes = lanes(index, axis).ok_or(CodegenError::Unsupported("such a store"))?;
                        let values = self.many(usize::from(src.0))?;
                        self.store_lanes(elem, address, &lanes, values)?;
                    }
                    (Mode::Scalar, ViewElem::F32) => {
                        let v = self.one(usize::from(src.0))?;
                        self.b.ins().store(plain(), v, address, 0);
                    }
                    (Mode::Scalar, half) => {
                        let v = self.one(usize::from(src.0))?;
                        let bits = self.narrow(half, v)?;
                        self.b.ins().istore16(plain(), bits, address, 0);
                    }
                }
            }
            Stmt::LoadInt { dst, view, index, limit } => {
                let address = self.address(usize::from(view.0), ViewElem::I32, index)?;
                let value = self.b.ins().sload32(plain(), address, 0);
                let limit = self.index(limit)?;
                // Unsigned, so that a negative number is above every limit; a negative limit admits nothing.
                let zero = self.b.ins().iconst(types::I64, 0);
                let limit = self.b.ins().smax(limit, zero);
                let fits = self.b.ins().icmp(IntCC::UnsignedLessThan, value, limit);
                let [go_on, fail]: [Block; 2] = std::array::from_fn(|_| self.b.create_block());
                self.b.ins().brif(fits, go_on, &[], fail, &[]);
                self.b.switch_to_block(fail);
                self.b.set_cold_block(fail);
                let code = self.b.ins().iconst(types::I64, at as i64 + 1);
                self.b.ins().return_(&[code]);
                self.b.switch_to_block(go_on);
                self.ints[usize::from(dst.0)] = Some(value);
            }
            Stmt::LoadWeight { .. } => return Err(CodegenError::Unsupported("a load from a packed matrix")),
            Stmt::For { .. } | Stmt::Reduce { .. } | Stmt::End => {}
        }
        Ok(())
    }

    /// Whether `range` begins with two stores, the second to the elements behind those of the first: then both are done at once.
    fn store_pair(&mut self, range: Range<usize>, mode: Mode) -> Result<bool, CodegenError> {
        let (Mode::Vector(axis), [Stmt::Store { view, index, src }, second, ..]) =
            (mode, &self.nest.body[range])
        else {
            return Ok(false);
        };
        let next = Index { constant: index.constant + 1, ..index.clone() };
        let other = match second {
            Stmt::Store { view: other, index, src } if other == view && *index == next => src,
            _ => return Ok(false),
        };
        let elem = resolve(self.nest.views[usize::from(view.0)].elem, self.kv);
        let lanes = lanes(index, axis).ok_or(CodegenError::Unsupported("such a store"))?;
        let address = self.address(usize::from(view.0), elem, index)?;
        let (first, second) = (self.many(usize::from(src.0))?, self.many(usize::from(other.0))?);
        let neighbours = lanes.array_windows().all(|[a, b]| *b == a + 2);
        for (p, (a, b)) in first.into_iter().zip(second).enumerate() {
            // Vectors of pairs: two of floats, or four of halves.
            let vectors = if elem == ViewElem::F32 {
                let mut arith = Arith { b: &mut self.b };
                let pairs = [[0, 4, 1, 5], [2, 6, 3, 7]].map(|order| arith.pick([a, b], order));
                pairs.map(|pairs| arith.cast(types::I64X2, pairs)).to_vec()
            } else {
                let (low, high) = (self.narrow(elem, a)?, self.narrow(elem, b)?);
                vec![Arith { b: &mut self.b }.pair_halves(low, high)]
            };
            let each = 4 / vectors.len();
            for (v, pairs) in vectors.into_iter().enumerate() {
                let place = |i: usize| offset(lanes[4 * p + v * each + i] * bytes_of(elem));
                if neighbours {
                    self.b.ins().store(plain(), pairs, address, place(0)?);
                    continue;
                }
                for i in 0..each {
                    let pair = self.b.ins().extractlane(pairs, i as u8);
                    self.b.ins().store(plain(), pair, address, place(i)?);
                }
            }
        }
        Ok(true)
    }

    /// Stores sixteen numbers, each at its distance from `address`.
    fn store_lanes(
        &mut self,
        elem: ViewElem,
        address: Value,
        lanes: &[i64; LANES],
        values: [Value; PARTS],
    ) -> Result<(), CodegenError> {
        let at = |lane: usize| offset(lanes[lane] * bytes_of(elem));
        for (p, v) in values.into_iter().enumerate() {
            if elem == ViewElem::F32 && contiguous(lanes) {
                self.b.ins().store(plain(), v, address, at(4 * p)?);
                continue;
            }
            let v = if elem == ViewElem::F32 { v } else { self.narrow(elem, v)? };
            if elem != ViewElem::F32 && in_pairs(lanes) {
                let both = Arith { b: &mut self.b }.join_halves(v);
                for lane in [0, 2] {
                    let one = self.b.ins().extractlane(both, lane as u8);
                    self.b.ins().store(plain(), one, address, at(4 * p + lane)?);
                }
                continue;
            }
            for lane in 0..4 {
                let one = self.b.ins().extractlane(v, lane as u8);
                let place = at(4 * p + lane)?;
                match elem {
                    ViewElem::F32 => self.b.ins().store(plain(), one, address, place),
                    _ => self.b.ins().istore16(plain(), one, address, place),
                };
            }
        }
        Ok(())
    }

    /// The halves of type `elem` nearest to numbers, in the low bits of as many i32.
    fn narrow(&mut self, elem: ViewElem, v: Value) -> Result<Value, CodegenError> {
        let mut arith = Arith { b: &mut self.b };
        match elem {
            ViewElem::Bf16 => Ok(arith.narrow_bf16(v)),
            ViewElem::F16 => Ok(arith.narrow_f16(v)),
            _ => Err(CodegenError::Unsupported("a store of such elements")),
        }
    }

    fn address(&mut self, view: usize, elem: ViewElem, index: &Index) -> Result<Value, CodegenError> {
        let index = self.index(index)?;
        let shift = self.b.ins().iconst(types::I64, i64::from(bytes_of(elem).ilog2()));
        let offset = self.b.ins().ishl(index, shift);
        Ok(self.b.ins().iadd(self.views[view], offset))
    }

    /// One number or four, `at` elements behind `address`, as f32.
    fn load(&mut self, ty: Type, elem: ViewElem, address: Value, at: i32) -> Value {
        if elem == ViewElem::F32 {
            return self.b.ins().load(ty, plain(), address, 4 * at);
        }
        let bits = match ty {
            types::F32X4 => self.b.ins().uload16x4(plain(), address, 2 * at),
            _ => self.b.ins().uload16(types::I32, plain(), address, 2 * at),
        };
        let mut arith = Arith { b: &mut self.b };
        if elem == ViewElem::F16 { arith.widen_f16(bits) } else { arith.widen_bf16(bits) }
    }

    fn operation(&mut self, op: &Op, mode: Mode) -> Result<Reg, CodegenError> {
        // Numbers that do not vary with the loop stay single.
        let operands: Vec<usize> = match *op {
            Op::Const(_) | Op::FromInt(_) => vec![],
            Op::Neg(a) | Op::Abs(a) | Op::Sqrt(a) | Op::Exp(a) | Op::Sin(a) | Op::Cos(a) => vec![a.0.into()],
            Op::Add(a, b) | Op::Sub(a, b) | Op::Mul(a, b) | Op::Div(a, b) | Op::Max(a, b) | Op::Min(a, b) => {
                vec![a.0.into(), b.0.into()]
            }
        };
        let varies = mode != Mode::Scalar
            && operands.iter().any(|r| matches!(self.regs.get(*r).copied().flatten(), Some(Reg::Many(_))));
        if varies {
            let operands = operands.iter().map(|r| self.many(*r)).collect::<Result<Vec<_>, _>>()?;
            let mut out = [operands[0][0]; PARTS];
            for (p, out) in out.iter_mut().enumerate() {
                let parts: Vec<Value> = operands.iter().map(|o| o[p]).collect();
                *out = self.scalar(op, &parts)?;
            }
            return Ok(Reg::Many(out));
        }
        let operands = operands.iter().map(|r| self.one(*r)).collect::<Result<Vec<_>, _>>()?;
        Ok(Reg::One(self.scalar(op, &operands)?))
    }

    /// The operation on one number or on four.
    fn scalar(&mut self, op: &Op, v: &[Value]) -> Result<Value, CodegenError> {
        let int = match op {
            Op::FromInt(i) => self.ints.get(usize::from(i.0)).copied().flatten(),
            _ => None,
        };
        let mut a = Arith { b: &mut self.b };
        Ok(match (op, v) {
            (Op::Const(c), _) => a.float(types::F32, *c),
            (Op::FromInt(_), _) => {
                let int = int.ok_or_else(|| CodegenError::Failed("an integer is not defined".into()))?;
                a.b.ins().fcvt_from_sint(types::F32, int)
            }
            (Op::Neg(_), [x]) => a.b.ins().fneg(*x),
            (Op::Abs(_), [x]) => a.b.ins().fabs(*x),
            (Op::Sqrt(_), [x]) => a.b.ins().sqrt(*x),
            (Op::Exp(_), [x]) => a.exp(*x),
            (Op::Sin(_), [x]) => a.quarter(*x, 0),
            (Op::Cos(_), [x]) => a.quarter(*x, 1),
            (Op::Add(..), [x, y]) => a.b.ins().fadd(*x, *y),
            (Op::Sub(..), [x, y]) => a.b.ins().fsub(*x, *y),
            (Op::Mul(..), [x, y]) => a.b.ins().fmul(*x, *y),
            (Op::Div(..), [x, y]) => a.b.ins().fdiv(*x, *y),
            (Op::Max(..), [x, y]) => a.max(*x, *y),
            (Op::Min(..), [x, y]) => a.min(*x, *y),
            _ => return Err(CodegenError::Failed("an operation has the wrong number of operands".into())),
        })
    }
}
