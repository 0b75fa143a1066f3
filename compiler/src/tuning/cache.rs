//! The tuning cache: which tactics were fastest on which machine, as a file that people can read, merge and keep beside their models.
//!
//! ```json
//! {
//!   "entries": [
//!     {
//!       "candidates": { "128": 812400, "256": 790100 },
//!       "machine": "AMD EPYC (family 26 model 17), 2 threads",
//!       "producer": "bessemer 0.1.0",
//!       "shapes": ["30 x attention ...", "..."],
//!       "tactic": "attention_chunk",
//!       "target": "cpu",
//!       "value": 256,
//!       "workload": "16 decode steps of 1 sequence at 1024 tokens"
//!     }
//!   ],
//!   "format": "bessemer tuning cache",
//!   "reads": [
//!     {
//!       "machine": "AMD EPYC (family 26 model 17), 2 threads",
//!       "nanoseconds": 302500,
//!       "producer": "bessemer 0.1.0",
//!       "scheme": "u4:s8x32*f16x0-8",
//!       "target": "cpu",
//!       "weights": 24407712
//!     }
//!   ],
//!   "version": 1
//! }
//! ```
//!
//! Times are nanoseconds of the workload, medians. An entry serves a compilation only if machine, producer, target and shapes are
//! all equal; what was read, if machine, producer, target and the number of weights are. Equal caches have equal bytes: entries and keys are sorted.

use super::reads::{ReadKey, Reads};
use bessemer_format::manifest::Hash;
use bessemer_targets::{Setting, Tactic};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What a cache calls itself.
const FORMAT: &str = "bessemer tuning cache";
/// The version of the form that is written and read.
const VERSION: u32 = 1;
/// A cache is small; a larger file is none.
const MAX_BYTES: u64 = 64 << 20;

/// A tuning cache that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuningError {
    /// The operating system.
    #[error("tuning cache {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// No tuning cache, or one that was cut or edited.
    #[error("{} is no tuning cache: {why}; give another file, or make a new one with `compile --tune`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        why: String,
    },
    /// Of another version of the form.
    #[error(
        "tuning cache {} is of version {found}, and this bessemer reads {VERSION}; make a new one with `compile --tune`",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// An entry that states what cannot be.
    #[error("tuning cache {}: entry {at} of `{list}`: {why}; remove the entry", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The list that it is in.
        list: &'static str,
        /// Number of the entry from 0.
        at: usize,
        /// What is wrong.
        why: String,
    },
}

/// What a measurement is about. Nothing else may use it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The CPU's model, and how many threads ran.
    pub machine: String,
    /// The compiler's version ([`bessemer_format::PRODUCER`]).
    pub producer: String,
    /// The target.
    pub target: String,
    /// The tactic.
    pub tactic: Tactic,
    /// What the model computes ([`bessemer_targets::tactics::shapes`]).
    pub shapes: Vec<String>,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The value that was chosen: one of the candidates.
    pub value: u32,
    /// What every candidate ran.
    pub workload: String,
    /// Nanoseconds of each candidate.
    pub candidates: BTreeMap<u32, u64>,
}

impl Measured {
    fn best(&self) -> u64 {
        self.candidates.get(&self.value).copied().unwrap_or(u64::MAX)
    }
}

/// Which tactics were fastest on which machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TuningCache {
    entries: BTreeMap<Key, Measured>,
    /// Nanoseconds.
    reads: BTreeMap<ReadKey, u64>,
}

/// The file. Fields in the order of their names.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    entries: Vec<Entry>,
    format: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reads: Vec<ReadEntry>,
    version: u64,
}

/// An entry of the file. Fields in the order of their names.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    candidates: BTreeMap<u32, u64>,
    machine: String,
    producer: String,
    shapes: Vec<String>,
    tactic: String,
    target: String,
    value: u32,
    workload: String,
}

/// How long reading took. Fields in the order of their names.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadEntry {
    machine: String,
    nanoseconds: u64,
    producer: String,
    scheme: String,
    target: String,
    weights: u64,
}

/// What tells a cache of another version from a file that is none.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

