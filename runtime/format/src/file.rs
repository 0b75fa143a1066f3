//! Opening an engine: map, check, decode. Nothing here is in proportion to the weights.

use crate::codec;
use crate::error::FormatError;
use crate::gpu::GpuCode;
use crate::header::{Frame, SectionKind};
use crate::manifest::{Hash, Manifest, Report};
use crate::plan::{Plan, WeightSlice};
use crate::validate::{self, SectionBytes};
use crate::variant::{CodeSlice, DeviceCode, DeviceKind, VariantPlan};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Read-only bytes, mapped or owned, shared and 64-byte aligned.
#[derive(Clone)]
pub struct Bytes(Arc<Storage>);

enum Storage {
    Map(memmap2::Mmap),
    /// A `Vec` with spare room, and where its 64-byte aligned part starts and ends.
    Owned(Vec<u8>, Range<usize>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &*self.0 {
            Storage::Map(map) => map,
            Storage::Owned(bytes, range) => &bytes[range.clone()],
        }
    }
}

impl Bytes {
    /// Copies `bytes` to an address that is a multiple of 64.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut owned = vec![0; bytes.len() + 63];
        let skip = owned.as_ptr().align_offset(64).min(63);
        owned[skip..skip + bytes.len()].copy_from_slice(bytes);
        Self(Arc::new(Storage::Owned(owned, skip..skip + bytes.len())))
    }

    /// Asks the operating system to read and map all pages of a mapped file now. An error means that this system
    /// cannot; the pages then come as they are touched.
    pub fn prefetch(&self) -> std::io::Result<()> {
        match &*self.0 {
            #[cfg(target_os = "linux")]
            Storage::Map(map) => map.advise(memmap2::Advice::PopulateRead),
            #[cfg(not(target_os = "linux"))]
            Storage::Map(_) => Err(std::io::ErrorKind::Unsupported.into()),
            Storage::Owned(..) => Ok(()),
        }
    }
}

/// Maps a file read-only. An empty file gives empty bytes.
///
/// The operating system shares the pages with everybody who maps the file. If the file is truncated while it is mapped,
/// touching the lost pages ends the process (SIGBUS): engines and checkpoints must not be changed in place while in use.
pub fn map_file(path: &Path) -> Result<Bytes, FormatError> {
    let io = |source| FormatError::Io { path: path.to_path_buf(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    map_opened(&file).map_err(io)
}

/// Maps an already opened file read-only, as [`map_file`].
pub fn map_opened(file: &std::fs::File) -> std::io::Result<Bytes> {
    if file.metadata()?.is_dir() {
        return Err(std::io::Error::new(std::io::ErrorKind::IsADirectory, "is a directory"));
    }
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::copy_of(&[]));
    }
    // SAFETY: the map is read-only and private to readers of this type, which treat its bytes as untrusted input;
    // a change of the file by another process may change values, which every reader tolerates (documented above).
    let map = unsafe { memmap2::Mmap::map(file)? };
    // Where the file system can, what is read from disk becomes pages of 2 MB: fewer faults, fewer walks of the page table. An
    // error means that it cannot.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(Bytes(Arc::new(Storage::Map(map))))
}

/// An opened engine file: decoded, validated, weights still untouched on disk.
#[derive(Clone)]
pub struct EngineFile {
    bytes: Bytes,
    frame: Frame,
    /// What the engine is.
    pub manifest: Arc<Manifest>,
    plans: Arc<[VariantPlan]>,
}

/// What an engine holds for one kind of device.
#[derive(Clone, Copy, Debug)]
pub struct VariantRef<'a> {
    /// The target as it is named on the command line.
    pub target: &'a str,
    /// What the device must have, and where its code lies.
    pub device: &'a DeviceCode,
    /// What it executes.
    pub plan: &'a Plan,
    /// The kernels and launches of a GPU; nothing for a CPU.
    pub gpu: Option<&'a GpuCode>,
}

