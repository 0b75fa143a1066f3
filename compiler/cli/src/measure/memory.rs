//! Memory of this process.

/// Anonymous memory in use, in bytes: heap, stacks, KV and activations, but not the mapped engine. `None` where the
/// operating system does not say.
#[cfg(target_os = "linux")]
pub fn anonymous() -> Option<u64> {
    status("RssAnon:")
}

/// Anonymous memory in use. This operating system does not say.
#[cfg(not(target_os = "linux"))]
pub fn anonymous() -> Option<u64> {
    None
}

/// Memory of the whole machine, in bytes.
pub fn total() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// Memory that can be had without swapping, in bytes.
pub fn available() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Pages that had to come from disk since the process began.
pub fn major_faults() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Field 12 of proc(5); the second field, the name, may hold anything but ends with the last parenthesis.
    stat.rsplit_once(')')?.1.split_whitespace().nth(9)?.parse().ok()
}

#[cfg(target_os = "linux")]
fn status(key: &str) -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, key)
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
