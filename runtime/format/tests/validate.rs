//! One damaged plan a rule: each is valid but for one change, and the refusal names the place.

mod common;

use bessemer_format::Compute;
use bessemer_format::act::{Bf16Layout, Int8Layout};
use bessemer_format::error::FormatError;
use bessemer_format::manifest::{Hash, Manifest};
use bessemer_format::nest::{Base, Extent, Index, Int, Op, Reg, Stmt, Sym, ViewElem, ViewId};
use bessemer_format::plan::*;
use bessemer_format::validate::{SectionBytes, validate};
use bessemer_format::variant::VariantPlan;
use bessemer_format::{PanelLayout, QuantScheme};
use common::*;

type Damage = fn(&mut Plan, &mut Manifest);

/// The whole small engine.
fn check_all(plans: &[VariantPlan], manifest: &Manifest, device: &[u8]) -> Result<(), FormatError> {
    let weights = plan().weights.last().map_or(0, |w| w.offset + w.len);
    validate(plans, manifest, SectionBytes { weights, code: CODE_BYTES, device })
}

/// The small engine without its GPUs, with another plan.
fn check(plan: &Plan, manifest: &Manifest) -> Result<(), FormatError> {
    let manifest = Manifest { variants: variants()[..1].to_vec(), ..manifest.clone() };
    check_all(&[VariantPlan { plan: plan.clone(), gpu: None }], &manifest, &[])
}

/// Every case must be refused at a place that contains the first text, for a reason that contains the second.
fn refused(cases: &[(&str, &str, Damage)]) {
    for (at, why, damage) in cases {
        let (mut plan, mut manifest) = (plan(), manifest());
        damage(&mut plan, &mut manifest);
        match check(&plan, &manifest) {
            Ok(()) => panic!("accepted, though `{why}` is expected at `{at}`"),
            Err(FormatError::Invalid { at: found, why: reason }) => {
                assert!(
                    found.contains(at) && reason.contains(why),
                    "`{at}: {why}` expected, got `{found}: {reason}`"
                );
            }
            Err(other) => panic!("{other}"),
        }
    }
}

fn linear(plan: &mut Plan, step: usize) -> &mut Linear {
    match &mut plan.programs[0].steps[step].kind {
        StepKind::Linear(linear) => linear,
        _ => panic!("step {step} is no linear"),
    }
}

fn attention(plan: &mut Plan) -> &mut Attention {
    match &mut plan.programs[0].steps[at::ATTENTION].kind {
        StepKind::Attention(attention) => attention,
        _ => panic!("no attention"),
    }
}

fn args(plan: &mut Plan, step: usize) -> &mut Vec<Arg> {
    match &mut plan.programs[0].steps[step].kind {
        StepKind::Nest { args, .. } => args,
        _ => panic!("step {step} is no nest"),
    }
}

fn buf(plan: &mut Plan, id: u32) -> &mut Buffer {
    &mut plan.programs[0].buffers[id as usize]
}

/// The index of a nest's load, store or integer load.
fn index(plan: &mut Plan, nest: usize, statement: usize) -> &mut Index {
    match &mut plan.nests[nest].body[statement] {
        Stmt::Load { index, .. } | Stmt::Store { index, .. } | Stmt::LoadInt { index, .. } => index,
        _ => panic!("statement {statement} has no index"),
    }
}

#[test]
fn the_small_plan_is_valid() {
    check(&plan(), &manifest()).unwrap();
    check_all(&plans(), &manifest(), &device()).unwrap();
}

