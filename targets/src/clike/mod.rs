//! Kernels for GPUs: one emitter, two dialects of C++, [CUDA](Dialect::Cuda) and [Metal](Dialect::Metal).
//!
//! ```text
//! text/cuda.h | text/metal.h     what differs: address spaces, barriers, shuffles, loads of 16 bytes
//! text/common.h                  numbers, sums over warps and workgroups
//! text/linear.h attention.h route.h     tiled kernels as templates
//! weight.rs                      a struct for every layout of packed weights: how a tile is decoded
//! nest.rs                        any loop nest as a kernel
//! steps.rs                       the kernels of a plan's steps, and their launches
//! ```
//!
//! The text of a plan is a function of the plan alone. What depends on a pass (rows, block table stride) is read from memory, so a
//! recorded sequence of launches can be run again for other passes.
//!
//! Arithmetic is that of the nest language, operation by operation, but for the order of reductions: a workgroup's threads take
//! every n-th element and partial results are added up as a tree. That order is fixed by the text, so a kernel gives the same bits each time.

mod nest;
mod steps;
mod weight;

use crate::error::TargetError;
use bessemer_format::PanelLayout;
use bessemer_format::gpu::{GpuArg, GpuCode, GpuKernel, Groups, Launch};
use bessemer_format::manifest::KvElem;
use bessemer_format::plan::{Plan, Program};
use std::fmt::Write as _;

/// Lanes of a warp (CUDA) or simdgroup (Metal, on every GPU of Apple).
pub(crate) const LANES: u32 = 32;
/// Largest number of pointers of a kernel: Metal has no more.
const MAX_PARAMS: usize = 31;

/// A dialect of C++.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dialect {
    /// CUDA C++, as NVRTC compiles it.
    Cuda,
    /// The Metal Shading Language.
    Metal,
}

impl Dialect {
    /// Bytes of memory that a workgroup has on every device of the kind, and that a kernel may declare.
    const fn workgroup_memory(self) -> u64 {
        match self {
            Self::Cuda => 48 << 10,
            Self::Metal => 32 << 10,
        }
    }
}

/// Kernels of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Their text: one file that includes nothing of ours.
    pub text: String,
    /// Launches of them.
    pub code: GpuCode,
}

/// Kernels and launches for every step of a plan whose linears compute in f32.
pub fn emit(plan: &Plan, kv: KvElem, dialect: Dialect) -> Result<Emitted, TargetError> {
    let mut emitter = Emitter::new(dialect, kv);
    let programs = emitter.plan(plan)?;
    let (text, kernels) = emitter.finish();
    Ok(Emitted { text, code: GpuCode { kv, kernels, programs } })
}

/// Kernels of several plans in one text: those that plans have in common stand once.
pub struct Emitter {
    module: Module,
    kv: KvElem,
}

impl Emitter {
    /// A text without kernels.
    pub fn new(dialect: Dialect, kv: KvElem) -> Self {
        Self { module: Module { dialect, layouts: Vec::new(), kernels: Vec::new() }, kv }
    }

    /// Adds the kernels of `plan`; for each of its programs the launches.
    pub fn plan(&mut self, plan: &Plan) -> Result<Vec<Vec<Launch>>, TargetError> {
        plan.programs.iter().map(|program| self.program(plan, program)).collect()
    }

    fn program(&mut self, plan: &Plan, program: &Program) -> Result<Vec<Launch>, TargetError> {
        let mut launches = Vec::new();
        for (index, step) in program.steps.iter().enumerate() {
            let drafts = steps::step(&mut self.module, plan, program, step)
                .map_err(|why| TargetError::node(&step.source, why))?;
            launches.extend(drafts.into_iter().map(|(kernel, grid, args)| Launch {
                step: index as u32,
                kernel,
                grid,
                args,
            }));
        }
        Ok(launches)
    }

    /// The text, and its kernels by number.
    pub fn finish(self) -> (String, Vec<GpuKernel>) {
        let kernel = |k: &Kernel| GpuKernel {
            name: k.name.clone(),
            threads: k.threads,
            params: k.params.len() as u32,
        };
        (self.module.text(self.kv), self.module.kernels.iter().map(kernel).collect())
    }
}

/// What a kernel's pointer points to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Param {
    /// Type of an element.
    ty: &'static str,
    name: String,
    /// Whether the kernel stores through it.
    store: bool,
}

impl Param {
    fn read(ty: &'static str, name: impl Into<String>) -> Self {
        Self { ty, name: name.into(), store: false }
    }

    fn written(ty: &'static str, name: impl Into<String>) -> Self {
        Self { ty, name: name.into(), store: true }
    }
}

/// A kernel's launch without its step: the kernel, the grid, the pointers.
type Draft = (u32, [Groups; 3], Vec<GpuArg>);

struct Kernel {
    name: String,
    /// The step that it was first made for.
    source: String,
    threads: u32,
    params: Vec<Param>,
    body: String,
}

/// A text under construction. Equal kernels and layouts stand once.
struct Module {
    dialect: Dialect,
    layouts: Vec<PanelLayout>,
    kernels: Vec<Kernel>,
}

