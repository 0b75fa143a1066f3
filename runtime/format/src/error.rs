//! Errors of reading and writing engine files.

use std::path::PathBuf;

/// Why a file is not an engine that this version can use. Every variant says what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Not an engine at all.
    #[error(
        "not an engine file: it starts with {found:02x?} and not with {expected:02x?}; compile the model with `bessemer compile`"
    )]
    Magic {
        /// First bytes of the file.
        found: Vec<u8>,
        /// What an engine starts with.
        expected: [u8; 8],
    },
    /// Written by another version of the format.
    #[error(
        "the engine has format {found_major}.{found_minor} and this runtime reads {major}.{oldest_minor} to {major}.{minor}; \
         compile the model again with this version of bessemer"
    )]
    Version {
        /// Major version of the file.
        found_major: u16,
        /// Minor version of the file.
        found_minor: u16,
        /// Major version of this runtime.
        major: u16,
        /// Oldest minor version of this runtime.
        oldest_minor: u16,
        /// Newest minor version of this runtime.
        minor: u16,
    },
    /// The file ends too early or has bytes too many.
    #[error(
        "{what}: {found} bytes where {expected} are expected; the file is truncated or damaged, compile or copy it again"
    )]
    Length {
        /// Which part.
        what: &'static str,
        /// Bytes there.
        found: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// A hash does not match.
    #[error("{what} is damaged: its hash is {found}, the file says {expected}; compile or copy it again")]
    Hash {
        /// Which part.
        what: String,
        /// Hash of the bytes.
        found: String,
        /// Hash that the file states.
        expected: String,
    },
    /// A section's bytes do not decode.
    #[error("section {section} does not decode: {why}; the file is damaged or was not written by bessemer")]
    Codec {
        /// Which section.
        section: &'static str,
        /// What bincode said.
        why: String,
    },
    /// A section is missing, doubled or unknown.
    #[error("section {section}: {why}")]
    Section {
        /// Which section.
        section: String,
        /// What is wrong.
        why: String,
    },
    /// The plan decodes but must not be run.
    #[error("the plan is not valid at {at}: {why}; the file was not written by a correct compiler")]
    Invalid {
        /// Where in the plan.
        at: String,
        /// What is wrong.
        why: String,
    },
}
