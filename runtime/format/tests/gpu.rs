//! One damaged variant a rule: each is valid but for one change, and the refusal names the place.

mod common;

use bessemer_format::FormatError;
use bessemer_format::gpu::{GpuArg, GpuCode, Groups};
use bessemer_format::manifest::{KvElem, Manifest};
use bessemer_format::plan::RowCount;
use bessemer_format::validate::{SectionBytes, validate};
use bessemer_format::variant::{CudaBinary, DeviceCode, VariantPlan};
use common::*;

const CUDA: usize = 1;

/// An engine in parts.
struct Parts {
    plans: Vec<VariantPlan>,
    manifest: Manifest,
    device: Vec<u8>,
}

impl Parts {
    fn sound() -> Self {
        Self { plans: plans(), manifest: manifest(), device: device() }
    }

    fn code(&mut self) -> &mut GpuCode {
        self.plans[CUDA].gpu.as_mut().unwrap()
    }

    fn binaries(&mut self) -> &mut Vec<CudaBinary> {
        match &mut self.manifest.variants[CUDA].device {
            DeviceCode::Cuda { binaries, .. } => binaries,
            _ => panic!("no variant for CUDA"),
        }
    }

    fn check(&self) -> Result<(), FormatError> {
        let weights = plan().weights.last().map_or(0, |w| w.offset + w.len);
        validate(
            &self.plans,
            &self.manifest,
            SectionBytes { weights, code: CODE_BYTES, device: &self.device },
        )
    }
}

type Damage = fn(&mut Parts);

