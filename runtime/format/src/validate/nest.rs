//! Nests: well formed, and proved to stay inside their views.
//!
//! The proof bounds every index by intervals. Buffers grow with the rows of a pass, so an index into one must have a term that picks
//! the row (`row * row_elems`, the row bounded by how it was made) and a rest that is proved to lie in `0..row_elems`. Blocks of a
//! state are picked the same way, by integers that the runtime made. What cannot be proved is refused.

use super::{Check, ensure};
use crate::kv;
use crate::nest::{
    Base, Extent, Index, Int, MAX_AXES, MAX_REGS, MAX_VIEWS, Nest, Op, Reg, Stmt, Sym, Term, View, ViewElem,
    ViewId,
};
use crate::plan::{Input, RowCount};

/// Statements that a nest may have.
const MAX_STATEMENTS: usize = 1 << 16;
/// Summands of an index, and bounds of an extent.
const MAX_TERMS: usize = 32;
/// Iterations of one loop.
const MAX_ITERATIONS: i128 = 1 << 32;
/// Values of a base up to which an index is tried out with every one of them, which is exact where several terms share a base.
const ENUMERATE: i128 = 4096;
/// Evaluations of terms that validating a plan may take: far above any real plan, a fraction of a second.
const MAX_WORK: u64 = 1 << 27;

/// Checks what does not depend on what views are bound to.
pub(super) fn structure(nest: &Nest) -> Check {
    ensure!(nest.views.len() <= MAX_VIEWS, "{} views, at most {MAX_VIEWS}", nest.views.len());
    ensure!(nest.body.len() <= MAX_STATEMENTS, "{} statements, at most {MAX_STATEMENTS}", nest.body.len());
    for (i, view) in nest.views.iter().enumerate() {
        let may_store = matches!(view.elem, ViewElem::F32 | ViewElem::Kv);
        ensure!(!view.store || may_store, "view {i} ({}) stores {:?}", view.name, view.elem);
    }
    let mut scope = Scope::new(&nest.views);
    for (at, stmt) in nest.body.iter().enumerate() {
        scope.statement(stmt).map_err(|why| format!("statement {at}: {why}"))?;
    }
    ensure!(scope.loops.is_empty(), "{} loops are not closed", scope.loops.len());
    Ok(())
}

/// A loop that is open.
struct Open {
    /// What a reduction writes, and from which register.
    result: Option<(Reg, Reg)>,
    /// Registers that its body defined.
    regs: Vec<Reg>,
    ints: Vec<Int>,
    has_loop: bool,
    loads_int: bool,
}

/// Names that are visible at a statement.
struct Scope<'a> {
    views: &'a [View],
    loops: Vec<Open>,
    /// Written by some statement so far.
    used_regs: [bool; MAX_REGS],
    used_ints: [bool; MAX_REGS],
    /// Readable now.
    regs: [bool; MAX_REGS],
    ints: [bool; MAX_REGS],
}

impl<'a> Scope<'a> {
    fn new(views: &'a [View]) -> Self {
        let none = [false; MAX_REGS];
        Self { views, loops: Vec::new(), used_regs: none, used_ints: none, regs: none, ints: none }
    }

    fn statement(&mut self, stmt: &Stmt) -> Check {
        match stmt {
            Stmt::Let { dst, op } => {
                self.op(op)?;
                self.define(*dst)
            }
            Stmt::Load { dst, view, index } => {
                self.view(*view, false, |e| !matches!(e, ViewElem::I32 | ViewElem::Panel))?;
                self.index(index)?;
                self.define(*dst)
            }
            Stmt::LoadWeight { dst, view, n, k } => {
                self.view(*view, false, |e| e == ViewElem::Panel)?;
                self.index(n)?;
                self.index(k)?;
                self.define(*dst)
            }
            Stmt::LoadInt { dst, view, index, limit } => {
                self.view(*view, false, |e| e == ViewElem::I32)?;
                self.index(index)?;
                self.index(limit)?;
                self.define_int(*dst)
            }
            Stmt::Store { view, index, src } => {
                self.view(*view, true, |_| true)?;
                self.index(index)?;
                self.read(*src)
            }
            Stmt::For { extent } => self.open(extent, None),
            Stmt::Reduce { dst, value, extent, .. } => self.open(extent, Some((*dst, *value))),
            Stmt::End => self.close(),
        }
    }

