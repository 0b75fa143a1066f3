//! The schedule: a packed graph becomes the plan's weights, nests and programs.
//!
//! Steps follow the graph's own order (operands before readers, depth first), which is also the order in which weights
//! lie in the file.

use crate::cuts::{self, StepUse};
use crate::error::TargetError;
use crate::lower::{self, Lowered};
use crate::memory::{self, Request};
use crate::states::{Holds, LayerState, States};
use crate::tactics::{Setting, Tactic, Tactics};
use bessemer_format::act::{Bf16Layout, Int8Layout};
use bessemer_format::manifest::Selection;
use bessemer_format::nest::Nest;
use bessemer_format::plan::{
    Arg, Attention, Buffer, BufferElem, BufferId, Choice, Cut, Epilogue, GroupedLinear, Home, Input, Linear,
    ModelFacts, Plan, Program, Regime, Route, RowCount, Segment, Step, StepKind, WeightId, WeightLayout,
    WeightSlice,
};
use bessemer_format::{Compute, PanelLayout, QuantScheme, panel};
use bessemer_ir::attr::{self, Computes};
use bessemer_ir::{DType, Dim, Graph, Layout, NodeId, Op, Recipe, Value};
use std::collections::BTreeMap;

/// Rows of a program between the few of a decode and a whole chunk. It saves memory where workers take no longer batches; it is no
/// tactic, as the steps are those of a chunk.
const SOME_ROWS: u32 = 64;

/// Choices of the schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleOptions {
    /// Tactics that do not follow the rule.
    pub tactics: BTreeMap<Tactic, Setting>,
    /// Whether hand-written kernels may be used. Without them every op runs as a nest: slow, for tests.
    pub kernels: bool,
    /// Whether each layer has a state of its own, so that a device may hold those of some layers, and kernels are the same for all. The
    /// others lie side by side in a block.
    pub layers_apart: bool,
    /// Whether threads meet behind every step, also where each would go on with rows of its own.
    pub all_barriers: bool,
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        Self { tactics: BTreeMap::new(), kernels: true, layers_apart: false, all_barriers: false }
    }
}

/// A plan, and what the writer needs beside it.
#[derive(Clone, Debug)]
pub struct Scheduled {
    /// The plan.
    pub plan: Plan,
    /// For each of the plan's weights, how its bytes are made.
    pub weights: Vec<Recipe>,
    /// Why each node runs as it does.
    pub selection: Vec<Selection>,
    /// The constants of the schedule.
    pub tactics: Tactics,
}

/// Plans a graph of phase `Packed`.
pub fn schedule(
    graph: &Graph,
    facts: &ModelFacts,
    options: &ScheduleOptions,
) -> Result<Scheduled, TargetError> {
    schedule_beside(&[], graph, facts, options)
}

/// As [`schedule`], for one more target of an engine: the plan's weights are those of `before`, and behind them what no plan has had yet.
pub fn schedule_beside(
    before: &[Scheduled],
    graph: &Graph,
    facts: &ModelFacts,
    options: &ScheduleOptions,
) -> Result<Scheduled, TargetError> {
    let order = graph.order();
    let needs_all = |n: &&NodeId| matches!(graph.op(**n), Op::FullAttention { .. } | Op::Pool { .. });
    if let Some(node) = order.iter().find(needs_all).filter(|_| !facts.whole) {
        return Err(TargetError::node(
            graph.name(*node),
            "needs whole sequences, and this model takes them in parts",
        ));
    }
    let whole = facts.whole.then_some(facts.context);
    let tactics = Tactics::new(graph, whole, &options.tactics).map_err(TargetError::Graph)?;
    let states = States::of(graph, &order, options.layers_apart);
    let mut shared = Shared::new(graph, &order, states, before.last())?;
    let mut programs = Vec::new();
    for regime in regimes(graph, &order, &tactics) {
        let builder = ProgramBuilder::new(graph, facts, options, &tactics, &mut shared, regime);
        programs.push(builder.build(&order)?);
    }
    let states = shared.states.declared();
    let plan = Plan { model: facts.clone(), weights: shared.slices, states, nests: shared.nests, programs };
    Ok(Scheduled { plan, weights: shared.recipes, selection: shared.selection, tactics })
}

