//! The memory plan, verified from the steps alone: what is read was written, what lives at one time shares no byte, and threads
//! that are not held by a barrier touch rows of their own only. Cuts, at which another device may go on, list what crosses them.
//!
//! Time is counted in epochs, the stretches between barriers: within one, threads are not ordered. A buffer lives from the epoch of
//! its first write to that of its last use.

use super::program::buffer_bytes;
use crate::plan::{BufferElem, BufferId, Home, Program, RowCount};
use std::collections::BTreeMap;

/// What a step does to the buffers of its program.
#[derive(Default)]
pub(super) struct Effects {
    /// Buffers read, other than inputs.
    pub(super) reads: Vec<BufferId>,
    /// Buffers written, each with the ranges of elements of a row that are written.
    pub(super) writes: Vec<(BufferId, Vec<(u64, u64)>)>,
    /// The buffer that is read and written at the same elements.
    pub(super) in_place: Option<BufferId>,
    /// Set where row `r` of the step touches row `r` of buffers only, so that a thread needs no other thread's rows.
    pub(super) by_row: Option<RowCount>,
    /// Set where that holds of its first part alone, behind which threads meet.
    pub(super) enters_by_row: Option<RowCount>,
}

/// The number of a step, and the reason. The number of steps stands for the end of the program.
type Fault = (usize, String);

pub(super) fn verify(program: &Program, effects: &[Effects]) -> Result<(), Fault> {
    barriers(program, effects)?;
    defined(program, effects)?;
    apart(program, effects)?;
    cuts(program, effects)
}

fn barriers(program: &Program, effects: &[Effects]) -> Result<(), Fault> {
    for (i, step) in program.steps.iter().enumerate().filter(|(_, s)| !s.barrier) {
        let next = effects.get(i + 1).and_then(|e| e.by_row.or(e.enters_by_row));
        if effects[i].by_row.is_none() || effects[i].by_row != next {
            return Err((
                i,
                format!(
                    "no barrier before the next step, but `{}` and it do not share out the same rows",
                    step.source
                ),
            ));
        }
    }
    Ok(())
}

/// Parts of a row that have been written: disjoint, not adjacent, by start.
#[derive(Clone, Default)]
struct Written(BTreeMap<u64, u64>);

impl Written {
    fn add(&mut self, mut start: u64, mut end: u64) {
        while let Some((s, e)) = self.0.range(..=end).next_back().map(|(s, e)| (*s, *e))
            && e >= start
        {
            self.0.remove(&s);
            (start, end) = (start.min(s), end.max(e));
        }
        self.0.insert(start, end);
    }
    fn covers(&self, len: u64) -> bool {
        self.0.get(&0).is_some_and(|end| *end >= len)
    }
}

/// Nothing is read before it was written, inputs are never written, and the logits are there in the end.
fn defined(program: &Program, effects: &[Effects]) -> Result<(), Fault> {
    let mut written = vec![Written::default(); program.buffers.len()];
    let buffer = |id: BufferId| &program.buffers[id as usize];
    for (i, step) in effects.iter().enumerate() {
        for id in &step.reads {
            if !written[*id as usize].covers(buffer(*id).row_elems) {
                return Err((i, format!("buffer {id} ({}) is read before it is written", buffer(*id).name)));
            }
            let also_written = step.writes.iter().any(|(w, _)| w == id);
            if also_written && step.in_place != Some(*id) {
                return Err((i, format!("buffer {id} ({}) is both read and written", buffer(*id).name)));
            }
        }
        for (n, (id, ranges)) in step.writes.iter().enumerate() {
            if matches!(buffer(*id).home, Home::Input(_)) {
                return Err((i, format!("buffer {id} ({}) is an input and is written", buffer(*id).name)));
            }
            if step.writes[..n].iter().any(|(other, _)| other == id) {
                return Err((i, format!("buffer {id} ({}) is written by two operands", buffer(*id).name)));
            }
            ranges.iter().for_each(|(start, end)| written[*id as usize].add(*start, *end));
        }
    }
    for (id, b) in program.buffers.iter().enumerate().filter(|(_, b)| b.home == Home::Logits) {
        if !written[id].covers(b.row_elems) {
            return Err((effects.len(), format!("the logits (buffer {id}) are not fully written")));
        }
    }
    Ok(())
}

