//! A cache of compiled engines, found by content: source, options and version.
//!
//! ```text
//! ROOT/lock            held by whoever compiles, evicts or writes the memo
//! ROOT/limit           bytes that the engines may take, as a decimal number
//! ROOT/memo.json       what was read before, so that an unchanged source is not hashed again
//! ROOT/KEY.engine      an engine; its modification time is the time of its last use
//! ```
//!
//! An engine's name is [`compile::key`](crate::compile::key), so an entry is right or absent, never stale. The memo maps
//! a source's path to its files' (name, size, modification time, inode) and their content hash: an unchanged source is
//! recognised without reading a byte of its weights. It is only ever a shortcut; losing it costs time, nothing else.

use crate::compile::{Progress, compile_checkpoint, key, source_hash};
use crate::error::CompileError;
use crate::import::Checkpoint;
use crate::options::{CompileOptions, RunOptions};
use bessemer_format::manifest::Hash;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes that the engines of a cache may take if nobody said otherwise.
pub const DEFAULT_LIMIT: u64 = 64 << 30;

/// A file that changed so recently may change again within the same tick of the file system's clock, so it is not noted.
const SETTLED: Duration = Duration::from_secs(2);

/// A folder of compiled engines.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// The cache's folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cache {}: {what}: {source}; use another folder with --cache-dir", path.display())]
pub struct CacheError {
    path: PathBuf,
    what: &'static str,
    source: std::io::Error,
}

/// An engine out of the cache.
#[derive(Clone, Debug)]
pub struct Cached {
    /// Where it lies.
    pub path: PathBuf,
    /// Whether it was there already. If not, it has just been compiled.
    pub hit: bool,
    /// The source was recognised without being read.
    pub memoised: bool,
}

/// An entry of [`Cache::list`].
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// The key, which is the file's name.
    pub key: String,
    /// The engine.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Seconds between 1970 and its last use.
    pub used: u64,
}

/// What identifies a state of a file without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    name: String,
    size: u64,
    modified_ns: u128,
    inode: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Note {
    files: Vec<Stamp>,
    hash: String,
}

/// The memo: a source's path, and what was found there.
type Memo = BTreeMap<String, Note>;

