//! Query, key and value projections of a layer into one segmented linear, its rotations and its append into one step behind it.
//!
//! ```text
//! q = linear x          qr = rope q, t
//! k = linear x          kr = rope k, t            qkv = linear x {q, k, v}
//! v = linear x          s' = append s, kr, v      qr, s' = rope_append qkv, t, s
//! ```
//! Both halves go together: no op takes a part of a row, so the three results need a reader that takes them side by side.

use crate::error::Cause;
use crate::pattern::{Plain, join, joint_name, plain_linear, read_once};
use crate::pipeline::Context;
use bessemer_ir::attr::{Epilogue, RopeStyle};
use bessemer_ir::{Graph, NodeId, Op, Value};

struct Match {
    qkv: Plain,
    name: String,
    append: NodeId,
    rotated: Value,
    table: Value,
    state: Value,
    op: Op,
}

/// The pass.
pub fn run(graph: &mut Graph, _: &Context<'_>) -> Result<u32, Cause> {
    let mut rewrites = 0;
    for node in graph.order() {
        let Some(m) = find(graph, node) else { continue };
        let qkv = m.qkv.add(graph, m.name, Epilogue::None, &[])?;
        let name = graph.name(m.append).to_string();
        let fused = graph.add(name, m.op, &[qkv, m.table, m.state])?;
        graph.replace(m.rotated, fused.result(0))?;
        graph.replace(m.append.into(), fused.result(1))?;
        rewrites += 1;
    }
    Ok(rewrites)
}

fn find(graph: &Graph, append: NodeId) -> Option<Match> {
    let Op::Append { kv_heads } = *graph.op(append) else { return None };
    let [state, keys, v] = graph.operands(append)[..] else { return None };
    // The first version of the state: it depends on nothing, so the fused step cannot come to depend on itself.
    let Op::State { kv_heads: state_heads, head_dim, .. } = *graph.op(state.node) else { return None };
    let k = rope(graph, keys)?;
    if !read_once(graph, keys) || !read_once(graph, k.x) || !read_once(graph, v) {
        return None;
    }
    let (k_linear, v_linear) = (single(graph, k.x)?, single(graph, v)?);
    let (rotated, q) = query(graph, &k, &k_linear.inputs, keys)?;
    let q_linear = single(graph, q.x)?;
    let head = u64::from(head_dim);
    let width = |heads: u32| head.checked_mul(u64::from(heads));
    let agrees = q.style == k.style
        && k.heads == kv_heads
        && state_heads == kv_heads
        && Some(k_linear.segments[0].width) == width(kv_heads)
        && Some(q_linear.segments[0].width) == width(q.heads);
    if !agrees {
        return None;
    }
    let name = joint_name(&[q.x, k.x, v].map(|v| graph.name(v.node)));
    let op = Op::RopeAppend { style: q.style, heads: q.heads, kv_heads };
    let qkv = join(vec![q_linear, k_linear, v_linear])?;
    Some(Match { qkv, name, append, rotated, table: q.table, state, op })
}

/// The rotated queries that belong to these keys: another rope with the same table over a linear of the same `x`. A second
/// candidate makes it undecided, so nothing fuses.
fn query(graph: &Graph, k: &Rope, x: &[Value], keys: Value) -> Option<(Value, Rope)> {
    let mut found = None;
    for (reader, _) in graph.uses(k.table) {
        let rotated = Value::from(reader);
        let Some(q) = rope(graph, rotated).filter(|q| rotated != keys && q.table == k.table) else {
            continue;
        };
        if single(graph, q.x).is_some_and(|l| l.inputs == x)
            && read_once(graph, q.x)
            && found.replace((rotated, q)).is_some()
        {
            return None;
        }
    }
    found
}

struct Rope {
    x: Value,
    table: Value,
    style: RopeStyle,
    heads: u32,
}

fn rope(graph: &Graph, value: Value) -> Option<Rope> {
    let Op::Rope { style, heads } = *graph.op(value.node) else { return None };
    let [x, table] = graph.operands(value.node)[..] else { return None };
    Some(Rope { x, table, style, heads })
}

fn single(graph: &Graph, value: Value) -> Option<Plain> {
    plain_linear(graph, value).filter(|l| l.segments.len() == 1)
}