impl TuningCache {
    /// Reads a cache.
    pub fn read(path: &Path) -> Result<Self, TuningError> {
        let io = |source| TuningError::Io { path: path.into(), source };
        let damaged = |why: String| TuningError::Damaged { path: path.into(), why };
        if std::fs::metadata(path).map_err(io)?.len() > MAX_BYTES {
            return Err(damaged(format!("it is larger than {MAX_BYTES} bytes")));
        }
        let bytes = std::fs::read(path).map_err(io)?;
        let head: Head = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if head.format != FORMAT {
            return Err(damaged(format!("its format is `{}`, not `{FORMAT}`", head.format)));
        }
        if head.version != u64::from(VERSION) {
            return Err(TuningError::Version { path: path.into(), found: head.version });
        }
        let document: Document = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let mut cache = Self::default();
        for (at, entry) in document.entries.into_iter().enumerate() {
            let wrong = |why| TuningError::Entry { path: path.into(), list: "entries", at, why };
            let (key, measured) = entry.check().map_err(wrong)?;
            if cache.entries.insert(key, measured).is_some() {
                return Err(wrong(
                    "an entry before it has the same machine, producer, target, shapes and tactic".into(),
                ));
            }
        }
        for (at, entry) in document.reads.into_iter().enumerate() {
            let wrong = |why| TuningError::Entry { path: path.into(), list: "reads", at, why };
            let (key, nanoseconds) = entry.check().map_err(wrong)?;
            if cache.reads.insert(key, nanoseconds).is_some() {
                return Err(wrong(
                    "an entry before it is of the same machine, producer, target, weights and scheme".into(),
                ));
            }
        }
        Ok(cache)
    }

    /// Reads a cache that need not exist yet.
    pub fn read_or_new(path: &Path) -> Result<Self, TuningError> {
        match Self::read(path) {
            Err(TuningError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            other => other,
        }
    }

    /// Writes the cache, replacing the file as a whole.
    pub fn write(&self, path: &Path) -> Result<(), TuningError> {
        let io = |source| TuningError::Io { path: path.into(), source };
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let mut temp = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
        temp.write_all(self.text().as_bytes()).map_err(io)?;
        temp.persist(path).map_err(|e| io(e.error))?;
        Ok(())
    }

    /// The bytes of the file.
    pub fn text(&self) -> String {
        let entry = |(key, measured): (&Key, &Measured)| {
            let (key, measured) = (key.clone(), measured.clone());
            Entry {
                candidates: measured.candidates,
                machine: key.machine,
                producer: key.producer,
                shapes: key.shapes,
                tactic: key.tactic.to_string(),
                target: key.target,
                value: measured.value,
                workload: measured.workload,
            }
        };
        let entries = self.entries.iter().map(entry).collect();
        let read = |(key, nanoseconds): (&ReadKey, &u64)| ReadEntry {
            machine: key.machine.clone(),
            nanoseconds: *nanoseconds,
            producer: key.producer.clone(),
            scheme: key.scheme.to_string(),
            target: key.target.clone(),
            weights: key.weights,
        };
        let reads = self.reads.iter().map(read).collect();
        let document = Document { entries, format: FORMAT.into(), reads, version: VERSION.into() };
        // Strings, numbers and maps with keys of numbers: nothing that JSON cannot hold.
        let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
        text.push('\n');
        text
    }

    /// The hash of the file's bytes: what an engine's manifest names.
    pub fn hash(&self) -> Hash {
        Hash::of(self.text().as_bytes())
    }

    /// The entries in the order of the file.
    pub fn entries(&self) -> impl Iterator<Item = (&Key, &Measured)> {
        self.entries.iter()
    }

    /// How long weights of a scheme took, in nanoseconds, in the order of the file.
    pub fn read_times(&self) -> impl Iterator<Item = (&ReadKey, u64)> {
        self.reads.iter().map(|(key, nanoseconds)| (key, *nanoseconds))
    }

    /// What was measured for `key`.
    pub fn get(&self, key: &Key) -> Option<&Measured> {
        self.entries.get(key)
    }

    /// Adds an entry. Of two for the same key the one whose choice took less time stays: less disturbed it was, if nothing else. At
    /// a tie the smaller value stays, so that the order of merging changes nothing.
    pub fn insert(&mut self, key: Key, measured: Measured) {
        match self.entries.entry(key) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(measured);
            }
            std::collections::btree_map::Entry::Occupied(mut place) => {
                let rank = |m: &Measured| (m.best(), m.value, m.workload.clone(), m.candidates.clone());
                if rank(&measured) < rank(place.get()) {
                    place.insert(measured);
                }
            }
        }
    }

    /// Adds how long weights of a scheme took, in nanoseconds. Of two times the shorter one stays.
    pub fn insert_read(&mut self, key: ReadKey, nanoseconds: u64) {
        let held = self.reads.entry(key).or_insert(nanoseconds);
        *held = nanoseconds.min(*held);
    }

    /// Adds all entries of another cache, as [`TuningCache::insert`] does.
    pub fn merge(&mut self, other: &Self) {
        for (key, measured) in &other.entries {
            self.insert(key.clone(), measured.clone());
        }
        for (key, nanoseconds) in &other.reads {
            self.insert_read(key.clone(), *nanoseconds);
        }
    }

    /// How long `machine` reads so many weights of each scheme, as this version measured it.
    pub fn reads(&self, machine: &str, target: &str, weights: u64) -> Reads {
        let fits = |key: &ReadKey| {
            // Exhaustive, so that a new field is decided upon.
            let ReadKey { machine: m, producer, target: t, weights: w, scheme: _ } = key;
            m == machine && producer == bessemer_format::PRODUCER && t == target && *w == weights
        };
        let found = self.reads.iter().filter(|(key, _)| fits(key));
        Reads(found.map(|(key, nanoseconds)| (key.scheme, *nanoseconds)).collect())
    }

    /// The tactics that were measured for `machine`, by this version, for a model of these shapes.
    pub fn choices(&self, machine: &str, target: &str, shapes: &[String]) -> BTreeMap<Tactic, Setting> {
        let fits = |key: &&Key| {
            // Exhaustive, so that a new field is decided upon.
            let Key { machine: m, producer, target: t, tactic: _, shapes: s } = key;
            m == machine && producer == bessemer_format::PRODUCER && t == target && s == shapes
        };
        let found = self.entries.iter().filter(|(key, _)| fits(key));
        let setting = |(key, measured): (&Key, &Measured)| {
            let others: Vec<String> = measured.candidates.keys().map(ToString::to_string).collect();
            let why =
                format!("tuned for {machine}: fastest of {} at {}", others.join(", "), measured.workload);
            (key.tactic, Setting { value: measured.value, why })
        };
        found.map(setting).collect()
    }
}

