//! From the path on the command line to an opened engine.

use crate::exit::{Code, Failure};
use crate::trust;
use bessemer_format::header::{HEADER_BYTES, MAGIC};
use bessemer_runtime::{Engine, Hash, Isa, KernelSet, NestPath};
use clap::Args;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A model on the command line, and how to open it.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// An engine, a GGUF file, a Hugging Face directory or `hf:ORG/MODEL[@REVISION][/FILE.gguf]`. A source is compiled first, into the cache
    #[arg(value_name = "MODEL")]
    pub path: PathBuf,

    /// Run the machine code in this engine, this once
    #[arg(long)]
    pub trust: bool,

    /// The CPU's kernels of this instruction set in place of the newest that it has (see `doctor`): to compare them, or to see what an
    /// older CPU would give
    #[arg(long, value_name = "ISA", value_parser = kernels)]
    kernels: Option<&'static KernelSet>,

    #[cfg(feature = "compile")]
    #[command(flatten)]
    source: SourceArgs,
}

/// The kernels of an instruction set that this host runs.
fn kernels(name: &str) -> Result<&'static KernelSet, String> {
    let sets = || Isa::ALL.iter().filter_map(|isa| KernelSet::for_isa(*isa));
    sets().find(|set| set.isa().name() == name).ok_or_else(|| {
        let known: Vec<_> = sets().map(|set| set.isa().name()).collect();
        format!("this CPU runs {}", known.join(", "))
    })
}

/// How a source becomes an engine.
#[cfg(feature = "compile")]
#[derive(Args, Clone, Debug, Default)]
struct SourceArgs {
    /// Precision of the weights when a source is compiled: source, f32, bf16, int8:GROUP or int4:GROUP (GROUP may be left out)
    #[arg(long, value_name = "P")]
    precision: Option<bessemer_passes::PrecisionPolicy>,

    #[command(flatten)]
    cache: CacheArgs,

    #[command(flatten)]
    hub: HubArgs,
}

/// How models come from the Hugging Face Hub.
#[cfg(feature = "compile")]
#[derive(Args, Clone, Debug, Default)]
pub struct HubArgs {
    /// Take models of the Hub from its cache only
    #[cfg(feature = "hub")]
    #[arg(long, env = "HF_HUB_OFFLINE", value_parser = clap::builder::FalseyValueParser::new())]
    offline: bool,
}

#[cfg(feature = "compile")]
impl HubArgs {
    /// Where a source lies.
    pub fn local(&self, source: &Path) -> Result<PathBuf, Failure> {
        Ok(self.resolve(source)?.0)
    }

    /// Where a source lies: `source` itself if it is a path, else where it was downloaded to. Says, and gives, which commit that is.
    #[cfg(feature = "hub")]
    pub fn resolve(&self, source: &Path) -> Result<(PathBuf, Option<String>), Failure> {
        use bessemer_compiler::import::hub::{Hub, HubName};
        let Some(name) = source.to_str().and_then(HubName::parse) else {
            return Ok((source.to_path_buf(), None));
        };
        let meter = crate::progress::Meter::new(crate::progress::Unit::Bytes);
        let fetched = Hub::from_env(self.offline)?.fetch(&name?, &meter)?;
        drop(meter);
        eprintln!("source: {fetched}");
        let commit = fetched.to_string();
        Ok((fetched.path, Some(commit)))
    }

    /// Where a source lies. This build has no client of the Hub.
    #[cfg(not(feature = "hub"))]
    pub fn resolve(&self, source: &Path) -> Result<(PathBuf, Option<String>), Failure> {
        if source.to_str().is_some_and(|name| name.starts_with("hf:")) && !source.exists() {
            return Err(Failure::usage(format!(
                "{}: this build of bessemer does not fetch models; download it and give its path, or build with \
                 the feature `hub`",
                source.display()
            )));
        }
        Ok((source.to_path_buf(), None))
    }
}

