//! The kernels of the golden plans through NVIDIA's compiler. It is fetched by `bessemer toolchain install cuda --folder .cache/toolchain`;
//! without it a test says that it was skipped. No GPU is used.

use bessemer_compiler::compile::{plan, prepare};
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::KvElem;
use bessemer_targets::clike::{Dialect, Emitter};
use bessemer_targets::cuda::{CudaError, FALLBACK, Nvrtc};
use bessemer_tests::gpu::{Built, Case, emit, families, schemes};
use bessemer_tests::models::{fixture, root};
use std::time::Instant;

fn nvrtc() -> Option<Nvrtc> {
    let folder = root().join(".cache/toolchain");
    match Nvrtc::load(&folder) {
        Ok(nvrtc) => Some(nvrtc),
        Err(e @ CudaError::Missing { .. }) => {
            eprintln!("SKIPPED: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// The kernels of all golden plans, as they are for GPUs.
fn text() -> String {
    let mut emitter = Emitter::new(Dialect::Cuda, KvElem::Bf16);
    for (model, precision) in [
        ("gqa_tied", PrecisionPolicy::F32),
        ("biases", PrecisionPolicy::Int8 { group: 32 }),
        ("gqa_tied.mixed.gguf", PrecisionPolicy::Source),
    ] {
        let checkpoint = Checkpoint::open(fixture(model)).unwrap();
        let options = CompileOptions { precision, f32_activations: true, ..CompileOptions::default() };
        let prepared = prepare(&checkpoint, &options, &RunOptions::default()).unwrap();
        emitter.plan(&plan(&prepared, &options).unwrap().plan).unwrap();
    }
    emitter.finish().0
}

#[test]
fn no_kernel_spills() {
    let Some(nvrtc) = nvrtc() else { return };
    without_spills(&nvrtc, &text());
}

/// Every family of the fixtures, and every kind of packed number.
#[test]
fn no_kernel_of_any_family_or_scheme_spills() {
    let Some(nvrtc) = nvrtc() else { return };
    let built: Vec<Built> = families().iter().chain(&schemes()).map(Case::build).collect();
    without_spills(&nvrtc, &emit(Dialect::Cuda, KvElem::Bf16, &built).text);
}

/// Compiles a text for two architectures at once and looks at what every kernel takes.
fn without_spills(nvrtc: &Nvrtc, text: &str) {
    let check = |arch: &str| {
        let started = Instant::now();
        let binary = nvrtc.compile(text, arch).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(&binary.bytes[..4], b"\x7fELF");
        let kernels = text.matches("\nKERNEL(").count();
        assert_eq!(binary.usage.len(), kernels, "{arch}: a kernel without a line in the log");
        let most = binary.usage.iter().map(|u| u.registers).max().unwrap();
        let (bytes, seconds) = (binary.bytes.len(), started.elapsed().as_secs_f64());
        println!("{arch}: {kernels} kernels, {bytes} bytes in {seconds:.1} s, at most {most} registers");
        for usage in &binary.usage {
            assert!(usage.registers > 0 && usage.stack == 0 && usage.spilled == 0, "{arch}: {usage:?}");
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| check("sm_80"));
        check("sm_90a");
    });
}

#[test]
fn what_is_wrong_is_said() {
    let empty = tempfile::tempdir().unwrap();
    let missing = Nvrtc::load(empty.path()).err().unwrap().to_string();
    assert!(missing.contains("toolchain install cuda") && !missing.contains('\n'), "{missing}");
    let Some(nvrtc) = nvrtc() else { return };
    let wrong = |text: &str, arch: &str| nvrtc.compile(text, arch).unwrap_err().to_string();
    let error = wrong("__global__ void f() { undeclared; }", "sm_80");
    assert!(error.contains("sm_80") && error.contains("undeclared"), "{error}");
    let error = wrong("", "sm_1");
    assert!(error.contains("sm_1"), "{error}");
    let ptx = nvrtc.compile("extern \"C\" __global__ void f(int* x) { *x = 1; }", FALLBACK).unwrap();
    let ptx = String::from_utf8(ptx.bytes).unwrap();
    assert!(ptx.contains(".entry f(") && ptx.contains(".target sm_80") && !ptx.contains('\0'), "{ptx}");
}
