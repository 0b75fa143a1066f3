//! What fusion patterns share: views of linears, readers, names.

use bessemer_ir::attr::{BinaryKind, Epilogue, Segment, UnaryKind};
use bessemer_ir::{Graph, Op, Value};

/// A linear without an epilogue.
pub struct Plain {
    /// Its input; for a grouped linear that rows choose from, the choice too.
    pub inputs: Vec<Value>,
    /// What it is without its segments: a plain or a grouped linear.
    pub op: Op,
    /// Its segments.
    pub segments: Vec<Segment>,
    /// Weights and biases in the order of the segments.
    pub weights: Vec<Value>,
}

/// The linear without an epilogue that makes `value`, if one does.
pub fn plain_linear(graph: &Graph, value: Value) -> Option<Plain> {
    any_linear(graph, value).filter(|l| matches!(l.op, Op::Linear { .. }))
}

/// The plain or grouped linear without an epilogue that makes `value`, if one does.
pub fn any_linear(graph: &Graph, value: Value) -> Option<Plain> {
    let mut op = graph.op(value.node).clone();
    let inputs = 1 + usize::from(matches!(op, Op::GroupedLinear { routed: true, .. }));
    let (Op::Linear { segments, epilogue: Epilogue::None, .. }
    | Op::GroupedLinear { segments, epilogue: Epilogue::None, .. }) = &mut op
    else {
        return None;
    };
    let segments = std::mem::take(segments);
    let operands = graph.operands(value.node);
    let (inputs, weights) = operands.split_at_checked(inputs)?;
    Some(Plain { inputs: inputs.to_vec(), op, segments, weights: weights.to_vec() })
}

/// The operands of the one linear that does the work of `parts`; `None` where they differ in more than their segments.
pub fn join(parts: Vec<Plain>) -> Option<Plain> {
    let mut parts = parts.into_iter();
    let mut joined = parts.next()?;
    for p in parts {
        if p.inputs != joined.inputs || p.op != joined.op {
            return None;
        }
        joined.segments.extend(p.segments);
        joined.weights.extend(p.weights);
    }
    Some(joined)
}

impl Plain {
    /// Adds the linear with `epilogue`, whose further operands are `extra`.
    pub fn add(
        self,
        graph: &mut Graph,
        name: String,
        epilogue: Epilogue,
        extra: &[Value],
    ) -> Result<Value, bessemer_ir::GraphError> {
        let mut operands = self.inputs;
        operands.extend(self.weights);
        operands.extend(extra);
        let mut op = self.op;
        if let Op::Linear { segments, epilogue: after, .. }
        | Op::GroupedLinear { segments, epilogue: after, .. } = &mut op
        {
            (*segments, *after) = (self.segments, epilogue);
        }
        Ok(graph.add(name, op, &operands)?.into())
    }
}

/// Both operands of a binary op of this kind, if `value` is the result of one.
pub fn binary(graph: &Graph, value: Value, kind: BinaryKind) -> Option<[Value; 2]> {
    match (graph.op(value.node), &graph.operands(value.node)[..]) {
        (Op::Binary { kind: found }, [a, b]) if *found == kind => Some([*a, *b]),
        _ => None,
    }
}

/// The operand of a unary op of this kind, if `value` is the result of one.
pub fn unary(graph: &Graph, value: Value, kind: UnaryKind) -> Option<Value> {
    match (graph.op(value.node), &graph.operands(value.node)[..]) {
        (Op::Unary { kind: found }, [a]) if *found == kind => Some(*a),
        _ => None,
    }
}

/// Whether nothing reads `value` but one operand of one node: only then may a fusion make it disappear.
pub fn read_once(graph: &Graph, value: Value) -> bool {
    graph.only_use(value).is_some()
}

/// One name for several, in the shell's notation: `blk.0.attn_{q,k,v}.weight`. Names part between words, not inside them.
pub fn joint_name(names: &[&str]) -> String {
    let [first, rest @ ..] = names else { return String::new() };
    if rest.iter().all(|r| r == first) {
        return first.to_string();
    }
    let separator = |c: char| matches!(c, '.' | '_' | '/');
    let prefix = (first.rmatch_indices(separator).map(|(i, _)| i + 1))
        .find(|&i| rest.iter().all(|r| r.starts_with(&first[..i])))
        .unwrap_or(0);
    let tails: Vec<&str> = names.iter().map(|n| &n[prefix..]).collect();
    let suffix = (tails[0].match_indices(separator).map(|(i, _)| &tails[0][i..]))
        .find(|s| tails.iter().all(|t| t.ends_with(s)))
        .unwrap_or("");
    let middles: Vec<&str> = tails.iter().map(|t| &t[..t.len() - suffix.len()]).collect();
    format!("{}{{{}}}{suffix}", &first[..prefix], middles.join(","))
}

#[cfg(test)]
mod tests {
    use super::joint_name;

    #[test]
    fn joint_names_keep_what_is_common() {
        assert_eq!(joint_name(&["b.attn_q.w", "b.attn_k.w", "b.attn_v.w"]), "b.attn_{q,k,v}.w");
        assert_eq!(joint_name(&["gate", "up"]), "{gate,up}");
        assert_eq!(joint_name(&["l.0.mlp.gate_proj.w", "l.0.mlp.up_proj.w"]), "l.0.mlp.{gate,up}_proj.w");
        assert_eq!(joint_name(&["silu", "swiglu"]), "{silu,swiglu}");
        assert_eq!(joint_name(&["a.b", "a.b.b"]), "a.{b,b.b}");
        assert_eq!(joint_name(&["same.w", "same.w"]), "same.w");
        assert_eq!(joint_name(&["é.1", "è.1"]), "{é,è}.1");
    }
}
