//! Checkpoints from the Hugging Face Hub: `hf:ORG/MODEL[@REVISION][/FILE.gguf]`.
//!
//! Files go through `hf-hub` into the cache that it shares with the Python library, so that what one of them has downloaded
//! the other one finds, and a download that broke off goes on. A revision becomes a commit first, and everything is
//! fetched at that commit: a branch that moves meanwhile mixes nothing.

use std::fmt;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value as Json;

use super::source::{COMPANIONS, CONFIG, INDEX, SINGLE};
use crate::compile::Progress;

/// What begins the name of a source on the Hub.
pub const SCHEME: &str = "hf:";

/// The branch that is meant where none is named.
const MAIN: &str = "main";

/// A model on the Hub did not come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The name is not one.
    #[error("`{name}`: {why}; write hf:ORG/MODEL, hf:ORG/MODEL@REVISION or hf:ORG/MODEL/FILE.gguf")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is no folder to download into.
    #[error("there is no home directory to keep downloads in; set HF_HOME")]
    NoHome,
    /// The Hub, or the way to it, failed.
    #[error("{what}: {why}; {remedy}")]
    Request {
        /// What was fetched.
        what: String,
        /// What happened.
        why: String,
        /// What helps.
        remedy: &'static str,
    },
    /// Not in the cache, and nothing may be fetched.
    #[error("{what} is not in {}; run once without --offline", cache.display())]
    Offline {
        /// What is missing.
        what: String,
        /// The cache's folder.
        cache: PathBuf,
    },
    /// The repository holds several GGUF files and none was chosen.
    #[error("{repo} holds {} GGUF files; name one of them:\n{}", files.len(), list(repo, files))]
    Several {
        /// The repository.
        repo: String,
        /// Their names.
        files: Vec<String>,
    },
    /// The repository has no weights that are read.
    #[error("{repo} holds {found}; expected safetensors with a config.json, or a GGUF file")]
    NoWeights {
        /// The repository.
        repo: String,
        /// What there is instead.
        found: String,
    },
    /// The repository does not have the file that was named.
    #[error("{repo} has no file {file}; {remedy}")]
    NoFile {
        /// The repository.
        repo: String,
        /// The name.
        file: String,
        /// Names that it has.
        remedy: String,
    },
}

fn list(repo: &str, files: &[String]) -> String {
    files.iter().map(|file| format!("  {SCHEME}{repo}/{file}")).collect::<Vec<_>>().join("\n")
}

/// The name of a source on the Hub, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `ORG/MODEL`.
    pub repo: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// A GGUF file of the repository.
    pub file: Option<String>,
}

impl HubName {
    /// Takes a name apart; `None` if it is a path and not a name on the Hub.
    pub fn parse(name: &str) -> Option<Result<Self, HubError>> {
        let rest = name.strip_prefix(SCHEME)?;
        Some(Self::parts(rest).map_err(|why| HubError::Name { name: name.to_owned(), why }))
    }

    fn parts(rest: &str) -> Result<Self, &'static str> {
        let plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
            !part.is_empty() && part != "." && part != ".." && part.chars().all(allowed)
        };
        let is_path = |path: &str| path.split('/').all(plain);
        let (place, revision) = match rest.split_once('@') {
            Some((place, revision)) => (place, Some(revision)),
            None => (rest, None),
        };
        let mut parts = place.splitn(3, '/');
        let (Some(org), Some(model)) = (parts.next(), parts.next()) else {
            return Err("a model is an organisation and a name");
        };
        let (mut revision, mut file) = (revision.unwrap_or(MAIN), parts.next());
        // A revision may hold slashes of its own, so only a file's ending tells where it ends.
        if let Some((before, name)) = revision.split_once('/').filter(|_| is_gguf(revision)) {
            if file.is_some() {
                return Err("the file is named twice");
            }
            (revision, file) = (before, Some(name));
        }
        match file {
            _ if !(plain(org) && plain(model)) => Err("the model's name has characters that no name has"),
            _ if !is_path(revision) => Err("the revision has characters that none has"),
            Some(file) if !is_path(file) || !is_gguf(file) => {
                Err("the file is not a GGUF file of the repository")
            }
            _ => Ok(HubName {
                repo: format!("{org}/{model}"),
                revision: revision.to_owned(),
                file: file.map(str::to_owned),
            }),
        }
    }
}

fn is_gguf(name: &str) -> bool {
    name.ends_with(".gguf")
}

