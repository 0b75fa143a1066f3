//! `bessemer calibrate`

use crate::exit::Failure;
use crate::output::out;
use crate::progress::{Meter, Unit};
use crate::size::Size;
use crate::{interrupt, json, model};
use bessemer_compiler::calibrate::{Channels, OUTLIER, gather};
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::{CompileOptions, RunOptions};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bessemer calibrate model/ -o model.stats --calib texts/                        once; may be interrupted and started again
  bessemer compile model/ -o model.engine --precision awq --calib-stats model.stats
  bessemer compile model/ -o other.engine --target-bpw 4.5 --calib-stats model.stats";

/// Gather what calibration needs to know of a model's inputs on a text, for any number of compilations
///
/// The file holds the second moments of the inputs of all linear layers: it serves every precision and method, of this source alone. A
/// segment of the model is in memory at a time. What an interrupted run has gathered lies in OUT.partial, where the next one finds it.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A GGUF file, a Hugging Face directory or `hf:ORG/MODEL[@REVISION][/FILE.gguf]`
    #[arg(value_name = "SRC")]
    source: PathBuf,

    #[command(flatten)]
    hub: model::HubArgs,

    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,

    #[command(flatten)]
    calibration: model::CalibrationArgs,

    /// Folder that keeps results until the file is whole, and after it, in place of OUT.partial
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,

    /// Threads; 0 for all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        let checkpoint = Checkpoint::open(&self.hub.local(&self.source)?)?;
        let options = CompileOptions { calibration: self.calibration.corpus()?, ..CompileOptions::default() };
        let run = RunOptions { threads: self.threads, scratch: self.scratch, ..RunOptions::default() };
        interrupt::handle();
        let meter = Meter::new(Unit::Bytes);
        let gathered = gather(&checkpoint, &self.out, &options, &run, &meter)?;
        drop(meter);
        if self.json {
            return json::print(&gathered);
        }
        for Channels { weight, width, largest, outliers } in &gathered.inputs {
            out!(
                "{weight}: of {width} channels {outliers} above {OUTLIER} medians, the largest {largest:.1}"
            )?;
        }
        eprintln!(
            "{}: {}, {} inputs on {} tokens, hash {}",
            self.out.display(),
            Size(gathered.bytes),
            gathered.inputs.len(),
            gathered.tokens,
            gathered.hash
        );
        Ok(())
    }
}
