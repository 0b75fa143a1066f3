//! `bessemer verify`

use crate::exit::{Code, Failure};
use crate::json;
use crate::measure::numerics::Numerics;
use crate::output::out;
use bessemer_runtime::Engine;
use serde::Serialize;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bessemer verify model.engine                                       is every byte what the compiler wrote?
  bessemer verify model.engine --numerics --source model.gguf        does it compute what its plan declares?";

/// Relative distance of a step from its meaning on the same operands. Nothing but the order of f32 sums may tell them
/// apart: n terms in any order differ by about √n·2⁻²⁴ of their norm, which is 1e-5 for the longest rows there are
/// (2¹⁵); terms that cancel raise it, hence a factor of ten.
const STEP_BOUND: f64 = 1e-4;

/// Relative distance of logits from the declared meaning. Here roundings multiply: where activations become bytes, a
/// value next to a tie may fall on its other side because of the step before.
const LOGITS_BOUND: f64 = 1e-2;

/// Check every hash of an engine, and with its source, its arithmetic
///
/// Opening an engine checks everything but the weights; this reads those too and names a damaged tensor.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The engine
    engine: PathBuf,

    /// Compare each step, and the logits of a fixed prompt, with the meaning of the model's graph
    #[cfg(feature = "compile")]
    #[arg(long, requires = "source")]
    numerics: bool,

    /// The checkpoint that the engine was compiled from
    #[cfg(feature = "compile")]
    #[arg(long, value_name = "SRC", requires = "numerics")]
    source: Option<PathBuf>,

    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Output {
    hash: String,
    tensors: usize,
    kernels: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    numerics: Option<Numerics>,
}

impl Output {
    /// Fails if the engine does not compute what its plan declares.
    fn check(&self) -> Result<(), Failure> {
        let Some(numerics) = &self.numerics else { return Ok(()) };
        // A distance that is no number is above every bound, too.
        let above = |error: f64, bound: f64| error.is_nan() || error > bound;
        if let Some(step) = numerics.steps.iter().find(|s| above(s.error, STEP_BOUND)) {
            return Err(Failure::new(
                Code::Budget,
                format!(
                    "step {} ({}) is {:.2e} from its meaning, and {STEP_BOUND:.0e} is allowed; please report this",
                    step.node, step.op, step.error
                ),
            ));
        }
        if let Some(p) = numerics.positions.iter().find(|p| above(p.declared, LOGITS_BOUND)) {
            return Err(Failure::new(
                Code::Budget,
                format!(
                    "the logits of position {} are {:.2e} from what the plan declares, and {LOGITS_BOUND:.0e} is allowed; please report this",
                    p.position, p.declared
                ),
            ));
        }
        Ok(())
    }
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        // Opening checks the format, the plan, the host and all hashes but those of the weights.
        let engine = Engine::open(&self.engine)?;
        engine.verify()?;
        let output = Output {
            hash: engine.hash().to_string(),
            tensors: engine.manifest().tensors.len(),
            kernels: engine.isa().name(),
            numerics: self.numerics(&engine)?,
        };
        if self.json {
            json::print(&output)?;
            return output.check();
        }
        out!("{}: sound; {} tensors, kernels for {}", self.engine.display(), output.tensors, output.kernels)?;
        if let Some(numerics) = &output.numerics {
            for s in &numerics.steps {
                out!("step {} ({}): {:.2e} from its meaning", s.node, s.op, s.error)?;
            }
            for p in &numerics.positions {
                out!(
                    "position {:>3}: {:.2e} from declared, {:.2e} from exact",
                    p.position,
                    p.declared,
                    p.exact
                )?;
            }
        }
        output.check()
    }

    #[cfg(feature = "compile")]
    fn numerics(&self, engine: &Engine) -> Result<Option<Numerics>, Failure> {
        match &self.source {
            Some(source) if self.numerics => crate::measure::numerics::compare(engine, source).map(Some),
            _ => Ok(None),
        }
    }

    #[cfg(not(feature = "compile"))]
    fn numerics(&self, _: &Engine) -> Result<Option<Numerics>, Failure> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::numerics::{Position, Step};

    #[test]
    fn a_distance_above_its_bound_or_none_at_all_fails() {
        let output = |step, logits| Output {
            hash: String::new(),
            tensors: 1,
            kernels: "portable",
            numerics: Some(Numerics {
                steps: vec![Step { node: "l0.down".into(), op: "linear", error: step }],
                positions: vec![Position { position: 3, declared: logits, exact: 0.0 }],
            }),
        };
        assert!(output(1e-6, 1e-5).check().is_ok());
        for (step, logits, named) in
            [(1e-3, 0.0, "l0.down"), (f64::NAN, 0.0, "l0.down"), (0.0, 0.1, "position 3")]
        {
            let failure = format!("{:?}", output(step, logits).check().unwrap_err());
            assert!(failure.contains(named), "{failure}");
        }
    }
}
