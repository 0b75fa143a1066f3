//! Writes nests as they read: registers are handed out, loops are closures.

use bessemer_format::nest::{Extent, Index, Int, Nest, Op, ReduceKind, Reg, Stmt, View, ViewElem, ViewId};

/// A nest under construction. Axis 0 is the row.
pub struct NestBuilder {
    nest: Nest,
    regs: u8,
    ints: u8,
    depth: u8,
}

impl NestBuilder {
    /// An empty nest.
    pub fn new(name: &str) -> Self {
        Self {
            nest: Nest { name: name.into(), views: Vec::new(), body: Vec::new() },
            regs: 0,
            ints: 0,
            depth: 1,
        }
    }

    /// The finished nest.
    pub fn finish(self) -> Nest {
        self.nest
    }

    /// The position on the row axis.
    pub fn row(&self) -> Index {
        Index::axis(0)
    }

    fn view(&mut self, name: &str, elem: ViewElem, store: bool) -> ViewId {
        self.nest.views.push(View { name: name.into(), elem, store });
        ViewId(self.nest.views.len() as u8 - 1)
    }

    /// A view that is read.
    pub fn input(&mut self, name: &str, elem: ViewElem) -> ViewId {
        self.view(name, elem, false)
    }

    /// A view that is written.
    pub fn output(&mut self, name: &str, elem: ViewElem) -> ViewId {
        self.view(name, elem, true)
    }

    fn reg(&mut self) -> Reg {
        self.regs += 1;
        Reg(self.regs - 1)
    }

    /// A scalar operation.
    pub fn op(&mut self, op: Op) -> Reg {
        let dst = self.reg();
        self.nest.body.push(Stmt::Let { dst, op });
        dst
    }

    /// A constant.
    pub fn constant(&mut self, value: f32) -> Reg {
        self.op(Op::Const(value))
    }

    /// `a + b`
    pub fn add(&mut self, a: Reg, b: Reg) -> Reg {
        self.op(Op::Add(a, b))
    }

    /// `a - b`
    pub fn sub(&mut self, a: Reg, b: Reg) -> Reg {
        self.op(Op::Sub(a, b))
    }

    /// `a * b`
    pub fn mul(&mut self, a: Reg, b: Reg) -> Reg {
        self.op(Op::Mul(a, b))
    }

    /// `a / b`
    pub fn div(&mut self, a: Reg, b: Reg) -> Reg {
        self.op(Op::Div(a, b))
    }

    /// `x / (1 + e^-x)`
    pub fn silu(&mut self, x: Reg) -> Reg {
        let negative = self.op(Op::Neg(x));
        let e = self.op(Op::Exp(negative));
        let one = self.constant(1.0);
        let denominator = self.add(one, e);
        self.div(x, denominator)
    }

    /// `1 - 2 / (e^2x + 1)`
    pub fn tanh(&mut self, x: Reg) -> Reg {
        let double = self.add(x, x);
        let e = self.op(Op::Exp(double));
        let (one, two) = (self.constant(1.0), self.constant(2.0));
        let denominator = self.add(e, one);
        let part = self.div(two, denominator);
        self.sub(one, part)
    }

    /// `view[index]`
    pub fn load(&mut self, view: ViewId, index: Index) -> Reg {
        let dst = self.reg();
        self.nest.body.push(Stmt::Load { dst, view, index });
        dst
    }

    /// `W[n][k]`, dequantised.
    pub fn load_weight(&mut self, view: ViewId, n: Index, k: Index) -> Reg {
        let dst = self.reg();
        self.nest.body.push(Stmt::LoadWeight { dst, view, n, k });
        dst
    }

    /// `view[index]`, checked to lie in `0..limit`.
    pub fn load_int(&mut self, view: ViewId, index: Index, limit: Index) -> Int {
        let dst = Int(self.ints);
        self.ints += 1;
        self.nest.body.push(Stmt::LoadInt { dst, view, index, limit });
        dst
    }

    /// `view[index] = src`
    pub fn store(&mut self, view: ViewId, index: Index, src: Reg) {
        self.nest.body.push(Stmt::Store { view, index, src });
    }

    /// A loop with independent iterations; the closure gets the axis number.
    pub fn for_each(&mut self, extent: impl Into<Extent>, body: impl FnOnce(&mut Self, u8)) {
        self.nest.body.push(Stmt::For { extent: extent.into() });
        let axis = self.depth;
        self.depth += 1;
        body(self, axis);
        self.depth -= 1;
        self.nest.body.push(Stmt::End);
    }

    /// A loop whose iterations' results are combined.
    pub fn reduce(
        &mut self,
        kind: ReduceKind,
        extent: impl Into<Extent>,
        body: impl FnOnce(&mut Self, u8) -> Reg,
    ) -> Reg {
        let dst = self.reg();
        let at = self.nest.body.len();
        let extent = extent.into();
        self.nest.body.push(Stmt::For { extent: extent.clone() });
        let axis = self.depth;
        self.depth += 1;
        let value = body(self, axis);
        self.depth -= 1;
        self.nest.body[at] = Stmt::Reduce { dst, kind, value, extent };
        self.nest.body.push(Stmt::End);
        dst
    }
}
