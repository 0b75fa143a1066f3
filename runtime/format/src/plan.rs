//! The plan: what the runtime executes, as data.
//!
//! A [`Program`] serves a *regime* of row counts, never a phase: prefill, decode, a mixed batch and draft verification
//! are the same call with different arrays. Its inputs are `R` token rows with a position and a cache slot each, and the
//! list of rows whose logits are wanted. Programs of one plan compute the same function; they differ in kernels.

use crate::nest::Nest;
use crate::scheme::{Compute, QuantScheme};
use serde::{Deserialize, Serialize};

/// Index into [`Program::buffers`].
pub type BufferId = u32;
/// Index into [`Plan::weights`].
pub type WeightId = u32;
/// Index into [`Plan::nests`].
pub type NestId = u32;
/// Index into [`Plan::states`].
pub type StateId = u32;

/// Everything needed to run a model on one kind of device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Facts about the model that the runtime must know.
    pub model: ModelFacts,
    /// Slices of the WEIGHTS section.
    pub weights: Vec<WeightSlice>,
    /// State that outlives a forward pass.
    pub states: Vec<StateDecl>,
    /// Loop nests that steps refer to.
    pub nests: Vec<Nest>,
    /// Programs by ascending row count; the runtime takes the first that holds the batch.
    pub programs: Vec<Program>,
}

/// Facts about the model that the runtime must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Size of the vocabulary.
    pub vocab: u32,
    /// Positions that the model was made for; longer sequences are refused.
    pub context: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Number of layers.
    pub layers: u32,
    /// What a row of results is.
    pub output: Output,
    /// Whether a pass takes sequences whole, from their first token to their last: where rows see tokens behind them, or are pooled.
    pub whole: bool,
}

/// What a model gives for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Logits of the next token, one for each token of the vocabulary.
    Logits,
    /// A vector that stands for the text up to the row.
    Embedding {
        /// Its elements.
        width: u32,
    },
    /// Scores of a text (or of a pair of texts), before any activation.
    Scores {
        /// How many.
        labels: u32,
    },
}

impl ModelFacts {
    /// Elements of a row of results.
    pub fn output_width(&self) -> u32 {
        match self.output {
            Output::Logits => self.vocab,
            Output::Embedding { width } => width,
            Output::Scores { labels } => labels,
        }
    }
}

/// How a weight's bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WeightLayout {
    /// Row-major, floating-point elements only.
    Dense,
    /// [`crate::panel`].
    Panel,
}

/// A tensor in the WEIGHTS section: `n` rows of `k` elements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightSlice {
    /// Offset from the start of the section, a multiple of 64.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Output rows.
    pub n: u32,
    /// Input elements.
    pub k: u32,
    /// What the codes mean.
    pub scheme: QuantScheme,
    /// How they lie.
    pub layout: WeightLayout,
}

/// State that outlives a forward pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StateDecl {
    /// Blocks of [`crate::kv::TOKENS`] tokens, addressed through a block table.
    Blocks {
        /// Elements of a block; their type is chosen at run time.
        elems: u64,
    },
    /// Numbers (f32) that each block of a sequence holds beside its tokens: what recurrent layers carry on from the block's last token. So
    /// a sequence knows them at its end and at the end of every block before, and can go back to there.
    Recurrent {
        /// Numbers of a block.
        elems: u64,
    },
}

/// Which numbers of rows a program serves, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regime {
    /// Smallest number of rows.
    pub min_rows: u32,
    /// Largest number of rows.
    pub max_rows: u32,
}

/// The steps for one regime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// Row counts served.
    pub regime: Regime,
    /// Bytes of the arena at `max_rows` rows.
    pub arena_bytes: u64,
    /// Buffers.
    pub buffers: Vec<Buffer>,
    /// Steps in execution order.
    pub steps: Vec<Step>,
    /// Where each layer begins, in their order: the places at which a run can be divided between devices. There are none where sequences
    /// come whole.
    pub cuts: Vec<Cut>,
}

/// A place between two steps, at which another device can go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The first step behind it.
    pub step: u32,
    /// Buffers of the arena that steps before it write and steps behind it read, ascending: what one device hands to the other.
    pub live: Vec<BufferId>,
}

/// A named piece of memory of a program: `elems_per_row` elements for each row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Name for people.
    pub name: String,
    /// Element type.
    pub elem: BufferElem,
    /// Which count of rows sizes it.
    pub rows: RowCount,
    /// Elements of a row.
    pub row_elems: u64,
    /// Where it lies.
    pub home: Home,
}

/// Element type of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BufferElem {
    /// Activations.
    F32,
    /// Indices.
    I32,
    /// Bytes with a structure of their own ([`crate::act`]).
    Bytes,
}

impl BufferElem {
    /// Bytes of an element.
    pub const fn bytes(self) -> u64 {
        match self {
            BufferElem::F32 | BufferElem::I32 => 4,
            BufferElem::Bytes => 1,
        }
    }
}

