//! The operands of each step: ids exist, shapes agree, kernels stay inside.

use super::memory::Effects;
use super::nest::{self, Bound, Work};
use super::{Check, MAX_GROUPS, MAX_HEADS, ensure};
use crate::act::{Bf16Layout, Int8Layout};
use crate::kv;
use crate::nest::ViewElem;
use crate::panel::{COLUMNS, PanelLayout};
use crate::plan::{
    Arg, Attention, Buffer, BufferElem, BufferId, Epilogue, GroupedLinear, Home, Input, Linear, NestId, Plan,
    Program, Route, RowCount, StateDecl, StateId, Step, StepKind, WeightId, WeightLayout, WeightSlice,
};
use crate::scheme::{Compute, Elem, QuantScheme};

/// Checks a step and says what it does to buffers.
pub(super) fn step(plan: &Plan, program: &Program, step: &Step, work: &mut Work) -> Check<Effects> {
    ensure!(step.place == 0, "place {} where this version has place 0 only", step.place);
    let checker = Checker { plan, program };
    match &step.kind {
        StepKind::Embed { tokens, table, out } => checker.embed(*tokens, *table, *out),
        StepKind::Linear(linear) => checker.linear(linear),
        StepKind::Route(route) => checker.route(route),
        StepKind::GroupedLinear(grouped) => checker.grouped(grouped),
        StepKind::Attention(attention) => checker.attention(attention),
        StepKind::Nest { nest, rows, args } => checker.nest(*nest, *rows, args, work),
        StepKind::Copy { .. } => Err("copies between places are not supported by this version".into()),
    }
}

/// How many weights lie behind each other in a segment, and how many results side by side in a row.
#[derive(Clone, Copy)]
struct Stack {
    groups: u64,
    slots: u64,
}

struct Checker<'a> {
    plan: &'a Plan,
    program: &'a Program,
}

