//! Options of a compilation: what shapes the bytes of an engine, and what does not.

use crate::calibrate::{Budget, Corpus, Statistics};
use crate::tuning::Tuning;
use bessemer_calibrate::Method;
use bessemer_format::manifest::Hash;
use bessemer_ir::Phase;
use bessemer_passes::{Override, PrecisionPolicy};
use bessemer_targets::{Tactic, Targets};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Options that shape an engine's bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct CompileOptions {
    /// What the engine is for.
    pub targets: Targets,
    /// What becomes of the weights.
    pub precision: PrecisionPolicy,
    /// Other precisions, by the names of weights; the last that matches counts.
    pub overrides: Vec<Override>,
    /// What the engine must hold on the text that `measure` names: precisions are then chosen weight by weight, and `precision` is for none.
    pub budget: Option<Budget>,
    /// How weights are rounded.
    pub method: Method,
    /// On what text, where the method needs one.
    pub calibration: Corpus,
    /// What was gathered on a text before, in place of `calibration`.
    pub statistics: Option<Arc<Statistics>>,
    /// The text on which the loss by rounding is measured, which the engine's report then holds.
    pub measure: Option<Corpus>,
    /// Tokens of the longest sequence, where it is not for the checkpoint to say. Ropes that scale by the context are fixed by it.
    pub context: Option<u32>,
    /// Compute in f32 even where kernels of integers or bf16 exist: slower, without rounding of activations.
    pub f32_activations: bool,
    /// Round activations to bytes by one scale for as many elements as share one of the weights: for a row where weights have scales of
    /// whole rows ("dynamic per token"), for groups of 256 and more elsewhere. Faster where a CPU multiplies tiles, and rounds more.
    pub row_activations: bool,
    /// Passes that are switched off.
    pub disable: Vec<String>,
    /// Constants of the schedule that are set by hand.
    pub tactics: BTreeMap<Tactic, u32>,
    /// What was measured on a machine, for tactics that are not set by hand. Without it they follow the rule.
    pub tuning: Option<Tuning>,
    /// Whether machine code of nests is generated. Without it the runtime executes the nests themselves.
    pub code: bool,
}

impl Default for CompileOptions {
    fn default() -> Self {
        Self {
            targets: Targets::default(),
            precision: PrecisionPolicy::Source,
            overrides: Vec::new(),
            budget: None,
            method: Method::Rtn,
            calibration: Corpus::calibration(),
            statistics: None,
            measure: None,
            context: None,
            f32_activations: false,
            row_activations: false,
            disable: Vec::new(),
            tactics: BTreeMap::new(),
            tuning: None,
            code: true,
        }
    }
}

impl CompileOptions {
    /// The options as `key=value`, in a fixed order: part of the manifest and of the cache key.
    pub fn pairs(&self) -> Vec<(String, String)> {
        // Exhaustive, so that a new option is decided upon.
        let Self {
            targets,
            precision,
            overrides,
            budget,
            method,
            calibration,
            statistics,
            measure,
            context,
            f32_activations,
            row_activations,
            disable,
            tactics,
            tuning,
            code,
        } = self;
        let mut disable = disable.clone();
        disable.sort();
        disable.dedup();
        let tactics: Vec<String> = tactics.iter().map(|(t, v)| format!("{t}={v}")).collect();
        let mut pairs = vec![
            ("target".into(), targets.to_string()),
            ("precision".into(), precision.to_string()),
            ("f32_activations".into(), f32_activations.to_string()),
            ("disable".into(), disable.join(",")),
            ("tactics".into(), tactics.join(",")),
            ("tuning".into(), tuning.as_ref().map_or_else(String::new, Tuning::to_string)),
            ("code".into(), code.to_string()),
        ];
        // Only what was asked for: an engine says nothing of means that it did not need.
        pairs.extend(row_activations.then(|| ("row_activations".into(), "true".into())));
        pairs.extend(context.iter().map(|context| ("context".into(), context.to_string())));
        pairs.extend(overrides.iter().map(|o| ("override".into(), o.to_string())));
        pairs.extend(budget.iter().map(|budget| ("budget".into(), budget.to_string())));
        if method.calibrates() || budget.is_some() {
            pairs.push(("method".into(), method.to_string()));
            pairs.push(match statistics {
                Some(file) => ("statistics".into(), file.hash().to_string()),
                None => ("calibration".into(), calibration.to_string()),
            });
        }
        pairs.extend(measure.iter().map(|corpus| ("measure".into(), corpus.to_string())));
        pairs
    }
}

/// What to print instead of, or before, writing an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emit {
    /// The graph as text.
    Ir,
    /// Steps, buffers and nests as text.
    Plan,
    /// The graph for Graphviz.
    Dot,
    /// Generated machine code, disassembled.
    Asm,
    /// Kernels for GPUs as CUDA C++.
    Cuda,
    /// Kernels for GPUs in the Metal Shading Language.
    Metal,
}

/// Options that leave the bytes alone.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Threads that pack weights and compile kernels; 0 for all cores.
    pub threads: usize,
    /// Stop when the graph has reached this phase (for `--emit ir|dot`).
    pub stop_after: Option<Phase>,
    /// The source's content hash, where the caller has just computed it: the checkpoint is then read once less.
    pub source_hash: Option<Hash>,
    /// Folder of results that are dear to compute, by their content's hash: an interrupted compilation goes on from there. A temporary
    /// one where there is none.
    pub scratch: Option<PathBuf>,
    /// Folder into which NVRTC was installed. CUDA targets need it.
    pub toolchain: Option<PathBuf>,
    /// Folder of compiled CUDA kernels, by what they were compiled from. Without one they are compiled each time.
    pub kernels: Option<PathBuf>,
}
