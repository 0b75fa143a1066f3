//! From the flat list of statements to a tree of loops, with everything resolved that does not depend on the run.

use super::Interpreter;
use super::access::{Access, Elem, stride};
use bessemer_format::manifest::KvElem;
use bessemer_format::nest::{
    Extent, Index, Int, MAX_AXES, MAX_REGS, Nest, Op, ReduceKind, Reg, Stmt, ViewElem, ViewId,
};

/// A statement, or a loop with its body.
pub(super) enum Node {
    Let { dst: usize, op: Op },
    Load { dst: usize, access: Access },
    LoadWeight { dst: usize, view: usize, name: String, n: Index, k: Index },
    LoadInt { dst: usize, view: usize, name: String, index: Index, limit: Index },
    Store { src: usize, access: Access },
    Loop(Loop),
}

/// A loop.
pub(super) struct Loop {
    pub(super) axis: usize,
    pub(super) extent: Extent,
    /// Result register, how to combine, and the body's value.
    pub(super) reduce: Option<(usize, ReduceKind, usize)>,
    pub(super) body: Vec<Node>,
    /// Whether the body holds no loop.
    pub(super) vector: bool,
    /// Registers from outside that the body of a vector loop reads.
    pub(super) captures: Vec<usize>,
}

/// Registers that an operation reads.
pub(super) fn operands(op: &Op) -> [Option<Reg>; 2] {
    match *op {
        Op::Const(_) | Op::FromInt(_) => [None, None],
        Op::Neg(a) | Op::Abs(a) | Op::Sqrt(a) | Op::Exp(a) | Op::Sin(a) | Op::Cos(a) => [Some(a), None],
        Op::Add(a, b) | Op::Sub(a, b) | Op::Mul(a, b) | Op::Div(a, b) | Op::Max(a, b) | Op::Min(a, b) => {
            [Some(a), Some(b)]
        }
    }
}

struct Parser<'a> {
    nest: &'a Nest,
    kv: KvElem,
    ends: Vec<(usize, usize)>,
    registers: usize,
    ints: usize,
}

pub(super) fn prepare(nest: &Nest, kv: KvElem) -> Result<Interpreter, String> {
    let ends = nest.loop_ends().ok_or("loops are not closed in order")?;
    let mut parser = Parser { nest, kv, ends, registers: 0, ints: 0 };
    let root = parser.body(0..nest.body.len(), 0, None)?;
    Ok(Interpreter { root, registers: parser.registers, ints: parser.ints })
}