/// A checkpoint that lies in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The directory or the GGUF file, to be opened.
    pub path: PathBuf,
    /// `ORG/MODEL`.
    pub repo: String,
    /// The commit.
    pub commit: String,
}

impl fmt::Display for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}@{}", self.repo, self.commit)
    }
}

/// Where models come from.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Where the Hub is; the public one without it.
    pub endpoint: Option<String>,
    /// Folder of downloads.
    pub cache: PathBuf,
    /// For models that are not public.
    pub token: Option<String>,
    /// Whether only the cache may be looked at.
    pub offline: bool,
}

impl Hub {
    /// The Hub as the user's environment describes it: HF_ENDPOINT, HF_HOME, HF_TOKEN or the token of `hf auth login`.
    pub fn from_env(offline: bool) -> Result<Self, HubError> {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = set("HF_HOME").map(PathBuf::from);
        let home = home
            .or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")))
            .ok_or(HubError::NoHome)?;
        let cache = Cache::new(home.join("hub"));
        let token = set("HF_TOKEN").or_else(|| cache.token());
        Ok(Hub { endpoint: set("HF_ENDPOINT"), cache: cache.path().clone(), token, offline })
    }

    /// Makes sure that the files that compiling needs are in the cache, and says where.
    pub fn fetch(&self, name: &HubName, progress: &dyn Progress) -> Result<Fetched, HubError> {
        if self.offline { self.find(name) } else { self.download(name, progress) }
    }

    fn repo(&self, name: &HubName, revision: &str) -> Repo {
        Repo::with_revision(name.repo.clone(), RepoType::Model, revision.to_owned())
    }

    fn download(&self, name: &HubName, progress: &dyn Progress) -> Result<Fetched, HubError> {
        let cache = Cache::new(self.cache.clone());
        let mut builder = ApiBuilder::from_cache(cache.clone()).with_progress(false).with_retries(2);
        builder = builder.with_token(self.token.clone());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        let api = builder.build().map_err(|e| request(&name.repo, &e))?;
        let what = format!("{}@{}", name.repo, name.revision);
        let info = api.repo(self.repo(name, &name.revision)).info().map_err(|e| request(&what, &e))?;
        let commit = info.sha;
        if !is_commit(&commit) {
            let why = format!("the commit is `{}`", commit.escape_default());
            return Err(HubError::Request { what, why, remedy: "is HF_ENDPOINT a Hub?" });
        }
        let pinned = self.repo(name, &commit);
        for repo in [self.repo(name, &name.revision), pinned.clone()] {
            let written = cache.repo(repo).create_ref(&commit);
            written.map_err(|e| request(&what, &ApiError::IoError(e)))?;
        }
        let files: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
        let at =
            Snapshot { repo: &name.repo, folder: cache.repo(pinned.clone()).pointer_path(&commit), files };
        let (cached, remote) = (cache.repo(pinned.clone()), api.repo(pinned));
        let path = at.checkpoint(name, &|file| match cached.get(file) {
            Some(path) => Ok(path),
            None => get(&remote, &name.repo, file, progress),
        })?;
        Ok(Fetched { path, repo: name.repo.clone(), commit })
    }

    fn find(&self, name: &HubName) -> Result<Fetched, HubError> {
        let missing = |what: String| HubError::Offline { what, cache: self.cache.clone() };
        let folder = self.cache.join(self.repo(name, MAIN).folder_name());
        let known = std::fs::read_to_string(folder.join("refs").join(&name.revision)).ok();
        let commit = known.map_or_else(|| name.revision.clone(), |text| text.trim().to_owned());
        let snapshot = folder.join("snapshots").join(&commit);
        if !is_commit(&commit) || !snapshot.is_dir() {
            return Err(missing(format!("{}@{}", name.repo, name.revision)));
        }
        let mut files = Vec::new();
        names_below(&snapshot, "", &mut files);
        files.sort();
        let at = Snapshot { repo: &name.repo, folder: snapshot.clone(), files };
        let path = at.checkpoint(name, &|file| {
            let path = snapshot.join(file);
            if path.exists() { Ok(path) } else { Err(missing(format!("{}@{commit}/{file}", name.repo))) }
        });
        // What an incomplete snapshot lacks is missing here, not on the Hub.
        let path = path.map_err(|error| match error {
            HubError::NoFile { file, .. } => missing(format!("{}@{commit}/{file}", name.repo)),
            HubError::NoWeights { .. } => missing(format!("the weights of {}@{commit}", name.repo)),
            other => other,
        })?;
        Ok(Fetched { path, repo: name.repo.clone(), commit })
    }
}

