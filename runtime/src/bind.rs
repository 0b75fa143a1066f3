//! Resolving a plan once, so that a forward pass looks nothing up: every step holds its kernels, the places of its
//! weights in the file and the shapes of its buffers.
//!
//! Static facts (offsets, lengths, lifetimes, argument shapes) were checked when the file was opened
//! (`bessemer_format::validate`); what is left to refuse here is what this runtime has no way to execute.

use crate::error::EngineError;
use crate::state::CacheLayer;
use bessemer_format::act::{Bf16Layout, Int8Layout};
use bessemer_format::file::EngineFile;
use bessemer_format::header::SectionKind;
use bessemer_format::nest::MAX_VIEWS;
use bessemer_format::plan::{
    self, Arg, BufferId, Home, Plan, Program, RowCount, StateDecl, StepKind, WeightId, WeightLayout,
};
use bessemer_format::{Compute, PanelLayout, kv};
use bessemer_kernels::linear::{LinearNative, TILE_ROWS};
use bessemer_kernels::{
    Attention, Gated, KernelSet, LinearBf16, LinearF32, LinearInt8, Quantise, RoundBf16, Store,
};
use std::ops::Range;

/// A program whose steps are ready to run.
pub(crate) struct BoundProgram {
    pub(crate) max_rows: usize,
    pub(crate) arena_bytes: usize,
    pub(crate) steps: Vec<BoundStep>,
}

pub(crate) struct BoundStep {
    pub(crate) kind: BoundKind,
    pub(crate) barrier: bool,
    pub(crate) source: String,
    /// Activations that the step writes, for who watches.
    pub(crate) outputs: Vec<BoundBuffer>,
}

pub(crate) enum BoundKind {
    Embed { tokens: BoundBuffer, table: BoundWeight, layout: PanelLayout, out: BoundBuffer },
    Linear(BoundLinear),
    Route(BoundRoute),
    GroupedLinear(BoundGrouped),
    Attention(BoundAttention),
    Nest { nest: usize, rows: RowCount, args: Vec<BoundArg>, appends: Option<Appends> },
}

/// A buffer: where its rows start and how long they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BoundBuffer {
    pub(crate) home: Home,
    pub(crate) rows: RowCount,
    pub(crate) row_elems: usize,
    pub(crate) row_bytes: usize,
}

/// Where a weight's bytes lie in the file.
pub(crate) type BoundWeight = Range<usize>;

pub(crate) struct BoundLinear {
    pub(crate) input: BoundBuffer,
    pub(crate) rows: RowCount,
    pub(crate) k: usize,
    /// Whether threads meet before this step, so that each sees all of the input.
    pub(crate) behind_barrier: bool,
    pub(crate) convert: Option<Convert>,
    pub(crate) segments: Vec<BoundSegment>,
    pub(crate) epilogue: BoundEpilogue,
    pub(crate) store: Store,
    pub(crate) out: BoundBuffer,
}

impl BoundLinear {
    /// Inputs of `k` elements that a row holds.
    pub(crate) fn inputs(&self) -> usize {
        self.input.row_elems / self.k
    }

    /// Panels of one weight of every segment, one segment behind the other; of gates alone where ups belong to them.
    pub(crate) fn panels(&self) -> usize {
        match &self.epilogue {
            BoundEpilogue::Gated(_) => self.segments[0].panels,
            _ => self.segments.iter().map(|segment| segment.panels).sum(),
        }
    }

    /// Rows of the largest tile of all its kernels.
    pub(crate) fn tile_rows(&self) -> usize {
        self.segments.iter().map(|segment| segment.kernel.tile_rows()).min().unwrap_or(TILE_ROWS)
    }
}

pub(crate) struct BoundRoute {
    pub(crate) logits: BoundBuffer,
    pub(crate) rows: RowCount,
    pub(crate) bias: Option<BoundWeight>,
    pub(crate) choice: plan::Choice,
    pub(crate) chosen: BoundBuffer,
}