    fn open(&mut self, extent: &Extent, result: Option<(Reg, Reg)>) -> Check {
        ensure!((1..=MAX_TERMS).contains(&extent.0.len()), "an extent of {} bounds", extent.0.len());
        extent.0.iter().try_for_each(|bound| self.index(bound))?;
        ensure!(self.loops.len() + 2 <= MAX_AXES, "more than {MAX_AXES} axes");
        if let Some(outer) = self.loops.last_mut() {
            outer.has_loop = true;
        }
        self.loops.push(Open { result, regs: vec![], ints: vec![], has_loop: false, loads_int: false });
        Ok(())
    }

    fn close(&mut self) -> Check {
        let Some(open) = self.loops.pop() else { return Err("closes a loop that is not open".into()) };
        ensure!(open.has_loop || !open.loads_int, "the vector loop that ends here loads an integer");
        if let Some((_, value)) = open.result {
            self.read(value)?;
        }
        open.regs.iter().for_each(|r| self.regs[r.0 as usize] = false);
        open.ints.iter().for_each(|i| self.ints[i.0 as usize] = false);
        open.result.map_or(Ok(()), |(dst, _)| self.define(dst))
    }

    fn view(&self, id: ViewId, store: bool, fits: impl Fn(ViewElem) -> bool) -> Check {
        let view = self.views.get(id.0 as usize);
        let view = view.ok_or_else(|| format!("view {} of {}", id.0, self.views.len()))?;
        let (does, may) = if store { ("stored to", "read") } else { ("read", "stored to") };
        ensure!(view.store == store, "view {} ({}) is {does} and declared to be {may}", id.0, view.name);
        ensure!(fits(view.elem), "view {} ({}) holds {:?}", id.0, view.name, view.elem);
        Ok(())
    }

    fn index(&self, index: &Index) -> Check {
        ensure!(index.terms.len() <= MAX_TERMS, "an index of {} terms", index.terms.len());
        for term in &index.terms {
            ensure!(term.div > 0, "an index divides by zero");
            match term.base {
                Base::Axis(a) => ensure!(a as usize <= self.loops.len(), "axis {a} is not open"),
                Base::Int(int) => {
                    let known = self.ints.get(int.0 as usize).copied().unwrap_or(false);
                    ensure!(known, "integer {} is not defined here", int.0);
                }
                Base::Sym(_) => {}
            }
        }
        Ok(())
    }

    fn read(&self, reg: Reg) -> Check {
        let known = self.regs.get(reg.0 as usize).copied().unwrap_or(false);
        ensure!(known, "register {} is not defined here", reg.0);
        Ok(())
    }

    fn op(&self, op: &Op) -> Check {
        match *op {
            Op::Const(_) => Ok(()),
            Op::FromInt(int) => self.index(&Index::int(int)),
            Op::Neg(a) | Op::Abs(a) | Op::Sqrt(a) | Op::Exp(a) | Op::Sin(a) | Op::Cos(a) => self.read(a),
            Op::Add(a, b) | Op::Sub(a, b) | Op::Mul(a, b) | Op::Div(a, b) | Op::Max(a, b) | Op::Min(a, b) => {
                self.read(a).and_then(|()| self.read(b))
            }
        }
    }

    fn define(&mut self, reg: Reg) -> Check {
        let at = reg.0 as usize;
        ensure!(at < MAX_REGS, "register {at}, at most {MAX_REGS} are possible");
        ensure!(!self.used_regs[at], "register {at} is written twice");
        (self.used_regs[at], self.regs[at]) = (true, true);
        if let Some(open) = self.loops.last_mut() {
            open.regs.push(reg);
        }
        Ok(())
    }

    fn define_int(&mut self, int: Int) -> Check {
        let at = int.0 as usize;
        ensure!(at < MAX_REGS, "integer {at}, at most {MAX_REGS} are possible");
        ensure!(!self.used_ints[at], "integer {at} is written twice");
        (self.used_ints[at], self.ints[at]) = (true, true);
        if let Some(open) = self.loops.last_mut() {
            open.ints.push(int);
            open.loads_int = true;
        }
        Ok(())
    }
}

/// What a view is bound to.
#[derive(Clone, Copy)]
pub(super) enum Bound {
    /// A buffer: `elems` elements for each row.
    Rows { count: RowCount, elems: i128, input: Option<Input> },
    /// A weight of `n` rows of `k` elements.
    Weight { n: i128, k: i128 },
    /// Blocks of `elems` elements.
    State { elems: i128 },
}

/// A forward pass at its largest.
#[derive(Clone, Copy)]
pub(super) struct Forward {
    /// Rows of axis 0.
    pub(super) rows: RowCount,
    /// Largest number of rows.
    pub(super) max_rows: u32,
    /// Most block table entries of a sequence.
    pub(super) table_stride: u32,
}

