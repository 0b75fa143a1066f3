//! A loop nest as a kernel: a workgroup a row.
//!
//! Loops are given to *teams* of threads from the outside in. The workgroup starts as one team; a loop whose body holds no loop is
//! shared out over the team's threads; one whose body does is shared out over warps, which go on as teams of their own. A loop over
//! many elements with short loops inside goes to threads instead: what is wide is what should lie side by side.

use super::{Block, LANES, Param, float};
use bessemer_format::nest::{Base, Extent, Index, Nest, Op, ReduceKind, Stmt, Sym, ViewElem};
use std::collections::BTreeMap;

/// Who executes a stretch of statements together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Team {
    Group,
    Warp,
    Thread,
}

struct Emitter<'a> {
    nest: &'a Nest,
    ends: BTreeMap<usize, usize>,
    /// For each view, the struct that decodes it, where it is packed.
    layouts: &'a [Option<String>],
    threads: u32,
    partial: bool,
    out: Block,
}

/// A kernel's threads, parameters (views, then pass and fault) and body.
pub(super) fn kernel(nest: &Nest, layouts: &[Option<String>]) -> Result<(u32, Vec<Param>, Block), String> {
    let ends = nest.loop_ends().ok_or("loops are not closed")?.into_iter().collect();
    let mut emitter = Emitter { nest, ends, layouts, threads: LANES, partial: false, out: Block::body(1) };
    emitter.threads = emitter.width(0, nest.body.len());
    emitter.out.line("const int i0 = gx;");
    emitter.block(0, nest.body.len(), Team::Group, 1)?;
    let mut body = Block::body(1);
    if emitter.partial {
        let warps = emitter.threads / LANES;
        body.shared("partial", warps, warps.into());
    }
    let mut used = emitter.out.text;
    for (name, text) in [("lane", "tid % LANES"), ("warp", "tid / LANES")] {
        if used.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name) {
            used = format!("    const int {name} = {text};\n{used}");
        }
    }
    body.text.push_str(&used);
    let mut params: Vec<Param> = nest
        .views
        .iter()
        .enumerate()
        .map(|(at, view)| {
            let ty = match view.elem {
                ViewElem::F32 => "float",
                ViewElem::F16 | ViewElem::Bf16 => "ushort",
                ViewElem::I32 => "int",
                ViewElem::Kv => "kv",
                ViewElem::Panel => "uchar",
            };
            Param { ty, name: view_name(nest, at), store: view.store }
        })
        .collect();
    params.push(Param::read("int", "pass"));
    params.push(Param::written("int", "fault"));
    Ok((emitter.threads, params, body))
}

/// Views may share a name; their numbers tell them apart. No name is a word of the language.
fn view_name(nest: &Nest, at: usize) -> String {
    let name: String =
        nest.views[at].name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("{name}_v{at}")
}

fn constant(extent: &Extent) -> Option<i64> {
    match &extent.0[..] {
        [Index { terms, constant }] if terms.is_empty() => Some(*constant),
        _ => None,
    }
}

fn index(index: &Index) -> String {
    let mut parts: Vec<String> = Vec::new();
    for t in &index.terms {
        let mut text = match t.base {
            Base::Axis(a) => format!("i{a}"),
            Base::Int(n) => format!("n{}", n.0),
            Base::Sym(Sym::Rows) => "pass[0]".into(),
            Base::Sym(Sym::LogitRows) => "pass[1]".into(),
            Base::Sym(Sym::Sequences) => "pass[2]".into(),
            Base::Sym(Sym::TableStride) => "pass[3]".into(),
        };
        if t.div > 1 {
            text = format!("{text} / {}", t.div);
        }
        if t.rem != 0 {
            text = format!("{text} % {}", t.rem);
        }
        parts.push(match t.coef {
            1 => text,
            c if t.div > 1 || t.rem != 0 => format!("(idx)({text}) * {c}"),
            c => format!("(idx){text} * {c}"),
        });
    }
    if index.constant != 0 || parts.is_empty() {
        parts.push(index.constant.to_string());
    }
    parts.join(" + ")
}

fn extent(extent: &Extent) -> String {
    let bounds: Vec<String> = extent.0.iter().map(index).collect();
    let (last, others) = match bounds.split_last() {
        Some((last, others)) => (last.clone(), others),
        None => ("0".into(), &[][..]),
    };
    others.iter().rev().fold(last, |least, bound| format!("lesser({bound}, {least})"))
}

