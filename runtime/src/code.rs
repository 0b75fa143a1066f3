//! Machine code out of an engine file: the island that makes it executable and calls it.
//!
//! Reached only from [`Engine::open_trusted`](crate::Engine::open_trusted), whose caller vouches for the file. The
//! section is copied to memory of our own (nobody can change it behind our back through the file), the copy is hashed,
//! and only then made executable; it is never writable and executable at once.
//!
//! A function of the section computes some rows of one nest:
//!
//! ```text
//! extern "C" fn(views: *const *mut u8, syms: *const i64, row_begin: i64, row_end: i64) -> i64
//! ```
//!
//! `views[i]` is the address of element 0 of view `i`; `syms` are the [`Sym`](bessemer_format::nest::Sym)s in their
//! order. The result is 0, or one more than the position of the `LoadInt` statement whose integer was out of bounds.

use crate::exec::ViewBinding;
use crate::host;
use bessemer_format::manifest::{CodeEntry, Hash, KvElem};
use memmap2::{Mmap, MmapMut};
use std::ops::Range;
use std::sync::Arc;

/// Fixed by the engine's format, whatever convention the host's C compiler uses.
#[cfg(target_arch = "x86_64")]
type NestFn = unsafe extern "sysv64" fn(*const *mut u8, *const i64, i64, i64) -> i64;
#[cfg(not(target_arch = "x86_64"))]
type NestFn = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64) -> i64;

/// An executable copy of a CODE section.
pub(crate) struct Code {
    map: Arc<Mmap>,
    entries: Vec<CodeEntry>,
}

/// The code of one nest. Keeps the mapping alive.
pub(crate) struct NestCode {
    function: NestFn,
    _map: Arc<Mmap>,
}

impl Code {
    /// Copies `section`, checks the copy and makes it executable.
    pub(crate) fn load(section: &[u8], expected: Hash, entries: &[CodeEntry]) -> Result<Self, String> {
        let io = |e: std::io::Error| e.to_string();
        let mut copy = MmapMut::map_anon(section.len().max(1)).map_err(io)?;
        copy[..section.len()].copy_from_slice(section);
        let found = Hash::of(&copy[..section.len()]);
        if found != expected {
            return Err(format!("its hash is {found} and the file says {expected}"));
        }
        for entry in entries {
            let end = entry.offset.checked_add(entry.len).filter(|end| *end <= section.len() as u64);
            if end.is_none() || entry.len == 0 {
                return Err(format!("the code of nest {} lies outside the section", entry.nest));
            }
        }
        let map = copy.make_exec().map_err(io)?;
        synchronise_instructions(&map);
        Ok(Self { map: Arc::new(map), entries: entries.to_vec() })
    }

    /// Whether there is any code for this host.
    pub(crate) fn fits_host(&self) -> bool {
        self.entries.iter().any(|e| host::runs(e.isa))
    }

    /// The code of `nest` for a cache of `kv` elements, if the section has one for this host.
    pub(crate) fn nest(&self, nest: usize, kv: KvElem) -> Option<NestCode> {
        let fits = |e: &&CodeEntry| {
            e.nest as usize == nest && e.kv.is_none_or(|found| found == kv) && host::runs(e.isa)
        };
        let entry = self.entries.iter().find(fits)?;
        let address = self.map[entry.offset as usize..].as_ptr();
        // SAFETY: the address lies in an executable mapping that `NestCode` keeps alive. That the bytes there are a
        // function of this type is what the caller of `Engine::open_trusted` vouches for.
        let function = unsafe { std::mem::transmute::<*const u8, NestFn>(address) };
        Some(NestCode { function, _map: Arc::clone(&self.map) })
    }
}

