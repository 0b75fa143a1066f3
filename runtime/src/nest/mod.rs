//! Executes loop nests as data: what runs every op without a hand-written kernel unless generated code is trusted.
//!
//! A vector loop runs in blocks of [`WIDTH`] iterations, statement by statement, so that the cost of looking at a statement is spread
//! over many elements and the arithmetic becomes SIMD code. The meaning, bit for bit, is that of `bessemer_format::nest`.

mod access;
mod prepare;
mod run;

use crate::exec::ViewBinding;
use bessemer_format::manifest::KvElem;
use bessemer_format::nest::Nest;
use std::ops::Range;

/// Iterations of a vector loop that run together. A multiple of the lanes of a reduction.
const WIDTH: usize = 64;

/// A nest that is ready to run.
pub(crate) struct Interpreter {
    root: Vec<prepare::Node>,
    registers: usize,
    ints: usize,
}

/// What went wrong in a nest whose plan is valid: a number that is known only at run time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NestError {
    /// An index leaves its view.
    #[error("{view} has {len} elements, index {index} is outside")]
    Bounds {
        /// Name of the view.
        view: String,
        /// Its elements.
        len: usize,
        /// The index.
        index: i64,
    },
    /// A loaded integer is not below its limit.
    #[error("{view}[{index}] is {value}, which is not in 0..{limit}")]
    Limit {
        /// Name of the view.
        view: String,
        /// Where it was loaded.
        index: i64,
        /// What was loaded.
        value: i64,
        /// Exclusive bound.
        limit: i64,
    },
}

impl Interpreter {
    /// Prepares `nest` for a cache of `kv` elements, or says which rule of the language it breaks.
    pub(crate) fn new(nest: &Nest, kv: KvElem) -> Result<Self, String> {
        prepare::prepare(nest, kv)
    }

    /// Runs `rows` of axis 0.
    pub(crate) fn run(
        &self,
        rows: Range<usize>,
        views: &[ViewBinding<'_>],
        syms: &[i64; 4],
    ) -> Result<(), String> {
        run::rows(self, rows, views, syms).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod native;
#[cfg(test)]
mod tests;