/// What a nest does to a view.
#[derive(Clone, Default)]
pub(super) struct Touched {
    /// It reads rows other than its own.
    pub(super) other_rows: bool,
    /// Elements of a row that it stores, as hulls of its store statements.
    pub(super) stored: Vec<(u64, u64)>,
}

/// Counts what validation costs, so that no plan takes long.
#[derive(Default)]
pub(super) struct Work(u64);

impl Work {
    fn spend(&mut self, evaluations: u64) -> Check {
        self.0 += evaluations;
        ensure!(self.0 <= MAX_WORK, "the plan's indices are too complex to be proved");
        Ok(())
    }
}

/// Proves that every access of `nest` lies inside what its views are bound to.
pub(super) fn prove(nest: &Nest, bounds: &[Bound], forward: Forward, work: &mut Work) -> Check<Vec<Touched>> {
    let rows = Index::sym(match forward.rows {
        RowCount::Tokens => Sym::Rows,
        RowCount::Logits => Sym::LogitRows,
    });
    let mut prover = Prover {
        bounds,
        forward,
        axes: vec![Axis { last: i128::from(forward.max_rows) - 1, extent: rows.into() }],
        ints: vec![None; MAX_REGS],
        touched: vec![Touched::default(); bounds.len()],
        work,
    };
    for (at, stmt) in nest.body.iter().enumerate() {
        prover.statement(stmt).map_err(|why| format!("nest {}, statement {at}: {why}", nest.name))?;
    }
    Ok(prover.touched)
}

struct Axis {
    /// Largest position.
    last: i128,
    extent: Extent,
}

/// A loaded integer.
#[derive(Clone)]
struct Loaded {
    /// Largest value.
    last: i128,
    limit: Index,
    input: Option<Input>,
}

struct Prover<'a> {
    bounds: &'a [Bound],
    forward: Forward,
    axes: Vec<Axis>,
    ints: Vec<Option<Loaded>>,
    touched: Vec<Touched>,
    work: &'a mut Work,
}

