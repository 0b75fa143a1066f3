//! Which cores the process may use, and binding a thread to one of them.

/// One logical CPU of every physical core that the process may run on, at least one entry.
///
/// Two hardware threads of a core share its vector units and its path to memory, which is all that this runtime
/// uses, so only the first of them counts. The affinity mask and (on Linux) the CPU quota of the process are respected.
pub fn allowed_cores() -> Vec<usize> {
    let quota = std::thread::available_parallelism().map_or(1, usize::from);
    let mut cores = os::physical_cores().unwrap_or_else(|| (0..quota).collect());
    cores.truncate(quota.max(1));
    cores
}

/// Binds the calling thread to a core, where the operating system allows it. Failing is no error: the thread is then
/// scheduled like any other.
pub(super) fn pin_this_thread(core: usize) {
    if !os::pin(core) {
        log::debug!("thread could not be bound to core {core}");
    }
}

/// Binds the calling thread to a core for as long as this lives; then it may run wherever it might before.
pub(super) struct PinnedFor(Option<os::Mask>);

impl PinnedFor {
    /// Binds it, where the operating system allows that.
    pub(super) fn core(core: usize) -> Self {
        let before = os::mask();
        Self(before.filter(|_| os::pin(core)))
    }
}

impl Drop for PinnedFor {
    fn drop(&mut self) {
        if let Some(mask) = &self.0 {
            os::restore(mask);
        }
    }
}

#[cfg(target_os = "linux")]
mod os {
    use std::collections::BTreeSet;

    pub(super) type Mask = libc::cpu_set_t;

    pub(super) fn restore(mask: &Mask) {
        // SAFETY: the kernel reads the stated size from `mask`; 0 is this thread.
        unsafe { libc::sched_setaffinity(0, size_of::<Mask>(), mask) };
    }

    pub(super) fn mask() -> Option<libc::cpu_set_t> {
        // SAFETY: `cpu_set_t` is an array of integers, for which zero bytes are a value.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes at most the stated size into `set`, which is that large; 0 is this thread.
        let rc = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
        (rc == 0).then_some(set)
    }

    pub(super) fn physical_cores() -> Option<Vec<usize>> {
        let set = mask()?;
        let mut cores = Vec::new();
        let mut seen = BTreeSet::new();
        for cpu in 0..libc::CPU_SETSIZE as usize {
            // SAFETY: `cpu` is below CPU_SETSIZE, the number of bits of the set.
            if !unsafe { libc::CPU_ISSET(cpu, &set) } {
                continue;
            }
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            let siblings = std::fs::read_to_string(path).unwrap_or_else(|_| cpu.to_string());
            if seen.insert(siblings) {
                cores.push(cpu);
            }
        }
        (!cores.is_empty()).then_some(cores)
    }

    pub(super) fn pin(core: usize) -> bool {
        if core >= libc::CPU_SETSIZE as usize {
            return false;
        }
        // SAFETY: as in `mask`.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: `core` is below CPU_SETSIZE.
        unsafe { libc::CPU_SET(core, &mut set) };
        // SAFETY: the kernel reads the stated size from `set`; 0 is this thread.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) == 0 }
    }
}

#[cfg(not(target_os = "linux"))]
mod os {
    pub(super) type Mask = ();

    pub(super) fn mask() -> Option<Mask> {
        None
    }

    pub(super) fn restore((): &Mask) {}

    pub(super) fn physical_cores() -> Option<Vec<usize>> {
        None
    }

    pub(super) fn pin(_core: usize) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_a_core() {
        let cores = super::allowed_cores();
        assert!(!cores.is_empty());
        assert!(cores.windows(2).all(|w| w[0] < w[1]));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_is_bound_for_a_while_only() {
        let last = *super::allowed_cores().last().unwrap();
        let allowed = || {
            // SAFETY: reads the bits of a set.
            super::os::mask().map(|m| unsafe { libc::CPU_COUNT(&m) })
        };
        let before = allowed();
        let pinned = super::PinnedFor::core(last);
        assert_eq!(allowed(), Some(1));
        drop(pinned);
        assert_eq!(allowed(), before);
    }
}
