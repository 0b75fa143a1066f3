//! Machine code for the nests of a plan: the CODE section.

use crate::error::CompileError;
use crate::options::CompileOptions;
use bessemer_format::manifest::CodeEntry;
use bessemer_format::plan::Plan;
use bessemer_targets::clike::{self, Dialect};
use bessemer_targets::codegen::{self, Generator};
use std::fmt::Write as _;

/// Generates code for every nest and instruction set of the CPU, if the engine is for one: `plan` is its plan. What a generator does not support stays a nest.
pub(crate) fn generate(
    plan: &Plan,
    options: &CompileOptions,
) -> Result<(Vec<u8>, Vec<CodeEntry>), CompileError> {
    match options.targets.cpu() {
        Some(cpu) if options.code => Ok(codegen::section(&plan.nests, cpu.code_isas())?),
        _ => Ok((Vec::new(), Vec::new())),
    }
}

/// The generated code of every nest as text.
pub fn assembly(plan: &Plan, options: &CompileOptions) -> Result<String, CompileError> {
    let mut out = String::new();
    for &isa in options.targets.cpu().map_or(&[][..], |cpu| cpu.code_isas()) {
        let mut generator = Generator::new(isa)?;
        for (id, nest) in plan.nests.iter().enumerate() {
            let _ = writeln!(out, "; nest {id} ({}) for {isa:?}", nest.name);
            match generator.compile(nest, bessemer_format::manifest::KvElem::Bf16) {
                Ok(code) => out.push_str(&code.assembly),
                Err(codegen::CodegenError::Unsupported(why)) => {
                    let _ = writeln!(out, "; runs as a nest: {why} has no generator");
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(out)
}

/// The kernels for a GPU of a plan whose linears compute in f32, as text, for a cache of bf16.
pub fn kernels(plan: &Plan, dialect: Dialect) -> Result<String, CompileError> {
    Ok(clike::emit(plan, bessemer_format::manifest::KvElem::Bf16, dialect)?.text)
}
