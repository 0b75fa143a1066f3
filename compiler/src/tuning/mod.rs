//! Tuning: tactics of the schedule, and how long weights of each scheme take, timed on a machine, kept in a cache, used by later compilations.
//!
//! A cache is an input of a compilation like the checkpoint: the manifest names its hash and the machine that it was asked for.

pub mod cache;
pub mod measure;
pub mod reads;

pub use cache::{Key, Measured, TuningCache, TuningError};
pub use measure::{Event, TuneError, TuneOptions, tune};
pub use reads::{ReadKey, Reads};

use bessemer_targets::{Setting, Tactic};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A cache, and the machine whose measurements in it are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// The cache.
    pub cache: Arc<TuningCache>,
    /// The machine, as the cache's entries call it.
    pub machine: String,
}

/// `HASH for MACHINE`: how manifests and cache keys name it.
impl std::fmt::Display for Tuning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} for {}", self.cache.hash(), self.machine)
    }
}

/// The tactics that do not follow the rule: those of the user before those that were measured.
pub fn chosen(
    given: &BTreeMap<Tactic, u32>,
    tuning: Option<&Tuning>,
    target: &str,
    shapes: &[String],
) -> BTreeMap<Tactic, Setting> {
    let mut all = tuning.map_or_else(BTreeMap::new, |t| t.cache.choices(&t.machine, target, shapes));
    let given = given.iter().map(|(t, v)| (*t, Setting { value: *v, why: "given by the user".into() }));
    all.extend(given);
    all
}