/// Row-count regimes up to a chunk: one row, those for which attention splits, tens, a chunk; and a border wherever a linear or
/// attention changes what it computes in.
fn regimes(graph: &Graph, order: &[NodeId], tactics: &Tactics) -> Vec<Regime> {
    let chunk = tactics.get(Tactic::ChunkRows);
    let mut ends = vec![1, tactics.get(Tactic::SplitRows), SOME_ROWS, chunk];
    let borders = order.iter().filter_map(|node| graph.op(*node).computes()?.many);
    ends.extend(borders.map(|(from, _)| from.saturating_sub(1)));
    ends.retain(|end| (1..=chunk).contains(end));
    ends.sort_unstable();
    ends.dedup();
    let mut min_rows = 1;
    let regime = |max_rows| Regime { min_rows: std::mem::replace(&mut min_rows, max_rows + 1), max_rows };
    ends.into_iter().map(regime).collect()
}

/// What all programs share.
struct Shared {
    slices: Vec<WeightSlice>,
    recipes: Vec<Recipe>,
    weight_of: BTreeMap<NodeId, WeightId>,
    nests: Vec<Nest>,
    selection: Vec<Selection>,
    /// Where each node stands in the execution order.
    position: BTreeMap<NodeId, usize>,
    states: States,
}

impl Shared {
    fn new(
        graph: &Graph,
        order: &[NodeId],
        states: States,
        before: Option<&Scheduled>,
    ) -> Result<Self, TargetError> {
        let mut shared = Self {
            slices: before.map_or_else(Vec::new, |b| b.plan.weights.clone()),
            recipes: before.map_or_else(Vec::new, |b| b.weights.clone()),
            weight_of: BTreeMap::new(),
            nests: Vec::new(),
            selection: Vec::new(),
            position: order.iter().enumerate().map(|(i, n)| (*n, i)).collect(),
            states,
        };
        for &node in order {
            if let Op::Const { recipe } = graph.op(node) {
                let slice = weight_slice(graph, node, recipe)?;
                let id = shared.weight(slice, recipe);
                shared.weight_of.insert(node, id);
            }
        }
        Ok(shared)
    }

    /// The weight that holds numbers which an op carries as an attribute. It lies behind the graph's own constants.
    fn constant(&mut self, values: Vec<f32>) -> WeightId {
        let recipe = Recipe::values(values);
        let k = recipe.matrix().1;
        let slice = WeightSlice {
            offset: 0,
            len: k as u64 * 4,
            n: 1,
            k: k as u32,
            scheme: QuantScheme::F32,
            layout: WeightLayout::Dense,
        };
        self.weight(slice, &recipe)
    }

    /// The weight of this recipe that lies as `slice` does, whatever its offset: a new one behind all others if there is none.
    fn weight(&mut self, mut slice: WeightSlice, recipe: &Recipe) -> WeightId {
        let same = |(s, r): (&WeightSlice, &Recipe)| {
            let WeightSlice { offset: _, len: _, n, k, scheme, layout } = s;
            (n, k, scheme, layout) == (&slice.n, &slice.k, &slice.scheme, &slice.layout) && r == recipe
        };
        if let Some(at) = self.slices.iter().zip(&self.recipes).position(same) {
            return at as WeightId;
        }
        slice.offset = self.slices.last().map_or(0, |w| (w.offset + w.len).next_multiple_of(64));
        self.slices.push(slice);
        self.recipes.push(recipe.clone());
        self.slices.len() as WeightId - 1
    }

    fn nest(&mut self, nest: Nest) -> u32 {
        // Layers share nests: what differs between them is bound by the step.
        if let Some(at) = self.nests.iter().position(|n| *n == nest) {
            return at as u32;
        }
        self.nests.push(nest);
        self.nests.len() as u32 - 1
    }
}

