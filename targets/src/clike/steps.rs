//! The kernels of a plan's steps: thin text around the templates, with a plan's sizes in it.

use super::{Block, Draft, Module, Param, float, nest};
use bessemer_format::gpu::{GpuArg, Groups};
use bessemer_format::nest::ViewElem;
use bessemer_format::plan::{
    Arg, Attention, BufferId, Epilogue, Gate, GroupedLinear, Input, Linear, Plan, Program, Route, RowCount,
    Score, StateDecl, Step, StepKind, WeightId, WeightLayout,
};
use bessemer_format::{Compute, PanelLayout, kv, panel};

/// Threads of the tiled kernels.
const THREADS: u32 = 128;
/// Warps of the tiled kernels.
const WARPS: u32 = THREADS / super::LANES;
/// Most rows whose products a warp holds in registers while it streams weights; more rows are multiplied in tiles.
const FEW_ROWS: u32 = 8;
/// Columns of a tile of products.
const TILE_COLUMNS: u32 = 64;
/// Elements along k that workgroup memory holds of a tile: as in the text.
const TILE_K: u32 = 32;

/// The launches of one step.
pub(super) fn step(
    module: &mut Module,
    plan: &Plan,
    program: &Program,
    step: &Step,
) -> Result<Vec<Draft>, String> {
    let context = Context { plan, program, source: &step.source };
    match &step.kind {
        StepKind::Embed { tokens, table, out } => context.embed(module, *tokens, *table, *out),
        StepKind::Linear(linear) => context.linear(module, linear),
        StepKind::GroupedLinear(grouped) => context.grouped(module, grouped),
        StepKind::Attention(attention) => context.attention(module, attention),
        StepKind::Route(route) => context.route(module, route),
        StepKind::Nest { nest, rows, args } => context.nest(module, *nest, *rows, args),
        StepKind::Copy { .. } => Err("a plan for one GPU has no copies between places".into()),
    }
}

struct Context<'a> {
    plan: &'a Plan,
    program: &'a Program,
    source: &'a str,
}

/// Pointers of a kernel and what they are bound to, side by side.
#[derive(Default)]
struct Pointers {
    params: Vec<Param>,
    args: Vec<GpuArg>,
}

impl Pointers {
    fn read(&mut self, ty: &'static str, name: impl Into<String>, arg: GpuArg) {
        self.params.push(Param::read(ty, name));
        self.args.push(arg);
    }

    fn written(&mut self, ty: &'static str, name: impl Into<String>, arg: GpuArg) {
        self.params.push(Param::written(ty, name));
        self.args.push(arg);
    }
}

/// A segment of a linear as its kernel names it.
struct Part {
    layout: String,
    width: u32,
    k: u32,
    column: u32,
    bias: bool,
}

fn gate(gate: Gate) -> &'static str {
    match gate {
        Gate::Silu => "silu",
        Gate::Gelu => "gelu",
        Gate::GeluTanh => "gelu_tanh",
    }
}

/// Where the number of rows stands in the pass.
fn rows_of(rows: RowCount) -> &'static str {
    match rows {
        RowCount::Tokens => "pass[0]",
        RowCount::Logits => "pass[1]",
    }
}

