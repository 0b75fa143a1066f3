//! Engines for several devices: one file, one copy of the weights, a variant for each kind of device.
//!
//! NVRTC is fetched by `bessemer toolchain install cuda --folder .cache/toolchain`; without it what compiles CUDA kernels says that it was
//! skipped. No GPU is used.

use bessemer_compiler::calibrate::{Budget, Corpus, Text};
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_compiler::{Amount, CompileError, Compiled, Method, Progress, compile};
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::{DeviceCode, DeviceKind, Engine, EngineError, KvElem, Worker, WorkerOptions};
use bessemer_targets::Targets;
use bessemer_targets::cuda::{CudaError, Nvrtc};
use bessemer_tests::models::{cached_model, fixture, golden, logits, root};
use bessemer_tests::skip;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

/// Where NVRTC is, or `None` after saying that it is not there.
fn toolchain() -> Option<PathBuf> {
    let folder = root().join(".cache/toolchain");
    if Nvrtc::is_installed(&folder) {
        return Some(folder);
    }
    skip("toolchain/nvidia", CudaError::Missing { folder: Some(folder) });
    None
}

fn options(targets: &[&str]) -> CompileOptions {
    CompileOptions {
        targets: Targets::parse(targets.iter().copied()).unwrap(),
        precision: PrecisionPolicy::Int8 { group: 32 },
        ..CompileOptions::default()
    }
}

/// Remembers which stretches of work there were.
#[derive(Default)]
struct Stretches(Mutex<Vec<String>>);

impl Progress for Stretches {
    fn start(&self, what: &str, _: Amount) {
        self.0.lock().unwrap().push(what.into());
    }
    fn advance(&self, _: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
}

/// What was made, and which kernels were compiled for it.
fn make(
    source: &Path,
    out: &Path,
    options: &CompileOptions,
    run: &RunOptions,
) -> Result<(Compiled, Vec<String>), CompileError> {
    let stretches = Stretches::default();
    let compiled = compile(source, out, options, run, None, &stretches)?;
    let kernels = stretches.0.into_inner().unwrap().into_iter().filter(|what| what.contains("kernels"));
    Ok((compiled, kernels.collect()))
}

#[test]
fn a_fat_engine_runs_on_the_cpu_and_holds_weights_once() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = |targets: &[&str], name: &str| {
        let out = folder.path().join(name);
        let made = make(&fixture("gqa_untied"), &out, &options(targets), &RunOptions::default());
        (made.unwrap().0.bytes, Engine::open(&out).unwrap())
    };
    let (cpu_bytes, cpu) = bytes(&["cpu"], "cpu.engine");
    let (metal_bytes, metal) = bytes(&["metal"], "metal.engine");
    let (both_bytes, both) = bytes(&["metal:apple8", "cpu"], "both.engine");
    let weights: u64 = cpu.file().weights().iter().map(|w| w.len).sum();
    assert!(both_bytes <= cpu_bytes + metal_bytes - weights, "{both_bytes} of {cpu_bytes} and {metal_bytes}");
    assert_eq!(both.file().weights(), cpu.file().weights(), "no tensor stands twice");
    both.verify().unwrap();

    let kinds = |engine: &Engine| engine.variants().map(|v| v.device.kind()).collect::<Vec<_>>();
    assert_eq!(kinds(&both), [DeviceKind::Cpu, DeviceKind::Metal]);
    assert_eq!(both.variant(DeviceKind::Metal).unwrap().target, "metal:apple8");
    let tokens = golden("gqa_untied", "").tokens;
    let run = |engine| logits(engine, WorkerOptions::default().threads(2).kv(KvElem::F32), &tokens);
    assert_eq!(run(&both), run(&cpu));

    // Plans differ in what linears compute in; the launches of a GPU are those of its own plan.
    let variant = both.variant(DeviceKind::Metal).unwrap();
    assert_ne!(variant.plan, both.plan());
    assert_eq!(variant.gpu.unwrap().programs.len(), variant.plan.programs.len());
    let DeviceCode::Metal { family: 8, text } = *variant.device else { panic!("{:?}", variant.device) };
    let text = std::str::from_utf8(both.file().device_code(text)).unwrap();
    assert!(variant.gpu.unwrap().kernels.iter().all(|k| text.contains(&k.name)));

