//! Causal attention over the block table, in two shapes that give the same bits.
//!
//! The meaning is the same for every row and KV head: the visible tokens are cut into chunks of a fixed size, each chunk
//! is one online softmax from its empty state, and the chunks are merged in ascending order.
//!
//! * Few rows (decode, draft verification): the chunks of a row are dealt to the threads, their states go to the
//!   plan's scratch, and after a barrier each row and KV head is merged by one thread. So a long context keeps all
//!   threads busy though there is a single row.
//! * Many rows (prefill): a thread takes some consecutive rows of a sequence and a KV head, and walks the chunks by
//!   itself. Keys and values are read once for all of its rows.

use super::{Pass, Scratch, Span, Stop, Thread};
use crate::bind::{BoundAttention, BoundBuffer};
use bessemer_format::kv::{self, TOKENS};
use bessemer_format::manifest;
use bessemer_kernels::KvElem;
use bessemer_kernels::attention::{KvBlock, OnlineSoftmax, Queries};
use std::ops::Range;

/// Rows that a thread takes at a time in a prefill: enough queries to read keys and values seldom, few enough to
/// share the work out and to keep their states in the L1 cache.
const BLOCK_ROWS: usize = 8;

/// Consecutive rows of one sequence that attend together, with one KV head.
#[derive(Clone, Copy)]
struct Unit {
    span: Span,
    /// First row, counted in the span.
    first: usize,
    rows: usize,
    head: usize,
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

    /// Chunks of the tokens that the last row sees.
    fn chunks(&self, a: &BoundAttention) -> usize {
        (self.position() + self.rows).div_ceil(a.chunk_blocks * TOKENS)
    }