/// How a constant's bytes lie, wherever they do.
fn weight_slice(graph: &Graph, node: NodeId, recipe: &Recipe) -> Result<WeightSlice, TargetError> {
    let (n, k) = recipe.matrix();
    let ty = graph.ty(node.into());
    let scheme = ty.scheme();
    let (layout, len) = match ty.encoding.layout {
        Layout::Panel => {
            let panel =
                PanelLayout::new(&scheme, n, k).map_err(|why| TargetError::node(graph.name(node), why))?;
            (WeightLayout::Panel, panel.total_bytes() as u64)
        }
        Layout::Dense if scheme.elem.is_float() => {
            (WeightLayout::Dense, n as u64 * k as u64 * u64::from(scheme.elem.bits() / 8))
        }
        Layout::Dense => {
            return Err(TargetError::node(graph.name(node), format!("a dense weight cannot hold {scheme}")));
        }
    };
    Ok(WeightSlice { offset: 0, len, n: n as u32, k: k as u32, scheme, layout })
}

/// A step before its barrier is known, with the buffers it reads and writes.
struct Draft {
    kind: StepKind,
    source: String,
    reads: Vec<BufferId>,
    writes: Vec<BufferId>,
    /// Rows that threads share out, for steps whose row r touches rows r of its buffers only.
    by_row: Option<RowCount>,
    /// The same for a step's first part: linears convert their input row by row, and threads meet before they multiply.
    enters_by_row: Option<RowCount>,
    /// The layer whose state it touches.
    layer: Option<u32>,
}

/// What something computes in, for people.
fn in_words(compute: Compute) -> String {
    match compute {
        Compute::F32 => "f32 activations".into(),
        Compute::Bf16 => "bf16 activations".into(),
        Compute::Int8 { group } => format!("int8 activations by {group}"),
    }
}

/// Whether each weight of a stack begins at a panel, as kernels need it.
fn whole_panels(width: u64) -> bool {
    width.is_multiple_of(panel::COLUMNS as u64)
}

struct ProgramBuilder<'a> {
    graph: &'a Graph,
    facts: &'a ModelFacts,
    options: &'a ScheduleOptions,
    tactics: &'a Tactics,
    shared: &'a mut Shared,
    regime: Regime,
    buffers: Vec<Buffer>,
    /// Buffers whose place is chosen by the planner; the others are inputs or the logits.
    planned: Vec<bool>,
    of_value: BTreeMap<Value, BufferId>,
    inputs: BTreeMap<Input, BufferId>,
    state_of: BTreeMap<Value, u32>,
    drafts: Vec<Draft>,
}

impl<'a> ProgramBuilder<'a> {
    fn new(
        graph: &'a Graph,
        facts: &'a ModelFacts,
        options: &'a ScheduleOptions,
        tactics: &'a Tactics,
        shared: &'a mut Shared,
        regime: Regime,
    ) -> Self {
        Self {
            graph,
            facts,
            options,
            tactics,
            shared,
            regime,
            buffers: Vec::new(),
            planned: Vec::new(),
            of_value: BTreeMap::new(),
            inputs: BTreeMap::new(),
            state_of: BTreeMap::new(),
            drafts: Vec::new(),
        }
    }

    fn build(mut self, order: &[NodeId]) -> Result<Program, TargetError> {
        for &node in order {
            self.node(node)?;
        }
        self.finish()
    }

    fn buffer(
        &mut self,
        name: String,
        elem: BufferElem,
        rows: RowCount,
        row_elems: u64,
        home: Option<Home>,
    ) -> BufferId {
        self.planned.push(home.is_none());
        self.buffers.push(Buffer {
            name,
            elem,
            rows,
            row_elems,
            home: home.unwrap_or(Home::Arena { offset: 0 }),
        });
        self.buffers.len() as BufferId - 1
    }

