//! `bessemer tuning`

use crate::exit::Failure;
use crate::output::out;
use bessemer_compiler::tuning::TuningCache;
use clap::Subcommand;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bessemer compile model.gguf -o model.engine --tune --tuning-cache mine.json    measure, and keep what was found
  bessemer tuning show mine.json
  bessemer tuning merge mine.json yours.json -o ours.json
  bessemer compile model.gguf -o model.engine --tuning-cache ours.json           use it, measure nothing";

/// Show or merge caches of measured tactics
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Show what was measured, and on which machine
    Show {
        /// The cache
        cache: PathBuf,
        /// As JSON: the file as bessemer writes it
        #[arg(long)]
        json: bool,
    },
    /// Put all entries into one cache; of two for the same case the better time stays
    Merge {
        /// Caches
        #[arg(required = true)]
        caches: Vec<PathBuf>,
        /// The cache to write
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
    },
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        match self.action {
            Action::Show { cache, json } => show(&TuningCache::read(&cache)?, json),
            Action::Merge { caches, out } => {
                let mut all = TuningCache::default();
                for cache in &caches {
                    all.merge(&TuningCache::read(cache)?);
                }
                all.write(&out)?;
                let entries = all.entries().count() + all.read_times().count();
                eprintln!("{}: {entries} entries of {} caches", out.display(), caches.len());
                Ok(())
            }
        }
    }
}

fn show(cache: &TuningCache, json: bool) -> Result<(), Failure> {
    if json {
        return Ok(std::io::stdout().lock().write_all(cache.text().as_bytes())?);
    }
    // Models are told apart by a number: their shapes are long.
    let mut models: BTreeMap<&[String], usize> = BTreeMap::new();
    for (key, measured) in cache.entries() {
        let next = models.len() + 1;
        let model = *models.entry(&key.shapes).or_insert(next);
        out!(
            "{} = {}  ({}, {}, {}, model {model})",
            key.tactic,
            measured.value,
            key.machine,
            key.target,
            key.producer
        )?;
        let times: Vec<String> = measured
            .candidates
            .iter()
            .map(|(value, ns)| format!("{value}: {:.2} ms", *ns as f64 / 1e6))
            .collect();
        out!("  {}: {}", measured.workload, times.join(", "))?;
    }
    let mut models: Vec<_> = models.into_iter().collect();
    models.sort_by_key(|(_, number)| *number);
    for (shapes, number) in models {
        out!("model {number}")?;
        for shape in shapes {
            out!("  {shape}")?;
        }
    }
    for (key, nanoseconds) in cache.read_times() {
        let (scheme, weights) = (key.scheme, key.weights);
        let time = nanoseconds as f64 / 1e6;
        out!(
            "{weights} weights of {scheme}: {time:.3} ms  ({}, {}, {})",
            key.machine,
            key.target,
            key.producer
        )?;
    }
    Ok(out!("hash {}", cache.hash())?)
}
