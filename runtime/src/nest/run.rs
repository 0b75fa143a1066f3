//! The loop that runs a prepared nest.

use super::access::Positions;
use super::prepare::{Loop, Node, operands};
use super::{Interpreter, NestError, WIDTH};
use crate::exec::ViewBinding;
use bessemer_format::nest::{Extent, LANES, MAX_AXES, Op, ReduceKind};
use bessemer_kernels::{math, trig};
use std::cell::RefCell;
use std::ops::Range;

/// A register: one number in lane 0 outside vector loops, a block of iterations inside.
type Register = [f32; WIDTH];

thread_local! {
    /// Registers, kept from run to run so that a step allocates nothing.
    static FILE: RefCell<(Vec<Register>, Vec<i64>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Runs `nest` for `rows`.
pub(super) fn rows(
    nest: &Interpreter,
    rows: Range<usize>,
    views: &[ViewBinding<'_>],
    syms: &[i64; 4],
) -> Result<(), NestError> {
    FILE.with_borrow_mut(|(registers, ints)| {
        if registers.len() < nest.registers {
            registers.resize(nest.registers, [0.0; WIDTH]);
        }
        if ints.len() < nest.ints {
            ints.resize(nest.ints, 0);
        }
        let positions = Positions { axes: [0; MAX_AXES], ints, syms };
        let mut run = Run { registers, positions, views };
        for row in rows {
            run.positions.axes[0] = row as i64;
            run.scalar(&nest.root)?;
        }
        Ok(())
    })
}

struct Run<'a> {
    registers: &'a mut [Register],
    positions: Positions<'a>,
    views: &'a [ViewBinding<'a>],
}

impl Run<'_> {
    fn extent(&self, extent: &Extent) -> i64 {
        extent.0.iter().map(|e| self.positions.eval(e)).min().unwrap_or(0).max(0)
    }

    /// Statements outside vector loops: one number at a time.
    fn scalar(&mut self, body: &[Node]) -> Result<(), NestError> {
        for node in body {
            match node {
                Node::Loop(l) if l.vector => self.vector_loop(l)?,
                Node::Loop(l) => self.scalar_loop(l)?,
                Node::LoadInt { dst, view, name, index, limit } => {
                    let at = self.positions.eval(index);
                    let bytes = &self.views[*view].bytes;
                    let len = bytes.len() / 4;
                    let value = match usize::try_from(at) {
                        Ok(i) if i < len => i64::from(bytes.get::<i32>(i..i + 1)[0]),
                        _ => return Err(NestError::Bounds { view: name.clone(), len, index: at }),
                    };
                    let limit = self.positions.eval(limit);
                    if value < 0 || value >= limit {
                        return Err(NestError::Limit { view: name.clone(), index: at, value, limit });
                    }
                    self.positions.ints[*dst] = value;
                }
                other => self.statement::<1>(other, 0, 1)?,
            }
        }
        Ok(())
    }

    /// A loop that holds loops: iterations one by one.
    fn scalar_loop(&mut self, l: &Loop) -> Result<(), NestError> {
        let mut total = l.reduce.map(|(_, kind, _)| neutral(kind)).unwrap_or(0.0);
        for i in 0..self.extent(&l.extent) {
            self.positions.axes[l.axis] = i;
            self.scalar(&l.body)?;
            if let Some((_, kind, value)) = l.reduce {
                total = combine(kind, total, self.registers[value][0]);
            }
        }
        if let Some((dst, ..)) = l.reduce {
            self.registers[dst][0] = total;
        }
        Ok(())
    }

    /// A loop without loops: iterations in blocks.
    fn vector_loop(&mut self, l: &Loop) -> Result<(), NestError> {
        for r in &l.captures {
            let value = self.registers[*r][0];
            self.registers[*r].fill(value);
        }
        let count = self.extent(&l.extent);
        let mut partial = [l.reduce.map_or(0.0, |(_, kind, _)| neutral(kind)); LANES];
        let mut start = 0;
        while start < count {
            let n = (count - start).min(WIDTH as i64) as usize;
            self.positions.axes[l.axis] = start;
            for node in &l.body {
                self.statement::<WIDTH>(node, l.axis, n)?;
            }
            if let Some((_, kind, value)) = l.reduce {
                let values = &self.registers[value][..n];
                let mut whole = values.chunks_exact(LANES);
                for chunk in &mut whole {
                    for (p, v) in partial.iter_mut().zip(chunk) {
                        *p = combine(kind, *p, *v);
                    }
                }
                for (p, v) in partial.iter_mut().zip(whole.remainder()) {
                    *p = combine(kind, *p, *v);
                }
            }
            start += n as i64;
        }
        if let Some((dst, kind, _)) = l.reduce {
            let mut step = LANES / 2;
            while step > 0 {
                for i in 0..step {
                    partial[i] = combine(kind, partial[i], partial[i + step]);
                }
                step /= 2;
            }
            self.registers[dst][0] = partial[0];
        }
        Ok(())
    }

    /// A statement for `n` iterations. `LANES_COMPUTED` is 1 outside vector loops, else the whole block: lanes beyond `n` are computed on
    /// whatever they hold and never stored.
    fn statement<const LANES_COMPUTED: usize>(
        &mut self,
        node: &Node,
        axis: usize,
        n: usize,
    ) -> Result<(), NestError> {
        match node {
            Node::Let { dst, op } => {
                self.operation::<LANES_COMPUTED>(*dst, op);
                Ok(())
            }
            Node::Load { dst, access } => {
                access.load(self.views, &mut self.positions, axis, n, &mut self.registers[*dst])
            }
            Node::Store { src, access } => {
                access.store(self.views, &mut self.positions, axis, &self.registers[*src][..n])
            }
            Node::LoadWeight { dst, view, name, n: row, k } => {
                let binding = &self.views[*view];
                let bytes = binding.bytes.get::<u8>(0..binding.bytes.len());
                let start = self.positions.axes[axis];
                for i in 0..n {
                    if LANES_COMPUTED > 1 {
                        self.positions.axes[axis] = start + i as i64;
                    }
                    let (row, k) = (self.positions.eval(row), self.positions.eval(k));
                    let value = binding
                        .panel
                        .and_then(|p| p.value(bytes, usize::try_from(row).ok()?, usize::try_from(k).ok()?));
                    self.registers[*dst][i] = value.ok_or_else(|| NestError::Bounds {
                        view: name.clone(),
                        len: binding.panel.map_or(0, |p| p.n() * p.k()),
                        index: row,
                    })?;
                }
                if LANES_COMPUTED > 1 {
                    self.positions.axes[axis] = start;
                }
                Ok(())
            }
            // Loops and loads of integers are handled where loops are.
            Node::LoadInt { .. } | Node::Loop(_) => Ok(()),
        }
    }

    fn operation<const N: usize>(&mut self, dst: usize, op: &Op) {
        let [a, b] = operands(op).map(|r| r.map(|r| self.registers[usize::from(r.0)]));
        let (a, b) = (a.unwrap_or([0.0; WIDTH]), b.unwrap_or([0.0; WIDTH]));
        let out = &mut self.registers[dst];
        macro_rules! lanes {
            (|$x:ident, $y:ident| $value:expr) => {
                for i in 0..N {
                    let ($x, $y) = (a[i], b[i]);
                    let _ = ($x, $y);
                    out[i] = $value;
                }
            };
        }
        match op {
            Op::Const(c) => out[..N].fill(*c),
            Op::FromInt(int) => out[..N].fill(self.positions.ints[usize::from(int.0)] as f32),
            Op::Neg(_) => lanes!(|x, y| -x),
            Op::Abs(_) => lanes!(|x, y| x.abs()),
            Op::Sqrt(_) => lanes!(|x, y| x.sqrt()),
            Op::Exp(_) => lanes!(|x, y| math::exp(x)),
            Op::Sin(_) => lanes!(|x, y| trig::sin(x)),
            Op::Cos(_) => lanes!(|x, y| trig::cos(x)),
            Op::Add(..) => lanes!(|x, y| x + y),
            Op::Sub(..) => lanes!(|x, y| x - y),
            Op::Mul(..) => lanes!(|x, y| x * y),
            Op::Div(..) => lanes!(|x, y| x / y),
            Op::Max(..) => lanes!(|x, y| if y > x { y } else { x }),
            Op::Min(..) => lanes!(|x, y| if y < x { y } else { x }),
        }
    }
}

fn neutral(kind: ReduceKind) -> f32 {
    match kind {
        ReduceKind::Sum => 0.0,
        ReduceKind::Max => f32::NEG_INFINITY,
    }
}

#[inline(always)]
fn combine(kind: ReduceKind, a: f32, b: f32) -> f32 {
    match kind {
        ReduceKind::Sum => a + b,
        ReduceKind::Max => {
            if b > a {
                b
            } else {
                a
            }
        }
    }
}