impl Parser<'_> {
    fn reg(&mut self, reg: Reg) -> Result<usize, String> {
        let at = usize::from(reg.0);
        if at >= MAX_REGS {
            return Err(format!("register {at} of {MAX_REGS}"));
        }
        self.registers = self.registers.max(at + 1);
        Ok(at)
    }

    fn int(&mut self, int: Int) -> Result<usize, String> {
        let at = usize::from(int.0);
        if at >= MAX_REGS {
            return Err(format!("integer register {at} of {MAX_REGS}"));
        }
        self.ints = self.ints.max(at + 1);
        Ok(at)
    }

    fn view(&self, id: ViewId) -> Result<(usize, String, ViewElem), String> {
        let at = usize::from(id.0);
        let view =
            self.nest.views.get(at).ok_or_else(|| format!("view {at} of {}", self.nest.views.len()))?;
        Ok((at, view.name.clone(), view.elem))
    }

    fn access(&self, id: ViewId, index: &Index, vector: Option<usize>) -> Result<Access, String> {
        let (view, name, elem) = self.view(id)?;
        let elem = match elem {
            ViewElem::F32 => Elem::F32,
            ViewElem::F16 => Elem::F16,
            ViewElem::Bf16 => Elem::Bf16,
            ViewElem::Kv => match self.kv.written() {
                KvElem::F32 => Elem::F32,
                KvElem::F16 => Elem::F16,
                _ => Elem::Bf16,
            },
            ViewElem::I32 | ViewElem::Panel => return Err(format!("view {name} holds no plain numbers")),
        };
        let stride = match vector {
            Some(axis) => stride(index, axis as u8),
            None => Some(0),
        };
        Ok(Access { view, name, elem, index: index.clone(), stride })
    }

    /// The statements of `range`, inside `depth` loops. `vector` is the axis of the vector loop that they are in.
    fn body(
        &mut self,
        range: std::ops::Range<usize>,
        depth: usize,
        vector: Option<usize>,
    ) -> Result<Vec<Node>, String> {
        let nest = self.nest;
        let mut out = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let node = match &nest.body[at] {
                Stmt::Let { dst, op } => {
                    for operand in operands(op).into_iter().flatten() {
                        self.reg(operand)?;
                    }
                    if let Op::FromInt(int) = op {
                        self.int(*int)?;
                    }
                    Node::Let { dst: self.reg(*dst)?, op: *op }
                }
                Stmt::Load { dst, view, index } => {
                    Node::Load { dst: self.reg(*dst)?, access: self.access(*view, index, vector)? }
                }
                Stmt::LoadWeight { dst, view, n, k } => {
                    let (view, name, elem) = self.view(*view)?;
                    if elem != ViewElem::Panel {
                        return Err(format!("view {name} is no packed matrix"));
                    }
                    Node::LoadWeight { dst: self.reg(*dst)?, view, name, n: n.clone(), k: k.clone() }
                }
                Stmt::LoadInt { dst, view, index, limit } => {
                    let (view, name, elem) = self.view(*view)?;
                    if elem != ViewElem::I32 || vector.is_some() {
                        return Err(format!(
                            "an integer is loaded from {name} in a vector loop, or it holds none"
                        ));
                    }
                    Node::LoadInt {
                        dst: self.int(*dst)?,
                        view,
                        name,
                        index: index.clone(),
                        limit: limit.clone(),
                    }
                }
                Stmt::Store { view, index, src } => {
                    Node::Store { src: self.reg(*src)?, access: self.access(*view, index, vector)? }
                }
                Stmt::For { extent } => {
                    let (node, end) = self.open(at, extent, None, depth)?;
                    at = end;
                    node
                }
                Stmt::Reduce { dst, kind, value, extent } => {
                    let reduce = Some((self.reg(*dst)?, *kind, self.reg(*value)?));
                    let (node, end) = self.open(at, extent, reduce, depth)?;
                    at = end;
                    node
                }
                Stmt::End => return Err("an end without a loop".into()),
            };
            out.push(node);
            at += 1;
        }
        Ok(out)
    }

    fn open(
        &mut self,
        at: usize,
        extent: &Extent,
        reduce: Option<(usize, ReduceKind, usize)>,
        depth: usize,
    ) -> Result<(Node, usize), String> {
        let end =
            self.ends.iter().find(|(open, _)| *open == at).map(|(_, end)| *end).ok_or("a loop has no end")?;
        let axis = depth + 1;
        if axis >= MAX_AXES {
            return Err(format!("loops are nested deeper than {MAX_AXES}"));
        }
        if extent.0.is_empty() {
            return Err("a loop has no extent".into());
        }
        let inner = &self.nest.body[at + 1..end];
        let vector = !inner.iter().any(|s| matches!(s, Stmt::For { .. } | Stmt::Reduce { .. }));
        let body = self.body(at + 1..end, axis, vector.then_some(axis))?;
        let captures = if vector { captures(&body, reduce) } else { Vec::new() };
        Ok((Node::Loop(Loop { axis, extent: extent.clone(), reduce, body, vector, captures }), end))
    }
}

/// Registers that a vector body reads and does not write.
fn captures(body: &[Node], reduce: Option<(usize, ReduceKind, usize)>) -> Vec<usize> {
    let mut read = Vec::new();
    let mut written = Vec::new();
    for node in body {
        match node {
            Node::Let { dst, op } => {
                read.extend(operands(op).into_iter().flatten().map(|r| usize::from(r.0)));
                written.push(*dst);
            }
            Node::Load { dst, .. } | Node::LoadWeight { dst, .. } => written.push(*dst),
            Node::Store { src, .. } => read.push(*src),
            Node::LoadInt { .. } | Node::Loop(_) => {}
        }
    }
    read.extend(reduce.map(|(_, _, value)| value));
    read.sort_unstable();
    read.dedup();
    read.retain(|r| !written.contains(r));
    read
}
