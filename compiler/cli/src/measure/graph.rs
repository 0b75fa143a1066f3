//! The graph behind an engine: what the oracle and the eager executor run.

use crate::exit::Failure;
use crate::progress::{Meter, Unit};
use bessemer_compiler::compile::{Prepared, prepare};
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::{CompileOptions, RunOptions};
use bessemer_ir::Phase;
use bessemer_runtime::Engine;
use bessemer_targets::Targets;
use std::path::Path;

/// Opens the checkpoint that `engine` was compiled from; another one is refused.
pub fn source_of(engine: &Engine, source: &Path) -> Result<Checkpoint, Failure> {
    let checkpoint = Checkpoint::open(source)?;
    let meter = Meter::new(Unit::Bytes);
    meter.start("read source", checkpoint.files().map(|(_, b)| b.len() as u64).sum());
    let mut before = 0;
    let found = checkpoint.content_hash(|done, _| {
        meter.advance(done - before);
        before = done;
    });
    let expected = engine.manifest().source.hash;
    if *found.as_bytes() == expected.0 {
        return Ok(checkpoint);
    }
    Err(Failure::usage(format!(
        "{}: its hash is {found}, and the engine was compiled from {expected}; give the engine's own source",
        source.display()
    )))
}

/// The graph under the options that `engine` was compiled with, up to `phase`.
pub fn prepared(engine: &Engine, checkpoint: &Checkpoint, phase: Option<Phase>) -> Result<Prepared, Failure> {
    let run = RunOptions { stop_after: phase, ..RunOptions::default() };
    Ok(prepare(checkpoint, &options_of(engine)?, &run)?)
}

/// The options in an engine's manifest.
fn options_of(engine: &Engine) -> Result<CompileOptions, Failure> {
    let mut options = CompileOptions::default();
    for (key, value) in &engine.manifest().options {
        let wrong = |why: String| Failure::usage(format!("the engine's option {key}={value}: {why}"));
        match key.as_str() {
            "target" => {
                options.targets = Targets::parse(value.split(' ')).map_err(|e| wrong(e.to_string()))?
            }
            "precision" => options.precision = value.parse().map_err(wrong)?,
            "context" => options.context = Some(value.parse().map_err(|_| wrong("it is no number".into()))?),
            "f32_activations" => options.f32_activations = value == "true",
            "row_activations" => options.row_activations = value == "true",
            "disable" => {
                options.disable = value.split(',').filter(|p| !p.is_empty()).map(str::to_owned).collect()
            }
            // They shape the plan, not the graph.
            "tactics" | "tuning" => {}
            "code" => options.code = value == "true",
            "override" => options.overrides.push(value.parse().map_err(wrong)?),
            // What was measured changes no graph.
            "measure" => {}
            "method" | "calibration" | "statistics" => {
                return Err(wrong("its codes come from a calibration, which is not repeated here".into()));
            }
            _ => return Err(wrong("is not known to this version".into())),
        }
    }
    Ok(options)
}
