//! Regimes and buffers.

use super::{
    At, Check, MAX_ARENA, MAX_BUFFERS, MAX_PROGRAMS, MAX_ROWS, MAX_STEPS, ensure, memory, nest, steps,
};
use crate::error::FormatError;
use crate::plan::{Buffer, BufferElem, Home, Input, Plan, Program, RowCount};
use std::collections::BTreeSet;

/// Programs serve ascending row counts from 1 without gaps, and each of them is sound.
pub(super) fn programs(plan: &Plan) -> Result<(), FormatError> {
    let count = plan.programs.len();
    (1..=MAX_PROGRAMS)
        .contains(&count)
        .then_some(())
        .ok_or_else(|| format!("{count} programs, 1 to {MAX_PROGRAMS} are possible"))
        .at(|| "programs".into())?;
    let mut next_rows = 1;
    let mut work = nest::Work::default();
    let layers = plan.programs[0].cuts.len();
    for (id, program) in plan.programs.iter().enumerate() {
        (program.cuts.len() == layers)
            .then_some(())
            .ok_or_else(|| format!("{} cuts, and the first program has {layers}", program.cuts.len()))
            .at(|| format!("program {id}"))?;
        next_rows = regime(program, next_rows).at(|| format!("program {id}"))?;
        for (b, buffer) in program.buffers.iter().enumerate() {
            self::buffer(plan, program, buffer)
                .at(|| format!("program {id}, buffer {b} ({})", buffer.name))?;
        }
        homes(program).at(|| format!("program {id}"))?;
        let mut effects = Vec::with_capacity(program.steps.len());
        for (s, step) in program.steps.iter().enumerate() {
            effects.push(
                steps::step(plan, program, step, &mut work)
                    .at(|| format!("program {id}, step {s} ({})", step.source))?,
            );
        }
        memory::verify(program, &effects).map_err(|(step, why)| FormatError::Invalid {
            at: match program.steps.get(step) {
                Some(s) => format!("program {id}, step {step} ({})", s.source),
                None => format!("program {id}, end"),
            },
            why,
        })?;
    }
    Ok(())
}

/// Returns the row count that the next program starts with.
fn regime(program: &Program, first: u32) -> Check<u32> {
    let (min, max) = (program.regime.min_rows, program.regime.max_rows);
    ensure!(min == first, "serves from {min} rows where the one before leaves {first}");
    ensure!(max >= min && max <= MAX_ROWS, "serves {min} to {max} rows, at most {MAX_ROWS}");
    ensure!(program.buffers.len() <= MAX_BUFFERS, "{} buffers, at most {MAX_BUFFERS}", program.buffers.len());
    ensure!(program.steps.len() <= MAX_STEPS, "{} steps, at most {MAX_STEPS}", program.steps.len());
    ensure!(
        program.arena_bytes <= MAX_ARENA,
        "an arena of {} bytes, at most {MAX_ARENA}",
        program.arena_bytes
    );
    Ok(max + 1)
}

/// Bytes of a buffer at `max_rows` rows. Only for buffers that passed [`buffer`].
pub(super) fn buffer_bytes(program: &Program, b: &Buffer) -> Option<u64> {
    b.row_elems.checked_mul(b.elem.bytes())?.checked_mul(u64::from(program.regime.max_rows))
}

fn buffer(plan: &Plan, program: &Program, b: &Buffer) -> Check {
    let bytes = buffer_bytes(program, b).filter(|bytes| (1..=MAX_ARENA).contains(bytes));
    let bytes = bytes.ok_or_else(|| format!("rows of {} elements are out of range", b.row_elems))?;
    match b.home {
        Home::Arena { offset } => {
            ensure!(offset.is_multiple_of(64), "offset {offset} is no multiple of 64");
            ensure!(
                offset.checked_add(bytes).is_some_and(|end| end <= program.arena_bytes),
                "{bytes} bytes at {offset} reach beyond the arena of {}",
                program.arena_bytes
            );
        }
        Home::Input(input) => {
            let rows = if input == Input::LogitRows { RowCount::Logits } else { RowCount::Tokens };
            ensure!(
                (b.elem, b.row_elems, b.rows) == (BufferElem::I32, 1, rows),
                "input {input:?} is one i32 for each of {rows:?}, not {} {:?} for each of {:?}",
                b.row_elems,
                b.elem,
                b.rows
            );
        }
        Home::Logits => ensure!(
            (b.elem, b.row_elems, b.rows)
                == (BufferElem::F32, u64::from(plan.model.output_width()), RowCount::Logits),
            "logits are {} f32 for each of Logits, not {} {:?} for each of {:?}",
            plan.model.output_width(),
            b.row_elems,
            b.elem,
            b.rows
        ),
    }
    Ok(())
}

/// One buffer of logits, and at most one an input.
fn homes(program: &Program) -> Check {
    let logits = program.buffers.iter().filter(|b| b.home == Home::Logits).count();
    ensure!(logits == 1, "{logits} buffers of logits where one is expected");
    let mut seen = BTreeSet::new();
    for b in &program.buffers {
        if let Home::Input(input) = b.home {
            ensure!(seen.insert(input), "two buffers for input {input:?}");
        }
    }
    Ok(())
}