/// A linear whose segments are stacks; their `n` and `panels` are those of one weight.
pub(crate) struct BoundGrouped {
    pub(crate) linear: BoundLinear,
    pub(crate) groups: usize,
    pub(crate) slots: usize,
    pub(crate) chosen: Option<BoundBuffer>,
}

/// The conversion of a linear's input.
pub(crate) struct Convert {
    pub(crate) to: Converted,
    pub(crate) row_bytes: usize,
    pub(crate) scratch: BoundBuffer,
}

/// What a linear's input becomes.
pub(crate) enum Converted {
    Int8(Int8Layout, Quantise),
    Bf16(Bf16Layout, RoundBf16),
}

pub(crate) struct BoundSegment {
    pub(crate) kernel: LinearKernel,
    pub(crate) weight: BoundWeight,
    pub(crate) bias: Option<BoundWeight>,
    pub(crate) column: usize,
    pub(crate) n: usize,
    pub(crate) panels: usize,
}

/// What multiplies, by the form of the activations that it reads.
pub(crate) enum LinearKernel {
    /// f32: the input, or what was rounded to bf16 on a host without its products.
    F32(LinearF32),
    Int8(LinearInt8),
    Native(LinearNative),
}

impl LinearKernel {
    /// Rows of its largest tile.
    pub(crate) fn tile_rows(&self) -> usize {
        match self {
            Self::F32(_) | Self::Int8(_) => TILE_ROWS,
            Self::Native(kernel) => kernel.tile_rows(),
        }
    }
}

pub(crate) enum BoundEpilogue {
    None,
    Residual(BoundBuffer),
    Gated(Gated),
}

pub(crate) struct BoundAttention {
    pub(crate) kernel: Attention,
    pub(crate) query: BoundBuffer,
    pub(crate) query_column: usize,
    pub(crate) state: usize,
    /// Its keys and values: which of [`CacheLayer::all`].
    pub(crate) layer: usize,
    pub(crate) out: BoundBuffer,
    pub(crate) kv_heads: usize,
    /// Query heads that share a KV head.
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
    /// Elements of a value: those of a key, or its first ones.
    pub(crate) value_dim: usize,
    /// Whether a value is a part of the key, and not in the cache beside it.
    pub(crate) latent: bool,
    /// Whether queries and weights are rounded to bfloat16.
    pub(crate) rounds: bool,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    /// Tokens up to its own that a row sees.
    pub(crate) window: usize,
    /// Tokens from its own on that a row sees.
    pub(crate) ahead: usize,
    /// A score a query head.
    pub(crate) sinks: Option<BoundWeight>,
    /// Numbers for each distance of two positions and each query head.
    pub(crate) bias: Option<BoundWeight>,
    /// Blocks of a chunk.
    pub(crate) chunk_blocks: usize,
    pub(crate) scratch: Option<BoundBuffer>,
}

impl BoundAttention {
    /// f32 elements of the partial result of one row, KV head and chunk: `m[group] | l[group] | acc[group][head_dim]`.
    pub(crate) fn partial_elems(&self) -> usize {
        self.group * (self.head_dim + 2)
    }
}

pub(crate) enum BoundArg {
    Buffer(BoundBuffer),
    Weight(BoundWeight, Option<PanelLayout>),
    State(usize),
}

/// What a nest appends to the cache.
pub(crate) struct Appends {
    /// Which of [`CacheLayer::all`].
    pub(crate) layer: usize,
    /// Whether keys and values are complete with it: no later nest writes those of the layer.
    pub(crate) last: bool,
}

/// Binds every program of the CPU's plan to `kernels`.
pub(crate) fn bind(
    file: &EngineFile,
    plan: &Plan,
    kernels: &KernelSet,
) -> Result<Vec<BoundProgram>, EngineError> {
    let weights_at = file.frame().entry(SectionKind::Weights).map_or(0, |e| e.offset as usize);
    let binder = Binder { plan, kernels, weights_at, layers: CacheLayer::all(plan) };
    plan.programs.iter().map(|program| binder.program(program)).collect()
}