/// The files of a repository at one commit.
struct Snapshot<'a> {
    repo: &'a str,
    /// Where they lie once they are there.
    folder: PathBuf,
    /// Their names.
    files: Vec<String>,
}

impl Snapshot<'_> {
    /// Gets the files that a checkpoint consists of, and says what to open.
    fn checkpoint(
        &self,
        name: &HubName,
        get: &dyn Fn(&str) -> Result<PathBuf, HubError>,
    ) -> Result<PathBuf, HubError> {
        let has = |file: &str| self.files.iter().any(|f| f == file);
        let ggufs: Vec<&String> = self.files.iter().filter(|file| is_gguf(file)).collect();
        if let Some(file) = &name.file {
            if has(file) {
                return get(file);
            }
            let remedy = match ggufs.as_slice() {
                [] => "it has no GGUF file at all".to_owned(),
                names => {
                    format!("it has {}", names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", "))
                }
            };
            return Err(HubError::NoFile { repo: self.repo.to_owned(), file: file.clone(), remedy });
        }
        if has(CONFIG) && (has(SINGLE) || has(INDEX)) {
            get(CONFIG)?;
            for companion in COMPANIONS.into_iter().filter(|file| has(file)) {
                get(companion)?;
            }
            let shards = if has(SINGLE) { vec![SINGLE.to_owned()] } else { shards(&get(INDEX)?) };
            for shard in shards {
                // The index was downloaded too: a name that the repository does not list is not asked for.
                if !has(&shard) {
                    let remedy = format!("its {INDEX} names it: the repository is incomplete");
                    return Err(HubError::NoFile { repo: self.repo.to_owned(), file: shard, remedy });
                }
                get(&shard)?;
            }
            return Ok(self.folder.clone());
        }
        match ggufs.as_slice() {
            [file] => get(file),
            [] => {
                let weights = |f: &&String| {
                    [".bin", ".pt", ".pth", ".safetensors", ".onnx"].iter().any(|e| f.ends_with(e))
                };
                let weights: Vec<&str> =
                    self.files.iter().filter(weights).take(8).map(String::as_str).collect();
                let found = if weights.is_empty() { "no weights".to_owned() } else { weights.join(", ") };
                Err(HubError::NoWeights { repo: self.repo.to_owned(), found })
            }
            several => {
                let files = several.iter().map(|file| (*file).clone()).collect();
                Err(HubError::Several { repo: self.repo.to_owned(), files })
            }
        }
    }
}

/// The shards that an index names; opening the checkpoint says what is wrong with an index that cannot be read.
fn shards(index: &Path) -> Vec<String> {
    let json: Option<Json> = std::fs::read(index).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let map = json.as_ref().and_then(|json| json.get("weight_map")?.as_object());
    let mut names: Vec<String> = map
        .into_iter()
        .flat_map(|map| map.values())
        .filter_map(|name| Some(name.as_str()?.to_owned()))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The names of the files in a snapshot, `1_Pooling/config.json` and the like included.
fn names_below(folder: &Path, prefix: &str, out: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let name = format!("{prefix}{name}");
        // Files are links to blobs, so that a folder is one that is none.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names_below(&entry.path(), &format!("{name}/"), out);
        } else {
            out.push(name);
        }
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn get(remote: &ApiRepo, repo: &str, file: &str, progress: &dyn Progress) -> Result<PathBuf, HubError> {
    struct Watch<'a>(&'a dyn Progress, String);
    impl hf_hub::api::Progress for Watch<'_> {
        fn init(&mut self, size: usize, _: &str) {
            self.0.start(&self.1, crate::compile::Amount::Bytes(size as u64));
        }
        fn update(&mut self, size: usize) {
            self.0.advance(size as u64);
        }
        fn finish(&mut self) {}
    }
    let path = remote.download_with_progress(file, Watch(progress, format!("download {file}")));
    path.map_err(|e| request(&format!("{repo}/{file}"), &e))
}

fn request(what: &str, error: &ApiError) -> HubError {
    let why = error.to_string();
    let remedy = match &why {
        why if why.contains("401") || why.contains("403") => {
            "the name is wrong, or the model is gated: accept its licence on the Hub, and set HF_TOKEN"
        }
        why if why.contains("404") => "check the name and the revision",
        _ => "check the connection, or use what is in the cache with --offline",
    };
    HubError::Request { what: what.to_owned(), why, remedy }
}
