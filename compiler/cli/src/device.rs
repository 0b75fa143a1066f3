//! `--device`

use bessemer_runtime::{DeviceChoice, Worker};
use clap::Args;

/// Where a model runs.
#[derive(Args, Clone, Copy, Debug)]
pub struct DeviceArgs {
    /// Where to run: auto, cpu, cuda or cuda:N. `auto` takes a GPU if the engine holds kernels for it and the model fits, else the CPU
    #[arg(long, value_name = "D", default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
}

impl DeviceArgs {
    /// Says which device it became, where there was a choice.
    pub fn say(self, worker: &Worker) {
        if self.device != DeviceChoice::Auto || worker.engine().variants().len() > 1 {
            eprintln!("device: {}", worker.device());
        }
    }
}
