//! NVRTC by its C interface, loaded from a folder when it is needed: building this crate needs no CUDA.
//!
//! It is loaded by its full path. A search by name could find another release, which would write other bytes.

use super::{Binary, CudaError, OPTIONS, usage};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

type Program = *mut c_void;
type Status = c_int;
type GetSize = unsafe extern "C" fn(Program, *mut usize) -> Status;
type GetBytes = unsafe extern "C" fn(Program, *mut c_char) -> Status;

/// Names of the libraries: what is compiled into kernels without being asked for, then the compiler.
const LIBRARIES: [&str; 2] = match cfg!(windows) {
    true => ["nvrtc-builtins64_130.dll", "nvrtc64_130_0.dll"],
    false => ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"],
};

/// The functions of a loaded NVRTC.
pub struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log: (GetSize, GetBytes),
    cubin: (GetSize, GetBytes),
    ptx: (GetSize, GetBytes),
    error: unsafe extern "C" fn(Status) -> *const c_char,
    /// Keep the functions where they are. The compiler goes before what it uses.
    _libraries: [Library; 2],
}

impl Nvrtc {
    /// Where NVRTC lies below the folder that its package was installed into.
    pub fn folder(installed: &Path) -> PathBuf {
        installed.join("nvidia").join("cu13").join(if cfg!(windows) { "bin" } else { "lib" })
    }

    /// Whether it is there.
    pub fn is_installed(installed: &Path) -> bool {
        LIBRARIES.iter().all(|name| Self::folder(installed).join(name).is_file())
    }

    /// Loads NVRTC from the folder that its package was installed into.
    ///
    /// The files are trusted as this program is: they run in its process.
    pub fn load(installed: &Path) -> Result<Self, CudaError> {
        if !Self::is_installed(installed) {
            return Err(CudaError::Missing { folder: Some(installed.to_path_buf()) });
        }
        let folder = Self::folder(installed);
        let failed = |e: libloading::Error| CudaError::Load { folder: folder.clone(), why: e.to_string() };
        let [builtins, nvrtc] = LIBRARIES.map(|name| open(&folder.join(name)));
        let (builtins, nvrtc) = (builtins.map_err(failed)?, nvrtc.map_err(failed)?);
        /// The function of this name, with the type of the place that it is put into.
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: nvrtc.h of release 13.0 declares the function with the type of the field that this fills.
                unsafe { *nvrtc.get($name).map_err(failed)? }
            };
        }
        Ok(Self {
            create: function!(b"nvrtcCreateProgram\0"),
            destroy: function!(b"nvrtcDestroyProgram\0"),
            compile: function!(b"nvrtcCompileProgram\0"),
            log: (function!(b"nvrtcGetProgramLogSize\0"), function!(b"nvrtcGetProgramLog\0")),
            cubin: (function!(b"nvrtcGetCUBINSize\0"), function!(b"nvrtcGetCUBIN\0")),
            ptx: (function!(b"nvrtcGetPTXSize\0"), function!(b"nvrtcGetPTX\0")),
            error: function!(b"nvrtcGetErrorString\0"),
            _libraries: [nvrtc, builtins],
        })
    }

    /// Compiles a text for an architecture: machine code for `sm_…`, PTX for `compute_…`.
    pub fn compile(&self, text: &str, arch: &str) -> Result<Binary, CudaError> {
        let failed = |why: &str, log: String| CudaError::Compile { arch: arch.into(), why: why.into(), log };
        let text = CString::new(text).map_err(|_| failed("the text holds a NUL", String::new()))?;
        let options = OPTIONS.map(String::from).into_iter().chain([format!("--gpu-architecture={arch}")]);
        let options: Result<Vec<CString>, _> = options.map(CString::new).collect();
        let options = options.map_err(|_| failed("its name holds a NUL", String::new()))?;
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let mut program = OpenProgram { nvrtc: self, program: std::ptr::null_mut() };
        let none = std::ptr::null();
        // SAFETY: both strings end with a NUL and outlive the program; there are no headers.
        let status = unsafe {
            (self.create)(&mut program.program, text.as_ptr(), c"kernels.cu".as_ptr(), 0, none, none)
        };
        if status != 0 {
            return Err(failed(&self.message(status), String::new()));
        }
        // SAFETY: the program was created above, and the options are as many strings as is said.
        let status = unsafe { (self.compile)(program.program, pointers.len() as c_int, pointers.as_ptr()) };
        let log = String::from_utf8_lossy(&program.bytes(self.log).unwrap_or_default()).into_owned();
        if status != 0 {
            return Err(failed(&self.message(status), log));
        }
        let is_ptx = arch.starts_with("compute_");
        let bytes = program.bytes(if is_ptx { self.ptx } else { self.cubin });
        let mut bytes = bytes.map_err(|status| failed(&self.message(status), log.clone()))?;
        if is_ptx && bytes.last() == Some(&0) {
            bytes.pop();
        }
        Ok(Binary { arch: arch.into(), bytes, usage: usage::parse(&log) })
    }

    fn message(&self, status: Status) -> String {
        // SAFETY: NVRTC returns a constant string for every number.
        unsafe { CStr::from_ptr((self.error)(status)) }.to_string_lossy().into_owned()
    }
}

/// Loads a library for all that are loaded later: NVRTC finds its builtins that way, wherever they lie.
fn open(path: &Path) -> Result<Library, libloading::Error> {
    #[cfg(unix)]
    {
        use libloading::os::unix::{Library as Unix, RTLD_GLOBAL, RTLD_NOW};
        // SAFETY: initialisers of NVIDIA's libraries do nothing but set up their own state; the caller trusts the files.
        unsafe { Unix::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map(Library::from)
    }
    #[cfg(not(unix))]
    {
        // SAFETY: as above.
        unsafe { Library::new(path) }
    }
}

/// A program, destroyed with its owner.
struct OpenProgram<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl OpenProgram<'_> {
    /// What a pair of functions gives: a size, then so many bytes.
    fn bytes(&self, (size, bytes): (GetSize, GetBytes)) -> Result<Vec<u8>, Status> {
        let mut len = 0;
        // SAFETY: the program was created and not destroyed.
        match unsafe { size(self.program, &mut len) } {
            0 => {}
            status => return Err(status),
        }
        let mut out = vec![0u8; len];
        // SAFETY: as above, and the memory has the size that NVRTC asked for.
        match unsafe { bytes(self.program, out.as_mut_ptr().cast()) } {
            0 => Ok(out),
            status => Err(status),
        }
    }
}

impl Drop for OpenProgram<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: the program was created, and nobody uses it after its owner.
            unsafe { (self.nvrtc.destroy)(&mut self.program) };
        }
    }
}