impl Context<'_> {
    fn panel(&self, weight: WeightId) -> Result<PanelLayout, String> {
        let slice = self.plan.weights.get(weight as usize).ok_or("a weight that does not exist")?;
        if slice.layout != WeightLayout::Panel {
            return Err(format!("weight {weight} is not packed"));
        }
        PanelLayout::new(&slice.scheme, slice.n as usize, slice.k as usize)
    }

    fn row_elems(&self, buffer: BufferId) -> Result<u64, String> {
        self.program
            .buffers
            .get(buffer as usize)
            .map(|b| b.row_elems)
            .ok_or_else(|| "a buffer that does not exist".into())
    }

    fn embed(
        &self,
        module: &mut Module,
        tokens: BufferId,
        table: WeightId,
        out: BufferId,
    ) -> Result<Vec<Draft>, String> {
        let panel = self.panel(table)?;
        let layout = module.layout(&panel);
        let mut p = Pointers::default();
        p.read("int", "tokens", GpuArg::Buffer(tokens));
        p.read("uchar", "table", GpuArg::Weight(table));
        p.written("float", "out", GpuArg::Buffer(out));
        p.written("int", "fault", GpuArg::Fault);
        let mut b = Block::body(1);
        b.line(format!("const int id = checked(tokens[gx], {}, fault);", panel.n()));
        b.line(format!("const GLOBAL uchar* panel = table + (idx)(id / 16) * {layout}::PANEL_BYTES;"));
        b.open(format!("for (int tile = tid; tile < {layout}::TILES; tile += {THREADS})"));
        b.line("float w[16][4];");
        b.line(format!("{layout}::decode(panel, tile, id % 16 / 4, w);"));
        b.open("UNROLL for (int j = 0; j < 16; ++j)");
        b.line("const int k = tile * 16 + j;");
        b.line(format!("if (k < {layout}::K) out[(idx)gx * {layout}::K + k] = pick(w[j], id % 4);"));
        b.close();
        b.close();
        let kernel = module.kernel("embed", self.source, THREADS, p.params, b)?;
        let grid = [Groups::of_rows(RowCount::Tokens, 1), Groups::fixed(1), Groups::fixed(1)];
        Ok(vec![(kernel, grid, p.args)])
    }

    /// The pointers and segments that linears of both kinds share. Segments of a stack are `groups` weights.
    fn parts(
        &self,
        module: &mut Module,
        linear: &Linear,
        groups: u32,
        p: &mut Pointers,
    ) -> Result<Vec<Part>, String> {
        if linear.compute != Compute::F32 {
            return Err(format!("computes in {:?}, which kernels for GPUs do not", linear.compute));
        }
        p.read("float", "x", GpuArg::Buffer(linear.input));
        let mut parts = Vec::new();
        for (at, s) in linear.segments.iter().enumerate() {
            let panel = self.panel(s.weight)?;
            p.read("uchar", format!("w{at}"), GpuArg::Weight(s.weight));
            if let Some(bias) = s.bias {
                p.read("float", format!("bias{at}"), GpuArg::Weight(bias));
            }
            parts.push(Part {
                layout: module.layout(&panel),
                width: panel.n() as u32 / groups.max(1),
                k: panel.k() as u32,
                column: s.column,
                bias: s.bias.is_some(),
            });
        }
        if let Epilogue::Residual(residual) = linear.epilogue {
            p.read("float", "residual", GpuArg::Buffer(residual));
        }
        Ok(parts)
    }

    fn linear(&self, module: &mut Module, linear: &Linear) -> Result<Vec<Draft>, String> {
        let mut p = Pointers::default();
        let parts = self.parts(module, linear, 1, &mut p)?;
        p.written("float", "out", GpuArg::Buffer(linear.out));
        p.read("int", "pass", GpuArg::Pass);
        let width = self.row_elems(linear.out)?;
        let most = self.program.regime.max_rows;
        let few = most <= FEW_ROWS;
        let rows = match most {
            n if n <= FEW_ROWS => n,
            n if n <= 64 => 16,
            _ => 64,
        };
        let columns = if few { panel::COLUMNS as u32 } else { TILE_COLUMNS };
        let sides: Vec<&[Part]> = match linear.epilogue {
            Epilogue::Gated(_) => vec![&parts[..]],
            _ => parts.chunks(1).collect(),
        };
        let mut b = Block::body(1);
        b.line(format!(
            "const int first = gx * {rows}, rows = lesser({} - first, {rows});",
            rows_of(linear.rows)
        ));
        if few {
            let segments = sides.iter().map(|s| s.len()).max().unwrap_or(1) as u32;
            let floats = segments * WARPS * rows * 16;
            b.shared("parts", floats, floats.into());
        } else {
            for (name, width) in [("weights", TILE_COLUMNS), ("inputs", rows + 1)] {
                b.shared(name, format!("TILE_K * {width}"), u64::from(TILE_K * width));
            }
        }
        b.line("int tile = gy;");
        let mut tiles = 0;
        let mut at = 0;
        for side in sides {
            let of_side = side[0].width.div_ceil(columns);
            b.open(format!("if (tile < {of_side})"));
            if few {
                few_rows(&mut b, side, at, rows, linear.epilogue, width);
            } else {
                many_rows(&mut b, side, at, rows, linear.epilogue, width);
            }
            b.line("return;");
            b.close();
            b.line(format!("tile -= {of_side};"));
            tiles += of_side;
            at += side.len();
        }
        let op = if few { "linear" } else { "linear_tiled" };
        let kernel = module.kernel(op, self.source, THREADS, p.params, b)?;
        let grid = [Groups::of_rows(linear.rows, rows), Groups::fixed(tiles), Groups::fixed(1)];
        Ok(vec![(kernel, grid, p.args)])
    }

    /// A workgroup multiplies one slot of one row with one panel of the weight that it chose.
    fn grouped(&self, module: &mut Module, grouped: &GroupedLinear) -> Result<Vec<Draft>, String> {
        let linear = &grouped.linear;
        let mut p = Pointers::default();
        let parts = self.parts(module, linear, grouped.groups, &mut p)?;
        if let Some(chosen) = grouped.chosen {
            p.read("int", "chosen", GpuArg::Buffer(chosen));
        }
        p.written("float", "out", GpuArg::Buffer(linear.out));
        p.written("int", "fault", GpuArg::Fault);
        let x_width = self.row_elems(linear.input)?;
        let slots = grouped.slots;
        let width = self.row_elems(linear.out)?;
        let gated = matches!(linear.epilogue, Epilogue::Gated(_));
        let sides: Vec<&[Part]> = if gated { vec![&parts[..]] } else { parts.chunks(1).collect() };
        let mut b = Block::body(1);
        b.line(format!("const int row = gx / {slots}, slot = gx % {slots};"));
        b.line(match grouped.chosen {
            Some(_) => format!("const int expert = checked(chosen[gx], {}, fault);", grouped.groups),
            None => "const int expert = slot;".into(),
        });
        let floats = if gated { 2 } else { 1 } * WARPS * 16;
        b.shared("parts", floats, floats.into());
        b.line("int tile = gy;");
        let mut tiles = 0;
        let mut at = 0;
        for side in sides {
            let of_side = side[0].width.div_ceil(panel::COLUMNS as u32);
            b.open(format!("if (tile < {of_side})"));
            for (i, part) in side.iter().enumerate() {
                let slot = if x_width == u64::from(part.k) {
                    String::new()
                } else {
                    format!(" + slot * {}", part.k)
                };
                b.line(format!(
                    "panel_products<{0}, 1, {WARPS}>(w{1} + (idx)(expert * {2} + tile) * {0}::PANEL_BYTES, x + (idx)row * {x_width}{slot}, 0, 1, tid, parts + {3});",
                    part.layout, at + i, part.width / panel::COLUMNS as u32, i as u32 * WARPS * 16
                ));
            }
            b.open("if (tid < 16)");
            b.line("const int n = tile * 16 + tid;");
            values(&mut b, side, at, "expert", |i| {
                format!("product<1, {WARPS}>(parts + {}, tid)", i as u32 * WARPS * 16)
            });
            let at_out = format!(
                "(idx)row * {width} + slot * {} + {} + n",
                width / u64::from(slots.max(1)),
                side[0].column
            );
            store(&mut b, linear.epilogue, &at_out);
            b.close();
            b.line("return;");
            b.close();
            b.line(format!("tile -= {of_side};"));
            tiles += of_side;
            at += side.len();
        }
        let kernel = module.kernel("grouped_linear", self.source, THREADS, p.params, b)?;
        let grid = [
            Groups { rows: Some(linear.rows), per: 1, times: slots },
            Groups::fixed(tiles),
            Groups::fixed(1),
        ];
        Ok(vec![(kernel, grid, p.args)])
    }

    fn attention(&self, module: &mut Module, a: &Attention) -> Result<Vec<Draft>, String> {
        if a.compute != Compute::F32 {
            return Err(format!("computes in {:?}, which kernels for GPUs do not", a.compute));
        }
        let (dim, heads, kv_heads) = (a.head_dim, a.heads, a.kv_heads.max(1));
        let context = self.plan.model.context;
        let elems = match self.plan.states.get(a.state as usize) {
            Some(StateDecl::Blocks { elems }) => *elems,
            _ => return Err("a state that holds no keys and values".into()),
        };
        let head_elems = kv::head_elems(dim as usize) as u64;
        let mut p = Pointers::default();
        p.read("float", "q", GpuArg::Buffer(a.query));
        p.read("int", "positions", GpuArg::Input(Input::Positions));
        if !a.causal {
            p.read("int", "last_positions", GpuArg::Input(Input::LastPositions));
        }
        p.read("int", "starts", GpuArg::Input(Input::TableStarts));
        p.read("int", "table", GpuArg::Input(Input::BlockTable));
        p.read("kv", "cache", GpuArg::State(a.state));
        if let Some(sinks) = a.sinks {
            p.read("float", "sinks", GpuArg::Weight(sinks));
        }
        // Where nothing is added, the queries stand in for the numbers that nobody reads.
        let (mut added, mut bias) = (0, "q".to_string());
        if let Some(id) = a.bias {
            let rows = self.plan.weights.get(id as usize).map_or(0, |w| w.n);
            p.read("float", "bias", GpuArg::Weight(id));
            (added, bias) = (heads, format!("bias + ({} - position) * {heads} + head", rows / 2));
        }
        let split = a.scratch.is_some();
        let out = GpuArg::Buffer(a.scratch.unwrap_or(a.out));
        p.written("float", "out", out);
        p.read("int", "pass", GpuArg::Pass);
        p.written("int", "fault", GpuArg::Fault);

        let mut b = Block::body(1);
        b.line("const int row = gx, head = gy;");
        self.sight(&mut b, a, context);
        b.line(format!("see.block_elems = {elems};"));
        b.line(format!("see.keys = {} + (idx)(head / {}) * {head_elems};", a.layer_elems, heads / kv_heads));
        match a.latent {
            Some(_) => b.line("see.values = see.keys, see.latent = 1;"),
            None => {
                let keys = u64::from(kv_heads) * head_elems;
                b.line(format!("see.values = see.keys + {keys}, see.latent = 0;"));
            }
        }
        b.line("int from = see.first / BLOCK_TOKENS, to = see.last / BLOCK_TOKENS + 1;");
        let chunks = context.div_ceil(a.chunk.max(1));
        if split {
            let blocks = a.chunk as usize / kv::TOKENS;
            b.line(format!(
                "from = from < gz * {blocks} ? gz * {blocks} : from, to = lesser(to, (gz + 1) * {blocks});"
            ));
            b.line("if (from >= to) return;");
        }
        let numbers = dim + 2;
        b.shared("states", WARPS * numbers, u64::from(WARPS * numbers));
        let query = self.row_elems(a.query)?;
        b.line(format!(
            "Softmax<{dim}, {WARPS}, {added}>::run(q + (idx)row * {query} + {} + head * {dim}, table + starts[row], cache, see, from, to, pass[4], {}, {}, {bias}, tid, states, fault);",
            a.query_column,
            float(a.scale),
            float(a.softcap.unwrap_or(0.0)),
        ));
        let sink = if a.sinks.is_some() { "sinks[head]" } else { "-INF" };
        if split {
            let place = format!("out + ((idx)(row * {heads} + head) * {chunks} + gz) * {numbers}");
            b.line(format!("GLOBAL float* state = {place};"));
            b.line(format!("const float max = merged_max<{dim}>(states, {WARPS}, -INF);"));
            b.line("if (tid == 0) state[0] = max;");
            b.open(format!("for (int i = tid; i <= {dim}; i += {THREADS})"));
            b.line(format!("state[1 + i] = merged<{dim}>(states, {WARPS}, max, i);"));
            b.close();
        } else {
            b.line(format!("const float max = merged_max<{dim}>(states, {WARPS}, {sink});"));
            self.finish(&mut b, a, "states", &WARPS.to_string(), "out")?;
        }
        let kernel = module.kernel("attention", self.source, THREADS, p.params, b)?;
        let grid = |z| [Groups::of_rows(RowCount::Tokens, 1), Groups::fixed(heads), Groups::fixed(z)];
        let mut drafts = vec![(kernel, grid(if split { chunks } else { 1 }), p.args)];
        if split {
            let mut p = Pointers::default();
            p.read("int", "positions", GpuArg::Input(Input::Positions));
            if !a.causal {
                p.read("int", "last_positions", GpuArg::Input(Input::LastPositions));
            }
            if let Some(sinks) = a.sinks {
                p.read("float", "sinks", GpuArg::Weight(sinks));
            }
            p.read("float", "partial", out);
            p.written("float", "out", GpuArg::Buffer(a.out));
            p.written("int", "fault", GpuArg::Fault);
            let mut b = Block::body(1);
            b.line("const int row = gx, head = gy;");
            self.sight(&mut b, a, context);
            b.line(format!("const int from = see.first / {0}, count = see.last / {0} + 1 - from;", a.chunk));
            b.line(format!("const GLOBAL float* states = partial + ((idx)(row * {heads} + head) * {chunks} + from) * {numbers};"));
            b.line(format!("const float max = merged_max<{dim}>(states, count, {sink});"));
            self.finish(&mut b, a, "states", "count", "out")?;
            let kernel = module.kernel("merge_chunks", self.source, THREADS, p.params, b)?;
            drafts.push((kernel, grid(1), p.args));
        }
        Ok(drafts)
    }

    /// Declares `see` with the positions that a row sees.
    fn sight(&self, b: &mut Block, a: &Attention, context: u32) {
        b.line(format!("const int position = checked(positions[row], {context}, fault);"));
        b.line("Sight see;");
        b.line("see.first = 0;");
        b.line(match a.causal {
            true => "see.last = position;".into(),
            false => format!("see.last = checked(last_positions[row], {context}, fault);"),
        });
        if let Some(window) = a.window {
            let age = window.saturating_sub(1).min(context);
            b.line(format!("if (position > {age}) see.first = position - {age};"));
            if !a.causal {
                b.line(format!("see.last = lesser(see.last, position + {age});"));
            }
        }
    }

    /// Stores the quotient of the merged states.
    fn finish(
        &self,
        b: &mut Block,
        a: &Attention,
        states: &str,
        count: &str,
        out: &str,
    ) -> Result<(), String> {
        let (dim, value) = (a.head_dim, a.latent.unwrap_or(a.head_dim));
        let width = self.row_elems(a.out)?;
        b.line(format!("float sum = merged<{dim}>({states}, {count}, max, 0);"));
        if a.sinks.is_some() {
            b.line("sum = sum + exponential(sinks[head] - max);");
        }
        b.open(format!("for (int d = tid; d < {value}; d += {THREADS})"));
        b.line(format!(
            "{out}[(idx)row * {width} + head * {value} + d] = merged<{dim}>({states}, {count}, max, 1 + d) / sum;"
        ));
        b.close();
        Ok(())
    }

    fn route(&self, module: &mut Module, r: &Route) -> Result<Vec<Draft>, String> {
        let experts = self.row_elems(r.logits)?;
        r.choice.check(experts)?;
        let mut p = Pointers::default();
        p.read("float", "logits", GpuArg::Buffer(r.logits));
        if let Some(bias) = r.bias {
            p.read("float", "bias", GpuArg::Weight(bias));
        }
        p.written("int", "chosen", GpuArg::Buffer(r.chosen));
        let c = &r.choice;
        let mut b = Block::body(1);
        b.shared("keys", experts, experts);
        b.shared("group_keys", c.groups, c.groups.into());
        b.line(format!("const GLOBAL float* x = logits + (idx)gx * {experts};"));
        let each = format!("for (int i = tid; i < {experts}; i += LANES)");
        match c.score {
            Score::Softmax => {
                b.line("float max = -INF, sum = 0.0f;");
                b.line(format!("{each} max = greater_of(max, x[i]);"));
                b.line("max = warp_max(max);");
                b.line(format!("{each} keys[i] = exponential(x[i] - max), sum = sum + keys[i];"));
                b.line("sum = warp_sum(sum);");
                b.line(format!("{each} keys[i] = keys[i] / sum;"));
            }
            Score::Sigmoid => b.line(format!("{each} keys[i] = 1.0f / (1.0f + exponential(-x[i]));")),
        }
        if r.bias.is_some() {
            b.line(format!("{each} keys[i] = keys[i] + bias[i];"));
        }
        b.line(format!(
            "choose<{experts}, {}>(keys, group_keys, {}, {}, {}, tid, chosen + (idx)gx * {});",
            c.groups, c.best_groups, c.group_keys, c.top_k, c.top_k
        ));
        let kernel = module.kernel("route", self.source, super::LANES, p.params, b)?;
        let grid = [Groups::of_rows(r.rows, 1), Groups::fixed(1), Groups::fixed(1)];
        Ok(vec![(kernel, grid, p.args)])
    }

    fn nest(&self, module: &mut Module, id: u32, rows: RowCount, args: &[Arg]) -> Result<Vec<Draft>, String> {
        let nest = self.plan.nests.get(id as usize).ok_or("a nest that does not exist")?;
        let mut bound = Vec::new();
        let mut layouts = Vec::new();
        for (arg, view) in args.iter().zip(&nest.views) {
            layouts.push(match (arg, view.elem) {
                (Arg::Weight(w), ViewElem::Panel) => Some(module.layout(&self.panel(*w)?)),
                _ => None,
            });
            bound.push(match *arg {
                Arg::Buffer(b) => GpuArg::Buffer(b),
                Arg::Weight(w) => GpuArg::Weight(w),
                Arg::State(s) => GpuArg::State(s),
            });
        }
        bound.extend([GpuArg::Pass, GpuArg::Fault]);
        let (threads, params, body) = nest::kernel(nest, &layouts)?;
        let kernel = module.kernel(&nest.name, self.source, threads, params, body)?;
        let grid = [Groups::of_rows(rows, 1), Groups::fixed(1), Groups::fixed(1)];
        Ok(vec![(kernel, grid, bound)])
    }
}