    /// The array that the runtime fills for `input`.
    fn input(&mut self, input: Input) -> BufferId {
        if let Some(id) = self.inputs.get(&input) {
            return *id;
        }
        let rows = if input == Input::LogitRows { RowCount::Logits } else { RowCount::Tokens };
        let name = format!("{input:?}").to_lowercase();
        let id = self.buffer(name, BufferElem::I32, rows, 1, Some(Home::Input(input)));
        self.inputs.insert(input, id);
        id
    }

    fn value(&self, v: Value) -> Result<BufferId, TargetError> {
        self.of_value.get(&v).copied().ok_or_else(|| {
            TargetError::node(self.graph.name(v.node), "has no buffer; its type is not one of activations")
        })
    }

    /// A new buffer for a result.
    fn result(&mut self, v: Value) -> Result<BufferId, TargetError> {
        let ty = self.graph.ty(v);
        let (rows, width) = match &ty.shape[..] {
            [Dim::Rows, Dim::Const(w)] => (RowCount::Tokens, *w),
            [Dim::LogitRows, Dim::Const(w)] => (RowCount::Logits, *w),
            _ => {
                return Err(TargetError::node(
                    self.graph.name(v.node),
                    format!("a result of type {ty} needs no buffer"),
                ));
            }
        };
        let is_logits = self.graph.output().is_some_and(|o| self.graph.operands(o).first() == Some(&v));
        let home = is_logits.then_some(Home::Logits);
        let elem = if ty.dtype == DType::I32 { BufferElem::I32 } else { BufferElem::F32 };
        let id = self.buffer(self.graph.name(v.node).to_string(), elem, rows, width, home);
        self.of_value.insert(v, id);
        Ok(id)
    }

    fn weight(&self, v: Value) -> Result<WeightId, TargetError> {
        self.shared
            .weight_of
            .get(&v.node)
            .copied()
            .ok_or_else(|| TargetError::node(self.graph.name(v.node), "a constant is expected here"))
    }

    fn node(&mut self, node: NodeId) -> Result<(), TargetError> {
        let graph = self.graph;
        let operands = graph.operands(node);
        match graph.op(node) {
            Op::Const { .. } | Op::Output {} => Ok(()),
            Op::Input { input } => {
                let id = self.input(*input);
                self.of_value.insert(node.into(), id);
                Ok(())
            }
            Op::State { layer, .. } | Op::Latents { layer, .. } | Op::Carried { layer, .. } => {
                self.state_of.insert(node.into(), *layer);
                Ok(())
            }
            // The kernel gathers rows of tokens; tables of positions and the like are small.
            Op::Embed {} if self.options.kernels && self.is_input(operands[0], Input::Tokens) => {
                let (tokens, table) = (self.value(operands[0])?, self.weight(operands[1])?);
                let out = self.result(node.into())?;
                self.draft(
                    node,
                    StepKind::Embed { tokens, table, out },
                    vec![tokens],
                    vec![out],
                    Some(RowCount::Tokens),
                );
                self.selected(
                    node,
                    "embed kernel",
                    &[("nest", "the kernel reads a lane of a panel without decoding the rest")],
                );
                Ok(())
            }
            Op::Linear { segments, epilogue, compute } if self.options.kernels => {
                let (step, reads, writes) = self.linear(node, &operands, segments, *epilogue, *compute)?;
                self.draft(node, StepKind::Linear(step), reads, writes, None);
                Ok(())
            }
            Op::GroupedLinear { groups, slots, routed, segments, epilogue, compute }
                if self.options.kernels && segments.iter().all(|s| whole_panels(s.width)) =>
            {
                let mut operands = operands.clone();
                let chosen = routed.then(|| self.value(operands.remove(1))).transpose()?;
                let (linear, mut reads, writes) =
                    self.linear(node, &operands, segments, *epilogue, *compute)?;
                reads.extend(chosen);
                let step = GroupedLinear { linear, groups: *groups, slots: *slots, chosen };
                self.draft(node, StepKind::GroupedLinear(step), reads, writes, None);
                Ok(())
            }
            Op::Route { choice } => self.route(node, &operands, *choice),
            Op::Attention { .. } | Op::FullAttention { .. } | Op::LatentAttention { .. }
                if self.options.kernels =>
            {
                self.attention(node, &operands)
            }
            _ => self.nest(node, &operands),
        }
    }