/// A count of rows known when a forward pass starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RowCount {
    /// Token rows of the batch.
    Tokens,
    /// Rows whose logits are wanted (never more than token rows).
    Logits,
}

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Home {
    /// In the arena, at a 64-byte aligned offset that leaves room for `max_rows` rows.
    Arena {
        /// Offset in bytes.
        offset: u64,
    },
    /// An array that the runtime fills before the first step.
    Input(Input),
    /// The results, `[logit rows][output width]`.
    Logits,
}

/// Arrays of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Input {
    /// `i32[R]`: token ids, each below the vocabulary size.
    Tokens,
    /// `i32[R]`: position of each row in its sequence.
    Positions,
    /// `i32[R]`: where each row's key and value go: `block * TOKENS + position % TOKENS`.
    Slots,
    /// `i32[R]`: which sequence of the batch a row belongs to.
    Sequences,
    /// `i32[L]`: rows whose logits are wanted, ascending.
    LogitRows,
    /// `i32[S][TableStride]`: the blocks of each sequence, in order.
    BlockTable,
    /// `i32[R]`: index of the first block table entry of the row's sequence (`sequence * TableStride`), for nests, whose indices
    /// cannot multiply two numbers that are known only at run time.
    TableStarts,
    /// `i32[R]`: which part of a pair of texts a token belongs to, 0 or 1.
    TokenTypes,
    /// `i32[R]`: the first row of this pass that belongs to the row's sequence.
    FirstRows,
    /// `i32[R]`: the last position that the row's sequence holds after this pass.
    LastPositions,
    /// `i32[R]`: the block of the last token that the row's sequence held before this pass, where it finds what recurrent layers
    /// carry; 0 where it held none.
    CarriedBlocks,
}

/// One step of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What is done.
    pub kind: StepKind,
    /// Where: an index into the devices of the run. This version runs place 0 only.
    pub place: u16,
    /// Whether all threads must have finished this step before any starts the next. False only where the next step
    /// reads, row for row, what the same thread wrote.
    pub barrier: bool,
    /// The node it came from, for people and for `inspect`.
    pub source: String,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StepKind {
    /// `out[r] = table[tokens[r]]`
    Embed {
        /// `i32[R]` token ids.
        tokens: BufferId,
        /// A panel weight of `vocab` rows.
        table: WeightId,
        /// `f32[R][k]`.
        out: BufferId,
    },
    /// A segmented linear with an epilogue.
    Linear(Linear),
    /// Causal attention over the block table.
    Attention(Attention),
    /// A loop nest over rows.
    Nest {
        /// The nest.
        nest: NestId,
        /// How many rows axis 0 has.
        rows: RowCount,
        /// What each of its views is bound to.
        args: Vec<Arg>,
    },
    /// Copy a buffer to another place. Refused by this version's runtime.
    Copy {
        /// Source.
        from: BufferId,
        /// Destination.
        to: BufferId,
    },
    /// Which experts each row goes to.
    Route(Route),
    /// A linear over stacked weights, of which each row takes some.
    GroupedLinear(GroupedLinear),
}

/// One input, one activation conversion, a list of weight segments, an epilogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linear {
    /// `f32[rows][k]`.
    pub input: BufferId,
    /// Which rows.
    pub rows: RowCount,
    /// What it computes in.
    pub compute: Compute,
    /// Bytes for converted activations ([`crate::act`]); present exactly when `compute` converts.
    pub scratch: Option<BufferId>,
    /// Weights, each writing its own columns of `out`.
    pub segments: Vec<Segment>,
    /// What happens to the result before it is stored.
    pub epilogue: Epilogue,
    /// `f32[rows][columns]`.
    pub out: BufferId,
}

/// One weight of a [`Linear`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// A panel weight.
    pub weight: WeightId,
    /// A dense f32 vector of `n` elements that is added.
    pub bias: Option<WeightId>,
    /// First column of `out` that it writes.
    pub column: u32,
}

/// What happens to a linear's result before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Epilogue {
    /// Nothing (a bias is part of the segment).
    None,
    /// `out = residual + result`. The residual may be the output buffer itself.
    Residual(BufferId),
    /// Two segments of equal shape and column, gate and up: `out = f(gate) * up`.
    Gated(Gate),
}

/// The function of a gated epilogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Gate {
    /// `x / (1 + e^-x)`: SwiGLU.
    Silu,
    /// `x * (1 + erf(x / sqrt 2)) / 2`: GeGLU.
    Gelu,
    /// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`: GeGLU as it is approximated.
    GeluTanh,
}

/// The choice of experts: `chosen[r]` are the `top_k` experts of row `r` with the largest keys, best first; of equal keys the expert with
/// the smaller number comes first. The key of an expert is its score plus its bias.
///
/// Where experts are divided into groups (neighbours by number), only the experts of the `best_groups` groups with the largest keys take
/// part; the key of a group is the sum of its `group_keys` largest keys, and ties go to the smaller number again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// `f32[rows][experts]`: the router's logits.
    pub logits: BufferId,
    /// Which rows.
    pub rows: RowCount,
    /// A dense f32 vector with a number an expert.
    pub bias: Option<WeightId>,
    /// How the choice is made.
    pub choice: Choice,
    /// `i32[rows][top_k]`.
    pub chosen: BufferId,
}

