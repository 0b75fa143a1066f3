//! Holding the tensors of a checkpoint against those that a configuration asks for.

use std::collections::BTreeSet;

use super::error::ImportError;
use super::source::Checkpoint;

/// Longest list of missing tensors. It also bounds the work when a configuration asks for absurdly many.
const MOST_MISSING: usize = 1000;

/// Checks that every tensor of `expected` (name and shape; `count` of them) is there, in its shape, and that no other
/// tensor is, unless `harmless` says that nothing needs to read it.
pub fn check(
    checkpoint: &Checkpoint,
    count: usize,
    expected: impl Iterator<Item = (String, Vec<usize>)>,
    harmless: impl Fn(&str) -> bool,
) -> Result<(), ImportError> {
    let mut extra: BTreeSet<&str> = checkpoint.tensors().keys().map(String::as_str).collect();
    let mut missing = Vec::new();
    for (name, shape) in expected {
        match checkpoint.tensors().get(&name) {
            Some(info) if info.shape == shape => {
                extra.remove(name.as_str());
            }
            Some(info) => {
                let (path, found) = (checkpoint.path().to_owned(), info.shape.clone());
                return Err(ImportError::TensorShape { path, tensor: name, expected: shape, found });
            }
            None => missing.push(name),
        }
        if missing.len() == MOST_MISSING {
            break;
        }
    }
    extra.retain(|name| !harmless(name));

    let (path, found) = (checkpoint.path().to_owned(), checkpoint.tensors().len());
    if !missing.is_empty() {
        return Err(ImportError::MissingTensors { path, names: missing, expected: count, found });
    }
    if !extra.is_empty() {
        let names = extra.into_iter().map(str::to_owned).collect();
        return Err(ImportError::UnexpectedTensors { path, names, expected: count, found });
    }
    Ok(())
}
