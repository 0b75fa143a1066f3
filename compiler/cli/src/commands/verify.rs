//! `bessemer verify`

use crate::exit::{Code, Failure};
use crate::json;
use crate::measure::devices::{self, Devices};
use crate::measure::numerics::{Numerics, Step};
use crate::model::open;
use crate::output::out;
use bessemer_runtime::{DeviceChoice, Engine};
use serde::Serialize;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bessemer verify model.engine                                       is every byte what the compiler wrote?
  bessemer verify model.engine --numerics --source model.gguf        does it compute what its plan declares?
  bessemer verify model.engine --device cuda:0 --trust               does the GPU compute what the CPU does?";

/// Relative distance of a step from its meaning on the same operands. Nothing but the order of f32 sums may tell them
/// apart: n terms in any order differ by about √n·2⁻²⁴ of their norm, which is 1e-5 for the longest rows there are
/// (2¹⁵); terms that cancel raise it, hence a factor of ten.
const STEP_BOUND: f64 = 1e-4;

/// As [`STEP_BOUND`] for a step that rounds numbers which it has accumulated. Rounding to bf16 moves a step by up to 2⁻⁹. One number in
/// 2¹¹ lies so near to a border that it jumps over it, a whole step where others are off by 1/√12 of one: √(12·2⁻¹¹) of what rounding
/// costs, a thirteenth; large numbers that come together raise it.
const JUMPS_BOUND: f64 = STEP_BOUND + 1.0 / 512.0 / 6.0;

/// Relative distance of logits from the declared meaning. Here roundings multiply: where activations become bytes, a
/// value next to a tie may fall on its other side because of the step before.
const LOGITS_BOUND: f64 = 1e-2;

/// As [`STEP_BOUND`] and [`LOGITS_BOUND`] between two devices, whose steps follow each other from different operands, over a cache of
/// bf16: a value next to a tie may fall on its other side, which moves a step by 2⁻⁹ of few elements.
const DEVICE_BOUND: f64 = 1e-2;

/// Where one of them rounds activations and the other does not, they compute different things, and only nonsense is told.
const ROUNDED_BOUND: f64 = 0.3;

/// Check every hash of an engine, and with its source or another device, its arithmetic
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

    /// Compare each step on this device (cuda, cuda:N or metal), and the logits, with those of the CPU
    #[arg(long, value_name = "D")]
    device: Option<DeviceChoice>,

    /// Layers that run on this device, the last ones; the others run on the CPU here, too
    #[arg(long, value_name = "N", alias = "n-gpu-layers", requires = "device")]
    gpu_layers: Option<usize>,

    /// Run the machine code in this engine, this once
    #[arg(long)]
    trust: bool,

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
    #[serde(skip_serializing_if = "Option::is_none")]
    devices: Option<Devices>,
}

impl Output {
    /// Fails if the engine does not compute what its plan declares.
    fn check(&self) -> Result<(), Failure> {
        self.devices.as_ref().map_or(Ok(()), check_devices)?;
        let Some(numerics) = &self.numerics else { return Ok(()) };
        // A distance that is no number is above every bound, too.
        let above = |error: f64, bound: f64| error.is_nan() || error > bound;
        let bound = |step: &Step| if step.rounds_inside { JUMPS_BOUND } else { STEP_BOUND };
        if let Some(step) = numerics.steps.iter().find(|s| above(s.error, bound(s))) {
            return Err(Failure::new(
                Code::Budget,
                format!(
                    "step {} ({}) is {:.2e} from its meaning, and {:.0e} is allowed; please report this",
                    step.node,
                    step.op,
                    step.error,
                    bound(step)
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

/// Fails if a device computes something else than the CPU.
fn check_devices(devices: &Devices) -> Result<(), Failure> {
    let bound = if devices.exact { DEVICE_BOUND } else { ROUNDED_BOUND };
    let wrong = |what: String| Err(Failure::new(Code::Budget, format!("{what}; please report this")));
    let above = |error: f64| error.is_nan() || error > bound;
    if let Some((step, error)) = devices.steps.iter().find(|(_, error)| above(*error)) {
        return wrong(format!("step {step} is {error:.2e} from the CPU's, and {bound:.0e} is allowed"));
    }
    if let Some((position, error)) = devices.positions.iter().enumerate().find(|(_, error)| above(**error)) {
        let what = format!("the logits of position {position} are {error:.2e} from the CPU's");
        return wrong(format!("{what}, and {bound:.0e} is allowed"));
    }
    if !devices.replay_is_exact {
        return wrong(
            "a pass that was recorded gives other bits than one that was launched step by step".into(),
        );
    }
    Ok(())
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        // Opening checks the format, the plan, the host and all hashes but those of the weights.
        let engine = open(&self.engine, self.trust)?;
        engine.verify()?;
        let output = Output {
            hash: engine.hash().to_string(),
            tensors: engine.manifest().tensors.len(),
            kernels: engine.isa().name(),
            numerics: self.numerics(&engine)?,
            devices: self
                .device
                .map(|device| devices::compare(&engine, device, self.gpu_layers))
                .transpose()?,
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
        if let Some(devices) = &output.devices {
            out!("device {}, against the CPU:", devices.device)?;
            for (step, error) in &devices.steps {
                out!("step {step}: {error:.2e} from the CPU's")?;
            }
            for (position, error) in devices.positions.iter().enumerate() {
                out!("position {position:>3}: {error:.2e} from the CPU's")?;
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
    use crate::measure::numerics::Position;

    #[test]
    fn a_distance_above_its_bound_or_none_at_all_fails() {
        let output_of = |rounds_inside, step, logits| Output {
            hash: String::new(),
            tensors: 1,
            kernels: "portable",
            numerics: Some(Numerics {
                steps: vec![Step { node: "l0.down".into(), op: "linear", rounds_inside, error: step }],
                positions: vec![Position { position: 3, declared: logits, exact: 0.0 }],
            }),
            devices: None,
        };
        let output = |step, logits| output_of(false, step, logits);
        assert!(output(1e-6, 1e-5).check().is_ok());
        assert!(output(2e-4, 0.0).check().is_err() && output_of(true, 2e-4, 0.0).check().is_ok());
        assert!(output_of(true, 1e-3, 0.0).check().is_err());
        for (step, logits, named) in
            [(1e-3, 0.0, "l0.down"), (f64::NAN, 0.0, "l0.down"), (0.0, 0.1, "position 3")]
        {
            let failure = format!("{:?}", output(step, logits).check().unwrap_err());
            assert!(failure.contains(named), "{failure}");
        }
    }

    #[test]
    fn a_device_that_computes_something_else_fails() {
        let devices = |exact, step, logits, replay_is_exact| Devices {
            device: "cuda:0".into(),
            exact,
            steps: vec![("l0.down".into(), step)],
            positions: vec![0.0, logits],
            replay_is_exact,
        };
        assert!(check_devices(&devices(true, 1e-3, 1e-3, true)).is_ok());
        assert!(check_devices(&devices(false, 0.1, 0.1, true)).is_ok());
        for (devices, named) in [
            (devices(true, 0.1, 0.0, true), "l0.down"),
            (devices(false, f64::NAN, 0.0, true), "l0.down"),
            (devices(true, 0.0, 0.1, true), "position 1"),
            (devices(true, 0.0, 0.0, false), "recorded"),
        ] {
            let failure = format!("{:?}", check_devices(&devices).unwrap_err());
            assert!(failure.contains(named), "{failure}");
        }
    }
}
