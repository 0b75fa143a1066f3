//! Runs recipes and packs weights, a few panels at a time, on several threads, straight into the file.

use crate::compile::Progress;
use crate::error::CompileError;
use crate::import::Checkpoint;
use bessemer_format::panel::COLUMNS;
use bessemer_format::plan::{WeightLayout, WeightSlice};
use bessemer_format::{Elem, PanelLayout};
use bessemer_ir::{Recipe, WeightSource};
use bessemer_kernels::pack::pack_panels;
use bessemer_targets::schedule::Scheduled;
use std::io::Write;

/// Bytes that one thread packs at a stretch: what bounds the memory of a compilation.
const STRETCH: usize = 4 << 20;

impl WeightSource for Checkpoint {
    fn tensor(&self, name: &str) -> Option<&[u8]> {
        self.part_bytes(name).or_else(|| self.bytes(name).ok())
    }
}

/// Why a weight was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The weight.
    #[error(transparent)]
    Compile(#[from] CompileError),
}

/// Writes the bytes of weight `id`. The bytes do not depend on `threads`: every stretch is packed by itself and written in order.
pub fn write(
    source: &dyn WeightSource,
    scheduled: &Scheduled,
    id: u32,
    threads: usize,
    progress: &dyn Progress,
    sink: &mut dyn Write,
) -> Result<(), WriteError> {
    let slice = &scheduled.plan.weights[id as usize];
    let recipe = &scheduled.weights[id as usize];
    let error = |why: String| CompileError::Weight {
        tensor: recipe.source_names().next().unwrap_or("(constant)").to_string(),
        why,
    };
    let row_bytes = (slice.len as usize / (slice.n as usize).max(1)).max(1);
    let rows_a_stretch = (STRETCH / row_bytes).max(1).next_multiple_of(COLUMNS);
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let n = slice.n as usize;
    let mut start = 0;
    while start < n {
        if progress.cancelled() {
            return Err(CompileError::Interrupted.into());
        }
        let stretches: Vec<_> = (0..threads)
            .map(|t| (start + t * rows_a_stretch).min(n)..(start + (t + 1) * rows_a_stretch).min(n))
            .filter(|r| !r.is_empty())
            .collect();
        let packed: Vec<Result<Vec<u8>, String>> = std::thread::scope(|scope| {
            let workers: Vec<_> = stretches
                .iter()
                .map(|rows| scope.spawn(|| pack(source, slice, recipe, rows.clone())))
                .collect();
            workers
                .into_iter()
                .map(|w| w.join().unwrap_or_else(|_| Err("a packing thread panicked".into())))
                .collect()
        });
        for bytes in packed {
            let bytes = bytes.map_err(error)?;
            sink.write_all(&bytes)?;
            progress.advance(bytes.len() as u64);
        }
        start = stretches.last().map_or(n, |r| r.end);
    }
    Ok(())
}

/// The packed bytes of a range of rows, which starts at a panel.
fn pack(
    source: &dyn WeightSource,
    slice: &WeightSlice,
    recipe: &Recipe,
    rows: std::ops::Range<usize>,
) -> Result<Vec<u8>, String> {
    let values = recipe.rows(source, rows.clone())?;
    match slice.layout {
        WeightLayout::Panel => {
            let layout = PanelLayout::new(&slice.scheme, slice.n as usize, slice.k as usize)?;
            let mut out = vec![0; rows.len().div_ceil(COLUMNS) * layout.panel_bytes()];
            pack_panels(&layout, &values, &mut out).map_err(|e| e.to_string())?;
            Ok(out)
        }
        WeightLayout::Dense => {
            let mut out = Vec::with_capacity(slice.len as usize);
            for v in values.values() {
                match slice.scheme.elem {
                    Elem::F16 => out.extend(half::f16::from_f32(v).to_le_bytes()),
                    Elem::Bf16 => out.extend(half::bf16::from_f32(v).to_le_bytes()),
                    _ => out.extend(v.to_le_bytes()),
                }
            }
            Ok(out)
        }
    }
}
