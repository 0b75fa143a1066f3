//! Attention over the block table, in two shapes that give the same bits.
//!
//! The meaning is the same for every row and KV head: the visible tokens are cut into chunks of a fixed size, each chunk
//! is one online softmax from its empty state, and the chunks are merged in ascending order.
//!
//! * Few rows (decode, draft verification): each thread takes consecutive chunks that hold its share of the tokens, their
//!   states go to the plan's scratch, and after a barrier the chunks of each query are merged by one thread. So a long
//!   context keeps all threads busy though there is a single row. Where there are fewer chunks than threads, the query heads
//!   that share keys are dealt out too: all heads share those of a compressed cache, whose chunks are long.
//! * Many rows (prefill): a thread takes some consecutive rows of a sequence and a KV head, walks the chunks by itself, and takes
//!   the next. Keys and values are read once for all of its rows.

use super::{Pass, Scratch, Span, Stop, Thread};
use crate::bind::{BoundAttention, BoundBuffer};
use crate::pool::SharedBytes;
use bessemer_format::kv::{self, TOKENS};
use bessemer_kernels::attention::latent::keys_as_values;
use bessemer_kernels::attention::{KvBlock, OnlineSoftmax, Queries, round_queries};
use std::ops::Range;

/// Rows that a thread takes at a time in a prefill: enough queries to read keys and values seldom, few enough to
/// share the work out and to keep their states in the L1 cache.
const BLOCK_ROWS: usize = 8;
/// Queries that are enough: where many heads share one of keys, fewer rows have them.
const BLOCK_QUERIES: usize = 64;

/// Consecutive rows of one sequence that attend together, with one KV head.
#[derive(Clone, Copy)]
struct Unit {
    span: Span,
    /// First row, counted in the span.
    first: usize,
    rows: usize,
    head: usize,
    /// First of the query heads, counted among those of `head`.
    query: usize,
    /// Query heads.
    queries: usize,
}

impl Unit {
    /// First row, counted in the batch.
    fn row(&self) -> usize {
        self.span.first_row + self.first
    }

    /// Position of the first row in its sequence.
    fn position(&self) -> usize {
        self.span.position + self.first
    }

    /// The first token that a row sees.
    fn first_token(&self, a: &BoundAttention, row: usize) -> usize {
        (self.position() + row + 1).saturating_sub(a.window)
    }

    /// The token behind the last one that a row sees: its own, or one further on in its sequence.
    fn end_token(&self, a: &BoundAttention, row: usize) -> usize {
        (self.position() + row).saturating_add(a.ahead).min(self.span.position + self.span.rows)
    }

    /// Blocks of the tokens that the rows see.
    fn blocks(&self, a: &BoundAttention) -> Range<usize> {
        self.first_token(a, 0) / TOKENS..self.end_token(a, self.rows - 1).div_ceil(TOKENS)
    }

    /// Chunks of the tokens that the rows see. They are counted from the sequence's start, whatever the window leaves behind.
    fn chunks(&self, a: &BoundAttention) -> Range<usize> {
        let blocks = self.blocks(a);
        blocks.start / a.chunk_blocks..blocks.end.div_ceil(a.chunk_blocks)
    }

    /// The blocks of a chunk.
    fn chunk(&self, a: &BoundAttention, chunk: usize) -> Range<usize> {
        let blocks = self.blocks(a);
        blocks.start.max(chunk * a.chunk_blocks)..blocks.end.min((chunk + 1) * a.chunk_blocks)
    }

    /// The first row that has come to `token`: the first one sees up to some token, each later one at least as far.
    fn first_row_seeing(&self, a: &BoundAttention, token: usize) -> usize {
        (token + 1).saturating_sub(self.position().saturating_add(a.ahead)).min(self.rows)
    }
}

