//! Machine code for loop nests, ahead of time, with Cranelift.
//!
//! The result is a position-independent function without relocations, for the ABI that `bessemer-runtime` documents in its `code`
//! module. It computes the same bits as the interpreter of the runtime: a test compares the two on every nest that lowering makes.
//!
//! Cranelift has vectors of 128 bits. A vector loop whose accesses are contiguous works on 16 iterations at a time as four vectors, which
//! is also what makes the sixteen partial results of a reduction come out as the language demands; other loops are scalar.

mod arith;
mod function;
mod memory;

use bessemer_format::manifest::{CodeIsa, KvElem};
use bessemer_format::nest::Nest;
use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{AbiParam, Function, Signature, UserFuncName, types};
use cranelift_codegen::isa::{self, CallConv, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use std::collections::BTreeMap;

/// Machine code of one nest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// The function.
    pub bytes: Vec<u8>,
    /// Its text, for people.
    pub assembly: String,
}

/// Why there is no code for a nest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodegenError {
    /// The generator does not cover the nest; the runtime executes it as data.
    #[error("{0} has no code generator yet")]
    Unsupported(&'static str),
    /// The generator failed.
    #[error("code generation failed: {0}")]
    Failed(String),
}

/// Generates code for one instruction set.
pub struct Generator {
    isa: OwnedTargetIsa,
    context: FunctionBuilderContext,
}

impl Generator {
    /// A generator for `isa`.
    pub fn new(isa: CodeIsa) -> Result<Self, CodegenError> {
        let failed = |e: &dyn std::fmt::Display| CodegenError::Failed(e.to_string());
        let mut flags = settings::builder();
        for (name, value) in [("opt_level", "speed"), ("is_pic", "true"), ("enable_verifier", "true")] {
            flags.set(name, value).map_err(|e| failed(&e))?;
        }
        let (triple, features): (&str, &[&str]) = match isa {
            CodeIsa::X86_64V3 => (
                "x86_64-unknown-linux-gnu",
                &[
                    "has_sse3",
                    "has_ssse3",
                    "has_sse41",
                    "has_sse42",
                    "has_avx",
                    "has_avx2",
                    "has_fma",
                    "has_bmi1",
                    "has_bmi2",
                    "has_lzcnt",
                    "has_popcnt",
                ],
            ),
            CodeIsa::Aarch64 => ("aarch64-unknown-linux-gnu", &[]),
        };
        let triple = triple.parse().map_err(|e| failed(&e))?;
        let mut builder = isa::lookup(triple).map_err(|e| failed(&e))?;
        for feature in features {
            builder.enable(feature).map_err(|e| failed(&e))?;
        }
        let isa = builder.finish(settings::Flags::new(flags)).map_err(|e| failed(&e))?;
        Ok(Self { isa, context: FunctionBuilderContext::new() })
    }

    /// The code of `nest` for a cache of `kv` elements.
    pub fn compile(&mut self, nest: &Nest, kv: KvElem) -> Result<Code, CodegenError> {
        let failed = |e: &dyn std::fmt::Debug| CodegenError::Failed(format!("{}: {e:?}", nest.name));
        let mut signature = Signature::new(CallConv::SystemV);
        for _ in 0..4 {
            signature.params.push(AbiParam::new(types::I64));
        }
        signature.returns.push(AbiParam::new(types::I64));
        let mut context = Context::new();
        context.func = Function::with_name_signature(UserFuncName::user(0, 0), signature);
        let builder = FunctionBuilder::new(&mut context.func, &mut self.context);
        function::emit(builder, nest, kv, self.isa.frontend_config())?;
        context.set_disasm(true);
        let code = context.compile(&*self.isa, &mut ControlPlane::default()).map_err(|e| failed(&e.inner))?;
        if !code.buffer.relocs().is_empty() {
            return Err(CodegenError::Failed(format!("{}: the code has relocations", nest.name)));
        }
        Ok(Code { bytes: code.code_buffer().to_vec(), assembly: code.vcode.clone().unwrap_or_default() })
    }
}

/// Code for every nest of a plan that has a generator: the CODE section and its entries. Nests that touch the cache get one function
/// for each element type of it.
pub fn section(
    nests: &[Nest],
    isas: &[CodeIsa],
) -> Result<(Vec<u8>, Vec<bessemer_format::manifest::CodeEntry>), CodegenError> {
    use bessemer_format::manifest::CodeEntry;
    use bessemer_format::nest::ViewElem;
    let mut bytes = Vec::new();
    let mut entries = Vec::new();
    // Equal functions stand once.
    let mut known: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for &isa in isas {
        let mut generator = Generator::new(isa)?;
        for (id, nest) in nests.iter().enumerate() {
            let touches = nest.views.iter().any(|v| v.elem == ViewElem::Kv);
            let variants: &[Option<KvElem>] =
                if touches { &[Some(KvElem::Bf16), Some(KvElem::F16), Some(KvElem::F32)] } else { &[None] };
            for &kv in variants {
                let code = match generator.compile(nest, kv.unwrap_or(KvElem::Bf16)) {
                    Ok(code) => code,
                    Err(CodegenError::Unsupported(_)) => continue,
                    Err(e) => return Err(e),
                };
                let len = code.bytes.len() as u64;
                let offset = *known.entry(code.bytes).or_insert_with_key(|code| {
                    bytes.resize(bytes.len().next_multiple_of(64), 0);
                    bytes.extend_from_slice(code);
                    (bytes.len() - code.len()) as u64
                });
                entries.push(CodeEntry { isa, nest: id as u32, kv, offset, len });
            }
        }
    }
    Ok((bytes, entries))
}

#[cfg(test)]
mod tests;
