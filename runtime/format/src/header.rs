//! The frame of an engine file: a header of 64 bytes, then a table of contents.
//!
//! ```text
//!  0  8  magic "BESSEMER"
//!  8  2  major version          an older runtime reads no further than here
//! 10  2  minor version
//! 12  4  number of sections
//! 16  8  length of the file
//! 24  8  flags (0)
//! 32 32  blake3 over bytes 0..32 and the table of contents
//! 64     table of contents: a 64-byte entry a section
//! ```
//!
//! An entry is `kind u32 | flags u32 | offset u64 | length u64 | reserved u64 (0) | blake3[32]`. Sections follow in the order of
//! their kinds, 64-byte aligned (WEIGHTS and CODE 4096), padded with zero bytes, without gaps beyond alignment. The hash of WEIGHTS is the hash of
//! its tensors' hashes (they stand in MANIFEST), so that opening need not read the weights. All integers are little endian.

use crate::error::FormatError;
use crate::manifest::Hash;

/// First bytes of every engine.
pub const MAGIC: [u8; 8] = *b"BESSEMER";
/// Format version: files of another major version are refused.
pub const MAJOR: u16 = 0;
/// Format version: files of a newer minor version are refused, and while [`MAJOR`] is 0, of an older one too: any change of the
/// contract, of what scratch memory holds included, is then a new minor version.
pub const MINOR: u16 = 3;
/// Oldest minor version that is read.
pub const OLDEST_MINOR: u16 = if MAJOR == 0 { MINOR } else { 0 };
/// Bytes of the header and of an entry of the table of contents.
pub const HEADER_BYTES: usize = 64;
/// Alignment of mapped sections.
pub const PAGE: u64 = 4096;
/// A reader that does not know the kind may skip a section that has this flag.
pub const OPTIONAL: u32 = 1;

/// Kinds of sections, in the order in which they lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SectionKind {
    /// [`crate::manifest::Manifest`].
    Manifest = 1,
    /// A list of [`crate::variant::VariantPlan`]s.
    Plan = 2,
    /// Tokeniser, chat template, special tokens: the runtime's text feature reads it.
    Tokenizer = 3,
    /// Packed tensors.
    Weights = 4,
    /// Machine code of nests.
    Code = 5,
    /// Kernels for GPUs: binaries and text.
    Device = 6,
    /// [`crate::manifest::Report`].
    Report = 7,
    /// Text for people: the IR.
    Debug = 8,
}

impl SectionKind {
    /// Every kind, in file order.
    pub const ALL: [Self; 8] = [
        Self::Manifest,
        Self::Plan,
        Self::Tokenizer,
        Self::Weights,
        Self::Code,
        Self::Device,
        Self::Report,
        Self::Debug,
    ];

    /// The kind with this number.
    pub fn from_number(kind: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u32 == kind)
    }

    /// Name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manifest => "MANIFEST",
            Self::Plan => "PLAN",
            Self::Tokenizer => "TOKENIZER",
            Self::Weights => "WEIGHTS",
            Self::Code => "CODE",
            Self::Device => "DEVICE",
            Self::Report => "REPORT",
            Self::Debug => "DEBUG",
        }
    }

    /// Alignment of the section in the file.
    pub const fn align(self) -> u64 {
        match self {
            Self::Weights | Self::Code => PAGE,
            _ => 64,
        }
    }

    /// Whether a reader may skip it.
    pub const fn flags(self) -> u32 {
        match self {
            Self::Report | Self::Debug => OPTIONAL,
            _ => 0,
        }
    }
}

/// An entry of the table of contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of the kind ([`SectionKind`], or a later one).
    pub kind: u32,
    /// [`OPTIONAL`] or 0.
    pub flags: u32,
    /// Offset in the file.
    pub offset: u64,
    /// Length in bytes, without padding.
    pub len: u64,
    /// Hash of the bytes (for WEIGHTS of the tensors' hashes).
    pub hash: Hash,
}

/// Header and table of contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Length of the file.
    pub file_len: u64,
    /// The sections.
    pub entries: Vec<Entry>,
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}
fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