impl Pass<'_> {
    pub(super) fn attention(
        &self,
        a: &BoundAttention,
        thread: &Thread<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), Stop> {
        match &a.scratch {
            Some(partials) => {
                self.attend_chunks(a, partials, thread, scratch);
                if self.units(a, 1).any(|unit| unit.chunks(a).len() > 1) {
                    thread.meet()?;
                    self.merge_chunks(a, partials, thread);
                }
            }
            None => self.attend_rows(a, thread, scratch),
        }
        Ok(())
    }

    /// Few rows, phase 1: the state of every (row, KV head, chunk), which is the result where a row sees a single chunk.
    fn attend_chunks(
        &self,
        a: &BoundAttention,
        partials: &BoundBuffer,
        thread: &Thread<'_>,
        scratch: &mut Scratch,
    ) {
        scratch.visible.resize(2 * a.group, 0);
        self.room_for_values(a, scratch);
        let mut mine = self.fair_chunks(a, thread).peekable();
        while let Some((unit, chunk)) = mine.next() {
            let queries = unit.query..unit.query + unit.queries;
            let mut state = self.partial(a, partials, &unit, chunk, queries.clone());
            state.reset();
            let then = mine.peek().map(|(unit, chunk)| (*unit, unit.chunk(a, *chunk).start));
            let Scratch { visible, floats, bytes, bias, .. } = scratch;
            let q = self.queries(a, unit.row(), unit.head, floats);
            let q = &q[queries.start * a.head_dim..queries.end * a.head_dim];
            let room = Room { counts: visible, values: bytes, bias };
            self.attend_chunk(a, &unit, chunk, then, q, &mut state, room);
            if unit.chunks(a).len() == 1 {
                self.finish(a, &unit, queries, state);
            }
        }
    }

    /// Writes the result of some query heads of a unit of one row.
    fn finish(&self, a: &BoundAttention, unit: &Unit, queries: Range<usize>, mut total: OnlineSoftmax<'_>) {
        if let Some(sinks) = self.sinks(a, unit.head) {
            total.add_sinks(&sinks[queries.clone()]);
        }
        let first = (unit.head * a.group + queries.start) * a.value_dim;
        let columns = first..first + queries.len() * a.value_dim;
        total.finish(self.row_mut(&a.out, unit.row(), columns));
    }

    /// The (row, KV head, chunk)s of a thread, or some query heads of such: consecutive ones with about its share of all blocks.
    fn fair_chunks(&self, a: &BoundAttention, thread: &Thread<'_>) -> impl Iterator<Item = (Unit, usize)> {
        let chunks = || self.units(a, 1).flat_map(|unit| unit.chunks(a).map(move |chunk| (unit, chunk)));
        let all: usize = self.units(a, 1).map(|unit| unit.blocks(a).len() * unit.queries).sum();
        let count: usize = self.units(a, 1).map(|unit| unit.chunks(a).len()).sum();
        let (index, threads) = (thread.index, thread.barrier.threads());
        let parts = threads.div_ceil(count.max(1)).min(a.group);
        let heads = move |part: usize| part * a.group / parts;
        let shares = chunks().flat_map(move |(unit, chunk)| {
            (0..parts).map(move |part| {
                (Unit { query: heads(part), queries: heads(part + 1) - heads(part), ..unit }, chunk)
            })
        });
        // Those whose middle is in this thread's share.
        let [start, end] = [index, index + 1].map(|index| 2 * all * index);
        let mut before = 0;
        shares
            .map(move |(unit, chunk)| {
                let share = unit.chunk(a, chunk).len() * unit.queries;
                let middle = (2 * before + share) * threads;
                before += share;
                (middle, (unit, chunk))
            })
            .skip_while(move |(middle, _)| *middle < start)
            .take_while(move |(middle, _)| *middle < end)
            .map(|(_, chunk)| chunk)
    }

    /// Few rows, phase 2: the chunks of every query in ascending order, where there are several.
    fn merge_chunks(&self, a: &BoundAttention, partials: &BoundBuffer, thread: &Thread<'_>) {
        let heads = self.units(a, 1).count();
        let mine = thread.share(heads * a.group);
        for (i, unit) in self.units(a, 1).enumerate() {
            // Those of a head at once: what a merge takes beside its sums, it takes once for all of them.
            let bound = |at: usize| at.clamp(i * a.group, (i + 1) * a.group) - i * a.group;
            let queries = bound(mine.start)..bound(mine.end);
            let chunks = unit.chunks(a);
            if queries.is_empty() || chunks.len() == 1 {
                continue;
            }
            let state = |chunk| self.partial(a, partials, &unit, chunk, queries.clone());
            let mut total = state(chunks.start);
            for chunk in chunks.start + 1..chunks.end {
                a.kernel.merge(&mut total, &state(chunk));
            }
            self.finish(a, &unit, queries, total);
        }
    }

    /// Many rows: all chunks of some rows and a KV head in ascending order.
    fn attend_rows(&self, a: &BoundAttention, thread: &Thread<'_>, scratch: &mut Scratch) {
        let row_elems = a.group * a.head_dim;
        let rows = (BLOCK_QUERIES / a.group).clamp(1, BLOCK_ROWS);
        let (q_elems, state_elems) = (rows * row_elems, rows * a.partial_elems());
        self.room_for_values(a, scratch);
        let Scratch { visible, floats, bytes, bias, .. } = scratch;
        visible.resize(2 * rows * a.group, 0);
        floats.resize(q_elems + 2 * state_elems, 0.0);
        let (q, states) = floats.split_at_mut(q_elems);
        let (total, fresh) = states.split_at_mut(state_elems);
        let mut mine = thread.claim(self.units(a, rows)).peekable();
        while let Some(unit) = mine.next() {
            let next = mine.peek().map(|unit| (*unit, unit.blocks(a).start));
            let chunks = unit.chunks(a);
            let then = |chunk| {
                if chunk + 1 < chunks.end { Some((unit, unit.chunk(a, chunk + 1).start)) } else { next }
            };
            let queries = unit.rows * a.group;
            for (row, q) in q.chunks_exact_mut(row_elems).take(unit.rows).enumerate() {
                q.copy_from_slice(self.stored_queries(a, unit.row() + row, unit.head));
                self.meet_keys(a, q);
            }
            let q = &q[..unit.rows * row_elems];
            let mut total = softmax(&mut total[..unit.rows * a.partial_elems()], queries);
            total.reset();
            let first = chunks.start;
            let mut room = Room { counts: visible, values: bytes, bias };
            self.attend_chunk(a, &unit, first, then(first), q, &mut total, room.again());
            for chunk in first + 1..chunks.end {
                let mut fresh = softmax(&mut fresh[..unit.rows * a.partial_elems()], queries);
                fresh.reset();
                self.attend_chunk(a, &unit, chunk, then(chunk), q, &mut fresh, room.again());
                // Rows that do not see the chunk stay as they are, as they would alone.
                let from = unit.first_row_seeing(a, chunk * a.chunk_blocks * TOKENS) * a.group;
                a.kernel.merge(&mut total.part(from..queries), &fresh.part(from..queries));
            }
            for row in 0..unit.rows {
                let out_elems = a.group * a.value_dim;
                let columns = unit.head * out_elems..(unit.head + 1) * out_elems;
                let out = self.row_mut(&a.out, unit.row() + row, columns);
                let mut state = total.part(row * a.group..(row + 1) * a.group);
                if let Some(sinks) = self.sinks(a, unit.head) {
                    state.add_sinks(sinks);
                }
                state.finish(out);
            }
        }
    }

    /// Lets the rows of `unit` attend to the blocks of a chunk; `then` is the block that this thread reads after them.
    #[allow(clippy::too_many_arguments, reason = "a chunk, what follows it, and what it works on")]
    fn attend_chunk(
        &self,
        a: &BoundAttention,
        unit: &Unit,
        chunk: usize,
        then: Option<(Unit, usize)>,
        q: &[f32],
        state: &mut OnlineSoftmax<'_>,
        Room { counts, values, bias }: Room<'_>,
    ) {
        let queries = unit.rows * unit.queries;
        let distances = self.distances(a);
        bias.resize(if distances.is_some() { queries * TOKENS } else { 0 }, 0.0);
        let (visible, hidden) = counts.split_at_mut(counts.len() / 2);
        let mut after = then.map(|(unit, block)| self.kv_block(a, &unit, block));
        let blocks = unit.chunk(a, chunk);
        let mut kv = self.kv_block(a, unit, blocks.start);
        for block in blocks.clone() {
            let start = block * TOKENS;
            let first = unit.first_row_seeing(a, start);
            for (row, visible) in
                visible.chunks_exact_mut(unit.queries).enumerate().take(unit.rows).skip(first)
            {
                visible.fill((unit.end_token(a, row) - start).min(TOKENS) as u32);
            }
            let from = first * unit.queries;
            // The last row has left the most behind.
            let hides = unit.first_token(a, unit.rows - 1) > start;
            if hides {
                let hidden = hidden.chunks_exact_mut(unit.queries).enumerate();
                for (row, hidden) in hidden.take(unit.rows).skip(first) {
                    hidden.fill(unit.first_token(a, row).saturating_sub(start).min(TOKENS) as u32);
                }
            }
            if let Some(distances) = distances {
                for (row, bias) in bias.chunks_exact_mut(unit.queries * TOKENS).enumerate().skip(first) {
                    distances.of_block(unit, unit.head * a.group + unit.query, row, start, bias);
                }
            }
            let some = Queries {
                q: &q[from * a.head_dim..],
                scale: a.scale,
                softcap: a.softcap,
                visible: &visible[from..queries],
                hidden: if hides { &hidden[from..queries] } else { &[] },
                bias: bias.get(from * TOKENS..).unwrap_or_default(),
                rounds: a.rounds,
            };
            let next =
                if block + 1 < blocks.end { Some(self.kv_block(a, unit, block + 1)) } else { after.take() };
            if a.latent {
                keys_as_values(kv.elem, kv.head_dim, kv.keys, values);
                let kv = KvBlock { values, ..kv };
                a.kernel.attend_block(&kv, &some, &mut state.part(from..queries));
            } else {
                kv.next = next.map(|next| (next.keys, next.values));
                a.kernel.attend_block(&kv, &some, &mut state.part(from..queries));
            }
            let Some(next) = next else { break };
            kv = next;
        }
    }

    /// Makes `scratch` hold the values of a block where they are read from keys.
    fn room_for_values(&self, a: &BoundAttention, scratch: &mut Scratch) {
        if a.latent {
            scratch.bytes.resize(kv::head_bytes(self.state.layout.kv, a.head_dim), 0);
        }
    }

    /// Keys and values (latents: no values) of the `block`-th block of a unit's sequence.
    fn kv_block(&self, a: &BoundAttention, unit: &Unit, block: usize) -> KvBlock<'_> {
        let entry = unit.span.sequence * self.inputs.table_stride + block;
        let bytes = self.state.block(a.state, self.inputs.block_table[entry] as usize);
        let elem = self.state.layout.kv;
        let head_bytes = kv::head_bytes(elem, a.head_dim);
        let keys = self.state.layout.layer_at[a.layer] + unit.head * head_bytes;
        let values = if a.latent { keys } else { keys + a.kv_heads * head_bytes };
        KvBlock {
            elem,
            head_dim: a.head_dim,
            keys: bytes.get(keys..keys + head_bytes),
            values: bytes.get(values..values + head_bytes),
            next: None,
        }
    }

    /// The batch in units of at most `rows` rows.
    fn units(&self, a: &BoundAttention, rows: usize) -> impl Iterator<Item = Unit> + use<'_> {
        let (heads, group) = (a.kv_heads, a.group);
        self.inputs.spans.iter().flat_map(move |span| {
            (0..span.rows).step_by(rows).flat_map(move |first| {
                let rows = rows.min(span.rows - first);
                (0..heads).map(move |head| Unit { span: *span, first, rows, head, query: 0, queries: group })
            })
        })
    }

    /// The queries of a row that read KV head `head`, as the cache's keys need them; `room` is for those that are changed.
    fn queries<'a>(
        &'a self,
        a: &BoundAttention,
        row: usize,
        head: usize,
        room: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let stored = self.stored_queries(a, row, head);
        if !self.turned(a) && !a.rounds {
            return stored;
        }
        room.clear();
        room.extend(stored);
        self.meet_keys(a, room);
        room
    }

    /// Whether the cache holds turned keys.
    fn turned(&self, a: &BoundAttention) -> bool {
        self.state.layout.kv.is_scaled() && !a.latent
    }

    /// Turns queries as their keys are, and rounds them as the kernel reads them.
    fn meet_keys(&self, a: &BoundAttention, q: &mut [f32]) {
        if self.turned(a) {
            q.chunks_exact_mut(a.head_dim).for_each(kv::turn_back);
        }
        if a.rounds {
            round_queries(q);
        }
    }

    /// The queries of a row that read KV head `head`: neighbours in the row.
    fn stored_queries(&self, a: &BoundAttention, row: usize, head: usize) -> &[f32] {
        let elems = a.group * a.head_dim;
        let start = a.query_column + head * elems;
        self.row(&a.query, row, start..start + elems)
    }

    /// The sinks of the queries that read KV head `head`.
    fn sinks(&self, a: &BoundAttention, head: usize) -> Option<&[f32]> {
        let sinks = SharedBytes::read_only(&self.file[a.sinks.clone()?]);
        Some(sinks.get(head * a.group..(head + 1) * a.group))
    }

    /// What is added to scores by the distance of two positions.
    fn distances(&self, a: &BoundAttention) -> Option<Distances<'_>> {
        let range = a.bias.clone()?;
        let heads = a.kv_heads * a.group;
        let numbers = range.len() / size_of::<f32>();
        Some(Distances { table: SharedBytes::read_only(&self.file[range]).get(0..numbers), heads })
    }

    /// The states of some query heads of a row, KV head and chunk in the plan's scratch.
    fn partial(
        &self,
        a: &BoundAttention,
        partials: &BoundBuffer,
        unit: &Unit,
        chunk: usize,
        queries: Range<usize>,
    ) -> OnlineSoftmax<'_> {
        let row = unit.row() * partials.row_bytes / size_of::<f32>();
        let start = row + (chunk * a.kv_heads + unit.head) * a.partial_elems();
        let elems =
            |first: usize, count: usize| self.buffer(partials).get_mut(start + first..start + first + count);
        OnlineSoftmax {
            m: elems(queries.start, queries.len()),
            l: elems(a.group + queries.start, queries.len()),
            acc: elems(2 * a.group + queries.start * a.head_dim, queries.len() * a.head_dim),
        }
    }
}