impl EngineFile {
    /// Opens a file by mapping it.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        Self::from_bytes(map_file(path)?)
    }

    /// Checks frame, hashes (of everything but the weights), decodes and validates.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, FormatError> {
        let frame = Frame::parse(&bytes)?;
        for entry in &frame.entries {
            if entry.kind != SectionKind::Weights as u32 {
                let found = Hash::of(&bytes[entry.offset as usize..(entry.offset + entry.len) as usize]);
                check_hash(section_name(entry.kind), found, entry.hash)?;
            }
        }
        check_padding(&bytes, &frame)?;
        let section = |kind: SectionKind| {
            find(&bytes, &frame, kind)
                .ok_or_else(|| FormatError::Section { section: kind.name().into(), why: "is missing".into() })
        };
        let manifest: Manifest = codec::decode("MANIFEST", section(SectionKind::Manifest)?)?;
        let plans: Vec<VariantPlan> = codec::decode("PLAN", section(SectionKind::Plan)?)?;
        let [weights, code] =
            [SectionKind::Weights, SectionKind::Code].map(|kind| frame.entry(kind).map_or(0, |e| e.len));
        let device = find(&bytes, &frame, SectionKind::Device).unwrap_or(&[]);
        validate::validate(&plans, &manifest, SectionBytes { weights, code, device })?;
        if let Some(entry) = frame.entry(SectionKind::Weights) {
            check_hash(
                "WEIGHTS (list of tensors)".into(),
                weights_hash(&manifest.weight_hashes),
                entry.hash,
            )?;
        }
        Ok(Self { bytes, frame, manifest: Arc::new(manifest), plans: plans.into() })
    }

    /// The bytes of a section; empty where the file has none.
    pub fn section(&self, kind: SectionKind) -> &[u8] {
        find(&self.bytes, &self.frame, kind).unwrap_or(&[])
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Header and table of contents.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The hash that identifies the engine: it covers every byte, the weights through the hashes of their tensors.
    pub fn hash(&self) -> Hash {
        Hash(std::array::from_fn(|i| self.bytes[32 + i]))
    }

    /// What it holds for each kind of device, in the order of [`DeviceKind`]. There is at least one.
    pub fn variants(&self) -> impl ExactSizeIterator<Item = VariantRef<'_>> {
        self.manifest.variants.iter().zip(self.plans.iter()).map(|(variant, VariantPlan { plan, gpu })| {
            VariantRef { target: &variant.target, device: &variant.device, plan, gpu: gpu.as_ref() }
        })
    }

    /// What it holds for a kind of device.
    pub fn variant(&self, kind: DeviceKind) -> Option<VariantRef<'_>> {
        self.variants().find(|v| v.device.kind() == kind)
    }

    /// A part of the DEVICE section that a variant names.
    pub fn device_code(&self, slice: CodeSlice) -> &[u8] {
        let section = self.section(SectionKind::Device);
        section.get(slice.offset as usize..(slice.offset + slice.len) as usize).unwrap_or(&[])
    }

    /// The slices of the WEIGHTS section: those of every variant's plan.
    pub fn weights(&self) -> &[WeightSlice] {
        self.plans.first().map_or(&[], |variant| &variant.plan.weights)
    }

    /// The bytes of a weight.
    pub fn weight(&self, id: u32) -> &[u8] {
        let w = &self.weights()[id as usize];
        &self.section(SectionKind::Weights)[w.offset as usize..(w.offset + w.len) as usize]
    }

    /// The report, if the file has one.
    pub fn report(&self) -> Result<Option<Report>, FormatError> {
        match find(&self.bytes, &self.frame, SectionKind::Report) {
            Some(bytes) => Ok(Some(codec::decode("REPORT", bytes)?)),
            None => Ok(None),
        }
    }

    /// Reads all weights and checks each tensor's hash. The error names the tensor.
    pub fn verify_weights(&self) -> Result<(), FormatError> {
        for (id, expected) in self.manifest.weight_hashes.iter().enumerate() {
            let found = Hash::of(self.weight(id as u32));
            let name = self.manifest.tensors.iter().find(|t| t.weights.contains(&(id as u32)));
            let name = name.map_or_else(|| format!("weight {id}"), |t| format!("tensor {}", t.name));
            check_hash(name, found, *expected)?;
        }
        Ok(())
    }
}

/// The hash of the WEIGHTS section: over its tensors' hashes.
pub fn weights_hash(hashes: &[Hash]) -> Hash {
    let mut h = blake3::Hasher::new();
    for hash in hashes {
        h.update(&hash.0);
    }
    Hash(*h.finalize().as_bytes())
}

fn find<'a>(bytes: &'a [u8], frame: &Frame, kind: SectionKind) -> Option<&'a [u8]> {
    let e = frame.entry(kind)?;
    bytes.get(e.offset as usize..(e.offset + e.len) as usize)
}

fn section_name(kind: u32) -> String {
    let name = SectionKind::from_number(kind).map_or("of unknown kind", SectionKind::name);
    format!("section {name}")
}

fn check_hash(what: String, found: Hash, expected: Hash) -> Result<(), FormatError> {
    if found == expected {
        return Ok(());
    }
    Err(FormatError::Hash { what, found: found.to_string(), expected: expected.to_string() })
}

/// Bytes between sections are zero, so that no byte of a file escapes its hashes. (Padding inside WEIGHTS is the
/// weights' own matter.)
fn check_padding(bytes: &[u8], frame: &Frame) -> Result<(), FormatError> {
    let mut cursor = (crate::header::HEADER_BYTES * (1 + frame.entries.len())) as u64;
    let ends = frame.entries.iter().map(|e| (e.offset, e.offset + e.len));
    for (start, end) in ends.chain([(frame.file_len, frame.file_len)]) {
        if bytes[cursor as usize..start as usize].iter().any(|b| *b != 0) {
            return Err(FormatError::Section {
                section: "padding".into(),
                why: format!(
                    "bytes {cursor}..{start} between sections are not zero; the file is damaged, compile or copy it again"
                ),
            });
        }
        cursor = end;
    }
    Ok(())
}
