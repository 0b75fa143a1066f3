//! A server on this machine that answers as the Hugging Face Hub does.

use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// The commit that every repository is at.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What was asked for: path, range, token.
type Log = Arc<Mutex<Vec<(String, String, String)>>>;

/// A server that answers as the Hub does, for one repository.
pub struct Server {
    /// Where it answers, as `HF_ENDPOINT` has it.
    pub endpoint: String,
    log: Log,
}

impl Server {
    /// Serves the files of `repo` at [`COMMIT`], which its branch `main` is at.
    pub fn start(repo: &str, files: BTreeMap<String, Vec<u8>>) -> Self {
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

    /// What it was asked for since the last time: path, range, token.
    pub fn asked(&self) -> Vec<(String, String, String)> {
        std::mem::take(&mut self.log.lock().unwrap())
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

/// The files of a directory, by their names.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}
