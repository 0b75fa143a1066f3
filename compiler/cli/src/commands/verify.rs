//! `bessemer verify`

use crate::exit::{Code, Failure};
use crate::json;
use crate::output::out;
use bessemer_runtime::Engine;
use serde::Serialize;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bessemer verify model.engine                                       is every byte what the compiler wrote?
  bessemer verify model.engine --numerics --source model.gguf        does it compute what its plan declares?";

/// Relative distance from the declared meaning that accumulation in another order explains: sums of f32 give 1e-6, and where activations
/// are rounded to bytes, a value next to a tie may fall on its other side.
const DECLARED_BOUND: f64 = 1e-2;

/// Check every hash of an engine, and with its source, its arithmetic
///
/// Opening an engine checks everything but the weights; this reads those too and names a damaged tensor.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The engine
    engine: PathBuf,

    /// Compare the logits of a fixed prompt with the meaning of the model's graph
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
    numerics: Option<Vec<crate::measure::numerics::Position>>,
}

impl Output {
    /// Fails if the engine does not compute what its plan declares.
    fn check(&self) -> Result<(), Failure> {
        let worst = self.numerics.iter().flatten().map(|p| p.declared).fold(0.0, f64::max);
        // A distance that is no number is above every bound, too.
        if worst <= DECLARED_BOUND && self.numerics.iter().flatten().all(|p| p.declared.is_finite()) {
            return Ok(());
        }
        Err(Failure::new(
            Code::Budget,
            format!(
                "the logits are {worst:.2e} from what the plan declares, and {DECLARED_BOUND:.0e} is allowed; please report this"
            ),
        ))
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
        for p in output.numerics.iter().flatten() {
            out!("position {:>3}: {:.2e} from declared, {:.2e} from exact", p.position, p.declared, p.exact)?;
        }
        output.check()
    }

    #[cfg(feature = "compile")]
    fn numerics(&self, engine: &Engine) -> Result<Option<Vec<crate::measure::numerics::Position>>, Failure> {
        match &self.source {
            Some(source) if self.numerics => crate::measure::numerics::compare(engine, source).map(Some),
            _ => Ok(None),
        }
    }

    #[cfg(not(feature = "compile"))]
    fn numerics(&self, _: &Engine) -> Result<Option<Vec<crate::measure::numerics::Position>>, Failure> {
        Ok(None)
    }
}
