//! A machine with GPUs of NVIDIA, as far as programs can tell: the shim as a driver (`tests/shim/driver.cpp`) and as NVRTC
//! (`tests/shim/nvrtc.cpp`), whose "machine code" is the host's. Both are found as the real ones are; nothing in the product knows of them.

use crate::models::root;
use bessemer_compiler::compile::{plans, prepare};
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_format::file::EngineFile;
use bessemer_format::gpu::GpuCode;
use bessemer_format::manifest::KvElem;
use bessemer_format::variant::{CodeSlice, CudaBinary, DeviceCode, KernelUsage, Variant, VariantPlan};
use bessemer_format::write::{Sections, write_engine};
use bessemer_targets::Targets;
use bessemer_targets::clike::{Dialect, Emitter};
use bessemer_targets::cuda::Nvrtc;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Driver and compiler in a folder.
pub struct FakeCuda {
    folder: PathBuf,
}

impl FakeCuda {
    /// Builds both into `folder`, or says that there is no compiler.
    ///
    /// # Panics
    /// If they do not compile.
    pub fn build(folder: &Path) -> Option<Self> {
        if !super::has_compiler() {
            crate::skip("g++", "it builds the driver for tests");
            return None;
        }
        let fake = Self { folder: folder.to_path_buf() };
        let nvrtc = Nvrtc::folder(&fake.toolchain());
        std::fs::create_dir_all(&nvrtc).unwrap();
        std::fs::create_dir_all(fake.driver()).unwrap();
        let shim = root().join("tests/shim");
        let (empty, device) = (folder.join("empty.cpp"), fake.driver().join("libcuda.so.1"));
        std::fs::write(&empty, "").unwrap();
        for (source, library) in [
            (shim.join("driver.cpp"), device),
            (shim.join("nvrtc.cpp"), nvrtc.join("libnvrtc.so.13")),
            (empty, nvrtc.join("libnvrtc-builtins.so.13.0")),
        ] {
            let out = Command::new("g++")
                .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"])
                .arg(format!("-DSHIM_ROOT=\"{}\"", shim.display()))
                .arg(&source)
                .arg("-o")
                .arg(&library)
                .arg("-ldl")
                .output()
                .unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        Some(fake)
    }

    /// The folder in which programs find the driver (`LD_LIBRARY_PATH`).
    pub fn driver(&self) -> PathBuf {
        self.folder.join("driver")
    }

    /// The folder that the compiler is installed in.
    pub fn toolchain(&self) -> PathBuf {
        self.folder.join("toolchain")
    }

    /// As [`FakeCuda::engines`], for one model.
    pub fn engine(&self, source: &Path, options: &CompileOptions, kv: KvElem, archs: &[&str]) -> PathBuf {
        self.engines(&[(source.to_path_buf(), options.clone())], kv, archs).remove(0)
    }

    /// Compiles models for the CPU and for CUDA with a cache of `kv` elements, their activations in f32 on both. The kernels of all are one
    /// text, which is compiled once for each architecture.
    pub fn engines(&self, models: &[(PathBuf, CompileOptions)], kv: KvElem, archs: &[&str]) -> Vec<PathBuf> {
        let folder = tempfile::tempdir().unwrap();
        let mut emitter = Emitter::new(Dialect::Cuda, kv);
        let mut planned = Vec::new();
        for (at, (source, options)) in models.iter().enumerate() {
            let targets = Targets::parse(["cpu", "cuda"]).unwrap();
            let both = CompileOptions { targets, f32_activations: true, ..options.clone() };
            let checkpoint = Checkpoint::open(source).unwrap();
            let prepared = prepare(&checkpoint, &both, &RunOptions::default()).unwrap();
            let plan = plans(&prepared, &both).unwrap().pop().unwrap().plan;
            let programs = emitter.plan(&plan).unwrap_or_else(|e| panic!("{e}"));
            let own = folder.path().join(at.to_string());
            std::fs::create_dir(&own).unwrap();
            let options = CompileOptions { targets: CompileOptions::default().targets, ..both };
            let (cpu, _) = crate::models::compile(source, &own, &options).unwrap();
            let name =
                format!("{}.{}.{}.engine", cpu.file_stem().unwrap().display(), options.precision, kv.name());
            planned.push((cpu, plan, programs, self.folder.join(name.replace(':', "-"))));
        }
        let (text, kernels) = emitter.finish();
        let nvrtc = Nvrtc::load(&self.toolchain()).unwrap();
        let mut section = Vec::new();
        let mut binary = |arch: &&str| {
            let binary = nvrtc.compile(&text, arch).unwrap_or_else(|e| panic!("{e}"));
            section.resize(section.len().next_multiple_of(64), 0);
            let code = CodeSlice { offset: section.len() as u64, len: binary.bytes.len() as u64 };
            section.extend(binary.bytes);
            let usage = binary.usage.iter();
            let usage =
                usage.map(|u| KernelUsage { registers: u.registers, stack: u.stack, spilled: u.spilled });
            CudaBinary { arch: arch.parse().unwrap(), code, usage: usage.collect() }
        };
        let binaries: Vec<_> = archs.iter().map(&mut binary).collect();
        let target = format!("cuda:{}", archs.join(","));
        let variant = Variant { target, device: DeviceCode::Cuda { driver: 13000, binaries } };
        let mut made = Vec::new();
        for (cpu, plan, programs, out) in planned {
            let code = GpuCode { kv, kernels: kernels.clone(), programs };
            add(&cpu, VariantPlan { plan, gpu: Some(code) }, &variant, &section, &out);
            made.push(out);
        }
        made
    }
}

/// Writes `engine`, which is for the CPU, with one variant more, which reads the same weights.
fn add(engine: &Path, plan: VariantPlan, variant: &Variant, device: &[u8], out: &Path) {
    use bessemer_format::header::SectionKind;
    let file = EngineFile::open(engine).unwrap();
    let cpu = file.variants().next().unwrap();
    assert_eq!(cpu.plan.weights, plan.plan.weights);
    let mut manifest = (*file.manifest).clone();
    manifest.variants.push(variant.clone());
    let sections = Sections {
        manifest,
        plans: &[VariantPlan { plan: cpu.plan.clone(), gpu: None }, plan],
        tokenizer: file.section(SectionKind::Tokenizer),
        code: file.section(SectionKind::Code),
        device,
        report: &file.report().unwrap().unwrap_or_default(),
        debug: "",
    };
    let mut fill = |id, to: &mut dyn std::io::Write| to.write_all(file.weight(id));
    write_engine(&mut File::create_new(out).unwrap(), out, sections, &mut fill).unwrap();
}