impl Emitter<'_> {
    /// Loops whose statements lie in `from..to`, at any depth: their places.
    fn loops(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, &Extent)> {
        (from..to).filter_map(|at| match &self.nest.body[at] {
            Stmt::For { extent } | Stmt::Reduce { extent, .. } => Some((at, extent)),
            _ => None,
        })
    }

    /// Whether the loop at `at` should go to threads although it holds loops.
    fn is_wide(&self, at: usize, extent: &Extent) -> bool {
        let wide = |e: &Extent| constant(e).is_some_and(|n| n >= i64::from(LANES));
        let end = self.ends.get(&at).copied().unwrap_or(at);
        wide(extent) && !self.loops(at + 1, end).any(|(_, e)| wide(e))
    }

    /// Threads that the loops of a stretch keep busy, at most 256.
    fn width(&self, from: usize, to: usize) -> u32 {
        let mut width = LANES;
        for (at, e) in self.loops(from, to) {
            let Some(n) = constant(e) else { continue };
            let end = self.ends.get(&at).copied().unwrap_or(at);
            let has_loops = self.loops(at + 1, end).next().is_some();
            let wanted = match has_loops && !self.is_wide(at, e) {
                true => n * i64::from(LANES),
                // A few elements a thread.
                false => n / 2,
            };
            width = width.max(wanted.clamp(1, 256) as u32);
        }
        width.next_power_of_two()
    }

    fn block(&mut self, from: usize, to: usize, team: Team, axis: usize) -> Result<(), String> {
        let mut at = from;
        while at < to {
            let end = self.ends.get(&at).copied();
            match (&self.nest.body[at], end) {
                (Stmt::For { extent }, Some(end)) => {
                    let extent = extent.clone();
                    self.each(at, end, &extent, team, axis)?;
                    at = end;
                }
                (Stmt::Reduce { dst, kind, value, extent }, Some(end)) => {
                    let (dst, kind, value, extent) = (dst.0, *kind, value.0, extent.clone());
                    self.reduce((at, end), (dst, kind, value), &extent, team, axis)?;
                    at = end;
                }
                (stmt, _) => {
                    let line = self.statement(stmt, team)?;
                    self.out.line(line);
                }
            }
            at += 1;
        }
        Ok(())
    }

    fn is_leaf(&self, at: usize, end: usize) -> bool {
        self.loops(at + 1, end).next().is_none()
    }

    /// First iteration of a loop over `team`'s threads, and the distance to the next.
    fn share(&self, team: Team) -> (&'static str, String) {
        match team {
            Team::Group => ("tid", self.threads.to_string()),
            Team::Warp => ("lane", "LANES".into()),
            Team::Thread => ("0", "1".into()),
        }
    }

    fn each(&mut self, at: usize, end: usize, e: &Extent, team: Team, axis: usize) -> Result<(), String> {
        let (share, inner) = if self.is_leaf(at, end) || self.is_wide(at, e) {
            (self.share(team), Team::Thread)
        } else {
            match team {
                Team::Group => (("warp", (self.threads / LANES).to_string()), Team::Warp),
                team => (self.share(Team::Thread), team),
            }
        };
        self.open_loop(axis, share, e);
        self.block(at + 1, end, inner, axis + 1)?;
        self.out.close();
        Ok(())
    }

    fn open_loop(&mut self, axis: usize, (start, step): (&str, String), e: &Extent) {
        let extent = extent(e);
        self.out.open(format!("for (int i{axis} = {start}; i{axis} < {extent}; i{axis} += {step})"));
    }

    fn reduce(
        &mut self,
        (at, end): (usize, usize),
        (dst, kind, value): (u8, ReduceKind, u8),
        e: &Extent,
        team: Team,
        axis: usize,
    ) -> Result<(), String> {
        let (neutral, name) = match kind {
            ReduceKind::Sum => ("0.0f", "sum"),
            ReduceKind::Max => ("-INF", "max"),
        };
        let leaf = self.is_leaf(at, end);
        let (share, inner) =
            if leaf { (self.share(team), Team::Thread) } else { (self.share(Team::Thread), team) };
        self.out.line(format!("float r{dst} = {neutral};"));
        self.open_loop(axis, share, e);
        self.block(at + 1, end, inner, axis + 1)?;
        self.out.line(match kind {
            ReduceKind::Sum => format!("r{dst} = r{dst} + r{value};"),
            ReduceKind::Max => format!("r{dst} = greater_of(r{dst}, r{value});"),
        });
        self.out.close();
        match team {
            Team::Group if leaf => {
                self.partial = true;
                let warps = self.threads / LANES;
                self.out.line(format!("r{dst} = group_{name}(r{dst}, partial, tid, {warps});"));
            }
            Team::Warp if leaf => self.out.line(format!("r{dst} = warp_{name}(r{dst});")),
            _ => {}
        }
        Ok(())
    }

    fn statement(&self, stmt: &Stmt, team: Team) -> Result<String, String> {
        let view = |id: u8| -> Result<(String, ViewElem), String> {
            let view = self.nest.views.get(usize::from(id)).ok_or("a view that does not exist")?;
            Ok((view_name(self.nest, usize::from(id)), view.elem))
        };
        Ok(match stmt {
            Stmt::Let { dst, op } => format!("const float r{} = {};", dst.0, expression(op)),
            Stmt::Load { dst, view: v, index: i } => {
                let (name, elem) = view(v.0)?;
                let element = format!("{name}[{}]", index(i));
                let value = match elem {
                    ViewElem::F32 => element,
                    ViewElem::F16 => format!("f16({element})"),
                    ViewElem::Bf16 => format!("bf16({element})"),
                    ViewElem::Kv => format!("load_kv({element})"),
                    ViewElem::I32 | ViewElem::Panel => return Err(format!("loads {name} as a float")),
                };
                format!("const float r{} = {value};", dst.0)
            }
            Stmt::LoadWeight { dst, view: v, n, k } => {
                let (name, _) = view(v.0)?;
                let layout = self.layouts.get(usize::from(v.0)).cloned().flatten();
                let layout = layout.ok_or_else(|| format!("{name} is no packed weight"))?;
                format!(
                    "const float r{} = weight_at<{layout}>({name}, (int)({}), (int)({}));",
                    dst.0,
                    index(n),
                    index(k)
                )
            }
            Stmt::LoadInt { dst, view: v, index: i, limit } => {
                let (name, _) = view(v.0)?;
                format!("const int n{} = checked({name}[{}], {}, fault);", dst.0, index(i), index(limit))
            }
            Stmt::Store { view: v, index: i, src } => {
                let (name, elem) = view(v.0)?;
                let value = match elem {
                    ViewElem::F32 => format!("r{}", src.0),
                    ViewElem::F16 => format!("to_f16(r{})", src.0),
                    ViewElem::Bf16 => format!("to_bf16(r{})", src.0),
                    ViewElem::Kv => format!("store_kv(r{})", src.0),
                    ViewElem::I32 | ViewElem::Panel => return Err(format!("stores a float in {name}")),
                };
                let who = match team {
                    Team::Group => "if (tid == 0) ",
                    Team::Warp => "if (lane == 0) ",
                    Team::Thread => "",
                };
                format!("{who}{name}[{}] = {value};", index(i))
            }
            Stmt::For { .. } | Stmt::Reduce { .. } | Stmt::End => return Err("loops are not closed".into()),
        })
    }
}

fn expression(op: &Op) -> String {
    match op {
        Op::Const(value) => float(*value),
        Op::FromInt(n) => format!("(float)n{}", n.0),
        Op::Neg(a) => format!("-r{}", a.0),
        Op::Abs(a) => format!("as_float(as_uint(r{}) & 0x7fffffffu)", a.0),
        Op::Sqrt(a) => format!("root(r{})", a.0),
        Op::Exp(a) => format!("exponential(r{})", a.0),
        Op::Sin(a) => format!("sine(r{})", a.0),
        Op::Cos(a) => format!("cosine(r{})", a.0),
        Op::Add(a, b) => format!("r{} + r{}", a.0, b.0),
        Op::Sub(a, b) => format!("r{} - r{}", a.0, b.0),
        Op::Mul(a, b) => format!("r{} * r{}", a.0, b.0),
        Op::Div(a, b) => format!("r{} / r{}", a.0, b.0),
        Op::Max(a, b) => format!("greater_of(r{}, r{})", a.0, b.0),
        Op::Min(a, b) => format!("lesser_of(r{}, r{})", a.0, b.0),
    }
}
