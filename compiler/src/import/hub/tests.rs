use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;
use crate::compile::Silent;
use crate::import::Checkpoint;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn names_are_taken_apart() {
    let parse = |name: &str| HubName::parse(name).unwrap();
    let name = |repo: &str, revision: &str, file: Option<&str>| HubName {
        repo: repo.into(),
        revision: revision.into(),
        file: file.map(Into::into),
    };
    assert!(HubName::parse("folder/model").is_none());
    assert_eq!(parse("hf:a/b").unwrap(), name("a/b", "main", None));
    assert_eq!(parse("hf:a/b@v1.0").unwrap(), name("a/b", "v1.0", None));
    assert_eq!(parse("hf:a/b@refs/pr/1").unwrap(), name("a/b", "refs/pr/1", None));
    assert_eq!(parse("hf:a/b/q4/x.gguf").unwrap(), name("a/b", "main", Some("q4/x.gguf")));
    assert_eq!(parse("hf:a/b@main/x.gguf").unwrap(), name("a/b", "main", Some("x.gguf")));
    for wrong in [
        "hf:a",
        "hf:a/",
        "hf:../b",
        "hf:a/b@",
        "hf:a/b@../../x",
        "hf:a/b/c.bin",
        "hf:a/b/../x.gguf",
        "hf:a/b/x.gguf@main/y.gguf",
        "hf:a/b?c",
    ] {
        assert!(matches!(parse(wrong), Err(HubError::Name { .. })), "{wrong}");
    }
}

/// What was asked for: path, range, token.
type Log = Arc<Mutex<Vec<(String, String, String)>>>;

/// A server that answers as the Hub does, for one repository.
struct Server {
    endpoint: String,
    log: Log,
}

impl Server {
    fn start(repo: &str, files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let log = Log::default();
        let (repo, seen) = (repo.to_owned(), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &repo, &files, &seen);
            }
        });
        Server { endpoint, log }
    }

    fn asked(&self) -> Vec<(String, String, String)> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub { endpoint: Some(self.endpoint.clone()), cache: cache.to_owned(), token: None, offline: false }
    }
}

fn answer(mut stream: TcpStream, repo: &str, files: &BTreeMap<String, Vec<u8>>, log: &Log) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let (mut range, mut token) = (String::new(), String::new());
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap();
        match name.to_ascii_lowercase().as_str() {
            "range" => range = value.trim().to_owned(),
            "authorization" => token = value.trim().to_owned(),
            _ => {}
        }
    }
    log.lock().unwrap().push((path.clone(), range.clone(), token));
    let info = [format!("/api/models/{repo}/revision/main"), format!("/api/models/{repo}/revision/{COMMIT}")];
    let (status, headers, body) = if info.contains(&path) {
        let siblings: Vec<Json> = files.keys().map(|f| serde_json::json!({"rfilename": f})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        ("200 OK", "Content-Type: application/json\r\n".to_owned(), body.into_bytes())
    } else if let Some(file) =
        path.strip_prefix(&format!("/{repo}/resolve/{COMMIT}/")).and_then(|f| files.get(f))
    {
        let (start, end) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = end.parse().map_or(file.len(), |end: usize| end + 1);
        let etag = blake3::hash(file).to_hex();
        let place = format!("bytes {start}-{}/{}", end - 1, file.len());
        let headers = format!("ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: {place}\r\n");
        ("206 Partial Content", headers, file[start..end].to_vec())
    } else {
        ("404 Not Found", String::new(), b"not here".to_vec())
    };
    let head =
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // A client that has read enough may hang up.
    let _ = stream.write_all(&[head.as_bytes(), &body].concat());
}

