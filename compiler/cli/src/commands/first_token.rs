//! `bessemer first-token`, hidden: the process that `bench` starts to see how long a process takes to its first token.

use crate::device::DeviceArgs;
use crate::exit::Failure;
use crate::generate::Generator;
use crate::measure::memory;
use crate::model::ModelArgs;
use crate::output::out;
use bessemer_runtime::sample::SamplerConfig;
use bessemer_runtime::text::Special;
use bessemer_runtime::{Batch, CancelHandle, Want, Worker, WorkerOptions};

/// Prompt of models that take text.
const PROMPT: &str = "The capital of France is";

/// Prints how many pages had to come from disk, once the first token is there.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Threads
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        let model = self.model.open()?;
        let options = self.device.options(WorkerOptions::default().threads(self.threads));
        let mut worker = Worker::new(&model.engine, options)?;
        match super::run::tokenizer(&model) {
            Ok(tokenizer) => {
                let tokens = super::run::raw_tokens(&tokenizer, PROMPT, Special::AsText)?;
                let sampler = SamplerConfig::greedy();
                let context = model.engine.plan().model.context as usize;
                let mut generator = Generator::new(worker, tokenizer, sampler, Vec::new(), context)?;
                generator.answer(&tokens, Some(1), &CancelHandle::new(), &mut |_| Ok(()))?;
            }
            Err(_) => {
                let mut sequence = worker.sequence();
                let mut batch = Batch::new();
                batch.push(&mut sequence, &[0], Want::Last);
                worker.forward(&mut batch)?;
            }
        }
        let faults = memory::major_faults().map_or("unknown".into(), |n| n.to_string());
        Ok(out!("{faults}")?)
    }
}
