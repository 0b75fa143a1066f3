//! Results that are dear to compute, in files named by what they were computed from: what a compilation that goes on after an interruption
//! finds again.

use crate::error::CompileError;
use bessemer_format::file::{Bytes, map_opened};
use bessemer_format::manifest::Hash;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// A folder of results.
pub(crate) struct Scratch {
    folder: PathBuf,
    /// Removes a temporary folder when the results are no longer needed.
    temporary: Option<Arc<tempfile::TempDir>>,
}

impl Scratch {
    /// The folder of what follows from `inputs`.
    pub fn new(root: Option<&std::path::Path>, inputs: &str) -> Result<Self, CompileError> {
        let (root, temporary) = match root {
            Some(root) => (root.to_path_buf(), None),
            None => {
                let folder =
                    tempfile::tempdir().map_err(|e| CompileError::Calibration(format!("scratch: {e}")))?;
                (folder.path().to_path_buf(), Some(Arc::new(folder)))
            }
        };
        let scratch = Self { folder: root.join(Hash::of(inputs.as_bytes()).to_string()), temporary };
        std::fs::create_dir_all(&scratch.folder).map_err(|e| scratch.error(e))?;
        Ok(scratch)
    }

    /// What keeps a temporary folder alive.
    pub fn guard(&self) -> Option<Arc<tempfile::TempDir>> {
        self.temporary.clone()
    }

    /// Whether a result is there.
    pub fn holds(&self, name: &str) -> bool {
        self.folder.join(name).is_file()
    }

    /// A result. Files appear whole or not at all, and carry their hash: one that a disk or a hand has damaged counts as absent.
    pub fn get(&self, name: &str) -> Result<Option<Bytes>, CompileError> {
        let file = match File::open(self.folder.join(name)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|e| self.error(e))?,
        };
        let bytes = map_opened(&file).map_err(|e| self.error(e))?;
        let whole = bytes.split_last_chunk::<32>().is_some_and(|(body, hash)| Hash::of(body).0 == *hash);
        Ok(whole.then_some(bytes))
    }

    /// Keeps a result.
    pub fn put(&self, name: &str, body: &[u8]) -> Result<(), CompileError> {
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            file.write_all(body)?;
            file.write_all(&Hash::of(body).0)?;
            file.persist(self.folder.join(name)).map_err(|e| e.error)?;
            Ok(())
        };
        write().map_err(|e| self.error(e))
    }

    fn error(&self, e: std::io::Error) -> CompileError {
        CompileError::Calibration(format!("{}: {e}", self.folder.display()))
    }
}

/// A result without the hash that ends it.
pub(crate) fn body(result: &Bytes) -> &[u8] {
    result.split_last_chunk::<32>().map_or(&[], |(body, _)| body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_results_count_as_absent() {
        let root = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(Some(root.path()), "inputs").unwrap();
        assert!(scratch.get("a").unwrap().is_none());
        scratch.put("a", b"dear").unwrap();
        assert_eq!(&scratch.get("a").unwrap().unwrap()[..4], b"dear");
        std::fs::write(scratch.folder.join("a"), [0; 40]).unwrap();
        assert!(scratch.get("a").unwrap().is_none());
    }
}