    /// The first row that sees `token`. Row `r` sees the tokens up to its own, so all later rows see it too.
    fn first_row_seeing(&self, token: usize) -> usize {
        token.saturating_sub(self.position()).min(self.rows)
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
                thread.meet()?;
                self.merge_chunks(a, partials, thread);
            }
            None => self.attend_rows(a, thread, scratch),
        }
        Ok(())
    }

    /// Few rows, phase 1: the state of every (row, KV head, chunk).
    fn attend_chunks(
        &self,
        a: &BoundAttention,
        partials: &BoundBuffer,
        thread: &Thread<'_>,
        scratch: &mut Scratch,
    ) {
        scratch.visible.resize(a.group, 0);
        let units = self.units(a, 1).flat_map(|unit| (0..unit.chunks(a)).map(move |chunk| (unit, chunk)));
        for (unit, chunk) in thread.deal(units) {
            let mut state = softmax(self.partial(a, partials, &unit, chunk), a.group);
            state.reset();
            let q = self.queries(a, unit.row(), unit.head);
            self.attend_chunk(a, &unit, chunk, q, &mut state, &mut scratch.visible);
        }
    }

    /// Few rows, phase 2: the chunks of every (row, KV head) in ascending order.
    fn merge_chunks(&self, a: &BoundAttention, partials: &BoundBuffer, thread: &Thread<'_>) {
        for unit in thread.deal(self.units(a, 1)) {
            let mut total = softmax(self.partial(a, partials, &unit, 0), a.group);
            for chunk in 1..unit.chunks(a) {
                total.merge(&softmax(self.partial(a, partials, &unit, chunk), a.group));
            }
            let columns = unit.head * a.group * a.head_dim..(unit.head + 1) * a.group * a.head_dim;
            total.finish(self.row_mut(&a.out, unit.row(), columns));
        }
    }

    /// Many rows: all chunks of some rows and a KV head in ascending order.
    fn attend_rows(&self, a: &BoundAttention, thread: &Thread<'_>, scratch: &mut Scratch) {
        let row_elems = a.group * a.head_dim;
        let (q_elems, state_elems) = (BLOCK_ROWS * row_elems, BLOCK_ROWS * a.partial_elems());
        scratch.visible.resize(BLOCK_ROWS * a.group, 0);
        scratch.floats.resize(q_elems + 2 * state_elems, 0.0);
        let (q, states) = scratch.floats.split_at_mut(q_elems);
        let (total, fresh) = states.split_at_mut(state_elems);
        for unit in thread.deal(self.units(a, BLOCK_ROWS)) {
            let queries = unit.rows * a.group;
            for (row, q) in q.chunks_exact_mut(row_elems).take(unit.rows).enumerate() {
                q.copy_from_slice(self.queries(a, unit.row() + row, unit.head));
            }
            let q = &q[..unit.rows * row_elems];
            let mut total = softmax(&mut total[..unit.rows * a.partial_elems()], queries);
            total.reset();
            self.attend_chunk(a, &unit, 0, q, &mut total, &mut scratch.visible);
            for chunk in 1..unit.chunks(a) {
                let mut fresh = softmax(&mut fresh[..unit.rows * a.partial_elems()], queries);
                fresh.reset();
                self.attend_chunk(a, &unit, chunk, q, &mut fresh, &mut scratch.visible);
                // Rows that do not see the chunk stay as they are, as they would alone.
                let from = unit.first_row_seeing(chunk * a.chunk_blocks * TOKENS) * a.group;
                tail(&mut total, from, a.head_dim).merge(&tail(&mut fresh, from, a.head_dim));
            }
            for row in 0..unit.rows {
                let columns = unit.head * row_elems..(unit.head + 1) * row_elems;
                let out = self.row_mut(&a.out, unit.row() + row, columns);
                part(&mut total, row * a.group..(row + 1) * a.group, a.head_dim).finish(out);
            }
        }
    }

    /// Lets the rows of `unit` attend to the blocks of a chunk. `visible` has room for every query.
    fn attend_chunk(
        &self,
        a: &BoundAttention,
        unit: &Unit,
        chunk: usize,
        q: &[f32],
        state: &mut OnlineSoftmax<'_>,
        visible: &mut [u32],
    ) {
        let table = &self.inputs.block_table[unit.span.sequence * self.inputs.table_stride..];
        let end = (unit.position() + unit.rows).div_ceil(TOKENS).min((chunk + 1) * a.chunk_blocks);
        for block in chunk * a.chunk_blocks..end {
            let start = block * TOKENS;
            let first = unit.first_row_seeing(start);
            for (row, visible) in visible.chunks_exact_mut(a.group).enumerate().take(unit.rows).skip(first) {
                visible.fill((unit.position() + row + 1 - start).min(TOKENS) as u32);
            }
            let from = first * a.group;
            let queries = Queries {
                q: &q[from * a.head_dim..],
                scale: a.scale,
                visible: &visible[from..unit.rows * a.group],
            };
            let mut kv = self.kv_block(a, table[block] as usize, unit.head);
            if block + 1 < end {
                kv.next = self.kv_block(a, table[block + 1] as usize, unit.head).keys;
            }
            a.kernel.attend_block(&kv, &queries, &mut tail(state, from, a.head_dim));
        }
    }

    /// Keys and values of one head in a block of the cache.
    fn kv_block(&self, a: &BoundAttention, block: usize, head: usize) -> KvBlock<'_> {
        let bytes = self.state.block(a.state, block);
        let elem = self.state.kv;
        let head_bytes = kv::head_elems(a.head_dim) * elem.bytes();
        let keys = a.layer_elems * elem.bytes() + head * head_bytes;
        let values = keys + a.kv_heads * head_bytes;
        KvBlock {
            elem: match elem {
                manifest::KvElem::Bf16 => KvElem::Bf16,
                manifest::KvElem::F32 => KvElem::F32,
            },
            head_dim: a.head_dim,
            keys: bytes.get(keys..keys + head_bytes),
            values: bytes.get(values..values + head_bytes),
            next: &[],
        }
    }

    /// The batch in units of at most `rows` rows.
    fn units(&self, a: &BoundAttention, rows: usize) -> impl Iterator<Item = Unit> + use<'_> {
        let heads = a.kv_heads;
        self.inputs.spans.iter().flat_map(move |span| {
            (0..span.rows).step_by(rows).flat_map(move |first| {
                let rows = rows.min(span.rows - first);
                (0..heads).map(move |head| Unit { span: *span, first, rows, head })
            })
        })
    }

    /// The queries of a row that read KV head `head`: neighbours in the row.
    fn queries(&self, a: &BoundAttention, row: usize, head: usize) -> &[f32] {
        let elems = a.group * a.head_dim;
        let start = a.query_column + head * elems;
        self.row(&a.query, row, start..start + elems)
    }

    /// Where the state of a row, KV head and chunk lies in the plan's scratch.
    #[allow(clippy::mut_from_ref, reason = "exclusive by the rule of disjointness of SharedBytes")]
    fn partial(&self, a: &BoundAttention, partials: &BoundBuffer, unit: &Unit, chunk: usize) -> &mut [f32] {
        let elems = a.partial_elems();
        let start = unit.row() * partials.row_bytes / 4 + (chunk * a.kv_heads + unit.head) * elems;
        self.buffer(partials).get_mut(start..start + elems)
    }
}

/// A state in `floats`: `m[queries] | l[queries] | acc[queries][head_dim]`.
fn softmax(floats: &mut [f32], queries: usize) -> OnlineSoftmax<'_> {
    let (m, rest) = floats.split_at_mut(queries);
    let (l, acc) = rest.split_at_mut(queries);
    OnlineSoftmax { m, l, acc }
}

/// The state of some of the queries.
fn part<'a>(state: &'a mut OnlineSoftmax<'_>, queries: Range<usize>, head_dim: usize) -> OnlineSoftmax<'a> {
    OnlineSoftmax {
        acc: &mut state.acc[queries.start * head_dim..queries.end * head_dim],
        l: &mut state.l[queries.clone()],
        m: &mut state.m[queries],
    }
}

/// The state of the queries from `from` on.
fn tail<'a>(state: &'a mut OnlineSoftmax<'_>, from: usize, head_dim: usize) -> OnlineSoftmax<'a> {
    let all = state.m.len();
    part(state, from..all, head_dim)
}
