//! Types of results from types of operands: the one place where shapes are checked.

use crate::attr::{Computes, Epilogue, Scalar, UnaryKind};
use crate::op::Op;
use crate::types::{DType, Dim, Layout, TensorType};
use bessemer_format::plan::Input;

/// Rows that an [`Op::History`] may hold side by side.
pub const MAX_TAPS: u32 = 8;

/// The types that `op` gives for operands of these types, or what is wrong.
pub fn infer(op: &Op, operands: &[TensorType]) -> Result<Vec<TensorType>, String> {
    let arity = |n: usize| match operands.len() {
        found if found == n => Ok(()),
        found => Err(format!("takes {n} operands, has {found}")),
    };
    match op {
        Op::Input { input } => {
            arity(0)?;
            match input {
                Input::LogitRows => Ok(vec![TensorType::i32([Dim::LogitRows])]),
                Input::Tokens | Input::Positions | Input::Slots | Input::Sequences | Input::TokenTypes => {
                    Ok(vec![TensorType::i32([Dim::Rows])])
                }
                Input::BlockTable | Input::TableStarts | Input::CarriedBlocks => {
                    Err("the block table is no value of the graph; states stand for it".into())
                }
                Input::FirstRows | Input::LastPositions => {
                    Err("the extent of a sequence is no value of the graph; ops that need it know it".into())
                }
            }
        }
        Op::State { kv_heads, head_dim, .. } => {
            arity(0)?;
            if *kv_heads == 0 || *head_dim == 0 || !head_dim.is_multiple_of(2) {
                return Err(format!(
                    "{kv_heads} heads of {head_dim}: a head needs an even number of elements"
                ));
            }
            Ok(vec![TensorType::state()])
        }
        Op::Const { recipe } => {
            arity(0)?;
            if recipe.shape.is_empty() || recipe.shape.len() > 2 || recipe.shape.contains(&0) {
                return Err(format!("a constant has one or two extents above zero, not {:?}", recipe.shape));
            }
            Ok(vec![TensorType::weight(&recipe.shape, recipe.scheme(), Layout::Dense)])
        }
        Op::Embed {} => {
            arity(2)?;
            let rows = index_rows(&operands[0], "ids")?;
            let (_, k) = matrix(&operands[1], "table")?;
            Ok(vec![TensorType::f32([rows, Dim::Const(k)])])
        }
        Op::RmsNorm { eps } => {
            arity(2)?;
            norm(*eps, &operands[0], &operands[1])?;
            Ok(vec![operands[0].clone()])
        }
        Op::LayerNorm { eps, parts } => {
            if !(2..=3).contains(&operands.len()) {
                return Err(format!("takes 2 or 3 operands, has {}", operands.len()));
            }
            let (_, width) = activation(&operands[0], "x")?;
            added_to_variance(*eps)?;
            part(width, u64::from(*parts), "parts")?;
            expect_vector(&operands[1], width, "w")?;
            operands.get(2).map_or(Ok(()), |b| expect_vector(b, width, "b"))?;
            Ok(vec![operands[0].clone()])
        }
        Op::AddRmsNorm { eps } => {
            arity(3)?;
            same(&operands[0], &operands[1])?;
            norm(*eps, &operands[0], &operands[2])?;
            Ok(vec![operands[0].clone(), operands[0].clone()])
        }
        Op::Linear { segments, epilogue, .. } => {
            linear(segments, *epilogue, Stack { groups: 1, slots: 1 }, operands)
        }
        Op::Route { choice } => {
            let logits = operands.first().ok_or("takes logits")?;
            let (rows, experts) = activation(logits, "logits")?;
            choice.check(experts)?;
            if let [_, bias] = operands {
                expect_vector(bias, experts, "bias")?;
            } else {
                arity(1)?;
            }
            Ok(vec![TensorType::i32([rows, Dim::Const(u64::from(choice.top_k))])])
        }
        Op::RouteWeights { scale, .. } => {
            arity(2)?;
            let (rows, _) = activation(&operands[0], "logits")?;
            let top_k = choices(&operands[1], rows)?;
            if !scale.is_finite() {
                return Err(format!("scale {scale}"));
            }
            Ok(vec![TensorType::f32([rows, Dim::Const(top_k)])])
        }
        Op::GroupedLinear { groups, slots, routed, segments, epilogue, .. } => {
            let stack = Stack { groups: u64::from(*groups), slots: u64::from(*slots) };
            let mut operands = operands.to_vec();
            if *routed && operands.len() > 1 {
                let (rows, _) = activation(&operands[0], "x")?;
                let chosen = choices(&operands.remove(1), rows)?;
                if chosen != stack.slots {
                    return Err(format!("{chosen} choices for {slots} slots"));
                }
            } else if *routed || groups != slots {
                return Err(format!("{slots} slots that choose nothing from {groups} weights"));
            }
            if *epilogue == Epilogue::Residual {
                return Err("a grouped linear has no residual".into());
            }
            linear(segments, *epilogue, stack, &operands)
        }
        Op::Combine {} => {
            arity(2)?;
            let (rows, width) = activation(&operands[0], "y")?;
            let (_, slots) = activation(&operands[1], "weights")?;
            expect(&operands[1], &TensorType::f32([rows, Dim::Const(slots)]), "weights")?;
            Ok(vec![TensorType::f32([rows, Dim::Const(part(width, slots, "slots")?)])])
        }
        Op::ConcatHeads { heads } => {
            arity(2)?;
            let ((rows, a), (_, b)) = (activation(&operands[0], "a")?, activation(&operands[1], "b")?);
            expect(&operands[1], &TensorType::f32([rows, Dim::Const(b)]), "b")?;
            for width in [a, b] {
                part(width, u64::from(*heads), "heads")?;
            }
            Ok(vec![TensorType::f32([rows, Dim::Const(a.checked_add(b).ok_or("too wide")?)])])
        }
        Op::RopeTable { inv_freq, .. } => {
            arity(1)?;
            let rows = index_rows(&operands[0], "positions")?;
            if inv_freq.is_empty() || inv_freq.iter().any(|f| !f.is_finite() || *f < 0.0) {
                return Err("frequencies must be finite, not negative, and at least one".into());
            }
            Ok(vec![TensorType::f32([rows, Dim::Const(2 * inv_freq.len() as u64)])])
        }
        Op::Rope { heads, .. } => {
            arity(2)?;
            let (rows, width) = activation(&operands[0], "x")?;
            let head_dim = head_dim(width, u64::from(*heads))?;
            rope_table(&operands[1], rows, head_dim)?;
            Ok(vec![operands[0].clone()])
        }
        Op::Append { kv_heads } => {
            arity(3)?;
            state(&operands[0])?;
            same(&operands[1], &operands[2])?;
            let (_, width) = activation(&operands[1], "k")?;
            head_dim(width, u64::from(*kv_heads))?;
            Ok(vec![TensorType::state()])
        }
        Op::RopeAppend { heads, kv_heads, .. } => {
            arity(3)?;
            let (rows, width) = activation(&operands[0], "qkv")?;
            let head_dim = head_dim(width, u64::from(*heads) + 2 * u64::from(*kv_heads))?;
            rope_table(&operands[1], rows, head_dim)?;
            state(&operands[2])?;
            let queries = TensorType::f32([rows, Dim::Const(head_dim * u64::from(*heads))]);
            Ok(vec![queries, TensorType::state()])
        }
        Op::Attention { heads, kv_heads, scale, window, softcap, compute } => {
            of_floats(compute)?;
            if let Some(sinks) = operands.get(2) {
                arity(3)?;
                expect_vector(sinks, u64::from(*heads), "sinks")?;
            } else {
                arity(2)?;
            }
            let (_, width) = activation(&operands[0], "q")?;
            head_dim(width, u64::from(*heads))?;
            state(&operands[1])?;
            if *kv_heads == 0 || !heads.is_multiple_of(*kv_heads) {
                return Err(format!("{heads} query heads do not divide among {kv_heads} key heads"));
            }
            if !scale.is_finite() {
                return Err(format!("scale {scale}"));
            }
            if *window == Some(0) {
                return Err("a window of 0 positions, where a row sees at least its own".into());
            }
            if let Some(cap) = softcap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
                return Err(format!("softcap {cap}, where a number above 0 is expected"));
            }
            Ok(vec![operands[0].clone()])
        }
        Op::Latents { width, .. } => {
            arity(0)?;
            if *width == 0 || !width.is_multiple_of(2) {
                return Err(format!("{width} elements: a vector needs an even number of elements"));
            }
            Ok(vec![TensorType::state()])
        }
        Op::AppendLatent {} => {
            arity(2)?;
            state(&operands[0])?;
            let (_, width) = activation(&operands[1], "x")?;
            head_dim(width, 1)?;
            Ok(vec![TensorType::state()])
        }
        Op::LatentAttention { heads, value, scale, compute } => {
            arity(2)?;
            of_floats(compute)?;
            let (rows, width) = activation(&operands[0], "q")?;
            let (heads, value) = (u64::from(*heads), u64::from(*value));
            let key = head_dim(width, heads)?;
            state(&operands[1])?;
            if value == 0 || value > key || !scale.is_finite() {
                return Err(format!("values of {value} elements of keys of {key}, scale {scale}"));
            }
            Ok(vec![TensorType::f32([rows, Dim::Const(heads * value)])])
        }
        Op::Carried { width, .. } => {
            arity(0)?;
            if *width == 0 {
                return Err("carries nothing".into());
            }
            Ok(vec![TensorType::state()])
        }
        Op::History { taps } => {
            arity(2)?;
            let (rows, width) = activation(&operands[0], "x")?;
            state(&operands[1])?;
            if !(2..=MAX_TAPS).contains(taps) {
                return Err(format!("{taps} taps, where 2 to {MAX_TAPS} are possible"));
            }
            let width = width.checked_mul(u64::from(*taps)).ok_or("too wide")?;
            Ok(vec![TensorType::f32([rows, Dim::Const(width)])])
        }
        Op::Carry { width } => {
            arity(2)?;
            state(&operands[0])?;
            let (_, found) = activation(&operands[1], "x")?;
            if *width == 0 || found < u64::from(*width) {
                return Err(format!("carries {width} of {found} numbers"));
            }
            Ok(vec![TensorType::state()])
        }
        Op::Depthwise {} => {
            arity(2)?;
            let (rows, width) = activation(&operands[0], "x")?;
            let (columns, taps) = matrix(&operands[1], "w")?;
            let dense = operands[1].encoding.layout == Layout::Dense && operands[1].scheme().elem.is_float();
            if !dense || columns.checked_mul(taps) != Some(width) {
                return Err(format!("w is {}, expected dense floats for {width} elements", operands[1]));
            }
            Ok(vec![TensorType::f32([rows, Dim::Const(columns)])])
        }
        Op::FullAttention { heads, kv_heads, scale, compute, .. } => {
            of_floats(compute)?;
            if let Some(bias) = operands.get(2) {
                arity(3)?;
                distances(bias, u64::from(*heads))?;
            } else {
                arity(2)?;
            }
            let (_, width) = activation(&operands[0], "q")?;
            head_dim(width, u64::from(*heads))?;
            state(&operands[1])?;
            if *kv_heads == 0 || !heads.is_multiple_of(*kv_heads) || !scale.is_finite() {
                return Err(format!("{heads} query heads over {kv_heads} key heads, scale {scale}"));
            }
            Ok(vec![operands[0].clone()])
        }
        Op::Unary { kind } => {
            arity(1)?;
            match kind {
                UnaryKind::Scale(number) | UnaryKind::Plus(number) if !number.is_finite() => {
                    return Err(format!("number {number}"));
                }
                UnaryKind::Clamp(low, high) if low.is_nan() || high.is_nan() || low > high => {
                    return Err(format!("no number is from {low} to {high}"));
                }
                _ => {}
            }
            activation(&operands[0], "a")?;
            Ok(vec![operands[0].clone()])
        }
        Op::Binary { .. } => {
            arity(2)?;
            activation(&operands[0], "a")?;
            same(&operands[0], &operands[1])?;
            Ok(vec![operands[0].clone()])
        }
        Op::Pointwise { body } => {
            let first = operands.first().ok_or("takes at least one operand")?;
            activation(first, "operand 0")?;
            operands.iter().try_for_each(|o| same(first, o))?;
            if body.is_empty() {
                return Err("has no instruction".into());
            }
            for (i, s) in body.iter().enumerate() {
                let defined = (operands.len() + i) as u32;
                let known = match s {
                    Scalar::Unary(_, a) => *a < defined,
                    Scalar::Binary(_, a, b) => *a < defined && *b < defined,
                };
                if !known {
                    return Err(format!("instruction {i} reads a number that is not defined yet"));
                }
            }
            Ok(vec![first.clone()])
        }
        Op::SelectRows {} | Op::Pool { .. } => {
            arity(2)?;
            let (_, width) = activation(&operands[0], "x")?;
            let rows = index_rows(&operands[1], "rows")?;
            Ok(vec![TensorType::f32([rows, Dim::Const(width)])])
        }
        Op::Output {} => {
            let logits = operands.first().ok_or("takes logits and states")?;
            activation(logits, "logits")?;
            operands[1..].iter().try_for_each(state)?;
            Ok(Vec::new())
        }
    }
}