fn fixture(model: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models").join(model);
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

fn fetch(hub: &Hub, name: &str) -> Result<Fetched, HubError> {
    hub.fetch(&HubName::parse(name).unwrap().unwrap(), &Silent)
}

#[test]
fn a_sharded_checkpoint_comes_whole_and_nothing_else() {
    let mut files = fixture("f16_sharded");
    let needed = files.len();
    files.insert("README.md".into(), b"# Hello".to_vec());
    files.insert("pytorch_model.bin".into(), vec![0; 1000]);
    let server = Server::start("org/tiny", files);
    let cache = tempfile::tempdir().unwrap();
    let mut hub = server.hub(cache.path());
    hub.token = Some("hf_secret".into());
    let fetched = fetch(&hub, "hf:org/tiny").unwrap();
    assert_eq!((fetched.repo.as_str(), fetched.commit.as_str()), ("org/tiny", COMMIT));
    assert_eq!(fetched.to_string(), format!("hf:org/tiny@{COMMIT}"));
    let asked = server.asked();
    assert!(asked.iter().all(|(_, _, token)| token == "Bearer hf_secret"));
    assert!(!asked.iter().any(|(path, ..)| path.contains("README") || path.contains(".bin")), "{asked:?}");
    assert_eq!(
        asked.len(),
        1 + 2 * needed,
        "the list, and for every file its length and its content: {asked:?}"
    );

    let local =
        Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models/f16_sharded"))
            .unwrap();
    let remote = Checkpoint::open(&fetched.path).unwrap();
    assert_eq!(remote.content_hash(|_, _| ()), local.content_hash(|_, _| ()));

    // Again: what the branch is now, and no file.
    assert_eq!(fetch(&hub, "hf:org/tiny").unwrap(), fetched);
    assert_eq!(server.asked().len(), 1);
    // Offline: nothing at all, by branch and by commit.
    hub.offline = true;
    assert_eq!(fetch(&hub, "hf:org/tiny").unwrap(), fetched);
    assert_eq!(fetch(&hub, &format!("hf:org/tiny@{COMMIT}")).unwrap(), fetched);
    assert!(server.asked().is_empty());
    let error = fetch(&hub, "hf:org/tiny@dev").unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }) && error.to_string().contains("--offline"), "{error}");
    // A shard that was lost is named.
    let shard = files_ending(&fetched.path, "00001-of-00002.safetensors");
    std::fs::remove_file(shard).unwrap();
    let error = fetch(&hub, "hf:org/tiny").unwrap_err();
    assert!(error.to_string().contains("-00001-of-"), "{error}");
}

fn files_ending(folder: &Path, end: &str) -> PathBuf {
    let mut entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.find(|p| p.to_str().unwrap().ends_with(end)).unwrap()
}

#[test]
fn one_gguf_file_or_the_one_that_is_named() {
    let gguf =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models/gqa_tied.f32.gguf"))
            .unwrap();
    let one = BTreeMap::from([
        ("q8/tiny.gguf".to_owned(), gguf.clone()),
        ("config.json".to_owned(), b"{}".to_vec()),
    ]);
    let server = Server::start("org/one", one.clone());
    let cache = tempfile::tempdir().unwrap();
    let fetched = fetch(&server.hub(cache.path()), "hf:org/one").unwrap();
    assert!(fetched.path.ends_with("q8/tiny.gguf"));
    assert!(Checkpoint::open(&fetched.path).is_ok());

    let mut several = one;
    several.insert("other.gguf".into(), gguf);
    let server = Server::start("org/several", several);
    let hub = server.hub(cache.path());
    let error = fetch(&hub, "hf:org/several").unwrap_err().to_string();
    assert!(
        error.contains("hf:org/several/q8/tiny.gguf") && error.contains("hf:org/several/other.gguf\n"),
        "{error}"
    );
    assert!(fetch(&hub, "hf:org/several/other.gguf").is_ok());
    let error = fetch(&hub, &format!("hf:org/several@{COMMIT}/third.gguf")).unwrap_err();
    assert!(matches!(&error, HubError::NoFile { remedy, .. } if remedy.contains("other.gguf")), "{error}");
}

#[test]
fn a_download_that_broke_off_goes_on() {
    let content: Vec<u8> = (0..50_000u32).flat_map(u32::to_le_bytes).collect();
    let server = Server::start("org/long", BTreeMap::from([("long.gguf".to_owned(), content.clone())]));
    let cache = tempfile::tempdir().unwrap();
    let blobs = cache.path().join("models--org--long/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(format!("{}.part", blake3::hash(&content).to_hex()));
    std::fs::write(part, &content[..123_456]).unwrap();
    let fetched = fetch(&server.hub(cache.path()), "hf:org/long").unwrap();
    assert_eq!(std::fs::read(fetched.path).unwrap(), content);
    assert!(server.asked().iter().any(|(_, range, _)| range == "bytes=123456-"));
}

#[test]
fn what_is_not_there_is_said() {
    let server = Server::start("org/pickle", BTreeMap::from([("pytorch_model.bin".to_owned(), vec![0; 10])]));
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    let error = fetch(&hub, "hf:org/pickle").unwrap_err().to_string();
    assert!(error.contains("pytorch_model.bin") && error.contains("safetensors"), "{error}");
    let error = fetch(&hub, "hf:org/nobody").unwrap_err();
    assert!(matches!(&error, HubError::Request { remedy, .. } if remedy.contains("name")), "{error}");
}

#[test]
fn an_index_that_names_what_the_repository_lacks() {
    let mut files = fixture("f16_sharded");
    let shard = files.keys().find(|name| name.contains("00002-of")).unwrap().clone();
    files.remove(&shard);
    let server = Server::start("org/torn", files);
    let cache = tempfile::tempdir().unwrap();
    let error = fetch(&server.hub(cache.path()), "hf:org/torn").unwrap_err();
    assert!(matches!(&error, HubError::NoFile { file, .. } if *file == shard), "{error}");
}
