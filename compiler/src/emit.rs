//! Text for people: the plan and the graph.

use bessemer_format::gpu::{GpuArg, GpuCode, GpuKernel, Groups};
use bessemer_format::nest::{Base, Extent, Index, Nest, Stmt, Sym};
use bessemer_format::plan::{Arg, Buffer, Home, Linear, Output, Plan, Program, RowCount, StepKind};
use bessemer_ir::{Graph, Op};
use std::fmt::Write as _;

/// The graph for Graphviz. Constants are left out: their names stand in the linears.
pub fn dot(graph: &Graph) -> String {
    let mut out = String::from("digraph model {\n  node [shape=box, fontname=monospace];\n");
    for node in graph.order() {
        if matches!(graph.op(node), Op::Const { .. }) {
            continue;
        }
        let label = format!("{}\\n{}", graph.op(node).name(), graph.name(node).replace('"', "'"));
        let _ = writeln!(out, "  n{} [label=\"{label}\"];", node.number());
        for v in graph.operands(node) {
            if !matches!(graph.op(v.node), Op::Const { .. }) {
                let _ = writeln!(
                    out,
                    "  n{} -> n{} [label=\"{}\"];",
                    v.node.number(),
                    node.number(),
                    graph.ty(v)
                );
            }
        }
    }
    out.push_str("}\n");
    out
}

/// The plan: weights, nests, and the steps of every program.
pub fn plan(plan: &Plan) -> String {
    let mut out = String::new();
    let m = &plan.model;
    let _ = writeln!(
        out,
        "model vocab {} context {} hidden {} layers {}",
        m.vocab, m.context, m.hidden, m.layers
    );
    if m.output != Output::Logits {
        let _ =
            writeln!(out, "gives {:?} of {} sequences", m.output, if m.whole { "whole" } else { "growing" });
    }
    for (i, state) in plan.states.iter().enumerate() {
        let _ = writeln!(out, "state {i} {state:?}");
    }
    for (i, w) in plan.weights.iter().enumerate() {
        let _ = writeln!(
            out,
            "weight {i} {} x {} {} {:?} at {} ({} bytes)",
            w.n, w.k, w.scheme, w.layout, w.offset, w.len
        );
    }
    for (i, n) in plan.nests.iter().enumerate() {
        let _ = writeln!(out, "nest {i}");
        out.push_str(&nest(n));
    }
    for p in &plan.programs {
        out.push_str(&program(plan, p));
    }
    out
}

/// What a GPU does for a plan: its kernels, and the launches of every program.
pub fn launches(plan: &Plan, code: &GpuCode) -> String {
    let mut out = format!("cache of {}\n", code.kv.name());
    for (i, GpuKernel { name, threads, params }) in code.kernels.iter().enumerate() {
        let _ = writeln!(out, "kernel {i} {name}: {threads} threads, {params} pointers");
    }
    for (p, launches) in plan.programs.iter().zip(&code.programs) {
        let _ = writeln!(out, "program rows {}..={}", p.regime.min_rows, p.regime.max_rows);
        for l in launches {
            let name = code.kernels.get(l.kernel as usize).map_or("?", |k| &k.name);
            let source = p.steps.get(l.step as usize).map_or("?", |s| &s.source);
            let args: Vec<String> = l.args.iter().map(gpu_arg).collect();
            let [x, y, z] = l.grid.map(groups);
            let _ = writeln!(out, "  {:4} {name} <{x}, {y}, {z}> {}    # {source}", l.step, args.join(", "));
        }
    }
    out
}

fn gpu_arg(arg: &GpuArg) -> String {
    match arg {
        GpuArg::Buffer(b) => format!("b{b}"),
        GpuArg::Weight(w) => format!("w{w}"),
        GpuArg::State(s) => format!("s{s}"),
        GpuArg::Input(input) => format!("{input:?}").to_lowercase(),
        GpuArg::Pass => "pass".into(),
        GpuArg::Fault => "fault".into(),
    }
}

fn groups(groups: Groups) -> String {
    let Groups { rows, per, times } = groups;
    match (rows, per, times) {
        (None, ..) => times.to_string(),
        (Some(rows), 1, 1) => format!("{rows:?}").to_lowercase(),
        (Some(rows), ..) => format!("{rows:?} / {per} * {times}").to_lowercase(),
    }
}