#[test]
fn weights_and_manifest() {
    refused(&[
        ("model", "vocab", |p, _| p.model.vocab = 0),
        ("model", "context", |p, _| p.model.context = u32::MAX),
        ("state 0", "elements", |p, _| p.states[0] = StateDecl::Blocks { elems: 0 }),
        ("state 0", "elements", |p, _| p.states[0] = StateDecl::Blocks { elems: u64::MAX }),
        ("weight 1", "multiple of 64", |p, _| p.weights[1].offset += 1),
        ("weight 1", "inside the one before", |p, _| p.weights[1].offset = 0),
        ("weight 2", "bytes where", |p, _| p.weights[2].len -= 64),
        ("weight 6", "beyond the section", |p, _| p.weights[6].offset += 64),
        ("weight 6", "beyond the section", |p, _| p.weights[6].offset = u64::MAX - 63),
        ("weights", "tensors end at", |p, _| p.weights.truncate(6)),
        ("weight 1", "out of range", |p, _| p.weights[1].k = 0),
        ("weight 1", "dense weight cannot hold", |p, _| p.weights[1].scheme = QuantScheme::Q8_0),
        ("weight_hashes", "6 hashes for 7", |_, m| m.weight_hashes.truncate(6)),
        ("weight_hashes", "8 hashes for 7", |_, m| m.weight_hashes.push(Hash([0; 32]))),
        ("tensor tensor.3", "weight 7", |_, m| m.tensors[3].weights.push(7)),
        ("code 0", "nest 3 of 3", |_, m| m.code[0].nest = 3),
        ("code 1", "cache type", |_, m| m.code[1].kv = None),
        ("code 1", "multiple of 64", |_, m| m.code[1].offset = 8),
        ("code 1", "section of 128", |_, m| m.code[1].len = 65),
        ("code 1", "section of 128", |_, m| m.code[1].len = u64::MAX),
        ("code 2", "twice", |_, m| m.code.push(m.code[0].clone())),
    ]);
}

#[test]
fn programs_and_buffers() {
    refused(&[
        ("programs", "0 programs", |p, _| p.programs.clear()),
        ("programs", "17 programs", |p, _| p.programs = vec![p.programs[0].clone(); 17]),
        ("program 0", "from 2 rows", |p, _| p.programs[0].regime.min_rows = 2),
        ("program 0", "serves 1 to 0", |p, _| p.programs[0].regime.max_rows = 0),
        ("program 0", "at most 65536", |p, _| p.programs[0].regime.max_rows = 65537),
        ("program 1", "from 1 rows where the one before leaves 5", |p, _| {
            p.programs.push(p.programs[0].clone())
        }),
        ("buffer 3 (x)", "multiple of 64", |p, _| buf(p, buffer::X).home = Home::Arena { offset: 4 }),
        ("buffer 11 (int8)", "beyond the arena", |p, _| p.programs[0].arena_bytes -= 64),
        ("buffer 3 (x)", "out of range", |p, _| buf(p, buffer::X).row_elems = u64::MAX),
        ("buffer 3 (x)", "out of range", |p, _| buf(p, buffer::X).row_elems = 0),
        ("buffer 0 (tokens)", "one i32", |p, _| buf(p, buffer::TOKENS).elem = BufferElem::F32),
        ("buffer 2 (logit_rows)", "one i32", |p, _| buf(p, buffer::LOGIT_ROWS).rows = RowCount::Tokens),
        ("buffer 10 (logits)", "logits are 48", |p, _| buf(p, buffer::LOGITS).row_elems = 47),
        ("program 0", "0 buffers of logits", |p, _| buf(p, buffer::LOGITS).home = Home::Arena { offset: 0 }),
        ("program 0", "two buffers for input Slots", |p, _| {
            buf(p, buffer::STARTS).home = Home::Input(Input::Slots);
        }),
    ]);
}

