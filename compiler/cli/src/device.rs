//! `--device`

use crate::paths;
use bessemer_runtime::{DeviceChoice, Worker, WorkerOptions};
use clap::Args;

/// Where a model runs.
#[derive(Args, Clone, Copy, Debug)]
pub struct DeviceArgs {
    /// Where to run: auto, cpu, cuda, cuda:N or metal. `auto` takes a GPU if the engine holds kernels for it and the model fits, else the CPU
    #[arg(long, value_name = "D", default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
}

impl DeviceArgs {
    /// Options of a worker that runs there.
    pub fn options(self, options: WorkerOptions) -> WorkerOptions {
        let options = options.device(self.device);
        match paths::kernels() {
            Ok(folder) => options.kernel_cache(folder),
            // Without a home folder nothing is kept.
            Err(_) => options,
        }
    }

    /// Says which device it became, where there was a choice.
    pub fn say(self, worker: &Worker) {
        if self.device != DeviceChoice::Auto || worker.engine().variants().len() > 1 {
            eprintln!("device: {}", worker.device());
        }
    }
}
