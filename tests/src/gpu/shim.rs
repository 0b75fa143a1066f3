//! The shim as a device: a process that holds memory and runs kernels.

use crate::models::root;
use bessemer_format::gpu::GpuKernel;
use bessemer_targets::clike::Dialect;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};

/// What the shim reports: an access outside of memory, a deadlock, threads that diverge.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ShimError(pub String);

/// Compiles `text` with `kernels` into `folder`, or `None` after saying that there is no compiler.
///
/// # Panics
/// If the text does not compile: with what the compiler says.
pub fn compile(text: &str, kernels: &[GpuKernel], dialect: Dialect, folder: &Path) -> Option<PathBuf> {
    let shim = root().join("tests/shim");
    let include = match dialect {
        Dialect::Cuda => "#include \"cuda.h\"\n",
        Dialect::Metal => "",
    };
    let entries: String = kernels.iter().map(|k| format!("    SHIM_KERNEL({}),\n", k.name)).collect();
    let source = format!(
        "{include}{text}\nstatic const shim::Entry kernels[] = {{\n{entries}}};\n#include \"device.h\"\n"
    );
    let (file, program) = (folder.join("kernels.cpp"), folder.join("device"));
    std::fs::write(&file, source).unwrap();
    let out = Command::new("g++")
        .args([
            "-std=c++17",
            "-O1",
            "-ffp-contract=off",
            "-fno-strict-aliasing",
            "-Wno-attributes",
            "-Wno-unknown-pragmas",
        ])
        .args(["-fsanitize=bounds", "-fsanitize-undefined-trap-on-error"])
        .arg("-I")
        .arg(&shim)
        .arg("-I")
        .arg(shim.join("include"))
        .arg(&file)
        .arg("-o")
        .arg(&program)
        .output();
    match out {
        Err(e) => {
            crate::skip("g++", format_args!("it compiles kernels for the shim, and does not start: {e}"));
            None
        }
        Ok(out) if !out.status.success() => {
            let kept = std::env::temp_dir().join("bessemer-kernels.cpp");
            let _ = std::fs::copy(&file, &kept);
            panic!("{}\n(the text is kept as {})", String::from_utf8_lossy(&out.stderr), kept.display())
        }
        Ok(_) => Some(program),
    }
}

/// Several texts in the Metal Shading Language in one program, each in a namespace of its own: with their kernels as they are called there.
/// Otherwise as [`compile`].
pub fn compile_together(
    texts: &[(&str, &[GpuKernel])],
    folder: &Path,
) -> Option<(PathBuf, Vec<Vec<GpuKernel>>)> {
    let mut all = String::from("#include <metal_stdlib>\n");
    let mut kernels = Vec::new();
    for (at, (text, own)) in texts.iter().enumerate() {
        all.push_str(&format!("namespace m{at} {{\n{text}\n}}\n"));
        let named = |k: &GpuKernel| GpuKernel { name: format!("m{at}::{}", k.name), ..k.clone() };
        kernels.push(own.iter().map(named).collect::<Vec<_>>());
    }
    let program = compile(&all, &kernels.concat(), Dialect::Metal, folder)?;
    Some((program, kernels))
}

/// Whether kernels can be compiled here.
pub fn has_compiler() -> bool {
    Command::new("g++").arg("--version").output().is_ok_and(|out| out.status.success())
}

/// A running shim.
pub struct Shim {
    child: Child,
    input: BufWriter<ChildStdin>,
    output: BufReader<ChildStdout>,
    errors: ChildStderr,
    /// Whether threads run from the last to the first.
    pub reverse: bool,
}

impl Shim {
    /// Starts what [`compile`] made.
    pub fn start(program: &Path) -> Self {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let input = BufWriter::new(child.stdin.take().unwrap());
        let output = BufReader::new(child.stdout.take().unwrap());
        let errors = child.stderr.take().unwrap();
        Self { child, input, output, errors, reverse: false }
    }

    /// Sends a command with the bytes that belong to it, and waits for the answer of `len` bytes.
    fn command(&mut self, line: &str, bytes: &[u8], len: usize) -> Result<Vec<u8>, ShimError> {
        let mut answer = vec![0; len + 1];
        let talk = (|| {
            writeln!(self.input, "{line}")?;
            self.input.write_all(bytes)?;
            self.input.flush()?;
            self.output.read_exact(&mut answer)
        })();
        match talk {
            Ok(()) if answer.pop() == Some(b'.') => Ok(answer),
            _ => {
                let mut why = String::new();
                let _ = self.errors.read_to_string(&mut why);
                Err(ShimError(format!("{} ({line})", why.trim())))
            }
        }
    }

    /// New memory under a number, every float of it no number.
    pub fn alloc(&mut self, id: u32, bytes: usize) -> Result<(), ShimError> {
        self.command(&format!("alloc {id} {bytes}"), &[], 0).map(drop)
    }

    /// New memory that holds `bytes`.
    pub fn upload(&mut self, id: u32, bytes: &[u8]) -> Result<(), ShimError> {
        self.alloc(id, bytes.len())?;
        self.command(&format!("write {id} 0 {}", bytes.len()), bytes, 0).map(drop)
    }

    /// `len` bytes of a memory from `offset` on.
    pub fn read(&mut self, id: u32, offset: usize, len: usize) -> Result<Vec<u8>, ShimError> {
        self.command(&format!("read {id} {offset} {len}"), &[], len)
    }

    /// Runs a kernel over a grid with a memory and an offset in it for each pointer.
    pub fn launch(
        &mut self,
        kernel: &GpuKernel,
        grid: [u64; 3],
        args: &[(u32, usize)],
    ) -> Result<(), ShimError> {
        let [x, y, z] = grid;
        let pointers: String = args.iter().map(|(id, offset)| format!(" {id} {offset}")).collect();
        let (name, threads, reverse, count) =
            (&kernel.name, kernel.threads, u8::from(self.reverse), args.len());
        self.command(&format!("launch {name} {x} {y} {z} {threads} {reverse} {count}{pointers}"), &[], 0)
            .map(drop)
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