/// `[2 m - 1][heads]`: what is added to the scores of two positions, by how far the second lies behind the first.
#[derive(Clone, Copy)]
struct Distances<'a> {
    table: &'a [f32],
    heads: usize,
}

impl Distances<'_> {
    /// The numbers of a row's queries, of heads from `head` on, for the tokens of the block that begins at `start`: `[queries][TOKENS]`.
    fn of_block(&self, unit: &Unit, head: usize, row: usize, start: usize, out: &mut [f32]) {
        // The middle row is that of a position to itself.
        let first = (self.table.len() / self.heads / 2 + start - (unit.position() + row)) * self.heads;
        for (query, out) in out.chunks_exact_mut(TOKENS).enumerate() {
            let column = &self.table[first + head + query..];
            out.iter_mut().zip(column.iter().step_by(self.heads)).for_each(|(out, number)| *out = *number);
        }
    }
}

/// Memory for a chunk: two counts a query, the values of a block where they are read from keys, and what is added to scores.
struct Room<'a> {
    counts: &'a mut [u32],
    values: &'a mut [u8],
    bias: &'a mut Vec<f32>,
}

impl Room<'_> {
    fn again(&mut self) -> Room<'_> {
        Room { counts: self.counts, values: self.values, bias: self.bias }
    }
}

/// A state in `floats`: `m[queries] | l[queries] | acc[queries][head_dim]`.
fn softmax(floats: &mut [f32], queries: usize) -> OnlineSoftmax<'_> {
    let (m, rest) = floats.split_at_mut(queries);
    let (l, acc) = rest.split_at_mut(queries);
    OnlineSoftmax { m, l, acc }
}
