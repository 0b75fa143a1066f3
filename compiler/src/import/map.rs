//! The one place of the importer that maps a file.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Maps a regular file for reading.
///
/// A pipe or a device is refused before it is opened, because opening one may block for ever.
pub(crate) fn map_file(path: &Path) -> io::Result<Mmap> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let file = File::open(path)?;
    // SAFETY: the map is private and read-only. Another process that writes to the file may change bytes under
    // us: nothing read through the map is trusted without a check on an owned copy, and weight bytes are only
    // numbers. One that truncates the file makes the operating system raise SIGBUS, which is documented.
    unsafe { Mmap::map(&file) }
}
