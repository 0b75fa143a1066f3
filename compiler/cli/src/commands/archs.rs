//! `bessemer archs`

use crate::exit::Failure;
use crate::json;
use crate::output::out;
use bessemer_compiler::import::arch::ARCHITECTURES;
use serde::Serialize;

/// List the model families that compile: their files and what each needs beyond a plain decoder
#[derive(clap::Args, Debug)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    families: Vec<Family>,
}

#[derive(Serialize)]
struct Family {
    name: &'static str,
    models: &'static str,
    files: Vec<&'static str>,
    /// `model_type` and class in `config.json`.
    hugging_face: &'static [(&'static str, &'static str)],
    /// `general.architecture`.
    gguf: &'static [&'static str],
    features: &'static str,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        let families: Vec<Family> = ARCHITECTURES
            .iter()
            .map(|family| Family {
                name: family.name,
                models: family.models,
                files: family.files(),
                hugging_face: family.hf,
                gguf: family.gguf,
                features: family.features,
            })
            .collect();
        if self.json {
            return json::print(&Report { families });
        }
        let width = families.iter().map(|family| family.name.len()).max().unwrap_or(0);
        for f in families {
            out!("{:<width$}  {} ({}): {}", f.name, f.models, f.files.join(", "), f.features)?;
        }
        Ok(())
    }
}
