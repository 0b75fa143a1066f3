//! The commands. Each file holds the arguments of one and what it does.

#[cfg(feature = "compile")]
mod archs;
mod bench;
#[cfg(feature = "compile")]
mod cache;
#[cfg(feature = "compile")]
mod calibrate;
#[cfg(feature = "compile")]
mod compile;
mod completions;
#[cfg(feature = "compile")]
mod demo;
mod doctor;
mod embed;
#[cfg(feature = "compile")]
mod eval;
mod first_token;
mod inspect;
#[cfg(feature = "plot")]
mod pareto;
mod run;
#[cfg(feature = "compile")]
mod toolchain;
mod trust;
#[cfg(feature = "compile")]
mod tuning;
mod verify;

use crate::exit::{self, Failure};
use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  bessemer run model.gguf -p 'What is a crucible?'       compile into the cache, then answer
  bessemer compile model.gguf -o model.engine            one file that starts in milliseconds
  bessemer run model.engine                              chat with it
  bessemer bench model.engine                            how fast it is, against what this machine can do";

/// Compiles language models ahead of time, and runs them
#[derive(Parser, Debug)]
#[command(name = "bessemer", version, about, after_help = format!("{EXAMPLES}\n\n{}", exit::HELP))]
#[command(propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    #[cfg(feature = "compile")]
    Compile(compile::Args),
    #[cfg(feature = "compile")]
    Calibrate(calibrate::Args),
    Run(run::Args),
    Embed(embed::Args),
    Bench(bench::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    #[cfg(feature = "compile")]
    Eval(eval::Args),
    #[cfg(feature = "compile")]
    Archs(archs::Args),
    Doctor(doctor::Args),
    Trust(trust::Args),
    #[cfg(feature = "compile")]
    Cache(cache::Args),
    #[cfg(feature = "compile")]
    Tuning(tuning::Args),
    #[cfg(feature = "compile")]
    Toolchain(toolchain::Args),
    #[cfg(feature = "compile")]
    Demo(demo::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    FirstToken(first_token::Args),
}

impl Command {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        match self {
            #[cfg(feature = "compile")]
            Self::Compile(args) => args.run(),
            #[cfg(feature = "compile")]
            Self::Calibrate(args) => args.run(),
            Self::Run(args) => args.run(),
            Self::Embed(args) => args.run(),
            Self::Bench(args) => args.run(),
            Self::Inspect(args) => args.run(),
            Self::Verify(args) => args.run(),
            #[cfg(feature = "compile")]
            Self::Eval(args) => args.run(),
            #[cfg(feature = "compile")]
            Self::Archs(args) => args.run(),
            Self::Doctor(args) => args.run(),
            Self::Trust(args) => args.run(),
            #[cfg(feature = "compile")]
            Self::Cache(args) => args.run(),
            #[cfg(feature = "compile")]
            Self::Tuning(args) => args.run(),
            #[cfg(feature = "compile")]
            Self::Toolchain(args) => args.run(),
            #[cfg(feature = "compile")]
            Self::Demo(args) => args.run(),
            Self::Completions(args) => args.run(),
            Self::FirstToken(args) => args.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
