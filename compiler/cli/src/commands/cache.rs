//! `bessemer cache`

use crate::exit::Failure;
use crate::json;
use crate::model::{CacheArgs, waiting};
use crate::output::out;
use crate::size::Size;
use bessemer_runtime::Engine;
use clap::Subcommand;
use serde::Serialize;

/// List, limit or clear the cache of compiled engines
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
    /// Remove all engines
    Clear,
}

#[derive(Serialize)]
struct Listing {
    root: String,
    limit: u64,
    bytes: u64,
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
            }
            Action::Limit { size } => {
                let freed = cache.set_limit(size.0, &waiting)?;
                eprintln!("limit {size}; freed {}", Size(freed));
            }
            Action::Clear => eprintln!("freed {}", Size(cache.clear(&waiting)?)),
        }
        Ok(())
    }
}

fn about(engine: &Engine) -> String {
    let manifest = engine.manifest();
    let precision = manifest.options.iter().find(|(k, _)| k == "precision").map_or("", |(_, v)| v);
    format!("{} {precision}, {} layers", manifest.source.architecture, engine.plan().model.layers)
}
