//! `bessemer eval`

use super::run;
use crate::device::DeviceArgs;
use crate::exit::{Code, Failure};
use crate::json;
use crate::measure::quality::{Base, Quality};
use crate::model::ModelArgs;
use crate::output::out;
use crate::progress::{Meter, Unit};
use bessemer_runtime::{Batch, KvElem, Want, Worker, WorkerOptions};
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  bessemer eval model.engine --text book.txt
  bessemer eval small.engine --text book.txt --base model.gguf      how far from the base, run in f32
  bessemer eval model.gguf --text book.txt --pareto sizes.svg         what each precision costs, drawn

The text is cut into windows of --ctx tokens, each of which begins with BOS where the tokeniser asks for it. Every token but the first of
a window is predicted from those before it.";

/// Tokens of a window if nobody says otherwise.
const WINDOW: usize = 512;
/// Rows whose logits are held at a time.
const ROWS: usize = 64;

/// Measure quality: perplexity of a text, and the distance from a base
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The text, in UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,

    /// A checkpoint with the same tokeniser, run node by node in f32: KL divergence and top-1 agreement are measured against it
    #[arg(long, value_name = "SRC")]
    base: Option<PathBuf>,

    /// Tokens of a window
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,

    /// Use only the first tokens of the text
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,

    /// Element type of the KV cache
    #[arg(long, value_enum, default_value_t = run::Kv::DEFAULT)]
    kv: run::Kv,

    /// Write the logits, binary32, a row of the vocabulary's size for each token that is predicted: for a judge of your own
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Threads; one for each core by default
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    #[cfg(feature = "plot")]
    #[command(flatten)]
    pareto: super::pareto::ParetoArgs,

    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Output {
    /// Tokens that were predicted.
    tokens: usize,
    window: usize,
    ppl: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_ppl: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_kl: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_kl: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top1: Option<f64>,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        #[cfg(feature = "plot")]
        if let Some(out) = self.pareto.out() {
            let window = self.ctx.unwrap_or(256);
            return self.pareto.run(out, &self.model.path, &self.text, window, self.json);
        }
        let text = std::fs::read_to_string(&self.text)
            .map_err(|e| Failure::usage(format!("{}: {e}", self.text.display())))?;
        let model = self.model.open()?;
        let tokenizer = run::tokenizer(&model)?;
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let context = model.engine.plan().model.context as usize;
        let window = self.ctx.unwrap_or(WINDOW.min(context));
        if !(2..=context).contains(&window) {
            return Err(Failure::usage(format!("--ctx is {window}; this model takes 2 to {context}")));
        }
        let mut tokens = tokenizer.encode(&text, bessemer_runtime::text::Special::AsText)?;
        tokens.truncate(self.max_tokens.unwrap_or(usize::MAX));
        let windows: Vec<Vec<u32>> = tokens
            .chunks(window - usize::from(bos.is_some()))
            .map(|w| bos.iter().chain(w).copied().collect())
            .collect();

        let options =
            WorkerOptions::default().threads(self.threads).kv(KvElem::from(self.kv)).max_tokens(window);
        let mut worker = Worker::new(&model.engine, self.device.options(options))?;
        self.device.say(&worker);
        let mut base =
            self.base.as_deref().map(|b| Base::new(b, &model.engine, worker.threads())).transpose()?;
        let mut logits_file = self.logits.as_deref().map(create).transpose()?;
        let mut quality = Quality::default();
        let meter = Meter::new(Unit::Items);
        meter.start("tokens", tokens.len() as u64);
        crate::interrupt::handle();
        for window in &windows {
            let mut sequence = worker.sequence();
            base.iter_mut().for_each(Base::reset);
            // The last token predicts nothing that is there.
            let inputs = &window[..window.len() - 1];
            for (at, piece) in inputs.chunks(ROWS).enumerate() {
                if crate::interrupt::requested() {
                    return Err(Failure::new(Code::Interrupted, "interrupted"));
                }
                let mut batch = Batch::new();
                batch.push(&mut sequence, piece, Want::All);
                let ours = worker.forward(&mut batch)?.all();
                let theirs = base.as_mut().map(|b| b.forward(piece)).transpose()?;
                for (row, logits) in ours.iter().enumerate() {
                    if let Some((path, file)) = &mut logits_file {
                        let bytes: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
                        file.write_all(&bytes).map_err(|e| unwritable(path, &e))?;
                    }
                    let theirs = theirs.as_ref().and_then(|t| t.rows().nth(row));
                    quality.add(logits, window[at * ROWS + row + 1], theirs);
                }
                meter.advance(piece.len() as u64);
            }
        }
        drop(meter);
        if let Some((path, file)) = &mut logits_file {
            file.flush().map_err(|e| unwritable(path, &e))?;
        }
        if quality.is_empty() {
            return Err(Failure::usage(format!(
                "{}: no token to predict; give a longer text",
                self.text.display()
            )));
        }
        let output = Output {
            tokens: quality.len(),
            window,
            ppl: quality.perplexity(),
            base_ppl: quality.base_perplexity(),
            mean_kl: quality.mean_kl(),
            p99_kl: quality.p99_kl(),
            top1: quality.top1(),
        };
        if self.json {
            return json::print(&output);
        }
        out!("perplexity {:.4} of {} tokens in windows of {}", output.ppl, output.tokens, output.window)?;
        if let (Some(ppl), Some(mean), Some(p99), Some(top1)) =
            (output.base_ppl, output.mean_kl, output.p99_kl, output.top1)
        {
            out!(
                "base       {ppl:.4}; KL divergence {mean:.3e} on average, {p99:.3e} at 99 %; same first choice {:.2} %",
                100.0 * top1
            )?;
        }
        Ok(())
    }
}

fn create(path: &Path) -> Result<(&Path, BufWriter<File>), Failure> {
    let file = File::create(path).map_err(|e| unwritable(path, &e))?;
    Ok((path, BufWriter::new(file)))
}

fn unwritable(path: &Path, why: &std::io::Error) -> Failure {
    Failure::new(Code::Internal, format!("cannot write {}: {why}", path.display()))
}