fn refused(cases: &[(&str, &str, Damage)]) {
    for (at, why, damage) in cases {
        let mut parts = Parts::sound();
        damage(&mut parts);
        match parts.check() {
            Ok(()) => panic!("accepted, though `{why}` is expected at `{at}`"),
            Err(FormatError::Invalid { at: found, why: reason }) => {
                assert!(
                    found.contains(at) && reason.contains(why),
                    "`{at}: {why}` expected, got `{found}: {reason}`"
                );
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn variants_agree() {
    Parts::sound().check().unwrap();
    refused(&[
        ("variants", "0 plans for 3", |p| p.plans.clear()),
        ("variants", "3 plans for 2", |p| p.manifest.variants.truncate(2)),
        ("variants", "0 plans for 0", |p| {
            p.plans.clear();
            p.manifest.variants.clear();
        }),
        ("variants", "metal stands before cuda", |p| p.manifest.variants.swap(1, 2)),
        ("variants", "cuda stands before cuda", |p| p.manifest.variants[2] = p.manifest.variants[1].clone()),
        ("variants", "another model", |p| p.plans[2].plan.model.context += 1),
        ("variants", "other weights", |p| p.plans[1].plan.weights[0].n -= 1),
        ("kernels", "a GPU has no kernels", |p| p.plans[CUDA].gpu = None),
        ("kernels", "a CPU has kernels", |p| p.plans[0].gpu = Some(gpu())),
        ("cuda, program 0", "from 2 rows", |p| p.plans[CUDA].plan.programs[0].regime.min_rows = 2),
    ]);
}

#[test]
fn kernels_and_launches() {
    refused(&[
        ("cuda, kernels", "cache of int8", |p| p.code().kv = KvElem::Int8),
        ("cuda, kernels", "cache of f16", |p| p.code().kv = KvElem::F16),
        ("kernels", "no name", |p| p.code().kernels[0].name = String::new()),
        ("kernels", "no name", |p| p.code().kernels[0].name = "1st".into()),
        ("kernels", "no name", |p| p.code().kernels[0].name = "a\0b".into()),
        ("kernels", "no name", |p| p.code().kernels[0].name = "a".repeat(129)),
        ("kernels", "a second one", |p| p.code().kernels[1].name = "linear_0".into()),
        ("kernels", "0 threads", |p| p.code().kernels[0].threads = 0),
        ("kernels", "100 threads", |p| p.code().kernels[0].threads = 100),
        ("kernels", "1056 threads", |p| p.code().kernels[0].threads = 1056),
        ("kernels", "0 pointers", |p| p.code().kernels[0].params = 0),
        ("kernels", "32 pointers", |p| p.code().kernels[0].params = 32),
        ("launches", "0 programs of 1", |p| p.code().programs.clear()),
        ("program 0, launches", "step 9 of 9", |p| p.code().programs[0][8].step = 9),
        ("program 0, launches", "step 2 of 9", |p| p.code().programs[0].truncate(2)),
        ("program 0, launches", "step 1 is due", |p| drop(p.code().programs[0].remove(1))),
        ("program 0, launches", "step 4 is due", |p| p.code().programs[0].swap(4, 5)),
        ("program 0, launch 2 (step 2)", "kernel 2 of 2", |p| p.code().programs[0][2].kernel = 2),
        ("program 0, launch 2 (step 2)", "1 arguments", |p| p.code().programs[0][2].args.truncate(1)),
        ("launch 2", "2 arguments", |p| p.code().programs[0][2].kernel = 1),
        ("launch 0", "buffer 14 of 14", |p| p.code().programs[0][0].args[0] = GpuArg::Buffer(14)),
        ("launch 0", "weight 7 of 7", |p| p.code().programs[0][0].args[0] = GpuArg::Weight(7)),
        ("launch 0", "state 1 of 1", |p| p.code().programs[0][0].args[0] = GpuArg::State(1)),
        ("launch 0", "along x 1 workgroups for 0 rows", |p| {
            p.code().programs[0][0].grid[0] = Groups::of_rows(RowCount::Logits, 0);
        }),
        ("launch 0", "along y 0 workgroups", |p| p.code().programs[0][0].grid[1] = Groups::fixed(0)),
        ("launch 0", "65536 workgroups along z", |p| p.code().programs[0][0].grid[2] = Groups::fixed(65536)),
        ("launch 0", "workgroups along x", |p| p.code().programs[0][0].grid[0].times = u32::MAX),
    ]);
    // A step may take several launches.
    let mut parts = Parts::sound();
    let twice = parts.code().programs[0][3].clone();
    parts.code().programs[0].insert(3, twice);
    parts.check().unwrap();
}

#[test]
fn device_code() {
    refused(&[
        ("cuda, binaries", "none", |p| p.binaries().clear()),
        ("cuda, binaries", "compute_80 stands before sm_80", |p| p.binaries().swap(0, 1)),
        ("cuda, binaries", "sm_80 stands before sm_80", |p| p.binaries()[1] = p.binaries()[0].clone()),
        ("cuda, binaries", "sm_80 states what 1 kernels", |p| p.binaries()[0].usage.truncate(1)),
        ("cuda, binaries", "compute_80 states what 2", |p| {
            p.binaries()[1].usage = p.binaries()[0].usage.clone()
        }),
        ("cuda, code 0", "bytes at 64", |p| p.binaries()[0].code.offset = 64),
        ("cuda, code 1", "bytes at 65", |p| p.binaries()[1].code.offset = 65),
        ("cuda, code 1", "bytes at 0", |p| p.binaries()[1].code.offset = 0),
        ("cuda, code 0", "0 bytes", |p| p.binaries()[0].code.len = 0),
        ("cuda, code 1", "reach beyond", |p| p.binaries()[1].code.len = 1 << 20),
        ("cuda, code 1", "reach beyond", |p| p.binaries()[1].code.len = u64::MAX),
        ("cuda, code 0", "a cubin that begins", |p| p.device[1] = b'e'),
        ("cuda, code 1", "a NUL", |p| p.device[70] = 0),
        ("metal, code 0", "no UTF-8", |p| p.device[130] = 0xff),
        ("metal, code 0", "reach beyond", |p| p.device.truncate(138)),
        ("device code", "parts end at 139", |p| p.device.push(b' ')),
    ]);
}