/// How many weights lie behind each other in a segment, and how many results side by side in a row.
#[derive(Clone, Copy)]
struct Stack {
    groups: u64,
    slots: u64,
}

fn linear(
    segments: &[crate::attr::Segment],
    epilogue: Epilogue,
    stack: Stack,
    operands: &[TensorType],
) -> Result<Vec<TensorType>, String> {
    let mut rest = operands.iter();
    let mut next = |what: &str| rest.next().ok_or_else(|| format!("operand {what} is missing"));
    let (rows, x_width) = activation(next("x")?, "x")?;
    let mut common_k = None;
    let mut total = 0u64;
    for s in segments {
        let w = next(&s.name)?;
        let (n, k) = matrix(w, &s.name)?;
        let stacked = s.width.checked_mul(stack.groups).ok_or("too wide")?;
        let fits = k == x_width || k.checked_mul(stack.slots) == Some(x_width);
        if n != stacked || !fits || *common_k.get_or_insert(k) != k {
            return Err(format!("weight `{}` is {n} x {k}, expected {stacked} x {x_width}", s.name));
        }
        if s.bias {
            expect_vector(next("bias")?, n, "bias")?;
        }
        total = total.checked_add(s.width).ok_or("too wide")?;
    }
    if segments.is_empty() {
        return Err("has no segment".into());
    }
    if let Epilogue::Gated(_) = epilogue {
        if segments.len() != 2 || segments[0].width != segments[1].width {
            return Err("a gated epilogue takes two segments of equal width, gate and up".into());
        }
        total = segments[0].width;
    }
    let width = total.checked_mul(stack.slots).ok_or("too wide")?;
    let out = TensorType::f32([rows, Dim::Const(width)]);
    if epilogue == Epilogue::Residual {
        expect(next("residual")?, &out, "residual")?;
    }
    match rest.next() {
        Some(_) => Err(format!("has {} operands, more than its segments take", operands.len())),
        None => Ok(vec![out]),
    }
}