fn program(plan: &Plan, p: &Program) -> String {
    let mut out =
        format!("program rows {}..={} arena {} bytes\n", p.regime.min_rows, p.regime.max_rows, p.arena_bytes);
    for (i, b) in p.buffers.iter().enumerate() {
        let _ = writeln!(out, "  buffer {i} {}", buffer(b));
    }
    for (i, cut) in p.cuts.iter().enumerate() {
        let live: Vec<String> = cut.live.iter().map(|b| format!("b{b}")).collect();
        let _ = writeln!(out, "  layer {i} from step {}, reads {}", cut.step, live.join(", "));
    }
    for (i, s) in p.steps.iter().enumerate() {
        let text = match &s.kind {
            StepKind::Embed { tokens, table, out } => {
                format!("embed tokens b{tokens} table w{table} -> b{out}")
            }
            StepKind::Linear(l) => linear(l),
            StepKind::Route(r) => {
                let bias = r.bias.map(|w| format!(" + w{w}")).unwrap_or_default();
                format!("route b{}{bias} {:?} -> b{}", r.logits, r.choice, r.chosen)
            }
            StepKind::GroupedLinear(g) => {
                let chosen = g.chosen.map(|b| format!(" chosen b{b}")).unwrap_or_default();
                format!("grouped {} of {}{chosen}: {}", g.slots, g.groups, linear(&g.linear))
            }
            StepKind::Attention(a) => {
                let scratch = a.scratch.map(|b| format!(" scratch b{b}")).unwrap_or_default();
                format!(
                    "attention b{} {:?} {}/{} heads of {} at {} chunk {}{scratch} -> b{}",
                    a.query, a.compute, a.heads, a.kv_heads, a.head_dim, a.layer_elems, a.chunk, a.out
                )
            }
            StepKind::Nest { nest, rows, args } => {
                let args: Vec<String> = args
                    .iter()
                    .map(|a| match a {
                        Arg::Buffer(b) => format!("b{b}"),
                        Arg::Weight(w) => format!("w{w}"),
                        Arg::State(s) => format!("s{s}"),
                    })
                    .collect();
                let name = plan.nests.get(*nest as usize).map_or("?", |n| n.name.as_str());
                format!("nest {nest} ({name}) over {rows:?}: {}", args.join(", "))
            }
            StepKind::Copy { from, to } => format!("copy b{from} -> b{to}"),
        };
        let barrier = if s.barrier { "" } else { " (no barrier)" };
        let _ = writeln!(out, "  {i:4} {text}{barrier}    # {}", s.source);
    }
    out
}

fn linear(l: &Linear) -> String {
    let segments: Vec<String> = l
        .segments
        .iter()
        .map(|s| {
            let bias = s.bias.map(|b| format!("+w{b}")).unwrap_or_default();
            format!("w{}{bias}@{}", s.weight, s.column)
        })
        .collect();
    let scratch = l.scratch.map(|b| format!(" scratch b{b}")).unwrap_or_default();
    format!(
        "linear b{} [{}] {:?} {:?}{scratch} -> b{}",
        l.input,
        segments.join(", "),
        l.compute,
        l.epilogue,
        l.out
    )
}

fn buffer(b: &Buffer) -> String {
    let rows = match b.rows {
        RowCount::Tokens => "R",
        RowCount::Logits => "L",
    };
    let home = match b.home {
        Home::Arena { offset } => format!("arena {offset}"),
        Home::Input(input) => format!("input {input:?}"),
        Home::Logits => "logits".into(),
    };
    format!("{:?}[{rows}][{}] {home} # {}", b.elem, b.row_elems, b.name)
}

/// A nest, indented by its loops.
pub fn nest(nest: &Nest) -> String {
    let mut out = format!("  {} over rows (i0)\n", nest.name);
    for (i, v) in nest.views.iter().enumerate() {
        let _ = writeln!(out, "  v{i} {} {:?}{}", v.name, v.elem, if v.store { " (stored)" } else { "" });
    }
    let mut depth = 1usize;
    for stmt in &nest.body {
        if matches!(stmt, Stmt::End) {
            depth -= 1;
            continue;
        }
        let text = match stmt {
            Stmt::Let { dst, op } => format!("r{} = {op:?}", dst.0),
            Stmt::Load { dst, view, index: i } => format!("r{} = v{}[{}]", dst.0, view.0, index(i)),
            Stmt::LoadWeight { dst, view, n, k } => {
                format!("r{} = v{}[{}][{}]", dst.0, view.0, index(n), index(k))
            }
            Stmt::LoadInt { dst, view, index: i, limit } => {
                format!("n{} = v{}[{}] below {}", dst.0, view.0, index(i), index(limit))
            }
            Stmt::Store { view, index: i, src } => format!("v{}[{}] = r{}", view.0, index(i), src.0),
            Stmt::For { extent: e } => format!("for i{depth} in 0..{}", extent(e)),
            Stmt::Reduce { dst, kind, value, extent: e } => {
                format!("r{} = {kind:?} of r{} for i{depth} in 0..{}", dst.0, value.0, extent(e))
            }
            Stmt::End => continue,
        };
        let _ = writeln!(out, "  {}{text}", "  ".repeat(depth));
        if matches!(stmt, Stmt::For { .. } | Stmt::Reduce { .. }) {
            depth += 1;
        }
    }
    out
}

fn extent(e: &Extent) -> String {
    match &e.0[..] {
        [one] => index(one),
        many => format!("min({})", many.iter().map(index).collect::<Vec<_>>().join(", ")),
    }
}

fn index(i: &Index) -> String {
    let mut parts: Vec<String> = i
        .terms
        .iter()
        .map(|t| {
            let mut text = match t.base {
                Base::Axis(a) => format!("i{a}"),
                Base::Int(n) => format!("n{}", n.0),
                Base::Sym(Sym::Rows) => "R".into(),
                Base::Sym(Sym::LogitRows) => "L".into(),
                Base::Sym(Sym::Sequences) => "S".into(),
                Base::Sym(Sym::TableStride) => "T".into(),
            };
            if t.div > 1 {
                text = format!("{text}/{}", t.div);
            }
            if t.rem != 0 {
                text = format!("{text}%{}", t.rem);
            }
            if t.coef != 1 {
                text = format!("{}*({text})", t.coef);
            }
            text
        })
        .collect();
    if i.constant != 0 || parts.is_empty() {
        parts.push(i.constant.to_string());
    }
    parts.join(" + ")
}
