//! How a command ends: every error of every library, and the exit code that it becomes.

use bessemer_format::FormatError;
use bessemer_runtime::sample::SampleError;
use bessemer_runtime::text::TextError;
use bessemer_runtime::{DeviceError, EmbedError, EngineError, GenerateError, RunError};
use std::fmt;

/// What `--help` says about exit codes.
pub const HELP: &str = "Exit codes: 0 ok, 1 internal error, 2 wrong usage, 3 source unsupported or damaged, \
    4 engine refused (damaged, version, CPU), 5 budget, memory or baseline missed, 6 device or its compiler missing, \
    130 interrupted.";

/// Exit codes. They are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Our mistake, or the operating system's refusal.
    Internal = 1,
    /// The command line asks for something that cannot be.
    Usage = 2,
    /// A checkpoint that is damaged, or of a kind that is not built.
    #[cfg_attr(not(feature = "compile"), expect(dead_code, reason = "a runner reads no checkpoints"))]
    Source = 3,
    /// An engine that this runtime does not run.
    Engine = 4,
    /// More memory than allowed, or another result than demanded.
    Budget = 5,
    /// The engine is for a device that is not here, or its kernels for a compiler that is not.
    Device = 6,
    /// Ctrl-C or a termination signal.
    Interrupted = 130,
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: Code,
    message: String,
}

impl Failure {
    /// A failure that says `message`.
    pub fn new(code: Code, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }

    /// Wrong usage.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Code::Usage, message)
    }

    /// An end that needs no words: everything was said already, or nobody listens any more.
    pub fn quiet(code: Code) -> Self {
        Self::new(code, "")
    }

    /// Whether there is nothing to print.
    pub fn is_quiet(&self) -> bool {
        self.message.is_empty()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        // Whoever read our output has gone, as `head` does: no reason to complain.
        if e.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::quiet(Code::Internal);
        }
        Self::new(Code::Internal, e)
    }
}

impl From<FormatError> for Failure {
    fn from(e: FormatError) -> Self {
        Self::new(Code::Engine, e)
    }
}

impl From<EngineError> for Failure {
    fn from(e: EngineError) -> Self {
        let code = match &e {
            EngineError::Target { .. } => Code::Device,
            EngineError::Device { why, .. } => match why {
                DeviceError::Memory { .. } => Code::Budget,
                DeviceError::Untrusted | DeviceError::Cache { .. } | DeviceError::Layers { .. } => {
                    Code::Usage
                }
                _ => Code::Device,
            },
            EngineError::MemoryLimit { .. } => Code::Budget,
            EngineError::Option { .. } => Code::Usage,
            EngineError::Resource { .. } => Code::Internal,
            // Format, CpuFeatures, Unsupported, Code, and what comes later: the engine is not for us.
            _ => Code::Engine,
        };
        Self::new(code, e)
    }
}

impl From<RunError> for Failure {
    fn from(e: RunError) -> Self {
        let code = match &e {
            RunError::Context { .. }
            | RunError::CacheFull { .. }
            | RunError::Whole { .. }
            | RunError::NoLogits => Code::Usage,
            RunError::Index { .. } => Code::Engine,
            RunError::Cancelled => Code::Interrupted,
            RunError::Device { .. } => Code::Device,
            _ => Code::Internal,
        };
        Self::new(code, e)
    }
}

impl From<EmbedError> for Failure {
    fn from(e: EmbedError) -> Self {
        match e {
            EmbedError::Run(e) => e.into(),
            EmbedError::Engine(e) => e.into(),
            EmbedError::Text(e) => e.into(),
            EmbedError::Logits | EmbedError::NoTokenizer => Self::new(Code::Usage, e),
            other => Self::new(Code::Internal, other),
        }
    }
}

impl From<GenerateError> for Failure {
    fn from(e: GenerateError) -> Self {
        match e {
            GenerateError::Run(e) => e.into(),
            GenerateError::Sample(e) => e.into(),
            other => Self::new(Code::Internal, other),
        }
    }
}

impl From<TextError> for Failure {
    fn from(e: TextError) -> Self {
        Self::new(Code::Engine, e)
    }
}

impl From<SampleError> for Failure {
    fn from(e: SampleError) -> Self {
        let code = if matches!(e, SampleError::Config { .. }) { Code::Usage } else { Code::Internal };
        Self::new(code, e)
    }
}

#[cfg(feature = "compile")]
impl From<bessemer_compiler::CompileError> for Failure {
    fn from(e: bessemer_compiler::CompileError) -> Self {
        use bessemer_compiler::CompileError;
        use bessemer_passes::PassError;
        use bessemer_targets::TargetError;
        use bessemer_targets::cuda::CudaError;
        let code = match &e {
            CompileError::Import(_)
            | CompileError::Text(_)
            | CompileError::Vocabulary { .. }
            | CompileError::Calibration(_)
            | CompileError::Statistics(_)
            | CompileError::Weight { .. } => Code::Source,
            CompileError::Pass(PassError::Unknown { .. } | PassError::Required { .. })
            | CompileError::Target(TargetError::UnknownTarget { .. } | TargetError::Several { .. }) => {
                Code::Usage
            }
            CompileError::Cuda(CudaError::Missing { .. } | CudaError::Load { .. }) => Code::Device,
            CompileError::Tuning(_) => Code::Usage,
            CompileError::Hash { .. } | CompileError::Budget { .. } => Code::Budget,
            CompileError::Interrupted => Code::Interrupted,
            // A pass or the planner that fails on a sound model, a full disk.
            _ => Code::Internal,
        };
        Self::new(code, e)
    }
}

#[cfg(feature = "compile")]
impl From<bessemer_compiler::tuning::TuningError> for Failure {
    fn from(e: bessemer_compiler::tuning::TuningError) -> Self {
        bessemer_compiler::CompileError::from(e).into()
    }
}

#[cfg(feature = "compile")]
impl From<bessemer_compiler::tuning::TuneError> for Failure {
    fn from(e: bessemer_compiler::tuning::TuneError) -> Self {
        use bessemer_compiler::tuning::TuneError;
        match e {
            TuneError::Compile(e) => e.into(),
            TuneError::Engine(e) => e.into(),
            TuneError::Run(e) => e.into(),
            TuneError::NoCpu { .. } => Self::new(Code::Usage, e),
            other => Self::new(Code::Internal, other),
        }
    }
}

#[cfg(feature = "compile")]
impl From<bessemer_compiler::import::ImportError> for Failure {
    fn from(e: bessemer_compiler::import::ImportError) -> Self {
        bessemer_compiler::CompileError::from(e).into()
    }
}

#[cfg(feature = "hub")]
impl From<bessemer_compiler::import::hub::HubError> for Failure {
    fn from(e: bessemer_compiler::import::hub::HubError) -> Self {
        use bessemer_compiler::import::hub::HubError;
        let code = match &e {
            HubError::Name { .. } | HubError::Several { .. } | HubError::Offline { .. } => Code::Usage,
            _ => Code::Source,
        };
        Self::new(code, e)
    }
}

#[cfg(feature = "compile")]
impl From<bessemer_compiler::cache::CacheError> for Failure {
    fn from(e: bessemer_compiler::cache::CacheError) -> Self {
        Self::new(Code::Internal, e)
    }
}

#[cfg(feature = "compile")]
impl From<bessemer_eager::EagerError> for Failure {
    fn from(e: bessemer_eager::EagerError) -> Self {
        let code = match &e {
            bessemer_eager::EagerError::Constant { .. } => Code::Source,
            _ => Code::Internal,
        };
        Self::new(code, e)
    }
}