    fn is_input(&self, value: Value, input: Input) -> bool {
        *self.graph.op(value.node) == Op::Input { input }
    }

    /// A linear, or that of one slot of a grouped one: the step, what it reads, what it writes.
    fn linear(
        &mut self,
        node: NodeId,
        operands: &[Value],
        segments: &[attr::Segment],
        epilogue: attr::Epilogue,
        computes: Computes,
    ) -> Result<(Linear, Vec<BufferId>, Vec<BufferId>), TargetError> {
        let compute = computes.at(self.regime.min_rows);
        let input = self.value(operands[0])?;
        let rows = self.buffers[input as usize].rows;
        let mut reads = vec![input];
        let mut next = 1;
        let mut column = 0;
        let mut plan_segments = Vec::new();
        for s in segments {
            let weight = self.weight(operands[next])?;
            next += 1;
            let bias = if s.bias {
                next += 1;
                Some(self.weight(operands[next - 1])?)
            } else {
                None
            };
            plan_segments.push(Segment { weight, bias, column });
            if !matches!(epilogue, attr::Epilogue::Gated(_)) {
                column += s.width as u32;
            }
        }
        let (plan_epilogue, out) = match epilogue {
            attr::Epilogue::None => (Epilogue::None, self.result(node.into())?),
            attr::Epilogue::Gated(gate) => (Epilogue::Gated(gate), self.result(node.into())?),
            attr::Epilogue::Residual => {
                let value = operands[next];
                let residual = self.value(value)?;
                reads.push(residual);
                // The residual stream stays in one buffer where nobody reads the old value later.
                let at = |n: NodeId| self.shared.position.get(&n).copied().unwrap_or(usize::MAX);
                let last = self.graph.uses(value).iter().all(|(reader, _)| at(*reader) <= at(node));
                let in_place = self.planned[residual as usize] && last;
                let out = if in_place {
                    self.of_value.insert(node.into(), residual);
                    residual
                } else {
                    self.result(node.into())?
                };
                (Epilogue::Residual(residual), out)
            }
        };
        let mut writes = vec![out];
        let name = self.graph.name(node).to_string();
        let mut panels = Vec::new();
        for s in &plan_segments {
            let w = &self.shared.slices[s.weight as usize];
            let layout = PanelLayout::new(&w.scheme, w.n as usize, w.k as usize);
            panels.push(layout.map_err(|why| TargetError::node(&name, why))?);
        }
        let k = panels.first().map_or(1, PanelLayout::k);
        let converted = match compute {
            Compute::F32 => None,
            Compute::Bf16 => Some(("bf16", Bf16Layout { k }.row_bytes())),
            Compute::Int8 { group } => {
                let mut layout = None;
                for panel in &panels {
                    let this = Int8Layout::new(panel, group as usize);
                    let this = this.map_err(|why| TargetError::node(&name, why))?;
                    if *layout.get_or_insert(this) != this {
                        return Err(TargetError::node(
                            name,
                            "segments ask for different layouts of the activations",
                        ));
                    }
                }
                Some(("int8", layout.map_or(0, |l| l.row_bytes())))
            }
        };
        let scratch = converted.map(|(kind, row_bytes)| {
            // Slots that read a part of the row each convert it each.
            let inputs = self.buffers[input as usize].row_elems / k as u64;
            self.buffer(format!("{name}.{kind}"), BufferElem::Bytes, rows, row_bytes as u64 * inputs, None)
        });
        writes.extend(scratch);
        self.selected_linear(node, &plan_segments, computes, epilogue);
        let step =
            Linear { input, rows, compute, scratch, segments: plan_segments, epilogue: plan_epilogue, out };
        Ok((step, reads, writes))
    }