#[test]
fn operands_of_steps() {
    refused(&[
        ("step 0 (embed)", "place 1", |p, _| p.programs[0].steps[0].place = 1),
        ("step 0 (embed)", "not supported", |p, _| {
            p.programs[0].steps[0].kind = StepKind::Copy { from: 3, to: 4 };
        }),
        ("step 0 (embed)", "a table of 64 rows", |p, _| {
            p.programs[0].steps[0].kind = StepKind::Embed { tokens: 0, table: weight::QKV, out: buffer::X };
        }),
        ("step 0 (embed)", "token ids", |p, _| {
            p.programs[0].steps[0].kind = StepKind::Embed { tokens: 1, table: 0, out: buffer::X };
        }),
        ("step 0 (embed)", "rows of 32", |p, _| {
            p.programs[0].steps[0].kind = StepKind::Embed { tokens: 0, table: 0, out: buffer::QKV };
        }),
        ("(qkv)", "buffer 14 of 14", |p, _| linear(p, at::QKV).input = 14),
        ("(qkv)", "weight 7 of 7", |p, _| linear(p, at::QKV).segments[0].weight = 7),
        ("(qkv)", "not packed", |p, _| linear(p, at::QKV).segments[0].weight = weight::BIAS),
        ("(qkv)", "without segments", |p, _| linear(p, at::QKV).segments.clear()),
        ("(qkv)", "takes 32 elements", |p, _| linear(p, at::QKV).input = buffer::QKV),
        ("(qkv)", "input is F32", |p, _| linear(p, at::QKV).input = buffer::TOKENS),
        ("(qkv)", "for each of Logits", |p, _| linear(p, at::QKV).rows = RowCount::Logits),
        ("(qkv)", "columns 1..65", |p, _| linear(p, at::QKV).segments[0].column = 1),
        ("(qkv)", "columns 4294967295", |p, _| linear(p, at::QKV).segments[0].column = u32::MAX),
        ("(qkv)", "bias", |p, _| linear(p, at::QKV).segments[0].bias = Some(weight::NORM)),
        ("(qkv)", "same columns", |p, _| {
            let twice = linear(p, at::QKV).segments[0].clone();
            linear(p, at::QKV).segments.push(twice);
        }),
        ("(qkv)", "no scratch", |p, _| linear(p, at::QKV).scratch = None),
        ("(qkv)", "converts nothing", |p, _| linear(p, at::QKV).compute = Compute::F32),
        ("(qkv)", "activation group", |p, _| linear(p, at::QKV).compute = Compute::Int8 { group: 24 }),
        ("(qkv)", "scratch has rows", |p, _| {
            linear(p, at::QKV).compute = Compute::Bf16;
            buf(p, buffer::INT8).row_elems -= 1;
        }),
        ("(gate_up)", "no scratch", |p, _| linear(p, at::GATE_UP).compute = Compute::Bf16),
        ("(qkv)", "scratch has rows", |p, _| buf(p, buffer::INT8).row_elems -= 1),
        ("(out)", "residual has rows", |p, _| {
            linear(p, at::OUT).epilogue = Epilogue::Residual(buffer::QKV);
        }),
        ("(gate_up)", "a gated epilogue", |p, _| linear(p, at::GATE_UP).segments.truncate(1)),
        ("(gate_up)", "columns 1..33", |p, _| linear(p, at::GATE_UP).segments[1].column = 1),
        ("(attention)", "heads over", |p, _| attention(p).kv_heads = 0),
        ("(attention)", "heads over", |p, _| attention(p).heads = 0),
        ("(attention)", "3 heads over 2", |p, _| (attention(p).heads, attention(p).kv_heads) = (3, 2)),
        ("(attention)", "head_dim 15", |p, _| attention(p).head_dim = 15),
        ("(attention)", "head_dim", |p, _| attention(p).head_dim = 1 << 20),
        ("(attention)", "computes in Int8", |p, _| attention(p).compute = Compute::Int8 { group: 32 }),
        ("(attention)", "not finite", |p, _| attention(p).scale = f32::NAN),
        ("(attention)", "window of 0", |p, _| attention(p).window = Some(0)),
        ("(attention)", "softcap Some(0.0)", |p, _| attention(p).softcap = Some(0.0)),
        ("(attention)", "softcap Some(inf)", |p, _| attention(p).softcap = Some(f32::INFINITY)),
        ("(attention)", "weight 4000 of", |p, _| attention(p).sinks = Some(4000)),
        ("(attention)", "expected a dense f32", |p, _| attention(p).sinks = Some(0)),
        ("(attention)", "weight 4000 of", |p, _| attention(p).bias = Some(4000)),
        ("(attention)", "or another odd number above", |p, _| attention(p).bias = Some(0)),
        ("(attention)", "chunk 33", |p, _| attention(p).chunk = 33),
        ("(attention)", "chunk 0", |p, _| attention(p).chunk = 0),
        ("(attention)", "state 1 of 1", |p, _| attention(p).state = 1),
        ("(attention)", "beyond the block", |p, _| attention(p).layer_elems = 1),
        ("(attention)", "beyond the block", |p, _| attention(p).layer_elems = u64::MAX),
        ("(attention)", "query columns 33..65", |p, _| attention(p).query_column = 33),
        ("(attention)", "out has rows", |p, _| attention(p).out = buffer::LAST - 4),
        ("(attention)", "scratch has rows", |p, _| attention(p).chunk = 64),
        ("(norm)", "arguments for 3 views", |p, _| args(p, at::NORM).truncate(2)),
        ("(norm)", "nest 3 of 3", |p, _| {
            p.programs[0].steps[at::NORM].kind =
                StepKind::Nest { nest: 3, rows: RowCount::Tokens, args: vec![] };
        }),
        ("(norm)", "is F32 and buffer 0", |p, _| args(p, at::NORM)[0] = Arg::Buffer(buffer::TOKENS)),
        ("(norm)", "is F32 and weight 2", |p, _| args(p, at::NORM)[1] = Arg::Weight(weight::QKV)),
        ("(norm)", "stores to weight", |p, _| args(p, at::NORM)[2] = Arg::Weight(weight::NORM)),
        ("(norm)", "bound to a state", |p, _| args(p, at::NORM)[0] = Arg::State(0)),
        ("(append)", "state 9 of 1", |p, _| args(p, at::APPEND)[2] = Arg::State(9)),
    ]);
}

