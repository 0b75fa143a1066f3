//! An opened engine: immutable, shared, mapped.

use crate::bind::{self, BoundProgram};
use crate::code::Code;
use crate::error::EngineError;
use crate::host;
use crate::state::BlockLayout;
use bessemer_format::file::{self, Bytes, EngineFile, VariantRef};
use bessemer_format::header::SectionKind;
use bessemer_format::manifest::{Hash, KvElem, Manifest, Report};
use bessemer_format::plan::Plan;
use bessemer_format::variant::{DeviceCode, DeviceKind};
use bessemer_format::{FormatError, kv};
use bessemer_kernels::{Isa, KernelSet};
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// A compiled model, ready to run. Cloning it is cheap and shares the mapped file.
///
/// Opening maps the file, checks everything but the weights' bytes and resolves the plan; it reads no weights, so it
/// takes milliseconds whatever the size of the model. The file must not be changed in place while it is open.
///
/// ```
/// # fn main() -> Result<(), bessemer_runtime::EngineError> {
/// use bessemer_runtime::{Engine, KvElem};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/engines/gqa_tied.engine");
/// let engine = Engine::open(path)?;
/// println!("{} layers, vocabulary of {}", engine.plan().model.layers, engine.plan().model.vocab);
/// println!("{}", engine.memory(2048, KvElem::Bf16, 512).total());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    file: EngineFile,
    /// Those of the CPU; none where the engine has nothing for it.
    programs: Vec<BoundProgram>,
    kernels: &'static KernelSet,
    code: Option<Code>,
    trusted: bool,
}

/// What runs the loop nests of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestPath {
    /// The runtime executes the nests themselves.
    Interpreted,
    /// Machine code out of the engine file.
    Generated,
}

impl fmt::Display for NestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NestPath::Interpreted => "interpreted",
            NestPath::Generated => "generated",
        })
    }
}

/// What a worker takes at most, in bytes. Only what is used is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The KV cache when it is full.
    pub cache: u64,
    /// Activations.
    pub arena: u64,
    /// One row of logits.
    pub logits: u64,
}

impl MemoryEstimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.cache.saturating_add(self.arena).saturating_add(self.logits)
    }
}