/// The text that calibration reads.
#[cfg(feature = "compile")]
#[derive(Args, Clone, Debug)]
pub struct CalibrationArgs {
    /// Text to calibrate on, a file or a folder of files; a sample of stories if nobody names one
    #[arg(long, value_name = "FILE|DIR")]
    calib: Option<PathBuf>,

    /// Windows of the calibration text
    #[arg(long, value_name = "N", default_value_t = 64)]
    calib_windows: usize,

    /// Tokens of a window of the calibration text
    #[arg(long, value_name = "N", default_value_t = 256)]
    calib_window: usize,
}

#[cfg(feature = "compile")]
impl CalibrationArgs {
    /// The text.
    pub fn corpus(&self) -> Result<bessemer_compiler::calibrate::Corpus, Failure> {
        use bessemer_compiler::calibrate::Corpus;
        let (windows, window) = (self.calib_windows, self.calib_window);
        Ok(match &self.calib {
            Some(path) => Corpus::read(path, windows, window)?,
            None => Corpus { windows, window, ..Corpus::calibration() },
        })
    }
}

/// Where compiled engines are kept.
#[cfg(feature = "compile")]
#[derive(Args, Clone, Debug, Default)]
pub struct CacheArgs {
    /// Folder of compiled engines
    #[arg(long, env = "BESSEMER_CACHE", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
}

/// An opened model.
pub struct Model {
    /// The engine.
    pub engine: Engine,
    /// The engine's file.
    pub path: PathBuf,
    /// Milliseconds that opening took.
    pub open_ms: f64,
}

impl ModelArgs {
    /// The engine at `path`, opened as this model is.
    pub fn engine_at(&self, path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            trust: self.trust,
            kernels: self.kernels,
            #[cfg(feature = "compile")]
            source: SourceArgs::default(),
        }
    }

    /// The options that open an engine, for another process of this program.
    pub fn options(&self) -> impl Iterator<Item = String> {
        let kernels = self.kernels.map(|kernels| format!("--kernels={}", kernels.isa().name()));
        self.trust.then(|| "--trust".to_owned()).into_iter().chain(kernels)
    }

    /// The engine's file: the path itself, or what it is compiled into.
    fn engine_path(&self) -> Result<PathBuf, Failure> {
        if is_engine(&self.path) {
            #[cfg(feature = "compile")]
            if self.source.precision.is_some() {
                return Err(Failure::usage(
                    "--precision is for sources; an engine has the precision that it was compiled with",
                ));
            }
            return Ok(self.path.clone());
        }
        self.compiled()
    }

    #[cfg(not(feature = "compile"))]
    fn compiled(&self) -> Result<PathBuf, Failure> {
        // Opening says what is wrong with a file that is no engine; a folder cannot be opened at all.
        if !self.path.is_dir() {
            return Ok(self.path.clone());
        }
        Err(Failure::usage(format!(
            "{}: this build of bessemer runs engines only; compile the model with a full build",
            self.path.display()
        )))
    }

    #[cfg(feature = "compile")]
    fn compiled(&self) -> Result<PathBuf, Failure> {
        use bessemer_compiler::{CompileOptions, RunOptions};
        let options = CompileOptions {
            precision: self.source.precision.unwrap_or_default(),
            ..CompileOptions::default()
        };
        let source = self.source.hub.local(&self.path)?;
        let cache = self.source.cache.open()?;
        let meter = crate::progress::Meter::new(crate::progress::Unit::Bytes);
        let cached = cache.engine(&source, &options, &RunOptions::default(), &meter, &waiting)?;
        drop(meter);
        if cached.hit {
            eprintln!("cached: {}", cached.path.display());
        } else {
            trust::add(&claimed_hash(&cached.path)?, &cached.path)?;
            eprintln!("compiled: {}", cached.path.display());
        }
        Ok(cached.path)
    }

    /// Opens the model, compiling it first if it is a source.
    pub fn open(&self) -> Result<Model, Failure> {
        let path = self.engine_path()?;
        let kernels = self.kernels.unwrap_or(KernelSet::host());
        let started = std::time::Instant::now();
        let (engine, path, started) = match open_with(&path, self.trust, kernels) {
            #[cfg(feature = "compile")]
            Err(refused) if refused.code == Code::Engine && !is_engine(&self.path) => {
                // In the cache, an engine that is damaged is worth no more than none.
                eprintln!("{refused}; compiling it again");
                self.source.cache.open()?.forget(&path, &waiting)?;
                let path = self.engine_path()?;
                let started = std::time::Instant::now();
                (open_with(&path, self.trust, kernels)?, path, started)
            }
            opened => (opened?, path, started),
        };
        let open_ms = started.elapsed().as_secs_f64() * 1e3;
        if engine.nest_path() == NestPath::Interpreted && !engine.manifest().code.is_empty() {
            eprintln!(
                "note: {0} is not trusted, so its loop nests are interpreted; use its machine code with --trust, or \
                 for good with `bessemer trust {0}`",
                path.display()
            );
        }
        Ok(Model { engine, path, open_ms })
    }
}