fn norm(eps: f32, x: &TensorType, w: &TensorType) -> Result<(), String> {
    let (_, width) = activation(x, "x")?;
    added_to_variance(eps)?;
    let group = w.const_dim(0).filter(|n| *n > 0 && width.is_multiple_of(*n)).unwrap_or(width);
    expect_vector(w, group, "w")
}

fn added_to_variance(eps: f32) -> Result<(), String> {
    match eps.is_finite() && eps >= 0.0 {
        true => Ok(()),
        false => Err(format!("eps {eps} must be finite and not negative")),
    }
}

/// Numbers for each distance of two positions, from the farthest behind to the farthest ahead, of each head.
fn distances(bias: &TensorType, heads: u64) -> Result<(), String> {
    let (n, found) = matrix(bias, "bias")?;
    let dense = bias.encoding.layout == Layout::Dense && bias.scheme().elem.is_float();
    match dense && n % 2 == 1 && found == heads {
        true => Ok(()),
        false => {
            Err(format!("bias is {bias}, expected dense floats of an odd number of distances, {heads} each"))
        }
    }
}

/// Cosines and sines for at most all elements of a head.
fn rope_table(table: &TensorType, rows: Dim, head_dim: u64) -> Result<(), String> {
    match activation(table, "table")? {
        (found, width) if found == rows && width <= head_dim && width.is_multiple_of(2) => Ok(()),
        _ => Err(format!("table is {table}, expected one for {rows:?} with at most {head_dim} columns")),
    }
}

