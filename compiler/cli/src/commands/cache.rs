//! `bessemer cache`

use crate::exit::Failure;
use crate::json;
use crate::model::{CacheArgs, waiting};
use crate::output::out;
use crate::paths;
use crate::size::Size;
use bessemer_runtime::Engine;
use clap::Subcommand;
use serde::Serialize;
use std::path::Path;

/// List, limit or clear the cache of compiled engines and kernels
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  bessemer cache list\n  bessemer cache limit 20G\n  bessemer cache clear"
)]
pub struct Args {
    #[command(subcommand)]
    action: Action,

    #[command(flatten)]
    cache: CacheArgs,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Show the engines, least recently used first
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Set how much room engines may take; the least recently used leave first
    Limit {
        /// A size such as 20G
        size: Size,
    },
    /// Remove all engines, and the compiled kernels of GPUs beside them
    Clear,
}

#[derive(Serialize)]
struct Listing {
    root: String,
    limit: u64,
    bytes: u64,
    /// Bytes of compiled kernels, which the limit does not count.
    kernels: u64,
    engines: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    key: String,
    bytes: u64,
    used: u64,
    /// Architecture and precision; what else there is, `inspect` tells.
    about: String,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        let cache = self.cache.open()?;
        let kernels = paths::kernels_in(cache.root());
        match self.action {
            Action::List { json } => {
                let rows = cache.list()?.into_iter().map(|e| {
                    let about = Engine::open(&e.path).map_or_else(|e| format!("damaged: {e}"), |e| about(&e));
                    Row { key: e.key, bytes: e.bytes, used: e.used, about }
                });
                let engines: Vec<_> = rows.collect();
                let bytes = engines.iter().map(|e| e.bytes).sum();
                let listing = Listing {
                    root: cache.root().display().to_string(),
                    limit: cache.limit(),
                    bytes,
                    kernels: bytes_below(&kernels),
                    engines,
                };
                if json {
                    return json::print(&listing);
                }
                for row in &listing.engines {
                    out!(
                        "{}  {:>10}  {}",
                        &row.key[..16.min(row.key.len())],
                        Size(row.bytes).to_string(),
                        row.about
                    )?;
                }
                let (bytes, limit) = (Size(listing.bytes), Size(listing.limit));
                out!("{} engines, {bytes} of {limit} in {}", listing.engines.len(), listing.root)?;
                if listing.kernels > 0 {
                    out!("{} of compiled kernels", Size(listing.kernels))?;
                }
            }
            Action::Limit { size } => {
                let freed = cache.set_limit(size.0, &waiting)?;
                eprintln!("limit {size}; freed {}", Size(freed));
            }
            Action::Clear => {
                let freed = cache.clear(&waiting)? + bytes_below(&kernels);
                match std::fs::remove_dir_all(&kernels) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                    _ => eprintln!("freed {}", Size(freed)),
                }
            }
        }
        Ok(())
    }
}

/// Bytes of the files in a folder and in those below it. What cannot be read counts as nothing.
fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
        _ => entry.metadata().map_or(0, |file| file.len()),
    });
    bytes.sum()
}

fn about(engine: &Engine) -> String {
    let manifest = engine.manifest();
    let precision = manifest.options.iter().find(|(k, _)| k == "precision").map_or("", |(_, v)| v);
    format!("{} {precision}, {} layers", manifest.source.architecture, engine.plan().model.layers)
}