#[cfg(feature = "compile")]
impl CacheArgs {
    /// The cache.
    pub fn open(&self) -> Result<bessemer_compiler::cache::Cache, Failure> {
        let folder = match &self.cache_dir {
            Some(folder) => folder.clone(),
            None => crate::paths::cache()?,
        };
        Ok(bessemer_compiler::cache::Cache::open(folder)?)
    }
}

/// Tells that another process holds the cache's lock.
#[cfg(feature = "compile")]
pub fn waiting() {
    eprintln!("waiting for another bessemer process that writes the cache");
}

/// Opens an engine, with its machine code if the user trusts it.
pub fn open(path: &Path, trust_once: bool) -> Result<Engine, Failure> {
    open_with(path, trust_once, KernelSet::host())
}

fn open_with(path: &Path, trust_once: bool, kernels: &'static KernelSet) -> Result<Engine, Failure> {
    let claimed = claimed_hash(path).ok();
    if !trust_once && !claimed.is_some_and(|hash| trust::contains(&hash)) {
        return Ok(Engine::open_with(path, kernels)?);
    }
    // SAFETY: the user trusts the engine with this hash: by --trust, or by the list, against which the hash of the file
    // that was really opened is compared below, before a worker could run any of its code.
    let engine = unsafe { Engine::open_trusted_with(path, kernels)? };
    if trust_once || Some(engine.hash()) == claimed {
        return Ok(engine);
    }
    Err(Failure::new(Code::Engine, format!("{}: the file changed while it was opened", path.display())))
}

/// Opens an engine that this process has just compiled, with its machine code.
#[cfg(feature = "compile")]
pub fn open_own(path: &Path) -> Result<Engine, bessemer_runtime::EngineError> {
    // SAFETY: the caller wrote the file a moment ago, in a folder of its own.
    unsafe { Engine::open_trusted(path) }
}

/// The hash that an engine's header states. Only opening the engine shows whether it is true.
pub fn claimed_hash(path: &Path) -> Result<Hash, Failure> {
    let mut header = [0; HEADER_BYTES];
    let failed = |e| Failure::new(Code::Engine, format!("{}: {e}", path.display()));
    File::open(path).and_then(|mut f| f.read_exact(&mut header)).map_err(failed)?;
    Ok(Hash(std::array::from_fn(|i| header[32 + i])))
}

/// Whether a path is meant to be an engine: by its first bytes, or by its name if it is too damaged for that.
pub fn is_engine(path: &Path) -> bool {
    let mut magic = [0; 8];
    let starts = File::open(path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && magic == MAGIC;
    starts || path.extension().is_some_and(|e| e == "engine")
}