#[test]
fn nests_are_well_formed() {
    refused(&[
        ("nest 0 (norm)", "not open", |p, _| p.nests[0].body.push(Stmt::End)),
        ("nest 0 (norm)", "1 loops are not closed", |p, _| drop(p.nests[0].body.pop())),
        ("nest 0 (norm)", "axes", |p, _| {
            let open = Stmt::For { extent: Extent::constant(1) };
            p.nests[0].body.splice(0..0, vec![open; 6]);
        }),
        ("nest 0 (norm)", "extent of 0", |p, _| p.nests[0].body[4] = Stmt::For { extent: Extent(vec![]) }),
        ("nest 0 (norm)", "register 9 is not defined", |p, _| {
            p.nests[0].body[2] = Stmt::Let { dst: Reg(1), op: Op::Neg(Reg(9)) };
        }),
        ("nest 0 (norm)", "register 0 is not defined", |p, _| {
            // Defined in a loop that is closed.
            p.nests[0].body[7] = Stmt::Let { dst: Reg(5), op: Op::Neg(Reg(0)) };
        }),
        ("nest 0 (norm)", "register 3 is written twice", |p, _| {
            p.nests[0].body[7] = Stmt::Let { dst: Reg(3), op: Op::Neg(Reg(4)) };
        }),
        ("nest 0 (norm)", "at most 64", |p, _| {
            p.nests[0].body.push(Stmt::Let { dst: Reg(64), op: Op::Const(0.0) });
        }),
        ("nest 0 (norm)", "axis 2 is not open", |p, _| *index(p, 0, 1) = Index::axis(2)),
        ("nest 0 (norm)", "integer 0 is not defined", |p, _| *index(p, 0, 1) = Index::int(Int(0))),
        ("nest 0 (norm)", "divides by zero", |p, _| index(p, 0, 1).terms[0].div = 0),
        ("nest 0 (norm)", "view 3 of 3", |p, _| {
            p.nests[0].body[1] = Stmt::Load { dst: Reg(0), view: ViewId(3), index: Index::axis(1) };
        }),
        ("nest 0 (norm)", "declared to be stored to", |p, _| p.nests[0].views[0].store = true),
        ("nest 0 (norm)", "declared to be read", |p, _| p.nests[0].views[2].store = false),
        ("nest 0 (norm)", "stores Bf16", |p, _| p.nests[0].views[2].elem = ViewElem::Bf16),
        ("nest 0 (norm)", "holds I32", |p, _| p.nests[0].views[0].elem = ViewElem::I32),
        ("nest 1 (append)", "loads an integer", |p, _| {
            let load = p.nests[1].body.remove(0);
            p.nests[1].body.insert(1, load);
        }),
        ("nest 2 (select)", "view 0 (x) holds F32", |p, _| {
            let Stmt::LoadInt { view, .. } = &mut p.nests[2].body[0] else { panic!() };
            *view = ViewId(0);
        }),
    ]);
}