impl<'a> Checker<'a> {
    fn any_buffer(&self, id: BufferId) -> Check<&'a Buffer> {
        let buffers = &self.program.buffers;
        buffers.get(id as usize).ok_or_else(|| format!("buffer {id} of {}", buffers.len()))
    }

    fn buffer(&self, what: &str, id: BufferId, elem: BufferElem, rows: RowCount) -> Check<&'a Buffer> {
        let b = self.any_buffer(id)?;
        ensure!(
            (b.elem, b.rows) == (elem, rows),
            "{what} is {elem:?} for each of {rows:?}, but buffer {id} ({}) is {:?} for each of {:?}",
            b.name,
            b.elem,
            b.rows
        );
        Ok(b)
    }

    /// A buffer whose rows have exactly `elems` elements.
    fn exact(&self, what: &str, id: BufferId, elem: BufferElem, rows: RowCount, elems: u64) -> Check {
        let b = self.buffer(what, id, elem, rows)?;
        ensure!(
            b.row_elems == elems,
            "{what} has rows of {elems} elements, buffer {id} ({}) of {}",
            b.name,
            b.row_elems
        );
        Ok(())
    }

    fn weight(&self, id: WeightId) -> Check<&'a WeightSlice> {
        let weights = &self.plan.weights;
        weights.get(id as usize).ok_or_else(|| format!("weight {id} of {}", weights.len()))
    }

    fn panel(&self, id: WeightId) -> Check<PanelLayout> {
        let w = self.weight(id)?;
        ensure!(w.layout == WeightLayout::Panel, "weight {id} is not packed");
        PanelLayout::new(&w.scheme, w.n as usize, w.k as usize)
    }

    fn state(&self, id: StateId) -> Check<&'a StateDecl> {
        let states = &self.plan.states;
        states.get(id as usize).ok_or_else(|| format!("state {id} of {}", states.len()))
    }

    fn embed(&self, tokens: BufferId, table: WeightId, out: BufferId) -> Check<Effects> {
        let ids = self.any_buffer(tokens)?;
        ensure!(ids.home == Home::Input(Input::Tokens), "token ids come from buffer {tokens} ({})", ids.name);
        let layout = self.panel(table)?;
        let vocab = self.plan.model.vocab as usize;
        ensure!(layout.n() == vocab, "a table of {} rows for a vocabulary of {vocab}", layout.n());
        let width = layout.k() as u64;
        self.exact("out", out, BufferElem::F32, RowCount::Tokens, width)?;
        Ok(Effects {
            writes: vec![(out, vec![(0, width)])],
            by_row: Some(RowCount::Tokens),
            ..Effects::default()
        })
    }

    fn linear(&self, l: &Linear) -> Check<Effects> {
        self.stacked(l, Stack { groups: 1, slots: 1 })
    }

    fn route(&self, r: &Route) -> Check<Effects> {
        let experts = self.buffer("logits", r.logits, BufferElem::F32, r.rows)?.row_elems;
        ensure!((1..=MAX_GROUPS).contains(&experts), "{experts} experts, at most {MAX_GROUPS}");
        r.choice.check(experts)?;
        if let Some(bias) = r.bias {
            self.vector("bias", bias, experts)?;
        }
        let top_k = u64::from(r.choice.top_k);
        self.exact("chosen", r.chosen, BufferElem::I32, r.rows, top_k)?;
        Ok(Effects {
            reads: vec![r.logits],
            writes: vec![(r.chosen, vec![(0, top_k)])],
            by_row: Some(r.rows),
            ..Effects::default()
        })
    }

    fn grouped(&self, g: &GroupedLinear) -> Check<Effects> {
        let (groups, slots) = (u64::from(g.groups), u64::from(g.slots));
        let possible = 1..=MAX_GROUPS;
        ensure!(possible.contains(&groups) && possible.contains(&slots), "{slots} slots of {groups} weights");
        for (i, s) in g.linear.segments.iter().enumerate() {
            let (n, k) = (self.panel(s.weight)?.n() as u64, self.panel(s.weight)?.k());
            ensure!(
                n.is_multiple_of(groups * COLUMNS as u64),
                "segment {i} stacks {n} rows of {k} elements, no {groups} weights of whole panels"
            );
        }
        let residual = matches!(g.linear.epilogue, Epilogue::Residual(_));
        ensure!(!residual, "a grouped linear with a residual");
        let mut effects = self.stacked(&g.linear, Stack { groups, slots })?;
        match g.chosen {
            Some(id) => {
                self.exact("chosen", id, BufferElem::I32, g.linear.rows, slots)?;
                if !matches!(self.any_buffer(id)?.home, Home::Input(_)) {
                    effects.reads.push(id);
                }
            }
            None => ensure!(slots == groups, "{slots} slots that choose nothing from {groups} weights"),
        }
        Ok(effects)
    }

    /// A linear whose segments are stacks of weights. A plain one is a stack of one weight for one slot.
    fn stacked(&self, l: &Linear, stack: Stack) -> Check<Effects> {
        let Stack { groups, slots } = stack;
        let input = self.buffer("input", l.input, BufferElem::F32, l.rows)?;
        let out = self.buffer("out", l.out, BufferElem::F32, l.rows)?;
        ensure!(!l.segments.is_empty(), "a linear without segments");
        ensure!(
            out.row_elems.is_multiple_of(slots),
            "{slots} slots of equal width in rows of {}",
            out.row_elems
        );
        let width = out.row_elems / slots;
        let mut act: Option<Int8Layout> = None;
        let mut columns: Vec<(u64, u64)> = Vec::with_capacity(l.segments.len());
        // Slots read the whole row, or their own part of it.
        let mut inputs = None;
        for (i, s) in l.segments.iter().enumerate() {
            let layout = self.panel(s.weight)?;
            let (n, k) = (layout.n() as u64 / groups, layout.k() as u64);
            ensure!(
                k == input.row_elems || Some(input.row_elems) == k.checked_mul(slots),
                "segment {i} takes {k} elements, the input has {}",
                input.row_elems
            );
            let these = input.row_elems / k;
            ensure!(
                *inputs.get_or_insert(these) == these,
                "segment {i} reads other parts of a row than segment 0"
            );
            let end = u64::from(s.column) + n;
            ensure!(end <= width, "segment {i} writes columns {}..{end} of {width}", s.column);
            columns.push((u64::from(s.column), end));
            if let Some(bias) = s.bias {
                self.vector(&format!("bias of segment {i}"), bias, layout.n() as u64)?;
            }
            if let Compute::Int8 { group } = l.compute {
                let this = Int8Layout::new(&layout, group as usize)?;
                ensure!(
                    *act.get_or_insert(this) == this,
                    "segment {i} asks for another layout of the activations than segment 0"
                );
            }
        }
        let inputs = inputs.unwrap_or(1);
        // A row is converted by whoever has made it; products begin when all rows are.
        let enters_by_row = (l.compute != Compute::F32).then_some(l.rows);
        let mut effects = Effects { reads: vec![l.input], enters_by_row, ..Effects::default() };
        match l.epilogue {
            Epilogue::Gated(_) => {
                let equal = matches!(columns[..], [gate, up] if gate == up);
                ensure!(
                    equal,
                    "a gated epilogue takes two segments of one shape and column, not {columns:?}"
                );
                columns.truncate(1);
            }
            Epilogue::Residual(id) => {
                self.exact("residual", id, BufferElem::F32, l.rows, out.row_elems)?;
                effects.reads.push(id);
                effects.in_place = (id == l.out && l.out != l.input).then_some(id);
            }
            Epilogue::None => {}
        }
        columns.sort_unstable();
        ensure!(columns.windows(2).all(|w| w[0].1 <= w[1].0), "segments write the same columns: {columns:?}");
        if slots > 1 {
            let filled: u64 = columns.iter().map(|(start, end)| end - start).sum();
            ensure!(filled == width, "segments write {filled} of the {width} columns of a slot");
            columns = vec![(0, out.row_elems)];
        }
        effects.writes.push((l.out, columns));
        let row_bytes = match l.compute {
            Compute::F32 => None,
            Compute::Int8 { .. } => act.map(|layout| layout.row_bytes()),
            Compute::Bf16 => Some(Bf16Layout { k: (input.row_elems / inputs) as usize }.row_bytes()),
        };
        match (row_bytes, l.scratch) {
            (None, None) => {}
            (None, Some(_)) => return Err("scratch for a linear that converts nothing".into()),
            (Some(_), None) => return Err("no scratch for a linear that converts its input".into()),
            (Some(bytes), Some(id)) => {
                let bytes = bytes as u64 * inputs;
                self.exact("scratch", id, BufferElem::Bytes, l.rows, bytes)?;
                effects.writes.push((id, vec![(0, bytes)]));
            }
        }
        Ok(effects)
    }

    /// A dense f32 weight of `elems` elements.
    fn vector(&self, what: &str, id: WeightId, elems: u64) -> Check {
        let w = self.weight(id)?;
        ensure!(
            w.layout == WeightLayout::Dense
                && w.scheme == QuantScheme::F32
                && u64::from(w.n) * u64::from(w.k) == elems,
            "{what} is no dense f32 vector of {elems} elements"
        );
        Ok(())
    }

    fn attention(&self, a: &Attention) -> Check<Effects> {
        let heads_fit =
            (1..=MAX_HEADS).contains(&a.heads) && a.kv_heads > 0 && a.heads.is_multiple_of(a.kv_heads);
        ensure!(heads_fit, "{} heads over {} key and value heads", a.heads, a.kv_heads);
        let dim_fits = (2..=MAX_HEADS).contains(&a.head_dim) && a.head_dim.is_multiple_of(2);
        ensure!(dim_fits, "head_dim {} must be even and in 2..={MAX_HEADS}", a.head_dim);
        ensure!(a.compute.of_floats(), "computes in {:?}, which attention does not", a.compute);
        ensure!(a.scale.is_finite(), "scale {} is not finite", a.scale);
        ensure!(a.window != Some(0), "a window of 0 positions");
        ensure!(
            a.causal || self.plan.model.whole,
            "rows see what follows them, but sequences do not come whole"
        );
        let cap_fits = a.softcap.is_none_or(|cap| cap.is_finite() && cap > 0.0);
        ensure!(cap_fits, "softcap {:?} is no number above 0", a.softcap);
        if let Some(id) = a.sinks {
            let sinks = self.weight(id)?;
            let fits = sinks.layout == WeightLayout::Dense
                && sinks.scheme == QuantScheme::F32
                && (sinks.n, sinks.k) == (1, a.heads);
            ensure!(
                fits,
                "sinks are {} x {} in {}, expected a dense f32[{}]",
                sinks.n,
                sinks.k,
                sinks.scheme,
                a.heads
            );
        }
        if let Some(id) = a.bias {
            let bias = self.weight(id)?;
            let least = 2 * u64::from(self.plan.model.context).next_multiple_of(kv::TOKENS as u64) - 1;
            let fits = bias.layout == WeightLayout::Dense
                && bias.scheme == QuantScheme::F32
                && bias.k == a.heads
                && bias.n % 2 == 1
                && u64::from(bias.n) >= least;
            ensure!(
                fits,
                "bias is {} x {} in {}, expected a dense f32[{least} or another odd number above][{}]",
                bias.n,
                bias.k,
                bias.scheme,
                a.heads
            );
        }
        let chunk_fits = a.chunk > 0 && (a.chunk as usize).is_multiple_of(kv::TOKENS);
        ensure!(chunk_fits, "chunk {} is no multiple of {}", a.chunk, kv::TOKENS);
        let StateDecl::Blocks { elems: state } = *self.state(a.state)? else {
            return Err(format!("state {} holds no keys and values", a.state));
        };
        let latent_fits = a.latent.is_none_or(|value| a.kv_heads == 1 && (1..=a.head_dim).contains(&value));
        ensure!(latent_fits, "values of {:?} elements of {} heads of {}", a.latent, a.kv_heads, a.head_dim);
        let layer = match a.latent {
            Some(_) => kv::latent_elems(a.head_dim as usize),
            None => kv::layer_elems(a.kv_heads as usize, a.head_dim as usize),
        } as u64;
        ensure!(
            a.layer_elems.checked_add(layer).is_some_and(|end| end <= state),
            "a layer of {layer} elements at {} reaches beyond the block of {state}",
            a.layer_elems
        );
        let width = u64::from(a.heads) * u64::from(a.head_dim);
        let query = self.buffer("query", a.query, BufferElem::F32, RowCount::Tokens)?;
        let end = u64::from(a.query_column) + width;
        ensure!(end <= query.row_elems, "query columns {}..{end} of {}", a.query_column, query.row_elems);
        let out_width = u64::from(a.heads) * u64::from(a.latent.unwrap_or(a.head_dim));
        self.exact("out", a.out, BufferElem::F32, RowCount::Tokens, out_width)?;
        let mut writes = vec![(a.out, vec![(0, out_width)])];
        if let Some(id) = a.scratch {
            let bytes = a.scratch_row_bytes(self.plan.model.context);
            self.exact("scratch", id, BufferElem::Bytes, RowCount::Tokens, bytes)?;
            writes.push((id, vec![(0, bytes)]));
        }
        Ok(Effects { reads: vec![a.query], writes, ..Effects::default() })
    }

    fn nest(&self, id: NestId, rows: RowCount, args: &[Arg], work: &mut Work) -> Check<Effects> {
        let nests = &self.plan.nests;
        let nest = nests.get(id as usize).ok_or_else(|| format!("nest {id} of {}", nests.len()))?;
        let views = nest.views.len();
        ensure!(args.len() == views, "{} arguments for {views} views of nest {id}", args.len());
        let mut bounds = Vec::with_capacity(views);
        for (i, (arg, view)) in args.iter().zip(&nest.views).enumerate() {
            let bound = self.bind(*arg, view.elem, view.store);
            bounds.push(bound.map_err(|why| format!("view {i} ({}): {why}", view.name))?);
        }
        let forward = nest::Forward {
            rows,
            max_rows: self.program.regime.max_rows,
            table_stride: self.plan.model.context.div_ceil(kv::TOKENS as u32),
        };
        let touched = nest::prove(nest, &bounds, forward, work)?;
        let mut effects = Effects { by_row: Some(rows), ..Effects::default() };
        let mut stored_states = Vec::new();
        for ((arg, view), touched) in args.iter().zip(&nest.views).zip(touched) {
            match *arg {
                Arg::Buffer(id) if view.store => effects.writes.push((id, touched.stored)),
                Arg::Buffer(id) => {
                    if !matches!(self.any_buffer(id)?.home, Home::Input(_)) {
                        effects.reads.push(id);
                        if touched.other_rows {
                            effects.by_row = None;
                        }
                    }
                }
                // Rows of one sequence read what others of the same batch appended.
                Arg::State(id) => {
                    effects.by_row = None;
                    if view.store {
                        stored_states.push(id);
                    }
                }
                Arg::Weight(_) => {}
            }
        }
        let bound_to = |state: &StateId| args.iter().filter(|a| **a == Arg::State(*state)).count();
        ensure!(stored_states.iter().all(|s| bound_to(s) == 1), "a state that is stored to is bound twice");
        Ok(effects)
    }

    /// What a view is bound to, where their element types agree.
    fn bind(&self, arg: Arg, elem: ViewElem, store: bool) -> Check<Bound> {
        match arg {
            Arg::Buffer(id) => {
                let b = self.any_buffer(id)?;
                let agree = matches!(
                    (elem, b.elem),
                    (ViewElem::F32, BufferElem::F32) | (ViewElem::I32, BufferElem::I32)
                );
                ensure!(agree, "is {elem:?} and buffer {id} ({}) is {:?}", b.name, b.elem);
                let input = if let Home::Input(input) = b.home { Some(input) } else { None };
                ensure!(
                    !store || b.elem == BufferElem::F32,
                    "stores to buffer {id} ({}), which is no f32",
                    b.name
                );
                // Elements of a row are below 2^46, checked with the buffer.
                Ok(Bound::Rows { count: b.rows, elems: i128::from(b.row_elems), input })
            }
            Arg::Weight(id) => {
                let w = self.weight(id)?;
                ensure!(!store, "stores to weight {id}");
                let agree = matches!(
                    (elem, w.layout, w.scheme.elem),
                    (ViewElem::Panel, WeightLayout::Panel, _)
                        | (ViewElem::F32, WeightLayout::Dense, Elem::F32)
                        | (ViewElem::F16, WeightLayout::Dense, Elem::F16)
                        | (ViewElem::Bf16, WeightLayout::Dense, Elem::Bf16)
                );
                ensure!(agree, "is {elem:?} and weight {id} is {:?} {}", w.layout, w.scheme);
                Ok(Bound::Weight { n: i128::from(w.n), k: i128::from(w.k) })
            }
            Arg::State(id) => {
                let (holds, elems) = match *self.state(id)? {
                    StateDecl::Blocks { elems } => (ViewElem::Kv, elems),
                    StateDecl::Recurrent { elems } => (ViewElem::F32, elems),
                };
                ensure!(elem == holds, "is {elem:?} and is bound to a state of {holds:?}");
                Ok(Bound::State { elems: i128::from(elems) })
            }
        }
    }
}
