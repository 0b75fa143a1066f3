//! The command line of Bessemer: one file a command under `commands/`, each a thin layer over the libraries.

mod commands;
mod device;
mod exit;
mod generate;
mod interrupt;
mod json;
mod measure;
mod model;
mod output;
mod paths;
mod progress;
mod quality;
mod size;
mod trust;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    measure::clock::start();
    let cli = commands::Cli::parse();
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_quiet() {
                eprintln!("bessemer: {failure}");
            }
            ExitCode::from(failure.code as u8)
        }
    }
}
