//! The user's trust list: engines whose machine code may run, by hash.
//!
//! An engine's hash covers every byte of it. Whoever can write this list can already run code as this user.

use crate::exit::{Code, Failure};
use crate::paths;
use bessemer_runtime::Hash;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

/// Whether the user trusts the engine with this hash. A list that cannot be read trusts nobody.
pub fn contains(hash: &Hash) -> bool {
    let Ok(text) = paths::trust_list().and_then(|p| Ok(fs::read_to_string(p)?)) else { return false };
    lists(&text, hash)
}

/// Puts an engine on the list. `path` is noted for people.
pub fn add(hash: &Hash, path: &Path) -> Result<(), Failure> {
    let list = paths::trust_list()?;
    let failed = |e: std::io::Error| Failure::new(Code::Internal, format!("{}: {e}", list.display()));
    if let Some(folder) = list.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(&list).map_err(failed)?;
    file.lock().map_err(failed)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    if lists(&text, hash) {
        return Ok(());
    }
    let path = path.display().to_string().replace(['\n', '\r'], " ");
    // One write, so that no other process sees half a line.
    file.write_all(format!("{hash} {path}\n").as_bytes()).map_err(failed)
}

fn lists(text: &str, hash: &Hash) -> bool {
    let hash = hash.to_string();
    text.lines().any(|line| line.split_whitespace().next() == Some(hash.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_hashes_count() {
        let (a, b) = (Hash([0xaa; 32]), Hash([0xbb; 32]));
        let text = format!("{a} /home/somebody/a b.engine\n# {b}\n{} x\n", &b.to_string()[..63]);
        assert!(lists(&text, &a));
        assert!(!lists(&text, &b));
    }
}