    fn route(&mut self, node: NodeId, operands: &[Value], choice: Choice) -> Result<(), TargetError> {
        let logits = self.value(operands[0])?;
        let rows = self.buffers[logits as usize].rows;
        let bias = operands.get(1).map(|bias| self.weight(*bias)).transpose()?;
        let chosen = self.result(node.into())?;
        let step = Route { logits, rows, bias, choice, chosen };
        self.draft(node, StepKind::Route(step), vec![logits], vec![chosen], Some(rows));
        self.selected(
            node,
            "route kernel",
            &[("nest", "a choice of the largest is no sum or maximum in a fixed order")],
        );
        Ok(())
    }

    fn selected_linear(
        &mut self,
        node: NodeId,
        segments: &[Segment],
        computes: Computes,
        epilogue: attr::Epilogue,
    ) {
        let floats = segments.iter().all(|s| self.shared.slices[s.weight as usize].scheme.elem.is_float());
        let segments = segments.len();
        let mut rejected = vec![("nest", "dequantises element by element")];
        rejected.push(match computes.few {
            Compute::F32 if floats => ("int8 activations", "the weights are no integers"),
            Compute::F32 => {
                ("int8 activations", "f32 was asked for, or the weights' groups fit no integer kernel")
            }
            Compute::Bf16 => (
                "f32 activations",
                "CPUs that multiply bf16 do it at up to twice the rate; `--f32-activations` asks for it",
            ),
            Compute::Int8 { .. } => {
                ("f32 activations", "every weight would be dequantised; `--f32-activations` asks for it")
            }
        });
        let mut activations = in_words(computes.few);
        if let Some((from, many)) = computes.many {
            activations.push_str(&format!(", from {from} rows on {}", in_words(many)));
            rejected.push((
                "the same activations for any number of rows",
                "tiles multiply so fast that many rows are worth dequantising for, and few are not",
            ));
        }
        if segments > 1 {
            rejected.push(("a step for each segment", "they share the input's conversion and one barrier"));
        }
        if epilogue != attr::Epilogue::None {
            rejected.push(("a step for the epilogue", "the result would be written and read once more"));
        }
        self.selected(
            node,
            &format!("linear kernel, {activations}, {segments} segment(s), epilogue {epilogue:?}"),
            &rejected,
        );
    }

    fn attention(&mut self, node: NodeId, operands: &[Value]) -> Result<(), TargetError> {
        let mut latent = None;
        let (heads, kv_heads, scale, causal, window, softcap, computes) = match *self.graph.op(node) {
            Op::Attention { heads, kv_heads, scale, window, softcap, compute } => {
                (heads, kv_heads, scale, true, window, softcap, compute)
            }
            Op::FullAttention { heads, kv_heads, scale, reach, compute } => {
                (heads, kv_heads, scale, false, reach.map(|reach| reach.saturating_add(1)), None, compute)
            }
            Op::LatentAttention { heads, value, scale, compute } => {
                latent = Some(value);
                (heads, 1, scale, true, None, None, compute)
            }
            _ => return self.nest(node, operands),
        };
        let query = self.value(operands[0])?;
        let layer = self.layer(operands[1])?;
        let name = self.graph.name(node).to_string();
        if layer.kv_heads != kv_heads
            || layer.latent() != latent.is_some()
            || layer.holds == Holds::Carried
            || self.buffers[query as usize].row_elems != u64::from(heads * layer.head_dim)
        {
            return Err(TargetError::node(name, "query and cache disagree on heads"));
        }
        let out = self.result(node.into())?;
        let more = operands.get(2).map(|more| self.weight(*more)).transpose()?;
        let (sinks, bias) = if causal { (more, None) } else { (None, more) };
        let mut step = Attention {
            query,
            query_column: 0,
            state: layer.state,
            layer_elems: layer.first_elem,
            out,
            heads,
            kv_heads,
            head_dim: layer.head_dim,
            latent,
            compute: computes.at(self.regime.min_rows),
            scale,
            causal,
            window,
            softcap,
            sinks,
            bias,
            // All heads share the keys of a latent, so that a chunk has work enough, and partial results are wide.
            chunk: self.tactics.get(Tactic::AttentionChunk) * if latent.is_some() { 4 } else { 1 },
            scratch: None,
        };
        let mut writes = vec![out];
        if self.regime.max_rows <= self.tactics.get(Tactic::SplitRows) {
            let bytes = step.scratch_row_bytes(self.facts.context);
            let id = self.buffer(format!("{name}.partial"), BufferElem::Bytes, RowCount::Tokens, bytes, None);
            step.scratch = Some(id);
            writes.push(id);
        }
        self.draft(node, StepKind::Attention(step), vec![query], writes, None);
        let (chunk, split) = (self.tactics.get(Tactic::AttentionChunk), self.tactics.get(Tactic::SplitRows));
        let (by_rows, by_chunks) = (
            format!("up to {split} rows do not keep all threads busy at every length"),
            format!("from {} rows on, where keys and values read once serve several rows", split + 1),
        );
        let mut rejected = vec![
            ("nest", "reads keys once a query head, not once a group"),
            ("work shared out by rows", by_rows.as_str()),
            ("work shared out by chunks", by_chunks.as_str()),
        ];
        let mut chosen = format!("attention kernel, chunks of {chunk} tokens");
        if let Some((from, many)) = computes.many {
            chosen.push_str(&format!(", from {from} rows on {}", in_words(many)));
            rejected.push(("the same for any number of rows", "few rows wait for memory, many for products"));
        }
        self.selected(node, &chosen, &rejected);
        Ok(())
    }

