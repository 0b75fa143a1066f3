//! Continues a text, piece by piece as it comes.
//!
//! `cargo run --release -p bessemer-runtime --example generate -- model.engine "Once upon a time"`

use bessemer_runtime::sample::SamplerConfig;
use bessemer_runtime::text::Special;
use bessemer_runtime::{Engine, Generate, Session, Worker, WorkerOptions};
use std::io::Write;
use std::sync::{Arc, Mutex};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(prompt)) = (args.next(), args.next()) else {
        return Err("usage: generate ENGINE PROMPT".into());
    };
    let engine = Engine::open(path)?;
    let tokenizer = engine.tokenizer()?;
    let worker = Arc::new(Mutex::new(Worker::new(&engine, WorkerOptions::default())?));

    // A sequence begins with BOS where the tokeniser asks for it; the text is text, whatever it looks like.
    let mut tokens: Vec<u32> = tokenizer.bos().filter(|_| tokenizer.adds_bos()).into_iter().collect();
    tokens.extend(tokenizer.encode(&prompt, Special::AsText)?);
    let mut session = Session::new(&worker)?;
    session.feed(&tokens)?;

    let sampler = SamplerConfig::default().temperature(0.8).top_p(0.95).seed(1);
    let options = Generate::new(sampler, 128).stop_tokens(tokenizer.stop_tokens().iter().copied());
    let mut text = session.generate_text(&tokenizer, options)?;
    print!("{prompt}");
    for piece in &mut text {
        print!("{}", piece?);
        std::io::stdout().flush()?;
    }
    let timings = text.timings();
    eprintln!("\n{:?}; {:.1} tokens a second", text.finish(), timings.decode_rate());
    Ok(())
}
