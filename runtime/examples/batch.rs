//! Several sequences in one batch, on tokens alone: it builds without the `text` feature.
//!
//! Processes one prompt, forks it into as many sequences as asked for, gives each another next token and lets all go on
//! greedily, one forward pass for all of them.
//!
//! `cargo run --release -p bessemer-runtime --no-default-features --example batch -- model.engine 4 1 9038 2501`

use bessemer_runtime::{Batch, Engine, RunError, Sequence, Want, Worker, WorkerOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, count, prompt @ ..] = &args[..] else {
        return Err("usage: batch ENGINE SEQUENCES TOKEN...".into());
    };
    let count: usize = count.parse()?;
    let prompt: Vec<u32> = prompt.iter().map(|t| t.parse()).collect::<Result<_, _>>()?;

    let engine = Engine::open(path)?;
    let options = WorkerOptions::default().max_tokens(count * (prompt.len() + 64));
    let mut worker = Worker::new(&engine, options)?;

    let mut first = worker.sequence();
    let mut batch = Batch::new();
    batch.push(&mut first, &prompt, Want::Last);
    let ranked = ranked(worker.forward(&mut batch)?.of(0).last().ok_or("a prompt needs a token")?);

    // Forks share the prompt's memory until they write to it.
    let mut sequences: Vec<Sequence> = (1..count).map(|_| first.fork()).collect();
    sequences.insert(0, first);
    let mut texts: Vec<Vec<u32>> = ranked.iter().take(count).map(|t| vec![*t]).collect();
    for _ in 0..16 {
        step(&mut worker, &mut sequences, &mut texts)?;
    }
    for text in texts {
        println!("{text:?}");
    }
    Ok(())
}

/// One token more for every sequence.
fn step(worker: &mut Worker, sequences: &mut [Sequence], texts: &mut [Vec<u32>]) -> Result<(), RunError> {
    let mut batch = Batch::new();
    for (sequence, text) in sequences.iter_mut().zip(texts.iter()) {
        batch.push(sequence, &text[text.len() - 1..], Want::Last);
    }
    let logits = worker.forward(&mut batch)?;
    for (entry, text) in texts.iter_mut().enumerate() {
        text.push(ranked(&logits.of(entry)[0])[0]);
    }
    Ok(())
}

/// All tokens, the most probable one first.
fn ranked(logits: &[f32]) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    tokens.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    tokens
}