    // What has nothing for the CPU opens, and says so when it is to run there.
    assert_eq!(kinds(&metal), [DeviceKind::Metal]);
    metal.verify().unwrap();
    let error = Worker::new(&metal, WorkerOptions::default()).map(drop).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, EngineError::Target { .. }) && text.contains("metal:apple7"), "{text}");
    assert!(text.contains("--target cpu"), "{text}");
}

#[test]
fn cuda_without_nvrtc_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.engine");
    for toolchain in [None, Some(folder.path().to_path_buf())] {
        let run = RunOptions { toolchain: toolchain.clone(), ..RunOptions::default() };
        let error = make(&fixture("gqa_untied"), &out, &options(&["cpu", "cuda"]), &run).unwrap_err();
        assert!(matches!(error, CompileError::Cuda(CudaError::Missing { .. })), "{error}");
        let text = error.to_string();
        assert!(text.contains("bessemer toolchain install cuda") && !text.contains('\n'), "{text}");
        assert!(!out.exists());
    }
}

#[test]
fn kernels_are_compiled_once_and_bytes_are_those_of_any_number_of_threads() {
    let Some(toolchain) = toolchain() else { return };
    let folder = tempfile::tempdir().unwrap();
    let kernels = folder.path().join("kernels");
    let options = options(&["cuda:sm_80", "metal", "cuda:sm_90a", "cpu"]);
    let run = |name: &str, threads, kernels: Option<&Path>| {
        let run = RunOptions {
            threads,
            toolchain: Some(toolchain.clone()),
            kernels: kernels.map(Path::to_path_buf),
            ..RunOptions::default()
        };
        make(&fixture("gqa_untied"), &folder.path().join(name), &options, &run).unwrap()
    };
    let (first, compiled) = run("a.engine", 1, Some(&kernels));
    assert_eq!(compiled, ["compile kernels: sm_80, sm_90a, compute_80"]);
    let (second, compiled) = run("b.engine", 2, Some(&kernels));
    assert_eq!((second.sha256, compiled), (first.sha256.clone(), vec![]));
    // One that is damaged or missing is made again, and nothing else.
    let find = |arch: &str| {
        let folders = std::fs::read_dir(&kernels).unwrap().map(|f| f.unwrap().path());
        let files = folders.flat_map(|f| std::fs::read_dir(f).unwrap().map(|f| f.unwrap().path()));
        files.filter(|f| f.to_string_lossy().ends_with(arch)).collect::<Vec<_>>()
    };
    let [damaged] = &find(".sm_90a")[..] else { panic!("one for each architecture") };
    let mut bytes = std::fs::read(damaged).unwrap();
    bytes[100] ^= 1;
    std::fs::write(damaged, bytes).unwrap();
    let (third, compiled) = run("c.engine", 2, Some(&kernels));
    assert_eq!((third.sha256, compiled), (first.sha256.clone(), vec!["compile kernels: sm_90a".into()]));

    let engine = Engine::open(folder.path().join("a.engine")).unwrap();
    let variant = engine.variant(DeviceKind::Cuda).unwrap();
    let DeviceCode::Cuda { driver: 13000, binaries } = variant.device else { panic!("{:?}", variant.device) };
    let archs: Vec<String> = binaries.iter().map(|b| b.arch.to_string()).collect();
    assert_eq!(archs, ["sm_80", "sm_90a", "compute_80"]);
    for binary in binaries {
        assert!(binary.usage.iter().all(|u| u.registers > 0 && u.spilled == 0), "{}", binary.arch);
        // A cubin names its kernels, too.
        let bytes = engine.file().device_code(binary.code);
        for kernel in &variant.gpu.unwrap().kernels {
            assert!(bytes.windows(kernel.name.len()).any(|w| w == kernel.name.as_bytes()));
        }
    }
}