impl Module {
    /// The name of the struct that decodes `layout`.
    fn layout(&mut self, layout: &PanelLayout) -> String {
        let at = self.layouts.iter().position(|l| l == layout).unwrap_or_else(|| {
            self.layouts.push(layout.clone());
            self.layouts.len() - 1
        });
        format!("W{at}")
    }

    fn kernel(
        &mut self,
        op: &str,
        source: &str,
        threads: u32,
        params: Vec<Param>,
        body: Block,
    ) -> Result<u32, String> {
        if params.len() > MAX_PARAMS {
            return Err(format!("a kernel takes {MAX_PARAMS} pointers, this one has {}", params.len()));
        }
        let (room, Block { text: body, shared, .. }) = (self.dialect.workgroup_memory(), body);
        if shared > room {
            return Err(format!("a workgroup has {room} bytes of memory, and {op} needs {shared}"));
        }
        let same = |k: &Kernel| k.threads == threads && k.params == params && k.body == body;
        if let Some(at) = self.kernels.iter().position(same) {
            return Ok(at as u32);
        }
        let name = format!("{op}_{}", self.kernels.len());
        self.kernels.push(Kernel { name, source: source.into(), threads, params, body });
        Ok(self.kernels.len() as u32 - 1)
    }

    fn text(&self, kv: KvElem) -> String {
        let mut out = String::new();
        if kv == KvElem::F32 {
            out.push_str("#define KV_F32\n");
        }
        out.push_str(match self.dialect {
            Dialect::Cuda => include_str!("text/cuda.h"),
            Dialect::Metal => include_str!("text/metal.h"),
        });
        for part in [
            include_str!("text/common.h"),
            include_str!("text/linear.h"),
            include_str!("text/attention.h"),
            include_str!("text/route.h"),
        ] {
            out.push('\n');
            out.push_str(part);
        }
        for (at, layout) in self.layouts.iter().enumerate() {
            out.push('\n');
            out.push_str(&weight::layout(&format!("W{at}"), layout));
        }
        for kernel in &self.kernels {
            let _ = write!(out, "\n// {}\n", kernel.source.replace(['\n', '\r', '\\'], " "));
            let _ = writeln!(out, "KERNEL({}) {}(", kernel.threads, kernel.name);
            out.push_str(&self.signature(&kernel.params));
            let _ = write!(out, ") {{\n    PLACE\n{}}}\n", kernel.body);
        }
        out
    }

    fn signature(&self, params: &[Param]) -> String {
        let mut lines: Vec<String> = params
            .iter()
            .enumerate()
            .map(|(at, p)| {
                let constant = if p.store { "" } else { "const " };
                let binding = match self.dialect {
                    Dialect::Cuda => String::new(),
                    Dialect::Metal => format!(" [[buffer({at})]]"),
                };
                format!("    {constant}GLOBAL {}* {}{binding}", p.ty, p.name)
            })
            .collect();
        if self.dialect == Dialect::Metal {
            lines.push("    uint3 group [[threadgroup_position_in_grid]]".into());
            lines.push("    uint thread_index [[thread_index_in_threadgroup]]".into());
        }
        lines.join(",\n") + "\n"
    }
}

/// Text with indentation.
#[derive(Default)]
struct Block {
    text: String,
    depth: usize,
    /// Bytes of workgroup memory that it declares.
    shared: u64,
}

impl Block {
    /// The body of a kernel or member.
    fn body(depth: usize) -> Self {
        Self { depth, ..Self::default() }
    }

    fn line(&mut self, line: impl AsRef<str>) {
        let _ = writeln!(self.text, "{:1$}{2}", "", self.depth * 4, line.as_ref());
    }

    /// Declares `floats` numbers of workgroup memory, written as `count`.
    fn shared(&mut self, name: &str, count: impl std::fmt::Display, floats: u64) {
        self.shared += 4 * floats;
        self.line(format!("SHARED_ARRAY(float, {name}, {count});"));
    }

    /// `head {`
    fn open(&mut self, head: impl AsRef<str>) {
        self.line(format!("{} {{", head.as_ref()));
        self.depth += 1;
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.line("}");
    }
}

/// A float as it is written, so that it reads back as the same number.
fn float(value: f32) -> String {
    if value.is_nan() {
        "NOT_A_NUMBER".into()
    } else if value.is_infinite() {
        if value > 0.0 { "INF".into() } else { "-INF".into() }
    } else {
        format!("{value:?}f")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workgroup_memory_that_no_device_has_is_refused() {
        let mut module = Module { dialect: Dialect::Metal, layouts: Vec::new(), kernels: Vec::new() };
        let mut kernel = |floats: u64| {
            let mut body = Block::body(1);
            body.shared("states", floats, floats);
            module.kernel("attention", "l0", LANES, Vec::new(), body)
        };
        assert_eq!(kernel(8192), Ok(0));
        let error = kernel(8193).unwrap_err();
        assert!(error.contains("32768") && error.contains("attention needs 32772"), "{error}");
    }
}
