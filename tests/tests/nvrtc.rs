//! The kernels of the golden plans through NVIDIA's compiler. It is fetched by `bessemer toolchain install cuda --folder .cache/toolchain`;
//! without it a test says that it was skipped. No GPU is used.

use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::KvElem;
use bessemer_targets::clike::{Dialect, Emitter};
use bessemer_targets::cuda::{ARCHS, CudaError, FALLBACK, Nvrtc};
use bessemer_tests::gpu::{Case, families, schemes};
use bessemer_tests::models::root;
use bessemer_tests::skip;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

fn nvrtc() -> Option<Nvrtc> {
    let folder = root().join(".cache/toolchain");
    match Nvrtc::load(&folder) {
        Ok(nvrtc) => Some(nvrtc),
        Err(e @ CudaError::Missing { .. }) => {
            skip("toolchain/nvidia", e);
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// Golden plans, every family of the fixtures, every kind of packed number: no kernel spills, on any architecture that an engine has code
/// for by default. All kernels are one text, which is compiled for several architectures at once.
#[test]
fn no_kernel_spills() {
    let Some(nvrtc) = nvrtc() else { return };
    let golden = [
        ("gqa_tied", PrecisionPolicy::F32),
        ("biases", PrecisionPolicy::Int8 { group: 32 }),
        ("gqa_tied.mixed.gguf", PrecisionPolicy::Source),
    ];
    let golden = golden.map(|(model, precision)| Case::new(model, model, precision));
    let mut emitter = Emitter::new(Dialect::Cuda, KvElem::Bf16);
    for case in golden.into_iter().chain(families()).chain(schemes()) {
        emitter.plan(&case.plan()).unwrap_or_else(|e| panic!("{e}"));
    }
    let text = emitter.finish().0;
    let kernels = text.matches("\nKERNEL(").count();
    let check = |arch: &str| {
        let started = Instant::now();
        let binary = nvrtc.compile(&text, arch).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(&binary.bytes[..4], b"\x7fELF");
        assert_eq!(binary.usage.len(), kernels, "{arch}: a kernel without a line in the log");
        let most = binary.usage.iter().map(|u| u.registers).max().unwrap();
        let (bytes, seconds) = (binary.bytes.len(), started.elapsed().as_secs_f64());
        println!("{arch}: {kernels} kernels, {bytes} bytes in {seconds:.1} s, at most {most} registers");
        for usage in &binary.usage {
            assert!(usage.registers > 0 && usage.stack == 0 && usage.spilled == 0, "{arch}: {usage:?}");
        }
    };
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(arch) = ARCHS.get(next.fetch_add(1, Ordering::Relaxed)) {
            check(arch);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(ARCHS.len());
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
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