/// Holds the lock until it is dropped.
struct Locked(#[expect(dead_code, reason = "the lock ends with the file")] File);

impl Cache {
    /// The cache in `root`, which is made if it does not exist.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, CacheError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(|source| CacheError {
            path: root.clone(),
            what: "cannot be made",
            source,
        })?;
        Ok(Self { root })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The engine of `source` under `options`, compiled now if it is not there. `waiting` is told when another process
    /// holds the lock.
    pub fn engine(
        &self,
        source: &Path,
        options: &CompileOptions,
        run: &RunOptions,
        progress: &dyn Progress,
        waiting: &dyn Fn(),
    ) -> Result<Cached, CompileError> {
        if let Some(hash) = self.recall(source) {
            let path = self.path_of(key(hash, options));
            if self.touch(&path) {
                return Ok(Cached { path, hit: true, memoised: true });
            }
        }
        let checkpoint = Checkpoint::open(source)?;
        let before = stamps(source);
        let hash = source_hash(&checkpoint, progress)?;
        let path = self.path_of(key(hash, options));

        let _lock = self.lock(waiting)?;
        if before.is_some() && before == stamps(source) {
            self.remember(source, before.unwrap_or_default(), hash);
        }
        // Another process may have compiled it while this one waited.
        if self.touch(&path) {
            return Ok(Cached { path, hit: true, memoised: false });
        }
        let run = RunOptions { source_hash: Some(hash), ..run.clone() };
        compile_checkpoint(&checkpoint, &path, options, &run, None, progress)?;
        self.evict(self.limit(), Some(&path));
        Ok(Cached { path, hit: false, memoised: false })
    }

    /// Removes an engine, one that is damaged: the next to ask for it compiles it again.
    pub fn forget(&self, engine: &Path, waiting: &dyn Fn()) -> Result<(), CacheError> {
        let _lock = self.lock(waiting)?;
        match fs::remove_file(engine) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(CacheError { path: engine.into(), what: "cannot be removed", source })
            }
            _ => Ok(()),
        }
    }

    /// The engines, least recently used first.
    pub fn list(&self) -> Result<Vec<Entry>, CacheError> {
        let failed = |source| CacheError { path: self.root.clone(), what: "cannot be read", source };
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.root).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            if path.extension().is_none_or(|e| e != "engine") {
                continue;
            }
            // An engine may vanish while another process evicts.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let key = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let used = since_1970(metadata.modified().unwrap_or(UNIX_EPOCH)).as_secs();
            entries.push(Entry { key, path, bytes: metadata.len(), used });
        }
        entries.sort_by(|a, b| (a.used, &a.key).cmp(&(b.used, &b.key)));
        Ok(entries)
    }

    /// Bytes that the engines may take.
    pub fn limit(&self) -> u64 {
        let text = fs::read_to_string(self.root.join("limit")).ok();
        text.and_then(|t| t.trim().parse().ok()).unwrap_or(DEFAULT_LIMIT)
    }

    /// Sets the limit and evicts what exceeds it, the least recently used first. Gives the bytes that were freed.
    pub fn set_limit(&self, bytes: u64, waiting: &dyn Fn()) -> Result<u64, CacheError> {
        let _lock = self.lock(waiting)?;
        self.write("limit", format!("{bytes}\n").as_bytes()).map_err(|source| CacheError {
            path: self.root.join("limit"),
            what: "cannot be written",
            source,
        })?;
        Ok(self.evict(bytes, None))
    }

    /// Removes all engines and the memo. Gives the bytes that were freed.
    pub fn clear(&self, waiting: &dyn Fn()) -> Result<u64, CacheError> {
        let _lock = self.lock(waiting)?;
        let _ = fs::remove_file(self.root.join("memo.json"));
        Ok(self.evict(0, None))
    }

    fn path_of(&self, key: Hash) -> PathBuf {
        self.root.join(format!("{key}.engine"))
    }

    /// Notes a use of an engine. Whether it is there.
    fn touch(&self, path: &Path) -> bool {
        match File::open(path) {
            // A read-only cache serves as well; its order of use is then not kept.
            Ok(file) => file.set_modified(SystemTime::now()).is_ok() || path.is_file(),
            Err(_) => false,
        }
    }

    fn lock(&self, waiting: &dyn Fn()) -> Result<Locked, CacheError> {
        let path = self.root.join("lock");
        let failed = |source| CacheError { path: path.clone(), what: "cannot be locked", source };
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock().map_err(failed)?;
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        Ok(Locked(file))
    }

    /// Removes the least recently used engines until the rest fits, `keep` excepted.
    fn evict(&self, limit: u64, keep: Option<&Path>) -> u64 {
        self.remove_partial();
        let entries = self.list().unwrap_or_default();
        let mut total: u64 = entries.iter().map(|e| e.bytes).sum();
        let mut freed = 0;
        for entry in entries.iter().filter(|e| Some(e.path.as_path()) != keep) {
            if total <= limit {
                break;
            }
            // Where a mapped file cannot be removed it stays until next time.
            if fs::remove_file(&entry.path).is_ok() {
                total -= entry.bytes;
                freed += entry.bytes;
            }
        }
        freed
    }

    /// Removes what processes that were killed left behind. The lock is held, so nobody is writing.
    fn remove_partial(&self) {
        for file in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if file.file_name().to_string_lossy().ends_with(".partial") {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    /// The content hash of an unchanged source.
    fn recall(&self, source: &Path) -> Option<Hash> {
        let note = self.memo().remove(&memo_name(source)?)?;
        (stamps(source)? == note.files).then(|| note.hash.parse().ok()).flatten()
    }

    /// Notes a source. The lock is held. A memo that cannot be written is not worth an error.
    fn remember(&self, source: &Path, files: Vec<Stamp>, hash: Hash) {
        let Some(name) = memo_name(source) else { return };
        let now = since_1970(SystemTime::now());
        let settled = |s: &Stamp| s.modified_ns + SETTLED.as_nanos() <= now.as_nanos();
        if !files.iter().all(settled) {
            return;
        }
        let mut memo = self.memo();
        memo.retain(|path, _| Path::new(path).exists());
        memo.insert(name, Note { files, hash: hash.to_string() });
        if let Ok(json) = serde_json::to_vec_pretty(&memo) {
            let _ = self.write("memo.json", &json);
        }
    }

    fn memo(&self) -> Memo {
        let json = fs::read(self.root.join("memo.json")).unwrap_or_default();
        serde_json::from_slice(&json).unwrap_or_default()
    }

    /// Replaces a file as a whole, so that no reader sees half of it.
    fn write(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        let temp = tempfile::NamedTempFile::new_in(&self.root)?;
        fs::write(temp.path(), bytes)?;
        temp.persist(self.root.join(name))?;
        Ok(())
    }
}

impl From<CacheError> for CompileError {
    fn from(e: CacheError) -> Self {
        CompileError::Output { path: e.path, why: format!("{}: {}", e.what, e.source) }
    }
}

/// A source's name in the memo. A path that is no Unicode is not noted.
fn memo_name(source: &Path) -> Option<String> {
    fs::canonicalize(source).ok()?.to_str().map(str::to_owned)
}

/// The state of every file that may belong to `source`: the file itself, or all files of the folder.
fn stamps(source: &Path) -> Option<Vec<Stamp>> {
    let metadata = fs::metadata(source).ok()?;
    if !metadata.is_dir() {
        return Some(vec![stamp(String::new(), &metadata)?]);
    }
    let mut all = Vec::new();
    for file in fs::read_dir(source).ok()? {
        let file = file.ok()?;
        // Follows links, as the hub's download folders are made of them.
        let metadata = fs::metadata(file.path()).ok()?;
        // Nothing of a checkpoint lies in a folder below it.
        if metadata.is_file() {
            all.push(stamp(file.file_name().to_str()?.to_owned(), &metadata)?);
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Some(all)
}

fn stamp(name: String, metadata: &fs::Metadata) -> Option<Stamp> {
    let modified_ns = since_1970(metadata.modified().ok()?).as_nanos();
    Some(Stamp { name, size: metadata.len(), modified_ns, inode: inode(metadata) })
}

#[cfg(unix)]
fn inode(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &fs::Metadata) -> u64 {
    0
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(cache: &Cache, name: &str, bytes: usize, used: u64) {
        let path = cache.root.join(format!("{name}.engine"));
        fs::write(&path, vec![0; bytes]).unwrap();
        File::open(&path).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(used)).unwrap();
    }

    #[test]
    fn the_least_recently_used_engines_leave_first() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        for (name, used) in [("b", 20), ("a", 30), ("c", 10)] {
            entry(&cache, name, 100, used);
        }
        let keys = |cache: &Cache| cache.list().unwrap().into_iter().map(|e| e.key).collect::<Vec<_>>();
        assert_eq!(keys(&cache), ["c", "b", "a"]);
        assert_eq!(cache.set_limit(250, &|| ()).unwrap(), 100);
        assert_eq!((keys(&cache), cache.limit()), (vec!["b".into(), "a".into()], 250));
        assert_eq!(cache.evict(0, Some(&cache.root.join("b.engine"))), 100);
        assert_eq!(keys(&cache), ["b"]);
        assert_eq!(cache.clear(&|| ()).unwrap(), 100);
        assert_eq!(keys(&cache), Vec::<String>::new());
    }

    #[test]
    fn a_changed_source_is_not_recalled() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path().join("cache")).unwrap();
        let source = folder.path().join("model.gguf");
        let write = |bytes: &[u8], age: u64| {
            fs::write(&source, bytes).unwrap();
            let file = OpenOptions::new().append(true).open(&source).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        };
        let hash = Hash::of(b"content");
        write(b"1234", 1000);
        cache.remember(&source, stamps(&source).unwrap(), hash);
        assert_eq!(cache.recall(&source), Some(hash));
        write(b"4321", 500);
        assert_eq!(cache.recall(&source), None, "same size, another time");

        write(b"1234", 0);
        cache.remember(&source, stamps(&source).unwrap(), hash);
        assert_eq!(cache.recall(&source), None, "too fresh to be noted");
    }

    #[test]
    fn a_new_file_in_a_folder_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        let before = stamps(folder.path()).unwrap();
        fs::write(folder.path().join("chat_template.jinja"), "").unwrap();
        assert_ne!(before, stamps(folder.path()).unwrap());
    }

    #[test]
    fn one_process_at_a_time_holds_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let lock = cache.lock(&|| panic!("nobody else holds it")).unwrap();
        std::thread::scope(|scope| {
            let (told, waits) = std::sync::mpsc::channel();
            let other = cache.clone();
            let second = scope.spawn(move || other.lock(&|| told.send(()).unwrap()).is_ok());
            waits.recv().unwrap();
            drop(lock);
            assert!(second.join().unwrap());
        });
    }
}
