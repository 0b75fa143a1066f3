//! Process start to first token, seen from outside: this program starts itself.

use super::clock::median;
use crate::device::DeviceArgs;
use crate::model::ModelArgs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What starting processes told.
pub struct FirstToken {
    /// Milliseconds with the file in the operating system's cache.
    pub warm_ms: Option<f64>,
    /// Milliseconds with the file on disk, or why that cannot be had.
    pub cold_ms: Result<f64, String>,
}

/// What one process told.
struct Start {
    ms: f64,
    major_faults: Option<u64>,
}

/// Starts processes that run an engine to their first token: one cold, then `repetitions` warm ones.
pub fn measure(engine: &ModelArgs, threads: usize, device: DeviceArgs, repetitions: usize) -> FirstToken {
    let cold_ms = drop_from_cache(&engine.path).and_then(|()| {
        let cold = start(engine, threads, device)?;
        match cold.major_faults {
            Some(0) => Err("the operating system kept the file in its cache".into()),
            _ => Ok(cold.ms),
        }
    });
    // One more, whose figures are not kept: it brings the file back into the cache.
    let _ = start(engine, threads, device);
    let warm: Vec<Start> = (0..repetitions).filter_map(|_| start(engine, threads, device).ok()).collect();
    let ms: Vec<f64> = warm.iter().map(|s| s.ms).collect();
    FirstToken { warm_ms: (!ms.is_empty()).then(|| median(&ms)), cold_ms }
}

fn start(engine: &ModelArgs, threads: usize, device: DeviceArgs) -> Result<Start, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let started = Instant::now();
    let output = Command::new(program)
        .arg("first-token")
        .arg(&engine.path)
        .args(["--threads", &threads.to_string(), "--device", &device.device.to_string()])
        .args(device.gpu_layers.map(|layers| format!("--gpu-layers={layers}")))
        .args(engine.options())
        .stdin(Stdio::null())
        .output()
        .map_err(|e| e.to_string())?;
    let ms = started.elapsed().as_secs_f64() * 1e3;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(Start { ms, major_faults: text.trim().parse().ok() })
}

/// Asks the operating system to forget the file's pages.
#[cfg(target_os = "linux")]
fn drop_from_cache(path: &Path) -> Result<(), String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    // Only pages that are on disk already can be dropped.
    file.sync_all().map_err(|e| e.to_string())?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(|e| e.to_string())
}

/// Asks the operating system to forget the file's pages.
#[cfg(not(target_os = "linux"))]
fn drop_from_cache(_: &Path) -> Result<(), String> {
    Err("this operating system offers no way to drop a file from its cache".into())
}