    fn layer(&self, state: Value) -> Result<LayerState, TargetError> {
        self.state_of
            .get(&state)
            .and_then(|l| self.shared.states.layers.get(l))
            .copied()
            .ok_or_else(|| TargetError::node(self.graph.name(state.node), "a layer's state is expected here"))
    }

    /// Everything without a hand-written kernel.
    fn nest(&mut self, node: NodeId, operands: &[Value]) -> Result<(), TargetError> {
        let graph = self.graph;
        let op = graph.op(node);
        let types: Vec<_> = operands.iter().map(|v| graph.ty(*v).clone()).collect();
        let state = operands.iter().copied().find(|v| graph.ty(*v).dtype == DType::State);
        let layer = state.map(|s| self.layer(s)).transpose()?;
        let Lowered { nest, rows, args } = lower::lower(op, &types, layer, self.facts)
            .map_err(|why| TargetError::node(format!("{} ({})", graph.name(node), op.name()), why))?;
        let (mut reads, mut writes, mut bound) = (Vec::new(), Vec::new(), Vec::new());
        let mut by_row = Some(rows);
        for arg in args {
            bound.push(match arg {
                lower::NestArg::Operand(i) => match self.shared.weight_of.get(&operands[i].node) {
                    Some(w) => Arg::Weight(*w),
                    None => {
                        let id = self.value(operands[i])?;
                        reads.push(id);
                        // Rows picked by index cross the row partition.
                        if matches!(op, Op::SelectRows {} | Op::Pool { .. }) {
                            by_row = None;
                        }
                        Arg::Buffer(id)
                    }
                },
                lower::NestArg::Result(i) => {
                    let id = match self.of_value.get(&node.result(i)) {
                        Some(id) => *id,
                        None => self.result(node.result(i))?,
                    };
                    writes.push(id);
                    Arg::Buffer(id)
                }
                lower::NestArg::Input(input) => {
                    let id = self.input(input);
                    reads.push(id);
                    Arg::Buffer(id)
                }
                lower::NestArg::Constant(values) => Arg::Weight(self.shared.constant(values)),
                lower::NestArg::State => {
                    // Later rows of the batch read what earlier rows append.
                    by_row = None;
                    Arg::State(layer.map_or(0, |layer| layer.state))
                }
            });
        }
        for (i, ty) in graph.types(node).iter().enumerate() {
            if ty.dtype == DType::State
                && let Some(state) = state
            {
                let layer = self.state_of[&state];
                self.state_of.insert(node.result(i as u16), layer);
            }
        }
        let nest = self.shared.nest(nest);
        self.draft(node, StepKind::Nest { nest, rows, args: bound }, reads, writes, by_row);
        self.selected(
            node,
            "nest",
            &[("kernel", "there is none for it: its work is small beside that of linears")],
        );
        Ok(())
    }