impl Engine {
    /// Maps and checks the engine at `path`. No machine code of the file is ever run: its loop nests are interpreted.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, EngineError> {
        Self::open_with(path, KernelSet::host())
    }

    /// As [`Engine::open`], with the kernels of an older instruction set than the host's newest: to test and to compare them.
    pub fn open_with(path: impl AsRef<Path>, kernels: &'static KernelSet) -> Result<Self, EngineError> {
        Self::new(file::map_file(path.as_ref())?, false, kernels)
    }

    /// As [`Engine::open`], for a file that is open already.
    pub fn from_file(file: &File) -> Result<Self, EngineError> {
        let io = |source| EngineError::Format(FormatError::Io { path: "engine".into(), source });
        Self::new(file::map_opened(file).map_err(io)?, false, KernelSet::host())
    }

    /// As [`Engine::open`], for an engine in memory, of which it makes an aligned copy.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EngineError> {
        Self::from_bytes_with(bytes, KernelSet::host())
    }

    /// As [`Engine::from_bytes`], with kernels as for [`Engine::open_with`].
    pub fn from_bytes_with(bytes: &[u8], kernels: &'static KernelSet) -> Result<Self, EngineError> {
        Self::new(Bytes::copy_of(bytes), false, kernels)
    }

    /// As [`Engine::open`], and runs the machine code that the file holds: for its loop nests, where it fits this host, and the kernels for
    /// GPUs.
    ///
    /// # Safety
    /// The file must come from a compiler that you trust: its code runs with the rights of this process. The hashes
    /// in the file protect against damage, not against somebody who made the file on purpose.
    pub unsafe fn open_trusted(path: impl AsRef<Path>) -> Result<Self, EngineError> {
        // SAFETY: the caller's promise.
        unsafe { Self::open_trusted_with(path, KernelSet::host()) }
    }

    /// As [`Engine::open_trusted`], with kernels as for [`Engine::open_with`].
    ///
    /// # Safety
    /// As for [`Engine::open_trusted`].
    pub unsafe fn open_trusted_with(
        path: impl AsRef<Path>,
        kernels: &'static KernelSet,
    ) -> Result<Self, EngineError> {
        Self::new(file::map_file(path.as_ref())?, true, kernels)
    }

    fn new(bytes: Bytes, trusted: bool, kernels: &'static KernelSet) -> Result<Self, EngineError> {
        let file = EngineFile::from_bytes(bytes)?;
        let programs = match file.variant(DeviceKind::Cpu) {
            Some(variant) => {
                check_host(variant)?;
                bind::bind(&file, variant.plan, kernels)?
            }
            None => Vec::new(),
        };
        let code = match file.frame().entry(SectionKind::Code) {
            Some(entry) if trusted => {
                let code = Code::load(file.section(SectionKind::Code), entry.hash, &file.manifest.code);
                Some(code.map_err(|why| EngineError::Code { why })?)
            }
            _ => None,
        };
        log::debug!("engine {}: {} kernels, {} programs", file.hash(), kernels.isa(), programs.len());
        Ok(Self(Arc::new(Inner { file, programs, kernels, code, trusted })))
    }

    /// What the engine is and where it came from.
    pub fn manifest(&self) -> &Manifest {
        &self.0.file.manifest
    }

    /// What it executes: the CPU's plan, or the first device's in an engine that has nothing for the CPU. Facts about the model and the
    /// list of weights are those of every device.
    pub fn plan(&self) -> &Plan {
        match (self.variant(DeviceKind::Cpu), self.variants().next()) {
            (Some(variant), _) | (None, Some(variant)) => variant.plan,
            (None, None) => unreachable!("validation demands a variant"),
        }
    }

    /// What it holds for each kind of device: the CPU first.
    pub fn variants(&self) -> impl ExactSizeIterator<Item = VariantRef<'_>> {
        self.0.file.variants()
    }

    /// What it holds for a kind of device.
    pub fn variant(&self, kind: DeviceKind) -> Option<VariantRef<'_>> {
        self.0.file.variant(kind)
    }

    /// The file: bytes of weights and of kernels.
    pub fn file(&self) -> &EngineFile {
        &self.0.file
    }

    /// The hash that names it: over every byte of the file, of the weights through the hashes of their tensors.
    pub fn hash(&self) -> Hash {
        self.0.file.hash()
    }

    /// Why the compiler chose what it chose, if the file says so.
    pub fn report(&self) -> Result<Option<Report>, EngineError> {
        Ok(self.0.file.report()?)
    }

    /// The bytes of a section, empty if the file has none.
    pub fn section(&self, kind: SectionKind) -> &[u8] {
        self.0.file.section(kind)
    }

    /// The tokenizer, stop tokens and chat template that were compiled into the engine.
    #[cfg(feature = "text")]
    pub fn tokenizer(&self) -> Result<crate::text::Tokenizer, crate::text::TextError> {
        crate::text::Tokenizer::from_section(self.section(SectionKind::Tokenizer))
    }

    /// The newest instruction set of the kernels that run here.
    pub fn isa(&self) -> Isa {
        self.0.kernels.isa()
    }

    /// What runs the loop nests: generated code only if the engine was opened with trust and holds code for this host.
    pub fn nest_path(&self) -> NestPath {
        match &self.0.code {
            Some(code) if code.fits_host() => NestPath::Generated,
            _ => NestPath::Interpreted,
        }
    }

    /// What a worker takes at most for `tokens` tokens of all its sequences together, in batches of up to `rows` rows.
    pub fn memory(&self, tokens: usize, kv: KvElem, rows: usize) -> MemoryEstimate {
        let plan = self.plan();
        let blocks = tokens.div_ceil(kv::TOKENS) as u64;
        // A plan without such a cache has no worker with one either.
        let block = BlockLayout::new(plan, kv).map_or(0, |l| l.block_bytes.iter().sum::<usize>() as u64);
        let last = plan.programs.iter().position(|p| p.regime.max_rows as usize >= rows);
        let programs = &plan.programs[..last.map_or(plan.programs.len(), |last| last + 1)];
        let arena = programs.iter().map(|p| p.arena_bytes).max();
        MemoryEstimate {
            cache: block.saturating_mul(blocks),
            arena: arena.unwrap_or(0),
            logits: 4 * u64::from(plan.model.output_width()),
        }
    }

    /// Reads all weights and checks the hash of every tensor; the error names the damaged one.
    pub fn verify(&self) -> Result<(), EngineError> {
        Ok(self.0.file.verify_weights()?)
    }

    /// Asks the operating system to map the whole file now, so that the first token does not wait for pages.
    /// Gives whether it could.
    pub fn prefetch(&self) -> bool {
        let populated = self.0.file.bytes().prefetch();
        if let Err(e) = &populated {
            log::debug!("the engine is not prefetched: {e}");
        }
        populated.is_ok()
    }

    /// The programs that batches of up to `rows` rows use.
    pub(crate) fn programs_for(&self, rows: usize) -> &[BoundProgram] {
        let programs = &self.0.programs;
        let last = programs.iter().position(|p| p.max_rows >= rows);
        &programs[..last.map_or(programs.len(), |last| last + 1)]
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.file.bytes()
    }

    /// Whether the caller trusts the machine code that the file holds for any device.
    pub fn is_trusted(&self) -> bool {
        self.0.trusted
    }

    pub(crate) fn code(&self) -> Option<&Code> {
        self.0.code.as_ref()
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("hash", &self.hash()).field("isa", &self.isa()).finish_non_exhaustive()
    }
}

/// Whether this host's CPU has what the CPU's variant needs.
fn check_host(variant: VariantRef<'_>) -> Result<(), EngineError> {
    let DeviceCode::Cpu { features } = variant.device else { return Ok(()) };
    let missing: Vec<_> = features.iter().filter(|f| !host::has_cpu_feature(f)).cloned().collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(EngineError::CpuFeatures { target: variant.target.to_owned(), missing })
}