impl Frame {
    /// Bytes of header and table of contents.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES * (1 + self.entries.len()));
        out.extend(MAGIC);
        out.extend(MAJOR.to_le_bytes());
        out.extend(MINOR.to_le_bytes());
        out.extend((self.entries.len() as u32).to_le_bytes());
        out.extend(self.file_len.to_le_bytes());
        out.extend(0u64.to_le_bytes());
        out.extend([0; 32]);
        for e in &self.entries {
            out.extend(e.kind.to_le_bytes());
            out.extend(e.flags.to_le_bytes());
            out.extend(e.offset.to_le_bytes());
            out.extend(e.len.to_le_bytes());
            out.extend(0u64.to_le_bytes());
            out.extend(e.hash.0);
        }
        let hash = Self::hash(&out);
        out[32..64].copy_from_slice(&hash.0);
        out
    }

    /// Hash over everything of header and table but the hash itself.
    fn hash(bytes: &[u8]) -> Hash {
        let mut h = blake3::Hasher::new();
        h.update(&bytes[..32]).update(&bytes[HEADER_BYTES..]);
        Hash(*h.finalize().as_bytes())
    }

    /// Parses and checks header and table of contents of a whole file.
    pub fn parse(file: &[u8]) -> Result<Self, FormatError> {
        let found = file.get(..8).unwrap_or(file);
        if found != MAGIC {
            return Err(FormatError::Magic { found: found.to_vec(), expected: MAGIC });
        }
        let length =
            |what, found: usize, expected: u64| FormatError::Length { what, found: found as u64, expected };
        // The version stands first of all, so that any file can say which version wrote it.
        if file.len() < 12 {
            return Err(length("header", file.len(), HEADER_BYTES as u64));
        }
        let (major, minor) = (u16_at(file, 8), u16_at(file, 10));
        if major != MAJOR || !(OLDEST_MINOR..=MINOR).contains(&minor) {
            return Err(FormatError::Version {
                found_major: major,
                found_minor: minor,
                major: MAJOR,
                oldest_minor: OLDEST_MINOR,
                minor: MINOR,
            });
        }
        if file.len() < HEADER_BYTES {
            return Err(length("header", file.len(), HEADER_BYTES as u64));
        }
        let file_len = u64_at(file, 16);
        if file_len != file.len() as u64 {
            return Err(length("file", file.len(), file_len));
        }
        let count = u32_at(file, 12) as usize;
        let end = HEADER_BYTES.saturating_mul(count.saturating_add(1));
        if count > 64 || end > file.len() {
            return Err(length("table of contents", file.len(), end as u64));
        }
        let expected = Hash(std::array::from_fn(|i| file[32 + i]));
        let found = Self::hash(&file[..end]);
        if found != expected {
            return Err(FormatError::Hash {
                what: "header".into(),
                found: found.to_string(),
                expected: expected.to_string(),
            });
        }
        if u64_at(file, 24) != 0 {
            return Err(FormatError::Section {
                section: "header".into(),
                why: format!("flags are {:#x} and must be 0; compile the model again", u64_at(file, 24)),
            });
        }
        let mut entries = Vec::with_capacity(count);
        let mut cursor = end as u64;
        for raw in file[HEADER_BYTES..end].chunks_exact(HEADER_BYTES) {
            let entry = Entry {
                kind: u32_at(raw, 0),
                flags: u32_at(raw, 4),
                offset: u64_at(raw, 8),
                len: u64_at(raw, 16),
                hash: Hash(std::array::from_fn(|i| raw[32 + i])),
            };
            let kind = SectionKind::from_number(entry.kind);
            let name = || kind.map_or_else(|| format!("{}", entry.kind), |k| k.name().to_string());
            let bad = |why: String| FormatError::Section { section: name(), why };
            if kind.is_none() && entry.flags & OPTIONAL == 0 {
                return Err(bad(
                    "this runtime does not know it; the engine is newer, update bessemer or compile again"
                        .into(),
                ));
            }
            let known = kind.map_or(OPTIONAL, SectionKind::flags);
            if entry.flags != known || u64_at(raw, 24) != 0 {
                return Err(bad(format!(
                    "flags {:#x} and reserved {:#x} where {known:#x} and 0 are expected",
                    entry.flags,
                    u64_at(raw, 24)
                )));
            }
            if entries.last().is_some_and(|last: &Entry| last.kind >= entry.kind) {
                return Err(bad("sections are not in the order of their kinds".into()));
            }
            let align = kind.map_or(64, SectionKind::align);
            if entry.offset != cursor.next_multiple_of(align) {
                return Err(bad(format!(
                    "starts at {} and not at {}",
                    entry.offset,
                    cursor.next_multiple_of(align)
                )));
            }
            cursor = entry.offset.checked_add(entry.len).filter(|e| *e <= file_len).ok_or_else(|| {
                bad(format!("{} bytes at {} reach beyond the file of {file_len}", entry.len, entry.offset))
            })?;
            entries.push(entry);
        }
        if cursor.next_multiple_of(64) != file_len {
            return Err(length("file after its last section", file.len(), cursor.next_multiple_of(64)));
        }
        Ok(Self { file_len, entries })
    }

    /// The entry of a section.
    pub fn entry(&self, kind: SectionKind) -> Option<&Entry> {
        self.entries.iter().find(|e| e.kind == kind as u32)
    }
}