    fn draft(
        &mut self,
        node: NodeId,
        kind: StepKind,
        reads: Vec<BufferId>,
        writes: Vec<BufferId>,
        by_row: Option<RowCount>,
    ) {
        let layer = self.graph.operands(node).iter().find_map(|v| self.state_of.get(v)).copied();
        let source = self.graph.name(node).to_string();
        let enters_by_row = match &kind {
            StepKind::Linear(linear) | StepKind::GroupedLinear(GroupedLinear { linear, .. }) => {
                (linear.compute != Compute::F32).then_some(linear.rows)
            }
            _ => by_row,
        };
        self.drafts.push(Draft { kind, source, reads, writes, by_row, enters_by_row, layer });
    }

    /// Notes a choice, once for all programs.
    fn selected(&mut self, node: NodeId, chosen: &str, rejected: &[(&str, &str)]) {
        if self.regime.min_rows == 1 {
            self.shared.selection.push(Selection {
                node: self.graph.name(node).to_string(),
                chosen: chosen.to_string(),
                rejected: rejected.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect(),
            });
        }
    }

    /// Sets barriers, places buffers.
    fn finish(mut self) -> Result<Program, TargetError> {
        let barriers: Vec<bool> = (0..self.drafts.len())
            .map(|i| {
                let next = self.drafts.get(i + 1).and_then(|next| next.enters_by_row);
                self.options.all_barriers || self.drafts[i].by_row.is_none() || self.drafts[i].by_row != next
            })
            .collect();
        let mut epoch = 0u32;
        let mut live: Vec<Option<(u32, u32)>> = vec![None; self.buffers.len()];
        for (draft, barrier) in self.drafts.iter().zip(&barriers) {
            for id in draft.reads.iter().chain(&draft.writes) {
                let (_, end) = live[*id as usize].get_or_insert((epoch, epoch));
                *end = epoch;
            }
            epoch += u32::from(*barrier);
        }
        let mut ids = Vec::new();
        let mut requests = Vec::new();
        for (id, buffer) in self.buffers.iter().enumerate() {
            if let (true, Some((start, end))) = (self.planned[id], live[id]) {
                let bytes = buffer.row_elems * buffer.elem.bytes() * u64::from(self.regime.max_rows);
                ids.push(id);
                requests.push(Request { bytes, live: start..=end });
            }
        }
        let (offsets, arena_bytes) = memory::place(&requests);
        for (id, offset) in ids.into_iter().zip(offsets) {
            self.buffers[id].home = Home::Arena { offset };
        }
        let cuts = self.cuts();
        let steps = self
            .drafts
            .into_iter()
            .zip(barriers)
            .map(|(d, barrier)| Step { kind: d.kind, place: 0, barrier, source: d.source })
            .collect();
        Ok(Program { regime: self.regime, arena_bytes, buffers: self.buffers, steps, cuts })
    }

    /// Where each layer begins.
    fn cuts(&self) -> Vec<Cut> {
        if self.facts.whole {
            return Vec::new();
        }
        let step =
            |d: &'_ Draft| StepUse { reads: d.reads.clone(), writes: d.writes.clone(), layer: d.layer };
        let steps: Vec<StepUse> = self.drafts.iter().map(step).collect();
        let row =
            |(buffer, planned): (&Buffer, &bool)| planned.then(|| buffer.row_elems * buffer.elem.bytes());
        let rows: Vec<Option<u64>> = self.buffers.iter().zip(&self.planned).map(row).collect();
        cuts::cuts(&steps, &rows)
    }
}
