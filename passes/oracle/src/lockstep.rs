//! Another executor against the oracle, step by step.

use crate::error::OracleError;
use crate::oracle::Oracle;
use crate::value::{Tensor, Val};
use bessemer_ir::exec::SequenceRows;

/// What another executor made of a node: the node's name, and every result.
pub type TracedStep = (String, Vec<Vec<f32>>);

/// A node's distance from the oracle on the same operands.
#[derive(Clone, Debug, PartialEq)]
pub struct StepError {
    /// The node's name.
    pub node: String,
    /// Its op.
    pub op: &'static str,
    /// `‖theirs − oracle‖ / ‖oracle‖`, of its worst result.
    pub error: f64,
}

impl Oracle {
    /// One forward pass that goes the way of another executor: every node reads what *they* made of the nodes before it, and its own
    /// results are compared with theirs. So an error is the step's own, and a number that a step rounds is rounded from the same bits
    /// on both sides: what the accumulation of an earlier step moved across a rounding boundary counts nowhere.
    pub fn follow(
        &mut self,
        parts: &[SequenceRows<'_>],
        trace: Vec<TracedStep>,
    ) -> Result<Vec<StepError>, OracleError> {
        let mut trace = trace.into_iter().peekable();
        let mut steps = Vec::new();
        let mut disagreement = None;
        self.forward_with(parts, |node, results| {
            // Nodes without a step (inputs, states) are nothing that an executor computes.
            let Some((_, theirs)) = trace.next_if(|(name, _)| *name == node.name) else { return };
            let mut theirs = theirs.into_iter();
            let mut error = 0.0f64;
            for result in results {
                let Val::Tensor(reference) = result else { continue };
                match theirs.next() {
                    Some(found) if found.len() == reference.data.len() => {
                        let found = Tensor::from_f32(reference.width, &found);
                        error = worse(error, distance(&found.data, &reference.data));
                        *result = Val::Tensor(found);
                    }
                    other => {
                        let (found, wanted) = (other.map(|o| o.len()), reference.data.len());
                        disagreement
                            .get_or_insert(format!("{}: {found:?} numbers, {wanted} expected", node.name));
                    }
                }
            }
            steps.push(StepError { node: node.name.clone(), op: node.op.name(), error });
        })?;
        if let Some((name, _)) = trace.next() {
            disagreement.get_or_insert(format!("step {name} has no node"));
        }
        disagreement.map_or(Ok(steps), |why| Err(OracleError::Trace { why }))
    }
}

/// The larger distance; one that is no number is larger than any.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn distance(theirs: &[f64], reference: &[f64]) -> f64 {
    let difference: f64 = theirs.iter().zip(reference).map(|(a, b)| (a - b) * (a - b)).sum();
    let norm: f64 = reference.iter().map(|b| b * b).sum();
    (difference / norm.max(f64::MIN_POSITIVE)).sqrt()
}