impl Prover<'_> {
    fn statement(&mut self, stmt: &Stmt) -> Check {
        match stmt {
            Stmt::Let { .. } => Ok(()),
            Stmt::Load { view, index, .. } => self.access(*view, index, false),
            Stmt::Store { view, index, .. } => self.access(*view, index, true),
            Stmt::LoadWeight { view, n: row, k: element, .. } => match self.bound(*view)? {
                Bound::Weight { n, k } => {
                    self.inside(row, n)?;
                    self.inside(element, k).map(drop)
                }
                _ => Err("a packed matrix is not bound to a weight".into()),
            },
            Stmt::LoadInt { dst, view, index, limit } => {
                self.access(*view, index, false)?;
                let (_, most) = self.range(limit)?;
                let input = if let Bound::Rows { input, .. } = self.bound(*view)? { input } else { None };
                let last = (most - 1).clamp(0, i128::from(i32::MAX) - 1);
                let slot = self.ints.get_mut(dst.0 as usize).ok_or("an integer register out of range")?;
                *slot = Some(Loaded { last, limit: limit.clone(), input });
                Ok(())
            }
            Stmt::For { extent } | Stmt::Reduce { extent, .. } => {
                let mut most = MAX_ITERATIONS + 1;
                for bound in &extent.0 {
                    most = most.min(self.range(bound)?.1);
                }
                ensure!(most <= MAX_ITERATIONS, "a loop of more than {MAX_ITERATIONS} iterations");
                self.axes.push(Axis { last: (most - 1).max(0), extent: extent.clone() });
                Ok(())
            }
            Stmt::End => {
                self.axes.pop();
                Ok(())
            }
        }
    }

    fn bound(&self, view: ViewId) -> Check<Bound> {
        self.bounds.get(view.0 as usize).copied().ok_or_else(|| format!("view {} is not bound", view.0))
    }

    fn access(&mut self, view: ViewId, index: &Index, store: bool) -> Check {
        match self.bound(view)? {
            Bound::Weight { n, k } => self.inside(index, n * k).map(drop),
            Bound::State { elems } => {
                let rest = self.without(index, |p, t| p.picks_block(t, elems));
                let rest =
                    rest.ok_or("the index has no term that picks a block by a slot or a table entry")?;
                self.inside(&rest, elems).map(drop)
            }
            Bound::Rows { input: Some(Input::BlockTable), .. } => {
                let rest = self.without(index, |p, t| p.is_from(t, Input::TableStarts, 1));
                let rest = rest.ok_or("the index has no term that is the start of a sequence's table")?;
                ensure!(self.below_stride(&rest), "the block table entry may lie beyond its sequence");
                Ok(())
            }
            Bound::Rows { count, elems, .. } => {
                let own = |_: &Self, t: &Term| is_plain(t, elems) && t.base == Base::Axis(0);
                let own_rest = self.without(index, own).filter(|_| self.own_row_in(count));
                let back = match &own_rest {
                    Some(rest) if !store => self.rows_back(rest, elems)?,
                    _ => 0,
                };
                let rest = match &own_rest {
                    Some(rest) => Some(rest.clone()),
                    None if store => None,
                    None => {
                        let rest = self.without_run(index, count, elems);
                        rest.or_else(|| self.without(index, |p, t| p.picks_row(t, count, elems)))
                    }
                };
                let rest = rest.ok_or("the index has no term that picks a row of the buffer")?;
                let (low, high) = self.inside_from(&rest, back * elems, elems)?;
                let touched = &mut self.touched[view.0 as usize];
                touched.other_rows |= own_rest.is_none() || back > 0;
                if store {
                    touched.stored.push((low as u64, high as u64 + 1));
                }
                Ok(())
            }
        }
    }

    /// `index` without its first term for which `picks` holds.
    fn without(&self, index: &Index, picks: impl Fn(&Self, &Term) -> bool) -> Option<Index> {
        let at = index.terms.iter().position(|t| picks(self, t))?;
        let mut rest = index.clone();
        rest.terms.remove(at);
        Some(rest)
    }

    /// How many rows before its own an access lies, where `rest` is what is left without the own row: 0 unless it is known that there are
    /// so many, as a loop around it runs only where `row - n + 1 - back`, with a loaded integer n, is above 0.
    fn rows_back(&mut self, rest: &Index, elems: i128) -> Check<i128> {
        let (low, _) = self.range(rest)?;
        let back = if low < 0 && elems > 0 { (elems - 1 - low) / elems } else { 0 };
        let are_there = |bound: &Index| match &bound.terms[..] {
            [row, first] => {
                is_plain(row, 1)
                    && row.base == Base::Axis(0)
                    && is_plain(first, -1)
                    && self.loaded(first).is_some()
                    && i128::from(bound.constant) <= 1 - back
            }
            _ => false,
        };
        let guarded = back > 0 && self.axes.iter().any(|axis| axis.extent.0.iter().any(are_there));
        Ok(if guarded { back } else { 0 })
    }

    /// `index` without two terms that pick a row together: a row of the batch, and an axis that counts on from it up to the last one.
    fn without_run(&self, index: &Index, count: RowCount, elems: i128) -> Option<Index> {
        index.terms.iter().filter(|t| count == RowCount::Tokens && self.picks_row(t, count, elems)).find_map(
            |first| {
                let left = [
                    Term { base: Base::Sym(Sym::Rows), div: 1, rem: 0, coef: 1 },
                    Term { base: first.base, div: 1, rem: 0, coef: -1 },
                ];
                let counts_on = |p: &Self, t: &Term| match t.base {
                    Base::Axis(a) if is_plain(t, elems) => p.axes.get(a as usize).is_some_and(|axis| {
                        axis.extent.0.iter().any(|bound| bound.terms == left && bound.constant == 0)
                    }),
                    _ => false,
                };
                self.without(&self.without(index, |_, t| t == first)?, counts_on)
            },
        )
    }

    /// Whether row `r` of axis 0 is a row of a buffer sized by `count`: there are never more logit rows than token rows.
    fn own_row_in(&self, count: RowCount) -> bool {
        self.forward.rows == count || self.forward.rows == RowCount::Logits
    }

    fn loaded(&self, term: &Term) -> Option<&Loaded> {
        let Base::Int(int) = term.base else { return None };
        self.ints.get(int.0 as usize)?.as_ref()
    }

    fn picks_row(&self, term: &Term, count: RowCount, elems: i128) -> bool {
        let limit = self.loaded(term).filter(|_| is_plain(term, elems)).map(|l| &l.limit);
        limit.is_some_and(|limit| {
            *limit == Index::sym(Sym::LogitRows)
                || (*limit == Index::sym(Sym::Rows) && count == RowCount::Tokens)
        })
    }

    fn is_from(&self, term: &Term, input: Input, coef: i128) -> bool {
        is_plain(term, coef) && self.loaded(term).is_some_and(|l| l.input == Some(input))
    }

    /// Whether the term is the start of a block: an entry of the block table, or the block of a slot.
    fn picks_block(&self, term: &Term, elems: i128) -> bool {
        let of_slot = Term { div: 1, ..*term };
        self.is_from(term, Input::BlockTable, elems)
            || self.is_from(term, Input::CarriedBlocks, elems)
            || (term.div as usize == kv::TOKENS && self.is_from(&of_slot, Input::Slots, elems))
    }

    /// Whether the index is zero or an axis that stays below the entries of a sequence.
    fn below_stride(&self, index: &Index) -> bool {
        match (&index.terms[..], index.constant) {
            ([], 0) => true,
            ([t], 0) if is_plain(t, 1) => match t.base {
                Base::Axis(a) => {
                    let axis = self.axes.get(a as usize);
                    axis.is_some_and(|axis| axis.extent.0.contains(&Index::sym(Sym::TableStride)))
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// Requires `index` to lie in `0..len` and returns its range.
    fn inside(&mut self, index: &Index, len: i128) -> Check<(i128, i128)> {
        self.inside_from(index, 0, len)
    }

    /// As [`Prover::inside`] for the index plus `start`.
    fn inside_from(&mut self, index: &Index, start: i128, len: i128) -> Check<(i128, i128)> {
        let (low, high) = self.range(index)?;
        let (low, high) = (low + start, high + start);
        ensure!(low >= 0 && high < len, "the index ranges over {low}..={high} and must lie in 0..{len}");
        Ok((low, high))
    }

    fn last(&self, base: Base) -> Check<(i128, i128)> {
        Ok(match base {
            Base::Axis(a) => (0, self.axes.get(a as usize).ok_or("an axis is not open")?.last),
            Base::Int(_) => {
                let term = Term { base, div: 1, rem: 0, coef: 1 };
                (0, self.loaded(&term).ok_or("an integer is not defined")?.last)
            }
            Base::Sym(Sym::Rows | Sym::Sequences) => (1, i128::from(self.forward.max_rows)),
            Base::Sym(Sym::LogitRows) => (0, i128::from(self.forward.max_rows)),
            Base::Sym(Sym::TableStride) => (1, i128::from(self.forward.table_stride)),
        })
    }

    /// Smallest and largest value of an index. Exact where bases are independent and small, else an enclosing interval.
    fn range(&mut self, index: &Index) -> Check<(i128, i128)> {
        let (mut low, mut high) = (i128::from(index.constant), i128::from(index.constant));
        // The largest magnitude that a partial sum can have, whatever the order.
        let mut magnitude = low.abs();
        for (i, term) in index.terms.iter().enumerate() {
            let (first, last) = self.last(term.base)?;
            magnitude += (value(term, last).abs()).max(i128::from(term.coef).abs() * peak(term, last));
            if index.terms[..i].iter().any(|t| t.base == term.base) {
                continue;
            }
            let same: Vec<&Term> = index.terms[i..].iter().filter(|t| t.base == term.base).collect();
            let span = last - first;
            let steps = if same.len() > 1 && span < ENUMERATE { span as u64 + 1 } else { 1 };
            self.work.spend(steps * same.len() as u64)?;
            let (a, b) = if steps > 1 {
                let values = (first..=last).map(|v| same.iter().map(|t| value(t, v)).sum::<i128>());
                values.fold((i128::MAX, i128::MIN), |(a, b), v| (a.min(v), b.max(v)))
            } else {
                same.iter().map(|t| interval(t, first, last)).fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
            };
            (low, high) = (low + a, high + b);
        }
        ensure!(magnitude <= i128::from(i64::MAX), "the index may overflow");
        Ok((low, high))
    }
}

/// Whether a term is its base times `coef`.
fn is_plain(term: &Term, coef: i128) -> bool {
    term.div == 1 && term.rem == 0 && i128::from(term.coef) == coef
}

/// A term's value where its base is `v`. Divisors are at least 1 in nests that passed [`structure`].
fn value(term: &Term, v: i128) -> i128 {
    let v = v / i128::from(term.div.max(1));
    let v = if term.rem == 0 { v } else { v % i128::from(term.rem) };
    v * i128::from(term.coef)
}

/// Largest value of a term before it is scaled.
fn peak(term: &Term, last: i128) -> i128 {
    let last = last / i128::from(term.div.max(1));
    if term.rem == 0 { last } else { last.min(i128::from(term.rem) - 1) }
}

/// Bounds of a term whose base lies in `first..=last`.
fn interval(term: &Term, first: i128, last: i128) -> (i128, i128) {
    let div = i128::from(term.div.max(1));
    // A remainder is monotone only where it takes nothing away.
    let low = if term.rem == 0 || last / div < i128::from(term.rem) { first / div } else { 0 };
    let (a, b) = (low * i128::from(term.coef), peak(term, last) * i128::from(term.coef));
    (a.min(b), a.max(b))
}