/// A size that is asked for counts plans and kernels of every device, before a compiler has seen them.
#[test]
fn a_size_counts_the_kernels_of_every_device() {
    let folder = tempfile::tempdir().unwrap();
    let toolchain = toolchain();
    for (at, targets) in [&["metal"][..], &["cpu", "metal"], &["cuda:sm_80", "cpu"]].into_iter().enumerate() {
        if targets[0].starts_with("cuda") && toolchain.is_none() {
            continue;
        }
        let made = |budget, precision: &str| {
            let tokens = |seed: u32| Text::Tokens((0..256).map(|i| (i * i * 7 + i * seed) % 96).collect());
            let options = CompileOptions {
                precision: precision.parse().unwrap(),
                budget,
                method: Method::Rtn,
                calibration: Corpus { text: tokens(3), windows: 8, window: 32 },
                measure: Some(Corpus { text: tokens(5), windows: 4, window: 32 }),
                ..options(targets)
            };
            let kernels = Some(folder.path().join("kernels"));
            let run = RunOptions { toolchain: toolchain.clone(), kernels, ..RunOptions::default() };
            make(&fixture("gqa_untied"), &folder.path().join(format!("{at}.engine")), &options, &run)
        };
        let weights = || {
            let engine = Engine::open(folder.path().join(format!("{at}.engine"))).unwrap();
            engine.file().weights().iter().map(|w| w.len).sum::<u64>()
        };
        let small = made(None, "int3").unwrap().0.bytes;
        let (bytes, least) = (small + small / 2, weights());
        let within = made(Some(Budget::Size(bytes)), "source").unwrap().0.bytes;
        println!("{targets:?}: {small} bytes in three bits; {within} where {bytes} are allowed");
        // Kernels of narrower weights are the longer ones, so that the engine itself may be smaller.
        assert!(within <= bytes && weights() > least, "{targets:?}: {within} of {bytes}");
        let refused = made(Some(Budget::Size(small / 2)), "source").unwrap_err();
        assert!(matches!(refused, CompileError::Budget { .. }), "{targets:?}: {refused}");
    }
}

#[test]
fn a_real_model_for_all_devices() {
    let Some(source) = cached_model("smollm2-135m-instruct.gguf") else { return };
    let Some(toolchain) = toolchain() else { return };
    let folder = tempfile::tempdir().unwrap();
    let kernels = Some(folder.path().join("kernels"));
    let run = RunOptions { toolchain: Some(toolchain), kernels, ..RunOptions::default() };
    let make = |name: &str, targets: &[&str]| {
        let options = CompileOptions {
            targets: Targets::parse(targets.iter().copied()).unwrap(),
            ..CompileOptions::default()
        };
        let started = Instant::now();
        let (made, _) = make(&source, &folder.path().join(name), &options, &run).unwrap();
        println!(
            "{targets:?}: {:.1} MB in {:.1} s",
            made.bytes as f64 / 1e6,
            started.elapsed().as_secs_f64()
        );
        made.bytes
    };
    let fat = make("fat.engine", &["cuda:sm_80", "cuda:sm_90a", "metal", "cpu"]);
    let single = [
        make("cpu.engine", &["cpu"]),
        make("metal.engine", &["metal"]),
        make("cuda.engine", &["cuda:sm_80,sm_90a"]),
    ];
    let weights: u64 =
        Engine::open(folder.path().join("cpu.engine")).unwrap().file().weights().iter().map(|w| w.len).sum();
    assert!(fat <= single.iter().sum::<u64>() - 2 * weights, "{fat} of {single:?}");
    let [fat, cpu] = ["fat", "cpu"].map(|n| Engine::open(folder.path().join(format!("{n}.engine"))).unwrap());
    let run = |engine| logits(engine, WorkerOptions::default().max_tokens(64), &[1, 4093, 198, 2683]);
    assert_eq!(run(&fat), run(&cpu));
}