impl NestCode {
    /// Runs `rows`; the error is the statement whose integer was out of bounds.
    pub(crate) fn run(
        &self,
        rows: Range<usize>,
        views: &[ViewBinding<'_>],
        syms: &[i64; 4],
    ) -> Result<(), usize> {
        let mut addresses = [std::ptr::null_mut(); bessemer_format::nest::MAX_VIEWS];
        for (address, view) in addresses.iter_mut().zip(views) {
            *address = view.bytes.as_ptr();
        }
        // SAFETY: the function is what `Code::nest` says; the arrays outlive the call. It accesses the views as the
        // nest does: validation has shown that no admissible integer leads outside them, integers are checked
        // before use, and rows of different threads are disjoint.
        let result =
            unsafe { (self.function)(addresses.as_ptr(), syms.as_ptr(), rows.start as i64, rows.end as i64) };
        match result {
            0 => Ok(()),
            statement => Err(statement as usize - 1),
        }
    }
}

/// Lets the processor see new instructions. x86-64 does so by itself.
#[cfg(not(target_arch = "aarch64"))]
fn synchronise_instructions(_map: &Mmap) {}

/// Lets the processor see new instructions.
#[cfg(all(target_arch = "aarch64", target_os = "macos"))]
fn synchronise_instructions(map: &Mmap) {
    unsafe extern "C" {
        fn sys_icache_invalidate(start: *mut libc::c_void, len: libc::size_t);
    }
    // SAFETY: the range is mapped; the call changes no memory.
    unsafe { sys_icache_invalidate(map.as_ptr().cast_mut().cast(), map.len()) }
}

/// Lets the processor see new instructions: data caches are cleaned to where instruction fetches meet them, then
/// instruction caches forget the range (Arm ARM, B2.4.4).
#[cfg(all(target_arch = "aarch64", not(target_os = "macos")))]
fn synchronise_instructions(map: &Mmap) {
    use std::arch::asm;
    let ctr: u64;
    // SAFETY: reads a register that user code may read.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr) };
    let line = |shift: u64| 4usize << ((ctr >> shift) & 15);
    let (start, end) = (map.as_ptr() as usize, map.as_ptr() as usize + map.len());
    for address in (start..end).step_by(line(16)) {
        // SAFETY: the address is mapped; cleaning a line changes no memory.
        unsafe { asm!("dc cvau, {}", in(reg) address) };
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb ish") };
    for address in (start..end).step_by(line(0)) {
        // SAFETY: the address is mapped; invalidating a line changes no memory.
        unsafe { asm!("ic ivau, {}", in(reg) address) };
    }
    // SAFETY: barriers.
    unsafe { asm!("dsb ish", "isb") };
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use bessemer_format::manifest::CodeIsa;

    fn entry(nest: u32, kv: Option<KvElem>, offset: u64, len: u64) -> CodeEntry {
        CodeEntry { isa: CodeIsa::X86_64V3, nest, kv, offset, len }
    }

    /// `store row_end - row_begin at views[0]; return syms[1]`
    const CODE: &[u8] = &[
        0x48, 0x8b, 0x07, // mov rax, [rdi]
        0x48, 0x29, 0xd1, // sub rcx, rdx
        0x48, 0x89, 0x08, // mov [rax], rcx
        0x48, 0x8b, 0x46, 0x08, // mov rax, [rsi + 8]
        0xc3, // ret
    ];

    #[test]
    fn code_gets_its_arguments_and_its_result_is_an_error() {
        if !host::runs(CodeIsa::X86_64V3) {
            bessemer_skip::skip(bessemer_skip::HOST, "it does not run code for x86-64-v3");
            return;
        }
        let entries = [entry(7, None, 0, CODE.len() as u64), entry(8, Some(KvElem::F32), 0, 1)];
        let code = Code::load(CODE, Hash::of(CODE), &entries).unwrap();
        assert!(code.fits_host());
        assert!(code.nest(6, KvElem::F32).is_none());
        assert!(code.nest(8, KvElem::Bf16).is_none(), "code for another cache type is not taken");
        let nest = code.nest(7, KvElem::Bf16).unwrap();
        drop(code);
        let mut out = [0i32; 2];
        let views = [ViewBinding { bytes: crate::pool::SharedBytes::read_write(&mut out), panel: None }];
        assert_eq!(nest.run(3..45, &views, &[9, 0, 9, 9]), Ok(()));
        assert_eq!(nest.run(3..45, &views, &[9, 5, 9, 9]), Err(4));
        assert_eq!(out, [42, 0]);
    }

    #[test]
    fn what_does_not_match_is_never_executable() {
        let load = |entries: &[CodeEntry]| Code::load(CODE, Hash::of(CODE), entries).map(|_| ());
        assert!(Code::load(CODE, Hash::of(b"other"), &[]).is_err());
        for (offset, len) in [(0, CODE.len() as u64 + 1), (64, 1), (u64::MAX, 2), (0, 0)] {
            let error = load(&[entry(0, None, offset, len)]).unwrap_err();
            assert!(error.contains("outside"), "{error}");
        }
    }
}