#[test]
fn indices_are_proved() {
    refused(&[
        // Beyond the row, before it, into a neighbour, by a row that is not one.
        ("(norm)", "0..=32 and must lie in 0..32", |p, _| {
            p.nests[0].body[0] = Stmt::Reduce {
                dst: Reg(2),
                kind: bessemer_format::nest::ReduceKind::Sum,
                value: Reg(1),
                extent: Extent::constant(33),
            };
        }),
        ("(norm)", "-1..=30", |p, _| index(p, 0, 1).constant = -1),
        ("(norm)", "1..=32", |p, _| index(p, 0, 9).constant = 1),
        ("(norm)", "picks a row", |p, _| index(p, 0, 1).terms[0].coef = 31),
        ("(norm)", "picks a row", |p, _| index(p, 0, 1).terms[0].div = 2),
        ("(norm)", "0..=62", |p, _| index(p, 0, 1).terms[1].coef = 2),
        ("(norm)", "overflow", |p, _| {
            index(p, 0, 1).terms[1].coef = i64::MAX;
        }),
        ("(norm)", "iterations", |p, _| {
            p.nests[0].body[4] = Stmt::For { extent: Extent::constant(i64::MAX) }
        }),
        ("(select)", "picks a row", |p, _| {
            let Stmt::LoadInt { limit, .. } = &mut p.nests[2].body[0] else { panic!() };
            *limit = Index::sym(Sym::Rows).plus(1);
        }),
        ("(select)", "picks a row", |p, _| {
            let Stmt::LoadInt { limit, .. } = &mut p.nests[2].body[0] else { panic!() };
            *limit = Index::constant(4);
        }),
        // A store to a row that another thread owns.
        ("(select)", "picks a row", |p, _| {
            index(p, 2, 3).terms[0].base = Base::Int(Int(0));
        }),
        // Token rows are more than logit rows.
        ("(norm)", "picks a row", |p, _| args(p, at::NORM)[0] = Arg::Buffer(buffer::LAST)),
        // A slot that the runtime did not make, a block of another size, an element beyond the block.
        ("(append)", "picks a block", |p, _| args(p, at::APPEND)[1] = Arg::Buffer(buffer::STARTS)),
        ("(append)", "picks a block", |p, _| index(p, 1, 3).terms[0].coef += 1),
        ("(append)", "picks a block", |p, _| index(p, 1, 3).terms[0].div = 31),
        ("(append)", "must lie in 0..1024", |p, _| index(p, 1, 3).constant += 1),
        ("(append)", "start of a sequence", |p, _| args(p, at::APPEND)[1] = Arg::Buffer(buffer::TABLE)),
    ]);
}

/// Lets the append read `rows` rows before its own, in a loop that runs only where `row - slot + more` is above 0.
fn read_back(p: &mut Plan, rows: i64, more: i64) {
    index(p, 1, 2).constant -= rows * i64::from(4 * HEAD_DIM);
    let Stmt::For { extent } = &mut p.nests[1].body[1] else { panic!("no loop") };
    extent.0.push((Index::axis(0) + Index::int(Int(0)) * -1).plus(more));
}

#[test]
fn earlier_rows_are_read_where_a_loop_says_that_they_are_there() {
    for (rows, more) in [(1, 0), (1, -1), (2, -1)] {
        let mut p = plan();
        read_back(&mut p, rows, more);
        check(&p, &manifest()).unwrap();
    }
    refused(&[
        ("(append)", "must lie in 0..64", |p, _| read_back(p, 1, 1)),
        ("(append)", "must lie in 0..64", |p, _| read_back(p, 2, 0)),
        // Some of it in the row before, some in its own.
        ("(append)", "must lie in 0..64", |p, _| {
            read_back(p, 1, 0);
            index(p, 1, 2).constant += 15;
        }),
    ]);
}

