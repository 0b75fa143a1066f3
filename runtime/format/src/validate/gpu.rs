//! Variants, kernels and launches of GPUs, and the DEVICE section.

use super::{At, Check, MAX_GRID, MAX_KERNELS, MAX_LAUNCHES, MAX_PARAMS, MAX_THREADS, ensure};
use crate::error::FormatError;
use crate::gpu::{GpuArg, GpuCode, GpuKernel, Groups, Launch};
use crate::manifest::{KvElem, Manifest};
use crate::plan::{Plan, Program};
use crate::variant::{CudaBinary, DeviceCode, VariantPlan};
use std::collections::BTreeSet;

/// Threads of a warp.
const LANES: u32 = 32;
/// First bytes of a cubin.
const ELF: &[u8] = b"\x7fELF";

/// A plan for each variant, each kind of device at most once and in their order, all of one model with one list of weights.
pub(super) fn variants(plans: &[VariantPlan], manifest: &Manifest) -> Check {
    let (count, named) = (plans.len(), manifest.variants.len());
    ensure!(
        count > 0 && count == named,
        "{count} plans for {named} variants; there is one for each, at least one"
    );
    let kinds = || manifest.variants.iter().map(|v| v.device.kind());
    for (kind, next) in kinds().zip(kinds().skip(1)) {
        ensure!(kind < next, "{} stands before {}", kind.name(), next.name());
    }
    for (variant, other) in manifest.variants.iter().zip(plans) {
        let (plan, first) = (&other.plan, &plans[0].plan);
        ensure!(plan.model == first.model, "{} is for another model than the first", variant.target);
        ensure!(plan.weights == first.weights, "{} has other weights than the first", variant.target);
    }
    Ok(())
}

/// A GPU has launches and a CPU none, and they are sound.
pub(super) fn code(plan: &Plan, code: Option<&GpuCode>, device: &DeviceCode) -> Result<(), FormatError> {
    let code = match (code, device) {
        (None, DeviceCode::Cpu { .. }) => return Ok(()),
        (Some(code), DeviceCode::Cuda { .. } | DeviceCode::Metal { .. }) => code,
        (None, _) => return Err("a GPU has no kernels".into()).at(|| "kernels".into()),
        (Some(_), _) => return Err("a CPU has kernels of a GPU".into()).at(|| "kernels".into()),
    };
    kernels(code).at(|| "kernels".into())?;
    let (found, programs) = (code.programs.len(), plan.programs.len());
    (found == programs)
        .then_some(())
        .ok_or_else(|| format!("launches for {found} programs of {programs}"))
        .at(|| "launches".into())?;
    for (id, (program, launches)) in plan.programs.iter().zip(&code.programs).enumerate() {
        in_order(program, launches).at(|| format!("program {id}, launches"))?;
        for (at, launch) in launches.iter().enumerate() {
            self::launch(plan, program, &code.kernels, launch)
                .at(|| format!("program {id}, launch {at} (step {})", launch.step))?;
        }
    }
    match device {
        DeviceCode::Cuda { binaries, .. } => cuda(code, binaries).at(|| "binaries".into()),
        _ => Ok(()),
    }
}

fn kernels(code: &GpuCode) -> Check {
    ensure!(
        matches!(code.kv, KvElem::F32 | KvElem::Bf16),
        "kernels for a cache of {}: those of GPUs read and write f32 or bf16",
        code.kv.name()
    );
    ensure!(code.kernels.len() <= MAX_KERNELS, "{} kernels, at most {MAX_KERNELS}", code.kernels.len());
    let mut names = BTreeSet::new();
    for (id, GpuKernel { name, threads, params }) in code.kernels.iter().enumerate() {
        let letters = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let is_name = name.bytes().all(letters) && !name.starts_with(|c: char| c.is_ascii_digit());
        ensure!((1..=128).contains(&name.len()) && is_name, "kernel {id}: {name:?} is no name");
        ensure!(names.insert(name), "kernel {id}: a second one is called {name}");
        ensure!(
            (LANES..=MAX_THREADS).contains(threads) && threads.is_multiple_of(LANES),
            "kernel {id}: {threads} threads; multiples of {LANES} up to {MAX_THREADS} are possible"
        );
        ensure!((1..=MAX_PARAMS).contains(params), "kernel {id}: {params} pointers, 1 to {MAX_PARAMS}");
    }
    Ok(())
}

