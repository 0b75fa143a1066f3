//! Ctrl-C and termination: the first stops the work in hand, the second ends the process.

use crate::exit::Code;
use bessemer_runtime::CancelHandle;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

static PRESSES: AtomicUsize = AtomicUsize::new(0);
static HANDLE: OnceLock<CancelHandle> = OnceLock::new();

/// The handle that the first Ctrl-C cancels. Installs the signal handler when it is first asked for.
pub fn handle() -> &'static CancelHandle {
    HANDLE.get_or_init(|| {
        let handle = CancelHandle::new();
        let shared = handle.clone();
        let installed = ctrlc::set_handler(move || {
            shared.cancel();
            if PRESSES.fetch_add(1, Ordering::Relaxed) > 0 {
                std::process::exit(Code::Interrupted as i32);
            }
        });
        if let Err(e) = installed {
            eprintln!("note: Ctrl-C ends the process at once ({e})");
        }
        handle
    })
}

/// Whether somebody asked to stop.
#[cfg(feature = "compile")]
pub fn requested() -> bool {
    handle().is_cancelled()
}

/// Forgets earlier presses: the next Ctrl-C is a first one again.
pub fn rearm() {
    PRESSES.store(0, Ordering::Relaxed);
    handle().reset();
}
