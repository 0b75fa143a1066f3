//! Writing an engine, streamed: the weights go straight to the file, nothing is held in memory but the small sections.

use crate::codec;
use crate::error::FormatError;
use crate::file::weights_hash;
use crate::header::{Entry, Frame, HEADER_BYTES, SectionKind};
use crate::manifest::{Hash, Manifest, Report};
use crate::plan::WeightSlice;
use crate::variant::VariantPlan;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

/// Everything of an engine but the weights' bytes.
pub struct Sections<'a> {
    /// What the engine is. Its `weight_hashes` are filled in by the writer.
    pub manifest: Manifest,
    /// What it executes: a plan for each of the manifest's variants.
    pub plans: &'a [VariantPlan],
    /// Encoded tokeniser section; empty for none.
    pub tokenizer: &'a [u8],
    /// Machine code of nests; empty for none.
    pub code: &'a [u8],
    /// Kernels for GPUs; empty for none.
    pub device: &'a [u8],
    /// Why the compiler chose what it chose.
    pub report: &'a Report,
    /// Text for people; empty for none.
    pub debug: &'a str,
}

/// Bytes of the engine that [`write_engine`] makes of `sections`.
pub fn engine_len(mut sections: Sections<'_>) -> Result<u64, FormatError> {
    Ok(lay_out(&mut sections)?.frame.file_len)
}

/// Where sections lie, and those that were encoded to know it.
struct Laid {
    frame: Frame,
    plans: Vec<u8>,
    report: Vec<u8>,
}

fn weights_of<'a>(sections: &Sections<'a>) -> &'a [WeightSlice] {
    sections.plans.first().map_or(&[], |variant| &variant.plan.weights)
}

/// Makes room in the manifest for the weights' hashes, and gives every section its place.
fn lay_out(sections: &mut Sections<'_>) -> Result<Laid, FormatError> {
    let weights = weights_of(sections);
    sections.manifest.weight_hashes = vec![Hash([0; 32]); weights.len()];
    let plans = codec::encode(&sections.plans)?;
    let report = codec::encode(sections.report)?;
    let lens = [
        (SectionKind::Manifest, codec::encode(&sections.manifest)?.len() as u64),
        (SectionKind::Plan, plans.len() as u64),
        (SectionKind::Tokenizer, sections.tokenizer.len() as u64),
        (SectionKind::Weights, weights.iter().map(|w| w.offset + w.len).max().unwrap_or(0)),
        (SectionKind::Code, sections.code.len() as u64),
        (SectionKind::Device, sections.device.len() as u64),
        (SectionKind::Report, report.len() as u64),
        (SectionKind::Debug, sections.debug.len() as u64),
    ];
    let present: Vec<_> = lens.into_iter().filter(|(_, len)| *len > 0).collect();
    let mut cursor = (HEADER_BYTES * (1 + present.len())) as u64;
    let mut entries = Vec::new();
    for (kind, len) in present {
        let offset = cursor.next_multiple_of(kind.align());
        entries.push(Entry { kind: kind as u32, flags: kind.flags(), offset, len, hash: Hash([0; 32]) });
        cursor = offset + len;
    }
    Ok(Laid { frame: Frame { file_len: cursor.next_multiple_of(64), entries }, plans, report })
}

/// Writes an engine into `out` (which must be empty). `fill(id, sink)` writes the bytes of weight `id`, exactly as many as the
/// plan says. Weights must lie in the plan in ascending offsets without overlap.
///
/// The manifest needs the weights' hashes and stands before them, so room for it is kept: its encoded size does not
/// depend on the values of hashes.
pub fn write_engine<W: Write + Seek>(
    out: &mut W,
    path: &Path,
    mut sections: Sections<'_>,
    fill: &mut dyn FnMut(u32, &mut dyn Write) -> Result<(), std::io::Error>,
) -> Result<Frame, FormatError> {
    let io = |source| FormatError::Io { path: path.to_path_buf(), source };
    let Laid { mut frame, plans, report } = lay_out(&mut sections)?;
    let weights = weights_of(&sections);

    // Weights first: everything else is known only when their hashes are.
    if let Some(entry) = frame.entry(SectionKind::Weights).copied() {
        out.seek(SeekFrom::Start(entry.offset)).map_err(io)?;
        let mut written = 0u64;
        for (id, w) in weights.iter().enumerate() {
            if w.offset < written {
                return Err(FormatError::Invalid {
                    at: format!("weight {id}"),
                    why: format!("starts at {} inside the one before, which ends at {written}", w.offset),
                });
            }
            write_zeros(out, w.offset - written).map_err(io)?;
            let mut sink = HashingSink { inner: &mut *out, hasher: blake3::Hasher::new(), written: 0 };
            fill(id as u32, &mut sink).map_err(io)?;
            if sink.written != w.len {
                return Err(FormatError::Length { what: "weight", found: sink.written, expected: w.len });
            }
            sections.manifest.weight_hashes[id] = Hash(*sink.hasher.finalize().as_bytes());
            written = w.offset + w.len;
        }
    }
    let manifest = codec::encode(&sections.manifest)?;
    for entry in &mut frame.entries {
        let bytes: &[u8] = match SectionKind::from_number(entry.kind) {
            Some(SectionKind::Manifest) => &manifest,
            Some(SectionKind::Plan) => &plans,
            Some(SectionKind::Tokenizer) => sections.tokenizer,
            Some(SectionKind::Code) => sections.code,
            Some(SectionKind::Device) => sections.device,
            Some(SectionKind::Report) => &report,
            Some(SectionKind::Debug) => sections.debug.as_bytes(),
            Some(SectionKind::Weights) | None => {
                entry.hash = weights_hash(&sections.manifest.weight_hashes);
                continue;
            }
        };
        entry.hash = Hash::of(bytes);
        out.seek(SeekFrom::Start(entry.offset)).map_err(io)?;
        out.write_all(bytes).map_err(io)?;
    }
    // Gaps were never written: seeking over them left zeros. The end needs its padding written out.
    let end = frame.entries.last().map_or(HEADER_BYTES as u64, |e| e.offset + e.len);
    out.seek(SeekFrom::Start(end)).map_err(io)?;
    write_zeros(out, frame.file_len - end).map_err(io)?;
    out.seek(SeekFrom::Start(0)).map_err(io)?;
    out.write_all(&frame.encode()).map_err(io)?;
    out.flush().map_err(io)?;
    Ok(frame)
}

fn write_zeros(out: &mut dyn Write, mut count: u64) -> std::io::Result<()> {
    let zeros = [0u8; 4096];
    while count > 0 {
        let now = count.min(zeros.len() as u64) as usize;
        out.write_all(&zeros[..now])?;
        count -= now as u64;
    }
    Ok(())
}

struct HashingSink<'a> {
    inner: &'a mut dyn Write,
    hasher: blake3::Hasher,
    written: u64,
}

impl Write for HashingSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.written += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
