//! Where a program can be divided between devices: at the begin of each layer.

use bessemer_format::plan::{BufferId, Cut};
use std::cmp::Reverse;

/// What a step touches.
pub(crate) struct StepUse {
    pub(crate) reads: Vec<BufferId>,
    pub(crate) writes: Vec<BufferId>,
    /// The layer whose state it reads or appends to.
    pub(crate) layer: Option<u32>,
}

/// The begin of each layer: between the steps that touch the state of the layer before and those that touch its own, the last place at which
/// the fewest bytes live. There the residual stream is all there is, beside what every layer reads. `rows` are the bytes of a row of each
/// buffer that lies in the arena. None where layers take turns, as there is no place between them.
pub(crate) fn cuts(steps: &[StepUse], rows: &[Option<u64>]) -> Vec<Cut> {
    // From the first write of a buffer to its last read.
    let mut spans: Vec<Option<(usize, usize)>> = vec![None; rows.len()];
    for (at, step) in steps.iter().enumerate() {
        for id in &step.reads {
            if let Some((_, last)) = &mut spans[*id as usize] {
                *last = at;
            }
        }
        for id in &step.writes {
            spans[*id as usize].get_or_insert((at, at));
        }
    }
    let mut live: Vec<Vec<BufferId>> = vec![Vec::new(); steps.len() + 1];
    for (id, span) in spans.iter().enumerate() {
        if let (Some((first, last)), Some(_)) = (span, rows[id]) {
            live[first + 1..=*last].iter_mut().for_each(|live| live.push(id as BufferId));
        }
    }
    let bytes = |at: usize| live[at].iter().filter_map(|id| rows[*id as usize]).sum::<u64>();
    let (mut cuts, mut begun, mut behind) = (Vec::new(), Vec::new(), 0);
    for (at, step) in steps.iter().enumerate() {
        let Some(layer) = step.layer else { continue };
        if begun.last() != Some(&layer) {
            if begun.contains(&layer) {
                return Vec::new();
            }
            begun.push(layer);
            let best = (behind..=at).min_by_key(|step| (bytes(*step), Reverse(*step)));
            cuts.extend(best.map(|step| Cut { step: step as u32, live: live[step].clone() }));
        }
        behind = at + 1;
    }
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(reads: &[BufferId], writes: &[BufferId], layer: Option<u32>) -> StepUse {
        StepUse { reads: reads.to_vec(), writes: writes.to_vec(), layer }
    }

    #[test]
    fn layers_begin_where_only_the_residual_stream_lives() {
        // An embedding, a table that every layer reads, and two layers: norm, projection, attention, output, network.
        let (x, table) = (0, 1);
        let layer = |layer, first: BufferId| {
            let [normed, q, mixed, inner] = [0, 1, 2, 3].map(|i| first + i);
            [
                step(&[x], &[normed], None),
                step(&[normed, table], &[q], Some(layer)),
                step(&[q], &[mixed], Some(layer)),
                step(&[mixed, x], &[x], None),
                step(&[x], &[inner], None),
                step(&[inner, x], &[x], None),
            ]
        };
        let begin = [step(&[], &[x], None), step(&[], &[table], None)];
        let steps: Vec<StepUse> = begin.into_iter().chain(layer(7, 2)).chain(layer(3, 6)).collect();
        let rows = [64, 16, 64, 64, 64, 256, 64, 64, 64, 256].map(Some);
        let cut = |step, live: &[BufferId]| Cut { step, live: live.to_vec() };
        assert_eq!(cuts(&steps, &rows), [cut(0, &[]), cut(8, &[x, table])]);
        // What the runtime fills is there on every device.
        let mut inputs = rows;
        inputs[table as usize] = None;
        assert_eq!(cuts(&steps, &inputs)[1], cut(8, &[x]));
        // Layers that take turns.
        let turns = [1, 2, 1].map(|layer| step(&[x], &[2], Some(layer)));
        assert_eq!(cuts(&turns, &rows), []);
    }
}
