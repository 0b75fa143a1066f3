//! Mapping a file of a checkpoint.

use std::fs::File;
use std::io;
use std::path::Path;

use bessemer_format::file::{Bytes, map_opened};

/// Maps a regular file for reading.
///
/// A pipe or a device is refused before it is opened, because opening one may block for ever.
pub(crate) fn map_file(path: &Path) -> io::Result<Bytes> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    map_opened(&File::open(path)?)
}