/// Buffers that live in the same epoch share no byte: a sweep over time with the living sorted by address.
fn apart(program: &Program, effects: &[Effects]) -> Result<(), Fault> {
    // For each buffer: epochs of the first and last use, and the first step that uses it.
    let mut live: Vec<Option<(usize, usize, usize)>> = vec![None; program.buffers.len()];
    let mut epoch = 0;
    for (i, (step, e)) in program.steps.iter().zip(effects).enumerate() {
        for id in e.reads.iter().chain(e.writes.iter().map(|(id, _)| id)) {
            live[*id as usize].get_or_insert((epoch, epoch, i)).1 = epoch;
        }
        epoch += usize::from(step.barrier);
    }
    let mut births: Vec<(usize, usize)> = Vec::new();
    let mut deaths: Vec<(usize, usize)> = Vec::new();
    for (id, b) in program.buffers.iter().enumerate() {
        if let (Home::Arena { .. }, Some((first, last, _))) = (b.home, live[id]) {
            births.push((first, id));
            deaths.push((last, id));
        }
    }
    births.sort_unstable();
    deaths.sort_unstable();
    let range = |id: usize| {
        let b = &program.buffers[id];
        let Home::Arena { offset } = b.home else { return (0, 0) };
        (offset, offset.saturating_add(buffer_bytes(program, b).unwrap_or(u64::MAX)))
    };
    let mut dead = deaths.iter().peekable();
    let mut alive: BTreeMap<u64, usize> = BTreeMap::new();
    for (epoch, id) in births {
        while let Some((_, gone)) = dead.next_if(|(last, _)| *last < epoch) {
            alive.remove(&range(*gone).0);
        }
        let (start, end) = range(id);
        // The living do not overlap, so the nearest one below `end` is the one that could.
        if let Some((_, other)) = alive.range(..end).next_back()
            && range(*other).1 > start
        {
            let names = (&program.buffers[*other].name, &program.buffers[id].name);
            let step = live[id].map_or(0, |(_, _, step)| step);
            return Err((
                step,
                format!("buffers {other} ({}) and {id} ({}) share bytes while both live", names.0, names.1),
            ));
        }
        alive.insert(start, id);
    }
    Ok(())
}

/// Layers begin one behind another, and what lives across their begin is what the cut says. A buffer lives from its first write to its
/// last read; the numbers are compared first, so that the work is bounded by what the plan spells out.
fn cuts(program: &Program, effects: &[Effects]) -> Result<(), Fault> {
    let end = effects.len();
    let mut spans: Vec<Option<(usize, usize)>> = vec![None; program.buffers.len()];
    for (i, step) in effects.iter().enumerate() {
        for id in &step.reads {
            if let Some((_, last)) = &mut spans[*id as usize] {
                *last = i;
            }
        }
        for (id, _) in &step.writes {
            spans[*id as usize].get_or_insert((i, i));
        }
    }
    let in_arena = |id: usize| matches!(program.buffers[id].home, Home::Arena { .. });
    let span = |id: usize| spans.get(id).copied().flatten().filter(|_| in_arena(id));
    let steps: Vec<usize> = program.cuts.iter().map(|cut| cut.step as usize).collect();
    if !steps.is_sorted_by(|a, b| a < b) || steps.last().is_some_and(|last| *last >= end) {
        return Err((end, format!("layers begin at steps {steps:?} of {end}")));
    }
    // How many buffers begin and cease to live across each cut.
    let mut changes = vec![0i64; steps.len() + 1];
    for (first, last) in (0..spans.len()).filter_map(span) {
        changes[steps.partition_point(|step| *step <= first)] += 1;
        changes[steps.partition_point(|step| *step <= last)] -= 1;
    }
    let mut count = 0;
    for (cut, change) in program.cuts.iter().zip(changes) {
        count += change;
        let at = cut.step as usize;
        if cut.live.len() as i64 != count || !cut.live.is_sorted_by(|a, b| a < b) {
            return Err((at, format!("a cut lists {} buffers where {count} live", cut.live.len())));
        }
        for id in &cut.live {
            let lives = span(*id as usize).is_some_and(|(first, last)| first < at && at <= last);
            if !lives || program.buffers[*id as usize].elem == BufferElem::Bytes {
                return Err((at, format!("a cut lists buffer {id}, which cannot be handed over there")));
            }
        }
    }
    Ok(())
}
