//! Continues a prompt with the likeliest tokens.

use bessemer_runtime::text::Special;
use bessemer_runtime::{Engine, Generate, Session, Worker, WorkerOptions};
use std::sync::{Arc, Mutex};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, prompt, count] = args.as_slice() else {
        return Err("usage: outside ENGINE PROMPT TOKENS".into());
    };
    let engine = Engine::open(path)?;
    let tokenizer = engine.tokenizer()?;
    let worker = Arc::new(Mutex::new(Worker::new(&engine, WorkerOptions::default())?));
    let mut session = Session::new(&worker)?;
    session.feed(&tokenizer.encode(prompt, Special::AsText)?)?;
    for piece in session.generate_text(&tokenizer, Generate::greedy(count.parse()?))? {
        print!("{}", piece?);
    }
    Ok(())
}