#[test]
fn the_memory_plan_is_verified() {
    refused(&[
        ("step 1 (norm)", "share bytes", |p, _| buf(p, buffer::NORMED).home = buf(p, buffer::X).home),
        ("step 4 (attention)", "share bytes", |p, _| {
            // x still lives: it is the residual of the step after.
            buf(p, buffer::ATTENDED).home = buf(p, buffer::X).home;
        }),
        ("step 4 (attention)", "share bytes", |p, _| {
            // Only the last line is shared.
            let Home::Arena { offset } = buf(p, buffer::QKV).home else { panic!() };
            buf(p, buffer::PARTIAL).home = Home::Arena { offset: offset + 4 * 4 * 64 - 64 };
        }),
        ("step 1 (norm)", "read before it is written", |p, _| {
            p.programs[0].steps[at::EMBED].kind =
                StepKind::Embed { tokens: 0, table: 0, out: buffer::HIDDEN };
        }),
        ("step 3 (append)", "read before it is written", |p, _| {
            // A projection that leaves columns unwritten.
            linear(p, at::QKV).segments[0] = Segment { weight: weight::OUT, bias: None, column: 0 };
            linear(p, at::QKV).compute = Compute::F32;
            linear(p, at::QKV).scratch = None;
        }),
        ("step 1 (norm)", "both read and written", |p, _| args(p, at::NORM)[2] = Arg::Buffer(buffer::X)),
        ("step 6 (gate_up)", "both read and written", |p, _| linear(p, at::GATE_UP).out = buffer::X),
        ("program 0, end", "not fully written", |p, _| drop(p.programs[0].steps.pop())),
        ("step 1 (norm)", "no barrier", |p, _| {
            // Products read all rows: only their conversion goes by rows.
            p.programs[0].steps[at::NORM].barrier = false;
            (linear(p, at::QKV).compute, linear(p, at::QKV).scratch) = (Compute::F32, None);
        }),
        ("step 3 (append)", "no barrier", |p, _| p.programs[0].steps[at::APPEND].barrier = false),
        ("step 6 (gate_up)", "no barrier", |p, _| p.programs[0].steps[at::GATE_UP].barrier = false),
        ("step 7 (select)", "no barrier", |p, _| p.programs[0].steps[at::SELECT].barrier = false),
        ("step 8 (head)", "no barrier", |p, _| p.programs[0].steps[at::HEAD].barrier = false),
    ]);
}

#[test]
fn rows_that_a_linear_converts_need_no_barrier_before() {
    let (mut plan, manifest) = (plan(), manifest());
    plan.programs[0].steps[at::NORM].barrier = false;
    check(&plan, &manifest).unwrap();
}

#[test]
fn cuts_list_what_crosses_them() {
    refused(&[
        ("step 1 (norm)", "0 buffers where 1 live", |p, _| cut(p).live.clear()),
        ("step 1 (norm)", "2 buffers where 1 live", |p, _| cut(p).live.push(buffer::NORMED)),
        ("step 1 (norm)", "cannot be handed over", |p, _| cut(p).live[0] = buffer::NORMED),
        ("step 1 (norm)", "cannot be handed over", |p, _| cut(p).live[0] = buffer::SLOTS),
        ("step 1 (norm)", "cannot be handed over", |p, _| cut(p).live[0] = u32::MAX),
        // Two buffers live behind the norm: the residual and what was normed.
        ("step 2 (qkv)", "1 buffers where 2 live", |p, _| cut(p).step = 2),
        ("step 0 (embed)", "1 buffers where 0 live", |p, _| cut(p).step = 0),
        ("program 0, end", "layers begin at steps [9] of 9", |p, _| cut(p).step = 9),
        ("program 0, end", "layers begin at steps [1, 1]", |p, _| {
            let again = cut(p).clone();
            p.programs[0].cuts.push(again);
        }),
    ]);
    let mut valid = plan();
    *cut(&mut valid) = Cut { step: 2, live: vec![buffer::X, buffer::NORMED] };
    check(&valid, &manifest()).unwrap();
    valid.programs[0].cuts.clear();
    check(&valid, &manifest()).unwrap();
}

fn cut(plan: &mut Plan) -> &mut Cut {
    &mut plan.programs[0].cuts[0]
}

#[test]
fn buffers_may_share_bytes_when_they_do_not_live_together() {
    let mut plan = plan();
    // `normed` is dead when `attended` is born.
    buf(&mut plan, buffer::ATTENDED).home = buf(&mut plan, buffer::NORMED).home;
    check(&plan, &manifest()).unwrap();
}

#[test]
fn segments_must_agree_on_the_layout_of_activations() {
    let (mut plan, manifest) = (plan(), manifest());
    let layout = |p: &Plan, id: u32| {
        let w = &p.weights[id as usize];
        Int8Layout::new(&PanelLayout::new(&w.scheme, w.n as usize, w.k as usize).unwrap(), 32).unwrap()
    };
    assert_eq!(layout(&plan, weight::GATE), layout(&plan, weight::UP));
    let bytes = layout(&plan, weight::GATE).row_bytes() as u64;
    assert_eq!(bytes, plan.programs[0].buffers[buffer::INT8 as usize].row_elems);
    linear(&mut plan, at::GATE_UP).compute = Compute::Int8 { group: 32 };
    linear(&mut plan, at::GATE_UP).scratch = Some(buffer::INT8);
    check(&plan, &manifest).unwrap();
}