/// How experts are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Choice {
    /// Experts of a row.
    pub top_k: u32,
    /// What scores are.
    pub score: Score,
    /// Groups of experts, of equal size; 1 where there are none.
    pub groups: u32,
    /// Groups that a row's experts may come from.
    pub best_groups: u32,
    /// Keys that are added up to the key of a group.
    pub group_keys: u32,
}

impl Choice {
    /// Whether `experts` can be chosen from in this way, or why not.
    pub fn check(&self, experts: u64) -> Result<(), String> {
        let [top_k, groups, best_groups, group_keys] =
            [self.top_k, self.groups, self.best_groups, self.group_keys].map(u64::from);
        if groups == 0 || !experts.is_multiple_of(groups) {
            return Err(format!("{experts} experts do not divide into {groups} groups"));
        }
        let size = experts / groups;
        if best_groups == 0 || best_groups > groups || group_keys == 0 || group_keys > size {
            return Err(format!("{best_groups} best of {groups} groups by {group_keys} of {size} keys"));
        }
        if top_k == 0 || top_k > best_groups * size {
            return Err(format!("{top_k} of {} experts", best_groups * size));
        }
        Ok(())
    }
}

/// What a router's logits become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Score {
    /// `e^x` over the sum of `e^x` of all experts.
    Softmax,
    /// `1 / (1 + e^-x)`
    Sigmoid,
}

/// A linear over stacks of `groups` weights: mixtures of experts, and heads that have a weight each.
///
/// A row holds `slots` results side by side, and slot `s` of row `r` is multiplied with weight `chosen[r][s]` of the stack. Which rows a
/// weight meets is known only at run time: the step brings the slots that meet the same weight together, multiplies them as one matrix
/// and stores each result where it belongs. Weights that no slot chose are not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupedLinear {
    /// The linear of one slot. Its segments are stacks of `groups * n` rows, each `n` a multiple of [`crate::panel::COLUMNS`] so that a
    /// weight begins at a panel; columns are those of a slot. Its input is `f32[rows][k]`, which all slots read, or
    /// `f32[rows][slots * k]`, its output `f32[rows][slots * columns]`. It has no residual.
    pub linear: Linear,
    /// Weights of a stack.
    pub groups: u32,
    /// Results of a row.
    pub slots: u32,
    /// `i32[rows][slots]`, each checked to be below `groups` when it is used; without it slot `s` takes weight `s`.
    pub chosen: Option<BufferId>,
}

/// Attention with grouped queries: head `h` reads key head `h / (heads / kv_heads)`. A row sees the positions up to its own, or those
/// of its whole sequence; a score is `scale * q . k`, then capped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// `f32[R][heads * head_dim]`, rotated queries.
    pub query: BufferId,
    /// First query element of a row within the buffer's row.
    pub query_column: u32,
    /// The cache.
    pub state: StateId,
    /// First element of this layer within a block.
    pub layer_elems: u64,
    /// `f32[R][heads * head_dim]`, of latents `f32[R][heads * latent]`.
    pub out: BufferId,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Elements of a head, even.
    pub head_dim: u32,
    /// Where there is, the layer holds keys only, those of one head: the first so many elements of a key are its value.
    pub latent: Option<u32>,
    /// What its products are of: f32, or bf16 but for keys and values, which are what the cache holds.
    pub compute: Compute,
    /// Factor of the scores before softmax.
    pub scale: f32,
    /// Whether a row sees no position behind its own. Where it does, sequences come whole ([`ModelFacts::whole`]).
    pub causal: bool,
    /// How many positions a row sees up to its own, which is included (and as many from its own on, where it sees those); all where
    /// there is none.
    pub window: Option<u32>,
    /// A scaled score s becomes `softcap * tanh(s / softcap)`.
    pub softcap: Option<f32>,
    /// `f32[heads]`, dense: one more score in the softmax of each head, of a token whose value is zero.
    pub sinks: Option<WeightId>,
    /// `f32[2 m - 1][heads]`, dense: row `m - 1 + j - i` is added to the scaled scores of position j in row i, of each head. m is at least
    /// the context in whole blocks.
    pub bias: Option<WeightId>,
    /// Tokens of a chunk: partial results are made by chunk and merged in ascending order, whatever the threads. A multiple of
    /// [`crate::kv::TOKENS`].
    pub chunk: u32,
    /// Bytes for partial results; present when the program splits rows over chunks.
    pub scratch: Option<BufferId>,
}

/// What a nest's view is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Arg {
    /// A buffer of the program.
    Buffer(BufferId),
    /// A weight.
    Weight(WeightId),
    /// A state pool: all blocks, elements counted from block 0.
    State(StateId),
}

impl Attention {
    /// Bytes of [`Attention::scratch`] a row: a maximum, a sum and an accumulator for every head and chunk of the longest context.
    pub fn scratch_row_bytes(&self, context: u32) -> u64 {
        let chunks = u64::from(context.div_ceil(self.chunk.max(1)));
        u64::from(self.heads) * chunks * (u64::from(self.head_dim) + 2) * 4
    }
}
