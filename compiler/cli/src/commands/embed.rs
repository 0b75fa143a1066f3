//! `bessemer embed`

use crate::device::DeviceArgs;
use crate::exit::{Code, Failure};
use crate::json;
use crate::model::ModelArgs;
use crate::output::out;
use bessemer_runtime::{Embedder, Output as ModelOutput, WorkerOptions};
use serde::Serialize;
use std::io::Read;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  bessemer embed model.engine --text 'What is a crucible?'
  bessemer embed model.engine sentences.txt --json            a vector for each line
  cat sentences.txt | bessemer embed model.engine -
  bessemer embed reranker.engine passages.txt --query 'How hot is molten iron?'

Vectors are pooled and scaled as the checkpoint says. A model with a classification head gives scores, before any activation; with
--query each text is scored as the second of a pair.";

/// Make vectors of texts, or scores of pairs of texts
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// A file with a text on each line; `-` reads stdin
    #[arg(value_name = "FILE", required_unless_present = "text", conflicts_with = "text")]
    file: Option<PathBuf>,

    /// A text (may be repeated)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    text: Vec<String>,

    /// Score every text beside this one
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    query: Option<String>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Threads; one for each core by default. Their number changes no result
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Output {
    /// Numbers of a row.
    width: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    vectors: Option<Vec<Vec<f32>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<Vec<Vec<f32>>>,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        let texts = match &self.file {
            Some(file) => read(file)?.lines().filter(|l| !l.trim().is_empty()).map(str::to_owned).collect(),
            None => self.text,
        };
        let model = self.model.open()?;
        let options = self.device.options(WorkerOptions::default().threads(self.threads));
        let mut embedder = Embedder::new(&model.engine, options)?;
        self.device.say(embedder.worker());
        let scores = matches!(model.engine.plan().model.output, ModelOutput::Scores { .. });
        let rows = match &self.query {
            Some(_) if !scores => {
                return Err(Failure::usage(
                    "--query is for models that score pairs of texts, and this one gives vectors; embed both texts and compare them",
                ));
            }
            Some(query) => {
                embedder.score(&texts.iter().map(|text| (query.as_str(), text)).collect::<Vec<_>>())?
            }
            None => embedder.embed(&texts)?,
        };
        if self.json {
            let (vectors, scores) = if scores { (None, Some(rows)) } else { (Some(rows), None) };
            return json::print(&Output { width: embedder.width(), vectors, scores });
        }
        for row in rows {
            out!("{}", row.iter().map(f32::to_string).collect::<Vec<_>>().join(" "))?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let text = match path.to_str() {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text).map(|_| text)
        }
        _ => std::fs::read_to_string(path),
    };
    text.map_err(|e| {
        Failure::new(Code::Usage, format!("{}: {e}; a text itself goes to --text", path.display()))
    })
}