/// Launches follow their steps, and no step is left out: its results would be whatever lay in memory.
fn in_order(program: &Program, launches: &[Launch]) -> Check {
    let steps = program.steps.len();
    ensure!(launches.len() <= MAX_LAUNCHES, "{} launches, at most {MAX_LAUNCHES}", launches.len());
    let mut next = 0;
    for (at, launch) in launches.iter().enumerate() {
        let step = launch.step as usize;
        ensure!(step < steps, "launch {at} is for step {step} of {steps}");
        ensure!(step == next || step + 1 == next, "launch {at} is for step {step}, and step {next} is due");
        next = step + 1;
    }
    ensure!(next == steps, "step {next} of {steps} has none");
    Ok(())
}

fn launch(plan: &Plan, program: &Program, kernels: &[GpuKernel], launch: &Launch) -> Check {
    let kernel = kernels.get(launch.kernel as usize);
    let kernel = kernel.ok_or_else(|| format!("kernel {} of {}", launch.kernel, kernels.len()))?;
    ensure!(
        launch.args.len() == kernel.params as usize,
        "{} arguments for {} with {} pointers",
        launch.args.len(),
        kernel.name,
        kernel.params
    );
    for arg in &launch.args {
        let (what, id, count) = match *arg {
            GpuArg::Buffer(id) => ("buffer", id, program.buffers.len()),
            GpuArg::Weight(id) => ("weight", id, plan.weights.len()),
            GpuArg::State(id) => ("state", id, plan.states.len()),
            GpuArg::Input(_) | GpuArg::Pass | GpuArg::Fault => continue,
        };
        ensure!((id as usize) < count, "{what} {id} of {count}");
    }
    let rows = u64::from(program.regime.max_rows);
    for ((axis, groups), limit) in ["x", "y", "z"].into_iter().zip(&launch.grid).zip(MAX_GRID) {
        let Groups { per, times, .. } = *groups;
        ensure!(per > 0 && times > 0, "along {axis} {times} workgroups for {per} rows; both are at least 1");
        let count = groups.count(rows, rows);
        ensure!(count <= limit, "up to {count} workgroups along {axis}, at most {limit}");
    }
    Ok(())
}

fn cuda(code: &GpuCode, binaries: &[CudaBinary]) -> Check {
    ensure!(!binaries.is_empty(), "there is none");
    for (binary, next) in binaries.iter().zip(binaries.iter().skip(1)) {
        ensure!(binary.arch < next.arch, "{} stands before {}", binary.arch, next.arch);
    }
    for CudaBinary { arch, usage, .. } in binaries {
        let expected = if arch.ptx { 0 } else { code.kernels.len() };
        ensure!(
            usage.len() == expected,
            "{arch} states what {} kernels take, and has {expected}",
            usage.len()
        );
    }
    Ok(())
}

/// The parts of the section lie one behind the other, 64-byte aligned, without gaps beyond that, and are what they should be.
pub(super) fn section(plans: &[VariantPlan], manifest: &Manifest, section: &[u8]) -> Result<(), FormatError> {
    let mut end = 0;
    for (variant, _) in manifest.variants.iter().zip(plans) {
        for (at, slice) in variant.device.code().into_iter().enumerate() {
            let place = || format!("{}, code {at}", variant.target);
            let bytes = (|| {
                ensure!(
                    slice.offset == u64::next_multiple_of(end, 64) && slice.len > 0,
                    "{} bytes at {}, behind {end}",
                    slice.len,
                    slice.offset
                );
                end = slice
                    .offset
                    .checked_add(slice.len)
                    .filter(|end| *end <= section.len() as u64)
                    .ok_or_else(|| {
                        format!("{} bytes at {} reach beyond {}", slice.len, slice.offset, section.len())
                    })?;
                Ok(&section[slice.offset as usize..end as usize])
            })();
            let bytes = bytes.at(place)?;
            contents(&variant.device, at, bytes).at(place)?;
        }
    }
    (end == section.len() as u64)
        .then_some(())
        .ok_or_else(|| format!("the section has {} bytes and its parts end at {end}", section.len()))
        .at(|| "device code".into())
}

/// A cubin begins as one; text is text.
fn contents(device: &DeviceCode, at: usize, bytes: &[u8]) -> Check {
    if let DeviceCode::Cuda { binaries, .. } = device
        && binaries.get(at).is_some_and(|b| !b.arch.ptx)
    {
        ensure!(bytes.starts_with(ELF), "a cubin that begins with {:02x?}", &bytes[..bytes.len().min(4)]);
        return Ok(());
    }
    let text = std::str::from_utf8(bytes).map_err(|e| format!("text that is no UTF-8: {e}"))?;
    ensure!(!text.contains('\0'), "text with a NUL");
    Ok(())
}
