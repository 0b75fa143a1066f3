//! Targets by their names on the command line, and the set of them that an engine is for.

use crate::cpu::CpuTarget;
use crate::cuda::CudaTarget;
use crate::error::TargetError;
use crate::metal::MetalTarget;
use bessemer_format::variant::DeviceKind;
use bessemer_format::{Compute, QuantScheme};
use bessemer_ir::{Layout, TargetInfo};
use std::fmt;

/// What a variant of an engine is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The host's processor.
    Cpu(CpuTarget),
    /// GPUs of NVIDIA.
    Cuda(CudaTarget),
    /// GPUs of Apple.
    Metal(MetalTarget),
}

impl Target {
    /// The kind of device.
    pub fn kind(&self) -> DeviceKind {
        match self {
            Self::Cpu(_) => DeviceKind::Cpu,
            Self::Cuda(_) => DeviceKind::Cuda,
            Self::Metal(_) => DeviceKind::Metal,
        }
    }

    /// Its taste.
    fn info(&self) -> &(dyn TargetInfo + Sync) {
        match self {
            Self::Cpu(target) => target,
            Self::Cuda(target) => target,
            Self::Metal(target) => target,
        }
    }
}

impl TargetInfo for Target {
    fn name(&self) -> String {
        self.info().name()
    }

    fn supports(&self, scheme: &QuantScheme) -> Result<(), String> {
        self.info().supports(scheme)
    }

    fn weight_layout(&self, scheme: &QuantScheme, n: u64, k: u64) -> Layout {
        self.info().weight_layout(scheme, n, k)
    }

    fn default_compute(&self, scheme: &QuantScheme, k: u64) -> Compute {
        self.info().default_compute(scheme, k)
    }

    fn many_rows_compute(&self, scheme: &QuantScheme, k: u64) -> Option<(u32, Compute)> {
        self.info().many_rows_compute(scheme, k)
    }

    fn many_rows_attention(&self) -> Option<u32> {
        self.info().many_rows_attention()
    }

    fn read_cost(&self, scheme: &QuantScheme, k: u64) -> f64 {
        self.info().read_cost(scheme, k)
    }
}

/// What an engine is for: at most one target of each kind of device, in the order of [`DeviceKind`], at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets(Vec<Target>);

impl Default for Targets {
    /// The CPU, whichever it is.
    fn default() -> Self {
        CpuTarget::default().into()
    }
}

impl From<CpuTarget> for Targets {
    fn from(cpu: CpuTarget) -> Self {
        Self(vec![Target::Cpu(cpu)])
    }
}

impl Targets {
    /// The targets that a user names, each as `DEVICE` or `DEVICE:DETAIL[,DETAIL...]`. Names of one GPU add up.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, TargetError> {
        let mut found: Vec<Target> = Vec::new();
        for name in names {
            let device = name.split(':').next().unwrap_or_default();
            let target = match device {
                "cpu" => Target::Cpu(CpuTarget::parse(name)?),
                "cuda" => Target::Cuda(CudaTarget::parse(name)?),
                "metal" => Target::Metal(MetalTarget::parse(name)?),
                _ => {
                    let known = [CpuTarget::names(), CudaTarget::names(), MetalTarget::names()].join(", ");
                    return Err(TargetError::UnknownTarget { found: name.into(), known });
                }
            };
            match found.iter_mut().find(|t| t.kind() == target.kind()) {
                None => found.push(target),
                Some(same) => same.merge(target)?,
            }
        }
        if found.is_empty() {
            return Ok(Self::default());
        }
        found.sort_by_key(Target::kind);
        Ok(Self(found))
    }

    /// The targets in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Target> {
        self.0.iter()
    }

    /// The first: the CPU if it is among them.
    pub fn first(&self) -> &Target {
        // Every constructor puts one there.
        &self.0[0]
    }

    /// The CPU, if it is among them.
    pub fn cpu(&self) -> Option<&CpuTarget> {
        self.0.iter().find_map(|t| match t {
            Target::Cpu(cpu) => Some(cpu),
            _ => None,
        })
    }
}

impl Target {
    /// Adds what another target of the same kind asks for.
    fn merge(&mut self, other: Self) -> Result<(), TargetError> {
        match (self, other) {
            (Self::Cuda(a), Self::Cuda(b)) => a.merge(b),
            (Self::Metal(a), Self::Metal(b)) => a.merge(b),
            (a, b) if *a == b => {}
            (a, b) => return Err(TargetError::Several { one: a.name(), other: b.name() }),
        }
        Ok(())
    }
}

impl fmt::Display for Targets {
    /// As [`Targets::parse`] reads them, with spaces between.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(TargetInfo::name).collect();
        f.write_str(&names.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(names: &[&str]) -> Result<String, String> {
        Targets::parse(names.iter().copied()).map(|t| t.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn names_become_sets() {
        for (names, expected) in [
            (&["cpu"][..], "cpu"),
            (&[], "cpu"),
            (&["metal", "cuda", "cpu"], "cpu cuda:sm_80,sm_89,sm_90a,sm_120 metal:apple7"),
            (&["cuda:sm_90a", "cuda:sm_80"], "cuda:sm_80,sm_90a"),
            (&["cuda:sm_90a,sm_80", "cuda:sm_90a"], "cuda:sm_80,sm_90a"),
            (&["cuda", "cuda:sm_100"], "cuda:sm_80,sm_89,sm_90a,sm_100,sm_120"),
            (&["metal:apple9", "metal:apple8"], "metal:apple8"),
            (&["cpu:x86-64-v3", "cpu:x86-64-v3"], "cpu:x86-64-v3"),
            (&["cpu:x86-64-v4+amx"], "cpu:x86-64-v4+amx"),
        ] {
            let found = parse(names).unwrap();
            assert_eq!(found, expected);
            assert_eq!(parse(&found.split(' ').collect::<Vec<_>>()).unwrap(), found, "names are read back");
        }
    }

    #[test]
    fn unknown_names_are_refused_with_what_there_is() {
        for (names, parts) in [
            (&["rocm"][..], &["`rocm`", "cpu:x86-64-v3", "cuda", "metal:apple7"][..]),
            (&["cpu:486"], &["`cpu:486`", "cpu:aarch64"]),
            (&["cuda:sm_70"], &["`cuda:sm_70`", "cuda:sm_75", "cuda:sm_90a"]),
            (&["cuda:"], &["`cuda:`", "sm_80"]),
            (&["cuda:sm_80,"], &["`cuda:sm_80,`"]),
            (&["cuda:compute_80"], &["`cuda:compute_80`"]),
            (&["metal:apple6"], &["`metal:apple6`", "metal:apple7"]),
            (&["Cuda"], &["`Cuda`"]),
            (&["cpu", "cpu:x86-64-v3"], &["`cpu` and `cpu:x86-64-v3`", "one"]),
        ] {
            let error = parse(names).unwrap_err();
            parts.iter().for_each(|part| assert!(error.contains(part), "`{part}` is not in: {error}"));
        }
    }
}