/// Buffers of activations that a step writes.
pub(crate) fn outputs(plan: &Plan, kind: &StepKind) -> Vec<BufferId> {
    match kind {
        StepKind::Embed { out, .. } => vec![*out],
        StepKind::Linear(linear) => vec![linear.out],
        StepKind::GroupedLinear(grouped) => vec![grouped.linear.out],
        StepKind::Attention(attention) => vec![attention.out],
        StepKind::Nest { nest, args, .. } => {
            let views = plan.nests.get(*nest as usize).map_or(&[][..], |n| &n.views);
            let stored = args.iter().zip(views).filter(|(_, view)| view.store);
            stored
                .filter_map(|(arg, _)| match arg {
                    Arg::Buffer(id) => Some(*id),
                    _ => None,
                })
                .collect()
        }
        // Choices of experts are no activations.
        StepKind::Route(_) | StepKind::Copy { .. } => Vec::new(),
    }
}

struct Binder<'a> {
    plan: &'a Plan,
    kernels: &'a KernelSet,
    weights_at: usize,
    layers: Vec<CacheLayer>,
}

impl Binder<'_> {
    fn program(&self, program: &Program) -> Result<BoundProgram, EngineError> {
        let step = |(index, step): (usize, &plan::Step)| {
            let unsupported = |why| EngineError::Unsupported { step: step.source.clone(), why };
            if step.place != 0 {
                return Err(unsupported(format!(
                    "place {} is not the CPU, the only one there is",
                    step.place
                )));
            }
            let kind = self.step(program, index).map_err(unsupported)?;
            let outputs = outputs(self.plan, &step.kind).into_iter().map(|id| self.buffer(program, id));
            let outputs = outputs.collect::<Result<_, _>>().map_err(unsupported)?;
            Ok(BoundStep { kind, barrier: step.barrier, source: step.source.clone(), outputs })
        };
        Ok(BoundProgram {
            max_rows: program.regime.max_rows as usize,
            arena_bytes: program.arena_bytes as usize,
            steps: program.steps.iter().enumerate().map(step).collect::<Result<_, _>>()?,
        })
    }

    fn step(&self, program: &Program, index: usize) -> Result<BoundKind, String> {
        let buffer = |id| self.buffer(program, id);
        match &program.steps[index].kind {
            StepKind::Embed { tokens, table, out } => Ok(BoundKind::Embed {
                tokens: buffer(*tokens)?,
                table: self.weight(*table)?,
                layout: self.panel(*table)?,
                out: buffer(*out)?,
            }),
            StepKind::Linear(linear) => Ok(BoundKind::Linear(self.linear(program, index, linear, 1)?)),
            StepKind::Route(route) => Ok(BoundKind::Route(BoundRoute {
                logits: buffer(route.logits)?,
                rows: route.rows,
                bias: route.bias.map(|id| self.weight(id)).transpose()?,
                choice: route.choice,
                chosen: buffer(route.chosen)?,
            })),
            StepKind::GroupedLinear(grouped) => Ok(BoundKind::GroupedLinear(BoundGrouped {
                linear: self.linear(program, index, &grouped.linear, grouped.groups as usize)?,
                groups: grouped.groups as usize,
                slots: grouped.slots as usize,
                chosen: grouped.chosen.map(buffer).transpose()?,
            })),
            StepKind::Attention(attention) => Ok(BoundKind::Attention(self.attention(program, attention)?)),
            StepKind::Nest { nest, rows, args } => {
                let views = self
                    .plan
                    .nests
                    .get(*nest as usize)
                    .ok_or(format!("nest {nest} does not exist"))?
                    .views
                    .len();
                if args.len() != views || views > MAX_VIEWS {
                    return Err(format!("{} arguments for {views} views (at most {MAX_VIEWS})", args.len()));
                }
                let arg = |arg: &Arg| match *arg {
                    Arg::Buffer(id) => Ok(BoundArg::Buffer(buffer(id)?)),
                    Arg::Weight(id) => {
                        let panel = match self.slice(id)?.layout {
                            WeightLayout::Panel => Some(self.panel(id)?),
                            WeightLayout::Dense => None,
                        };
                        Ok(BoundArg::Weight(self.weight(id)?, panel))
                    }
                    Arg::State(id) => Ok::<_, String>(BoundArg::State(id as usize)),
                };
                Ok(BoundKind::Nest {
                    nest: *nest as usize,
                    rows: *rows,
                    args: args.iter().map(arg).collect::<Result<_, _>>()?,
                    appends: self.appends(program, index),
                })
            }
            StepKind::Copy { .. } => Err("copies between places are not supported by this version".into()),
        }
    }

    /// What a step appends to the cache: rows of the layer that the next attention reads.
    fn appends(&self, program: &Program, index: usize) -> Option<Appends> {
        let is_cache = |arg: &Arg| match arg {
            Arg::State(id) => matches!(self.plan.states.get(*id as usize), Some(StateDecl::Blocks { .. })),
            _ => false,
        };
        let writes = |step: &plan::Step| match &step.kind {
            StepKind::Nest { args, .. } => args.iter().any(is_cache),
            _ => false,
        };
        let (step, later) = program.steps.get(index..)?.split_first()?;
        if !writes(step) {
            return None;
        }
        let reader = later.iter().position(|step| matches!(step.kind, StepKind::Attention(_)))?;
        let StepKind::Attention(a) = &later[reader].kind else { return None };
        let layer = self.layers.binary_search(&CacheLayer::of(a)).ok()?;
        Some(Appends { layer, last: !later[..reader].iter().any(writes) })
    }

    /// The linear of step `index`, whose segments are stacks of `groups` weights.
    fn linear(
        &self,
        program: &Program,
        index: usize,
        linear: &plan::Linear,
        groups: usize,
    ) -> Result<BoundLinear, String> {
        let first = linear.segments.first().ok_or("a linear without segments")?;
        let k = self.panel(first.weight)?.k();
        let mut act = None;
        let mut segments = Vec::with_capacity(linear.segments.len());
        for segment in &linear.segments {
            let layout = self.panel(segment.weight)?;
            let (n, panels) = (layout.n() / groups, layout.panels() / groups);
            if layout.k() != k {
                return Err(format!("segments with {k} and {} input elements", layout.k()));
            }
            let kernel = match linear.compute {
                Compute::F32 => LinearKernel::F32(self.kernels.linear_f32(&layout)),
                Compute::Bf16 => match self.kernels.linear_bf16(&layout) {
                    LinearBf16::Native(kernel) => LinearKernel::Native(kernel),
                    LinearBf16::Widened(kernel) => LinearKernel::F32(kernel),
                },
                Compute::Int8 { group } => {
                    let kernel = self.kernels.linear_int8(&layout, group as usize)?;
                    if *act.get_or_insert(*kernel.act()) != *kernel.act() {
                        return Err("segments whose activations are laid out differently".into());
                    }
                    LinearKernel::Int8(kernel)
                }
            };
            segments.push(BoundSegment {
                kernel,
                weight: self.weight(segment.weight)?,
                bias: segment.bias.map(|id| self.weight(id)).transpose()?,
                column: segment.column as usize,
                n,
                panels,
            });
        }
        let converted = match linear.compute {
            Compute::F32 => None,
            Compute::Int8 { .. } => act.map(|l| (l.row_bytes(), Converted::Int8(l, self.kernels.quantise()))),
            Compute::Bf16 => {
                let (layout, round) = (Bf16Layout { k }, self.kernels.round_bf16());
                Some((round.row_bytes(&layout), Converted::Bf16(layout, round)))
            }
        };
        let convert = match (converted, linear.scratch) {
            (None, _) => None,
            (Some((row_bytes, to)), Some(scratch)) => {
                Some(Convert { to, row_bytes, scratch: self.buffer(program, scratch)? })
            }
            (Some(_), None) => return Err("converted activations without scratch".into()),
        };
        let epilogue = match linear.epilogue {
            plan::Epilogue::None => BoundEpilogue::None,
            plan::Epilogue::Residual(id) => BoundEpilogue::Residual(self.buffer(program, id)?),
            plan::Epilogue::Gated(function) => match &segments[..] {
                [gate, up] if (gate.n, gate.column) == (up.n, up.column) => {
                    BoundEpilogue::Gated(self.kernels.gated(function))
                }
                _ => return Err("a gated epilogue takes two segments of one shape and column".into()),
            },
        };
        Ok(BoundLinear {
            input: self.buffer(program, linear.input)?,
            rows: linear.rows,
            k,
            behind_barrier: index.checked_sub(1).is_none_or(|before| program.steps[before].barrier),
            convert,
            segments,
            epilogue,
            store: self.kernels.store(),
            out: self.buffer(program, linear.out)?,
        })
    }

    fn attention(&self, program: &Program, a: &plan::Attention) -> Result<BoundAttention, String> {
        let (heads, kv_heads) = (a.heads as usize, a.kv_heads as usize);
        let chunk = a.chunk as usize;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || chunk == 0 || !chunk.is_multiple_of(kv::TOKENS)
        {
            return Err(format!("{heads} heads, {kv_heads} KV heads and chunks of {chunk} tokens"));
        }
        let bound = BoundAttention {
            kernel: self.kernels.attention(),
            query: self.buffer(program, a.query)?,
            query_column: a.query_column as usize,
            state: a.state as usize,
            layer: self.layers.binary_search(&CacheLayer::of(a)).map_err(|_| "attention of no layer")?,
            out: self.buffer(program, a.out)?,
            kv_heads,
            group: heads / kv_heads,
            head_dim: a.head_dim as usize,
            value_dim: a.latent.unwrap_or(a.head_dim) as usize,
            latent: a.latent.is_some(),
            rounds: a.compute == Compute::Bf16,
            scale: a.scale,
            softcap: a.softcap,
            window: a.window.map_or(usize::MAX, |window| window as usize),
            ahead: if a.causal { 1 } else { a.window.map_or(usize::MAX, |window| window as usize) },
            sinks: a.sinks.map(|id| self.weight(id)).transpose()?,
            bias: a.bias.map(|id| self.weight(id)).transpose()?,
            chunk_blocks: chunk / kv::TOKENS,
            scratch: a.scratch.map(|id| self.buffer(program, id)).transpose()?,
        };
        if let Some(scratch) = &bound.scratch {
            let needed = a.scratch_row_bytes(self.plan.model.context) as usize;
            if scratch.row_bytes < needed || !scratch.row_bytes.is_multiple_of(4) {
                return Err(format!(
                    "scratch of {} bytes a row where {needed} (in f32s) are needed",
                    scratch.row_bytes
                ));
            }
        }
        Ok(bound)
    }

    fn buffer(&self, program: &Program, id: BufferId) -> Result<BoundBuffer, String> {
        let b = program.buffers.get(id as usize).ok_or_else(|| format!("buffer {id} does not exist"))?;
        Ok(BoundBuffer {
            home: b.home,
            rows: b.rows,
            row_elems: b.row_elems as usize,
            row_bytes: (b.row_elems * b.elem.bytes()) as usize,
        })
    }

    fn slice(&self, id: WeightId) -> Result<&plan::WeightSlice, String> {
        self.plan.weights.get(id as usize).ok_or_else(|| format!("weight {id} does not exist"))
    }

    fn weight(&self, id: WeightId) -> Result<BoundWeight, String> {
        let w = self.slice(id)?;
        let start = self.weights_at + w.offset as usize;
        Ok(start..start + w.len as usize)
    }

    fn panel(&self, id: WeightId) -> Result<PanelLayout, String> {
        let w = self.slice(id)?;
        if w.layout != WeightLayout::Panel {
            return Err(format!("weight {id} is not packed"));
        }
        PanelLayout::new(&w.scheme, w.n as usize, w.k as usize)
    }
}
