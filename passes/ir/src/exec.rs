//! What every executor of a graph takes and gives: batches of rows, logits, and the order of the nodes.

use crate::graph::{Graph, NodeId};
use crate::op::Op;
use bessemer_format::plan::Input;
use std::collections::BTreeMap;

/// The rows whose logits are wanted of one sequence's new tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None: the tokens only enter the state.
    None,
    /// The last one, for the next token.
    Last,
    /// All.
    All,
}

/// New tokens of one sequence in a forward pass; they continue what the sequence holds.
#[derive(Clone, Copy, Debug)]
pub struct SequenceRows<'a> {
    /// Which sequence.
    pub sequence: usize,
    /// Its next tokens.
    pub tokens: &'a [u32],
    /// Which part of a pair each belongs to; empty where the text is none.
    pub types: &'a [u32],
    /// Which of them give logits.
    pub logits: Wanted,
}

/// Logits of the wanted rows, in the order of the batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// Logits of a row.
    pub vocab: usize,
    /// `[rows][vocab]`.
    pub values: Vec<f32>,
}

impl Logits {
    /// The rows in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocab.max(1))
    }
}

/// Why a batch cannot run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A sequence stands in the batch twice.
    #[error("sequence {sequence} stands in the batch twice; join its tokens")]
    Twice {
        /// Which.
        sequence: usize,
    },
    /// Not as many types as tokens.
    #[error("sequence {sequence} has {types} types for {tokens} tokens; give one each, or none at all")]
    Types {
        /// Which.
        sequence: usize,
        /// How many types.
        types: usize,
        /// How many tokens.
        tokens: usize,
    },
    /// A sequence would pass the largest position.
    #[error("sequence {sequence} would hold {len} tokens, more than positions can count")]
    TooLong {
        /// Which.
        sequence: usize,
        /// Its length after the batch.
        len: usize,
    },
}

/// A batch as the arrays that a graph's inputs name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Sequence of each row.
    pub sequences: Vec<u32>,
    /// Part of a pair that each row belongs to: 0, for texts that are none.
    pub token_types: Vec<u32>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
}

impl Batch {
    /// Lays the sequences one behind the other; `len` says how many tokens each holds already.
    pub fn new(parts: &[SequenceRows<'_>], len: impl Fn(usize) -> usize) -> Result<Self, BatchError> {
        let mut batch = Self::default();
        for (i, part) in parts.iter().enumerate() {
            let sequence = part.sequence;
            if parts[..i].iter().any(|p| p.sequence == sequence) {
                return Err(BatchError::Twice { sequence });
            }
            let start = len(sequence);
            let end = start.saturating_add(part.tokens.len());
            // Positions are i32 in the graph.
            if end > i32::MAX as usize || sequence > i32::MAX as usize {
                return Err(BatchError::TooLong { sequence, len: end });
            }
            let (tokens, types) = (part.tokens.len(), part.types.len());
            if types != 0 && types != tokens {
                return Err(BatchError::Types { sequence, types, tokens });
            }
            let first_row = batch.tokens.len() as u32;
            batch.tokens.extend(part.tokens);
            batch.positions.extend(start as u32..end as u32);
            batch.sequences.resize(batch.tokens.len(), sequence as u32);
            batch.token_types.extend(part.types);
            batch.token_types.resize(batch.tokens.len(), 0);
            let end_row = batch.tokens.len() as u32;
            match part.logits {
                Wanted::None => {}
                Wanted::Last => batch.logit_rows.extend(end_row.checked_sub(1).filter(|r| *r >= first_row)),
                Wanted::All => batch.logit_rows.extend(first_row..end_row),
            }
        }
        Ok(batch)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// The first row of the sequence that row `r` belongs to.
    pub fn first_row(&self, r: usize) -> usize {
        self.sequences[..r].iter().rposition(|s| *s != self.sequences[r]).map_or(0, |before| before + 1)
    }

    /// The array of an input; `None` for those that speak of memory, which only a plan has.
    pub fn input(&self, input: Input) -> Option<&[u32]> {
        match input {
            Input::Tokens => Some(&self.tokens),
            Input::Positions => Some(&self.positions),
            Input::Sequences => Some(&self.sequences),
            Input::LogitRows => Some(&self.logit_rows),
            Input::TokenTypes => Some(&self.token_types),
            Input::Slots
            | Input::BlockTable
            | Input::TableStarts
            | Input::FirstRows
            | Input::LastPositions
            | Input::CarriedBlocks => None,
        }
    }
}

/// A node in execution order.
#[derive(Clone, Debug)]
pub struct ExecNode {
    /// The node in the graph.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// What it does.
    pub op: Op,
    /// Step and result of each operand.
    pub operands: Vec<(usize, usize)>,
    /// Steps whose results nobody reads after this one.
    pub last_uses: Vec<usize>,
}

/// The nodes that the output needs, in execution order, with operands by step and the end of each value's life.
pub fn schedule(graph: &Graph) -> Vec<ExecNode> {
    let order = graph.order();
    let step: BTreeMap<NodeId, usize> = order.iter().enumerate().map(|(i, n)| (*n, i)).collect();
    let mut nodes: Vec<ExecNode> = order
        .iter()
        .map(|&node| ExecNode {
            node,
            name: graph.name(node).to_string(),
            op: graph.op(node).clone(),
            operands: graph.operands(node).iter().map(|v| (step[&v.node], usize::from(v.result))).collect(),
            last_uses: Vec::new(),
        })
        .collect();
    let mut last = BTreeMap::new();
    for (i, node) in nodes.iter().enumerate() {
        last.extend(node.operands.iter().map(|(operand, _)| (*operand, i)));
    }
    for (operand, reader) in last {
        nodes[reader].last_uses.push(operand);
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_lays_sequences_behind_each_other() {
        let part = |sequence, tokens, logits| SequenceRows { sequence, tokens, types: &[], logits };
        let parts = [
            part(2, &[7, 8, 9][..], Wanted::All),
            part(0, &[5], Wanted::None),
            part(1, &[3, 4], Wanted::Last),
        ];
        let batch = Batch::new(&parts, |s| 10 * s).unwrap();
        assert_eq!(batch.positions, [20, 21, 22, 0, 10, 11]);
        assert_eq!(batch.sequences, [2, 2, 2, 0, 1, 1]);
        assert_eq!(batch.logit_rows, [0, 1, 2, 5]);
        assert_eq!(Batch::new(&[parts[1], parts[1]], |_| 0), Err(BatchError::Twice { sequence: 0 }));
        let pair = SequenceRows { types: &[0, 0, 1], ..parts[0] };
        assert_eq!(Batch::new(&[parts[1], pair], |_| 0).unwrap().token_types, [0, 0, 0, 1]);
        let odd = SequenceRows { types: &[1], ..parts[0] };
        assert_eq!(Batch::new(&[odd], |_| 0), Err(BatchError::Types { sequence: 2, types: 1, tokens: 3 }));
        let empty = Batch::new(&[part(0, &[], Wanted::Last)], |_| 0).unwrap();
        assert!(empty.logit_rows.is_empty());
    }
}
