//! A machine with GPUs of NVIDIA, as far as programs can tell: the shim as a driver (`tests/shim/driver.cpp`) and as NVRTC
//! (`tests/shim/nvrtc.cpp`), whose "machine code" is the host's. Both are found as the real ones are; nothing in the product knows of them.

use crate::models::root;
use bessemer_compiler::options::CompileOptions;
use bessemer_format::file::EngineFile;
use bessemer_format::manifest::KvElem;
use bessemer_format::variant::{CodeSlice, CudaBinary, DeviceCode, KernelUsage, Variant, VariantPlan};
use bessemer_format::write::{Sections, write_engine};
use bessemer_targets::clike::{Dialect, Emitted, emit};
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
            eprintln!("SKIPPED: there is no g++, so no driver is built");
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

    /// Compiles a model for the CPU and for CUDA with a cache of `kv` elements, its activations in f32 on both.
    pub fn engine(&self, source: &Path, options: &CompileOptions, kv: KvElem, archs: &[&str]) -> PathBuf {
        let options = CompileOptions { f32_activations: true, ..options.clone() };
        let folder = tempfile::tempdir().unwrap();
        let (cpu, _) = crate::models::compile(source, folder.path(), &options).unwrap();
        let name =
            format!("{}.{}.{}.engine", cpu.file_stem().unwrap().display(), options.precision, kv.name());
        let out = self.folder.join(name.replace(':', "-"));
        self.add(&cpu, kv, archs, &out);
        out
    }

    /// Writes `engine`, which is for the CPU, with a variant for CUDA.
    fn add(&self, engine: &Path, kv: KvElem, archs: &[&str], out: &Path) {
        let file = EngineFile::open(engine).unwrap();
        let cpu = file.variants().next().unwrap();
        let Emitted { text, code } = emit(cpu.plan, kv, Dialect::Cuda).unwrap();
        let nvrtc = Nvrtc::load(&self.toolchain()).unwrap();
        let mut device = Vec::new();
        let mut binary = |arch: &&str| {
            let binary = nvrtc.compile(&text, arch).unwrap_or_else(|e| panic!("{e}"));
            device.resize(device.len().next_multiple_of(64), 0);
            let place = CodeSlice { offset: device.len() as u64, len: binary.bytes.len() as u64 };
            device.extend(binary.bytes);
            let usage = binary.usage.iter();
            let usage =
                usage.map(|u| KernelUsage { registers: u.registers, stack: u.stack, spilled: u.spilled });
            CudaBinary { arch: arch.parse().unwrap(), code: place, usage: usage.collect() }
        };
        let binaries: Vec<_> = archs.iter().map(&mut binary).collect();
        let plans = [
            VariantPlan { plan: cpu.plan.clone(), gpu: None },
            VariantPlan { plan: cpu.plan.clone(), gpu: Some(code) },
        ];
        let mut manifest = (*file.manifest).clone();
        let target = format!("cuda:{}", archs.join(","));
        manifest.variants.push(Variant { target, device: DeviceCode::Cuda { driver: 13000, binaries } });
        use bessemer_format::header::SectionKind;
        let sections = Sections {
            manifest,
            plans: &plans,
            tokenizer: file.section(SectionKind::Tokenizer),
            code: file.section(SectionKind::Code),
            device: &device,
            report: &file.report().unwrap().unwrap_or_default(),
            debug: "",
        };
        let mut fill = |id, to: &mut dyn std::io::Write| to.write_all(file.weight(id));
        write_engine(&mut File::create_new(out).unwrap(), out, sections, &mut fill).unwrap();
    }
}