fn expect(found: &TensorType, expected: &TensorType, what: &str) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what} is {found}, expected {expected}")) }
}

fn expect_vector(found: &TensorType, n: u64, what: &str) -> Result<(), String> {
    let ok = found.dtype == DType::F32
        && found.shape == [Dim::Const(n)]
        && found.encoding.layout == Layout::Dense
        && found.scheme().elem.is_float();
    if ok { Ok(()) } else { Err(format!("{what} is {found}, expected a dense vector f32[{n}]")) }
}

/// Holds attention to what it can compute in.
fn of_floats(computes: &Computes) -> Result<(), String> {
    match computes.all().find(|compute| !compute.of_floats()) {
        Some(compute) => Err(format!("computes in {compute:?}, where attention has f32 and bf16")),
        None => Ok(()),
    }
}

fn same(a: &TensorType, b: &TensorType) -> Result<(), String> {
    if a == b { Ok(()) } else { Err(format!("operands differ: {a} and {b}")) }
}

fn state(t: &TensorType) -> Result<(), String> {
    if t.dtype == DType::State { Ok(()) } else { Err(format!("{t} where a state is expected")) }
}

fn index_rows(t: &TensorType, what: &str) -> Result<Dim, String> {
    match (t.dtype, &t.shape[..]) {
        (DType::I32, [rows @ (Dim::Rows | Dim::LogitRows)]) => Ok(*rows),
        _ => Err(format!("{what} is {t}, expected i32[R] or i32[L]")),
    }
}