#[test]
fn bf16_activations_take_four_bytes_an_element() {
    let (mut plan, manifest) = (plan(), manifest());
    let k = plan.weights[weight::QKV as usize].k as usize;
    linear(&mut plan, at::QKV).compute = Compute::Bf16;
    buf(&mut plan, buffer::INT8).row_elems = Bf16Layout { k }.row_bytes() as u64;
    // The scratch lies last.
    plan.programs[0].arena_bytes += Bf16Layout { k }.row_bytes() as u64 * u64::from(MAX_ROWS);
    check(&plan, &manifest).unwrap();
    buf(&mut plan, buffer::INT8).row_elems = Bf16Layout { k }.native_row_bytes() as u64;
    assert!(check(&plan, &manifest).is_err());
}

/// The gated step of the small plan as one of two experts of half the width each, both of which every row takes.
fn grouped(plan: &mut Plan) -> &mut GroupedLinear {
    let linear = linear(plan, at::GATE_UP).clone();
    let step = &mut plan.programs[0].steps[at::GATE_UP].kind;
    *step = StepKind::GroupedLinear(GroupedLinear { linear, groups: 2, slots: 2, chosen: None });
    match step {
        StepKind::GroupedLinear(grouped) => grouped,
        _ => unreachable!("it was just made"),
    }
}

#[test]
fn grouped_linears() {
    let mut valid = plan();
    grouped(&mut valid);
    check(&valid, &manifest()).unwrap();
    refused(&[
        ("gate_up", "2 slots of 0 weights", |p, _| grouped(p).groups = 0),
        ("gate_up", "0 slots of 2 weights", |p, _| grouped(p).slots = 0),
        ("gate_up", "slots of 2 weights", |p, _| grouped(p).slots = u32::MAX),
        ("gate_up", "of 4294967295 weights", |p, _| grouped(p).groups = u32::MAX),
        ("gate_up", "no 4 weights of whole panels", |p, _| grouped(p).groups = 4),
        ("gate_up", "a residual", |p, _| grouped(p).linear.epilogue = Epilogue::Residual(buffer::X)),
        ("gate_up", "a linear without segments", |p, _| grouped(p).linear.segments.clear()),
        ("gate_up", "5 slots of equal width", |p, _| grouped(p).slots = 5),
        ("gate_up", "the input has 48", |p, _| {
            grouped(p);
            buf(p, buffer::X).row_elems = 48;
            // The embedding and the norm before it are of the same width.
            p.programs[0].steps.drain(..at::GATE_UP);
        }),
        ("gate_up", "4 slots that choose nothing from 2 weights", |p, _| {
            grouped(p).slots = 4;
            buf(p, buffer::HIDDEN).row_elems *= 2;
        }),
        ("gate_up", "chosen is I32", |p, _| grouped(p).chosen = Some(buffer::NORMED)),
        ("gate_up", "chosen has rows of 2", |p, _| grouped(p).chosen = Some(buffer::SLOTS)),
        ("gate_up", "chosen is I32 for each of Tokens", |p, _| grouped(p).chosen = Some(buffer::LOGIT_ROWS)),
        ("gate_up", "buffer 99", |p, _| grouped(p).chosen = Some(99)),
    ]);
}

#[test]
fn latents() {
    refused(&[
        ("attention", "values of Some(0)", |p, _| attention(p).latent = Some(0)),
        ("attention", "values of Some(17)", |p, _| attention(p).latent = Some(HEAD_DIM + 1)),
        ("attention", "2 heads", |p, _| {
            (attention(p).kv_heads, attention(p).latent) = (2, Some(HEAD_DIM));
        }),
        ("attention", "out has rows of 24", |p, _| attention(p).latent = Some(12)),
        ("attention", "beyond the block", |p, _| {
            // Of keys and values a half is enough, but no less.
            attention(p).latent = Some(HEAD_DIM);
            p.programs[0].steps.remove(at::APPEND);
            p.states[0] = StateDecl::Blocks { elems: state_elems() / 2 - 1 };
        }),
    ]);
}
