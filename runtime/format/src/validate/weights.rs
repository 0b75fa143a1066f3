//! Slices of the WEIGHTS section, and what the manifest says about them and about CODE.

use super::{At, Check, ensure};
use crate::error::FormatError;
use crate::manifest::{CodeEntry, Manifest};
use crate::nest::{Nest, ViewElem};
use crate::panel::PanelLayout;
use crate::plan::{Plan, WeightLayout, WeightSlice};
use crate::variant::{DeviceKind, VariantPlan};

/// Every slice is aligned, has exactly the length that its shape asks for and lies behind the one before it, and fills the section.
pub(super) fn slices(plan: &Plan, section: u64) -> Result<(), FormatError> {
    let mut end = 0;
    for (id, slice) in plan.weights.iter().enumerate() {
        end = self::slice(slice, end, section).at(|| format!("weight {id}"))?;
    }
    // No byte of the section lies behind its last tensor, where no hash would cover it.
    (end == section)
        .then_some(())
        .ok_or_else(|| format!("the section has {section} bytes and its tensors end at {end}"))
        .at(|| "weights".into())
}

fn slice(w: &WeightSlice, before: u64, section: u64) -> Check<u64> {
    ensure!(w.offset.is_multiple_of(64), "offset {} is no multiple of 64", w.offset);
    ensure!(w.offset >= before, "starts at {} inside the one before, which ends at {before}", w.offset);
    let expected = bytes(w)?;
    ensure!(w.len == expected, "{} bytes where {} x {} in {} take {expected}", w.len, w.n, w.k, w.scheme);
    let end = w.offset.checked_add(w.len).filter(|end| *end <= section);
    end.ok_or_else(|| format!("{} bytes at {} reach beyond the section of {section}", w.len, w.offset))
}

fn bytes(w: &WeightSlice) -> Check<u64> {
    // The layout checks the scheme and the ranges of n and k, for dense weights too.
    let panel = PanelLayout::new(&w.scheme, w.n as usize, w.k as usize)?;
    match w.layout {
        WeightLayout::Panel => Ok(panel.total_bytes() as u64),
        WeightLayout::Dense => {
            ensure!(w.scheme.elem.is_float(), "a dense weight cannot hold {}", w.scheme);
            Ok(u64::from(w.n) * u64::from(w.k) * u64::from(w.scheme.elem.bits() / 8))
        }
    }
}

/// The manifest names only weights, nests and code that exist.
pub(super) fn manifest(plans: &[VariantPlan], manifest: &Manifest, section: u64) -> Result<(), FormatError> {
    let weights = plans.first().map_or(0, |variant| variant.plan.weights.len());
    let hashes = manifest.weight_hashes.len();
    (hashes == weights)
        .then_some(())
        .ok_or_else(|| format!("{hashes} hashes for {weights} weights"))
        .at(|| "manifest, weight_hashes".into())?;
    for tensor in &manifest.tensors {
        match tensor.weights.iter().find(|id| **id as usize >= weights) {
            Some(id) => Err(format!("lies in weight {id} and there are {weights}")),
            None => Ok(()),
        }
        .at(|| format!("manifest, tensor {}", tensor.name))?;
    }
    // Code of nests is for the CPU, which comes first.
    let for_cpu = manifest.variants.first().is_some_and(|v| v.device.kind() == DeviceKind::Cpu);
    let nests = plans.first().filter(|_| for_cpu).map_or(&[][..], |variant| &variant.plan.nests);
    let mut seen = std::collections::BTreeSet::new();
    for (i, entry) in manifest.code.iter().enumerate() {
        code(nests, entry, section)
            .and_then(|()| {
                ensure!(seen.insert((entry.isa, entry.nest, entry.kv)), "the same nest has code twice");
                Ok(())
            })
            .at(|| format!("manifest, code {i}"))?;
    }
    Ok(())
}

fn code(nests: &[Nest], entry: &CodeEntry, section: u64) -> Check {
    let nest = nests.get(entry.nest as usize);
    let nest = nest.ok_or_else(|| format!("nest {} of {}", entry.nest, nests.len()))?;
    let touches_cache = nest.views.iter().any(|v| v.elem == ViewElem::Kv);
    ensure!(
        entry.kv.is_some() == touches_cache,
        "a cache type of {:?} for nest {} ({})",
        entry.kv,
        entry.nest,
        nest.name
    );
    if let Some(kv) = entry.kv {
        ensure!(kv == kv.written(), "nests never write codes, so none has code for a cache of {}", kv.name());
    }
    ensure!(entry.offset.is_multiple_of(64), "offset {} is no multiple of 64", entry.offset);
    let end = entry.offset.checked_add(entry.len).filter(|end| entry.len > 0 && *end <= section);
    ensure!(end.is_some(), "{} bytes at {} do not lie in the section of {section}", entry.len, entry.offset);
    Ok(())
}
