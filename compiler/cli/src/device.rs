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

    /// Layers that run on the GPU, where a model is larger than its memory: the last N and the head. The others run on the CPU; 0 is all of them
    #[arg(long, value_name = "N", alias = "n-gpu-layers")]
    pub gpu_layers: Option<usize>,
}

impl DeviceArgs {
    /// Options of a worker that runs there.
    pub fn options(self, options: WorkerOptions) -> WorkerOptions {
        let mut options = options.device(self.device);
        if let Some(layers) = self.gpu_layers {
            options = options.gpu_layers(layers);
        }
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
