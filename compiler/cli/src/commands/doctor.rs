//! `bessemer doctor`

use crate::exit::Failure;
use crate::measure::{ceilings, memory};
use crate::output::out;
use crate::size::Size;
use crate::{json, paths};
use bessemer_kernels::{Isa, KernelSet};
use bessemer_runtime::{MetalGpu, allowed_cores};
use serde::Serialize;
use std::process::{Command, Stdio};

/// Show what this machine offers: CPU, kernels, memory, folders, helpers of the demo
#[derive(clap::Args, Debug)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    commands: &'static str,
    platform: String,
    cores: usize,
    /// Every set of kernels that is built in, and whether this CPU runs it.
    kernels: Vec<(&'static str, bool)>,
    kernels_used: &'static str,
    last_level_cache: Option<u64>,
    memory: Option<u64>,
    memory_available: Option<u64>,
    cache: Option<String>,
    trust_list: Option<String>,
    /// The GPU that Metal uses, and bytes a second that it copies (read and written).
    metal: Option<(String, Option<f64>)>,
    /// Where the compiler of CUDA kernels is installed.
    nvrtc: Option<String>,
    /// Programs that fetching the demo's model needs, with their versions.
    tools: Vec<(&'static str, Option<String>)>,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        let report = Report::new();
        if self.json {
            return json::print(&report);
        }
        let size = |bytes: Option<u64>| bytes.map_or("unknown".into(), |b| Size(b).to_string());
        out!("bessemer {} ({}), {}", report.version, report.commands, report.platform)?;
        out!("cores      {}", report.cores)?;
        for (name, here) in &report.kernels {
            let state = match (*name == report.kernels_used, here) {
                (true, _) => "used",
                (false, true) => "runs here",
                (false, false) => "not on this CPU",
            };
            out!("kernels    {name}: {state}")?;
        }
        out!("cache      {} of last level", size(report.last_level_cache))?;
        out!("memory     {}, {} available", size(report.memory), size(report.memory_available))?;
        out!("engines    {}", report.cache.as_deref().unwrap_or("not built in"))?;
        out!("trust list {}", report.trust_list.as_deref().unwrap_or("no home folder"))?;
        if let Some((name, copy)) = &report.metal {
            let copy = copy.map_or("an unknown rate".into(), |rate| format!("{:.0} GB/s", rate / 1e9));
            out!("metal      {name}, copies at {copy}")?;
        }
        out!(
            "nvrtc      {}",
            report
                .nvrtc
                .as_deref()
                .unwrap_or("missing (kernels for CUDA need it: bessemer toolchain install cuda)")
        )?;
        for (name, version) in &report.tools {
            out!(
                "{name:<10} {}",
                version.as_deref().unwrap_or("missing (only fetching demo and test models needs it)")
            )?;
        }
        Ok(())
    }
}

impl Report {
    fn new() -> Self {
        let tools = [
            ("python3", "python3", &["--version"][..]),
            ("pip", "python3", &["-m", "pip", "--version"]),
            ("npm", "npm", &["--version"]),
        ];
        #[cfg(feature = "compile")]
        let cache = paths::cache().ok().map(|p| p.display().to_string());
        #[cfg(feature = "compile")]
        let nvrtc = paths::toolchain().ok().filter(|f| bessemer_targets::cuda::Nvrtc::is_installed(f));
        #[cfg(not(feature = "compile"))]
        let (cache, nvrtc) = (None, None::<std::path::PathBuf>);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commands: if cfg!(feature = "compile") { "compiler and runner" } else { "runner" },
            platform: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            cores: allowed_cores().len(),
            kernels: Isa::ALL.iter().map(|isa| (isa.name(), isa.available())).collect(),
            kernels_used: KernelSet::host().isa().name(),
            last_level_cache: ceilings::last_level_cache(),
            memory: memory::total(),
            memory_available: memory::available(),
            cache,
            trust_list: paths::trust_list().ok().map(|p| p.display().to_string()),
            metal: MetalGpu::measure().ok().map(|gpu| (gpu.name, gpu.copy)),
            nvrtc: nvrtc.map(|p| p.display().to_string()),
            tools: tools.map(|(name, program, args)| (name, version(program, args))).into(),
        }
    }
}

/// First line of what a program says about its version.
fn version(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned();
    output.status.success().then_some(text)
}
