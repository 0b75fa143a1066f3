//! Models from the Hugging Face Hub, against a server on this machine.

use bessemer_compiler::Silent;
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::import::hub::{Fetched, Hub, HubError, HubName};
use bessemer_tests::hub::{COMMIT, Server, files};
use bessemer_tests::models;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn of(server: &Server, cache: &Path) -> Hub {
    Hub { endpoint: Some(server.endpoint.clone()), cache: cache.to_owned(), token: None, offline: false }
}

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

fn fixture(model: &str) -> BTreeMap<String, Vec<u8>> {
    files(&models::fixture(model))
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
    let mut hub = of(&server, cache.path());
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

    let local = Checkpoint::open(models::fixture("f16_sharded")).unwrap();
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
    let gguf = std::fs::read(models::fixture("gqa_tied.f32.gguf")).unwrap();
    let one = BTreeMap::from([
        ("q8/tiny.gguf".to_owned(), gguf.clone()),
        ("config.json".to_owned(), b"{}".to_vec()),
    ]);
    let server = Server::start("org/one", one.clone());
    let cache = tempfile::tempdir().unwrap();
    let fetched = fetch(&of(&server, cache.path()), "hf:org/one").unwrap();
    assert!(fetched.path.ends_with("q8/tiny.gguf"));
    assert!(Checkpoint::open(&fetched.path).is_ok());

    let mut several = one;
    several.insert("other.gguf".into(), gguf);
    let server = Server::start("org/several", several);
    let hub = of(&server, cache.path());
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
    let fetched = fetch(&of(&server, cache.path()), "hf:org/long").unwrap();
    assert_eq!(std::fs::read(fetched.path).unwrap(), content);
    assert!(server.asked().iter().any(|(_, range, _)| range == "bytes=123456-"));
}

#[test]
fn what_is_not_there_is_said() {
    let server = Server::start("org/pickle", BTreeMap::from([("pytorch_model.bin".to_owned(), vec![0; 10])]));
    let cache = tempfile::tempdir().unwrap();
    let hub = of(&server, cache.path());
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
    let error = fetch(&of(&server, cache.path()), "hf:org/torn").unwrap_err();
    assert!(matches!(&error, HubError::NoFile { file, .. } if *file == shard), "{error}");
}