impl Entry {
    fn check(self) -> Result<(Key, Measured), String> {
        let tactic: Tactic = self.tactic.parse()?;
        if !self.candidates.contains_key(&self.value) {
            return Err(format!("{tactic} is {}, which is not among the candidates", self.value));
        }
        self.candidates.keys().try_for_each(|value| tactic.check(*value))?;
        let key = Key {
            machine: self.machine,
            producer: self.producer,
            target: self.target,
            tactic,
            shapes: self.shapes,
        };
        Ok((key, Measured { value: self.value, workload: self.workload, candidates: self.candidates }))
    }
}

impl ReadEntry {
    fn check(self) -> Result<(ReadKey, u64), String> {
        let scheme = self.scheme.parse()?;
        if self.nanoseconds == 0 {
            return Err("reading takes no time".into());
        }
        let Self { machine, producer, target, weights, .. } = self;
        Ok((ReadKey { machine, producer, target, weights, scheme }, self.nanoseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(machine: &str, tactic: Tactic) -> Key {
        Key {
            machine: machine.into(),
            producer: bessemer_format::PRODUCER.into(),
            target: "cpu".into(),
            tactic,
            shapes: vec!["1 x a".into(), "2 x b".into()],
        }
    }

    fn measured(value: u32, candidates: &[(u32, u64)]) -> Measured {
        Measured { value, workload: "work".into(), candidates: candidates.iter().copied().collect() }
    }

    fn cache(entries: &[(Key, Measured)]) -> TuningCache {
        let mut cache = TuningCache::default();
        entries.iter().for_each(|(k, m)| cache.insert(k.clone(), m.clone()));
        cache
    }

    fn read(machine: &str, scheme: &str) -> ReadKey {
        ReadKey {
            machine: machine.into(),
            producer: bessemer_format::PRODUCER.into(),
            target: "cpu".into(),
            weights: 1000,
            scheme: scheme.parse().unwrap(),
        }
    }

    #[test]
    fn times_of_reading_are_kept_merged_and_serve_their_own_machine_and_model() {
        let (here, there) = (read("a", "u4:f16x32-8"), read("b", "u4:f16x32-8"));
        let mut one = TuningCache::default();
        one.insert_read(here.clone(), 50);
        one.insert_read(there, 10);
        let mut other = TuningCache::default();
        other.insert_read(here.clone(), 40);
        other.merge(&one);
        one.merge(&other);
        assert_eq!(one, other);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuning.json");
        one.write(&path).unwrap();
        let kept = TuningCache::read(&path).unwrap();
        assert_eq!(kept, one);
        assert_eq!(kept.reads("a", "cpu", 1000).0, BTreeMap::from([(here.scheme, 40)]));
        for (machine, target, weights) in [("c", "cpu", 1000), ("a", "cpu:aarch64", 1000), ("a", "cpu", 999)]
        {
            assert!(kept.reads(machine, target, weights).0.is_empty());
        }
    }

    #[test]
    fn a_file_gives_back_what_was_written_and_its_keys_are_sorted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuning.json");
        assert_eq!(TuningCache::read_or_new(&path).unwrap(), TuningCache::default());
        let made = cache(&[
            (key("b", Tactic::SplitRows), measured(7, &[(3, 20), (7, 10)])),
            (key("a", Tactic::ChunkRows), measured(128, &[(128, 5), (1024, 9)])),
        ]);
        made.write(&path).unwrap();
        let read = TuningCache::read(&path).unwrap();
        assert_eq!(read, made);
        assert_eq!((read.text(), read.hash()), (made.text(), made.hash()));
        let text = made.text();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let keys: Vec<_> = json["entries"][0].as_object().unwrap().keys().cloned().collect();
        let mut at = 0;
        for name in keys {
            let next = text.find(&format!("\"{name}\":")).unwrap();
            assert!(next > at, "{name} is out of order in\n{text}");
            at = next;
        }
        assert_eq!(json["entries"][0]["machine"], "a");
    }

    #[test]
    fn merging_keeps_the_better_time_in_any_order() {
        let (k, other) = (key("a", Tactic::ChunkRows), key("b", Tactic::ChunkRows));
        let slow = cache(&[(k.clone(), measured(256, &[(128, 40), (256, 30)]))]);
        let fast = cache(&[
            (k.clone(), measured(128, &[(128, 20), (256, 25)])),
            (other.clone(), measured(1, &[(1, 1)])),
        ]);
        let tie = cache(&[(k.clone(), measured(64, &[(64, 20)]))]);
        let merged = |order: [&TuningCache; 3]| {
            let mut all = TuningCache::default();
            order.iter().for_each(|c| all.merge(c));
            all
        };
        let all = merged([&slow, &fast, &tie]);
        assert_eq!(all.get(&k).unwrap().value, 64);
        assert_eq!(all.entries().count(), 2);
        for order in [[&fast, &slow, &tie], [&tie, &fast, &slow], [&slow, &tie, &fast]] {
            assert_eq!(merged(order).text(), all.text());
        }
    }

    #[test]
    fn an_entry_serves_its_own_machine_version_target_and_shapes_only() {
        let k = key("a", Tactic::ChunkRows);
        let mut old = k.clone();
        old.producer = "bessemer 0.0.0".into();
        old.tactic = Tactic::SplitRows;
        let all = cache(&[(k.clone(), measured(128, &[(128, 5)])), (old, measured(3, &[(3, 5)]))]);
        let found = all.choices("a", "cpu", &k.shapes);
        assert_eq!(found.keys().collect::<Vec<_>>(), [&Tactic::ChunkRows]);
        assert_eq!(found[&Tactic::ChunkRows].value, 128);
        assert!(all.choices("b", "cpu", &k.shapes).is_empty());
        assert!(all.choices("a", "cpu:x86-64-v3", &k.shapes).is_empty());
        assert!(all.choices("a", "cpu", &k.shapes[..1]).is_empty());
    }

    #[test]
    fn foreign_and_damaged_files_are_typed_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuning.json");
        let read_file = |text: &str| {
            std::fs::write(&path, text).unwrap();
            TuningCache::read(&path).unwrap_err()
        };
        let whole = cache(&[(key("a", Tactic::AttentionChunk), measured(64, &[(64, 5)]))]).text();
        assert!(matches!(
            TuningCache::read(folder.path().join("none").as_path()),
            Err(TuningError::Io { .. })
        ));
        for foreign in ["", "[]", "{}", &whole[..whole.len() / 2], &whole.replace(FORMAT, "shopping list")] {
            assert!(matches!(read_file(foreign), TuningError::Damaged { .. }), "{foreign}");
        }
        let unknown = whole.replace("\"workload\"", "\"worklaod\"");
        assert!(
            matches!(read_file(&unknown), TuningError::Damaged { why, .. } if why.contains("worklaod") && why.contains("line"))
        );
        let newer = whole.replace("\"version\": 1", "\"version\": 2");
        assert!(matches!(read_file(&newer), TuningError::Version { found: 2, .. }));
        for (from, to, says) in [
            ("\"value\": 64", "\"value\": 32", "not among the candidates"),
            ("\"attention_chunk\"", "\"luck\"", "no tactic"),
            ("64", "48", "attention_chunk is 48"),
        ] {
            let error = read_file(&whole.replace(from, to));
            assert!(matches!(&error, TuningError::Entry { at: 0, why, .. } if why.contains(says)), "{error}");
        }
        let mut timed = TuningCache::default();
        timed.insert_read(read("a", "u4:f16x32-8"), 5);
        for (from, to, says) in
            [("u4:f16x32-8", "u9:f16x32", "u9"), ("\"nanoseconds\": 5", "\"nanoseconds\": 0", "no time")]
        {
            let error = read_file(&timed.text().replace(from, to));
            let listed =
                matches!(&error, TuningError::Entry { at: 0, list: "reads", why, .. } if why.contains(says));
            assert!(listed, "{error}");
        }
    }
}