/// How many experts each of `rows` chose.
fn choices(t: &TensorType, rows: Dim) -> Result<u64, String> {
    match (t.dtype, &t.shape[..]) {
        (DType::I32, [found, Dim::Const(n)]) if *found == rows => Ok(*n),
        _ => Err(format!("chosen is {t}, expected i32[{rows}, k]")),
    }
}

/// Elements of each of `parts` equal parts.
fn part(width: u64, parts: u64, what: &str) -> Result<u64, String> {
    match width.checked_rem(parts) {
        Some(0) => Ok(width / parts),
        _ => Err(format!("{width} elements do not divide into {parts} {what}")),
    }
}

/// Rows and width of plain activations.
fn activation(t: &TensorType, what: &str) -> Result<(Dim, u64), String> {
    match (t.dtype, &t.shape[..]) {
        (DType::F32, [rows @ (Dim::Rows | Dim::LogitRows), Dim::Const(width)])
            if t.encoding == crate::types::Encoding::PLAIN =>
        {
            Ok((*rows, *width))
        }
        _ => Err(format!("{what} is {t}, expected activations f32[R, n] or f32[L, n]")),
    }
}

/// Rows and elements of a constant matrix, in any encoding.
fn matrix(t: &TensorType, what: &str) -> Result<(u64, u64), String> {
    match (t.dtype, &t.shape[..]) {
        (DType::F32, [Dim::Const(n), Dim::Const(k)]) => Ok((*n, *k)),
        _ => Err(format!("{what} is {t}, expected a matrix of constant extents")),
    }
}

fn head_dim(width: u64, heads: u64) -> Result<u64, String> {
    if heads == 0 || !width.is_multiple_of(heads) || !(width / heads).is_multiple_of(2) {
        return Err(format!(
            "{width} elements do not divide into {heads} heads of an even number of elements"
        ));
    }
    Ok(width / heads)
}