/// One panel for a few rows: the products, then a thread a result.
fn few_rows(b: &mut Block, side: &[Part], at: usize, rows: u32, epilogue: Epilogue, width: u64) {
    let parts = |i: usize| i as u32 * WARPS * rows * 16;
    for (i, part) in side.iter().enumerate() {
        b.line(format!(
            "panel_products<{0}, {rows}, {WARPS}>(w{1} + (idx)tile * {0}::PANEL_BYTES, x + (idx)first * {2}, {2}, rows, tid, parts + {3});",
            part.layout, at + i, part.k, parts(i)
        ));
    }
    b.open(format!("for (int i = tid; i < {rows} * 16; i += {THREADS})"));
    b.line("const int r = i / 16, n = tile * 16 + i % 16;");
    b.line(format!("if (r >= rows || n >= {}) continue;", side[0].width));
    values(b, side, at, "0", |i| format!("product<{rows}, {WARPS}>(parts + {}, i)", parts(i)));
    store(b, epilogue, &format!("(idx)(first + r) * {width} + {} + n", side[0].column));
    b.close();
}

/// A tile of 64 columns: every thread holds the results that it stores.
fn many_rows(b: &mut Block, side: &[Part], at: usize, rows: u32, epilogue: Epilogue, width: u64) {
    for (i, part) in side.iter().enumerate() {
        b.line(format!("float sums{i}[{}][4];", rows / 8));
        b.line(format!(
            "tile_products<{0}, {rows}>(w{1}, tile * 4, x + (idx)first * {2}, rows, tid, weights, inputs, sums{i});",
            part.layout,
            at + i,
            part.k
        ));
    }
    b.line(format!("UNROLL for (int i = 0; i < {}; ++i)", rows / 8));
    b.open("UNROLL for (int c = 0; c < 4; ++c)");
    b.line(format!("const int r = tid / 16 + 8 * i, n = tile * {TILE_COLUMNS} + tid % 16 * 4 + c;"));
    b.line(format!("if (r >= rows || n >= {}) continue;", side[0].width));
    values(b, side, at, "0", |i| format!("sums{i}[i][c]"));
    store(b, epilogue, &format!("(idx)(first + r) * {width} + {} + n", side[0].column));
    b.close();
}

/// `y0`, and `y1` of a gated pair: the products of column `n` with their biases, which of a stack lie one behind another.
fn values(b: &mut Block, side: &[Part], at: usize, group: &str, product: impl Fn(usize) -> String) {
    for (i, part) in side.iter().enumerate() {
        let bias = match (part.bias, group) {
            (false, _) => String::new(),
            (true, "0") => format!(" + bias{}[n]", at + i),
            (true, group) => format!(" + bias{}[{group} * {} + n]", at + i, part.width),
        };
        b.line(format!("const float y{i} = {}{bias};", product(i)));
    }
}

fn store(b: &mut Block, epilogue: Epilogue, place: &str) {
    match epilogue {
        Epilogue::None => b.line(format!("out[{place}] = y0;")),
        Epilogue::Residual(_) => {
            b.line(format!("const idx o = {place};"));
            b.line("out[o] = residual[o] + y0;");
        }
        Epilogue::Gated(function) => b.line(format!("out[{place}] = {}(y0) * y1;", gate(function))),
    }
}
