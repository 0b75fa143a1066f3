//! `bessemer completions`

use crate::exit::Failure;
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::Write;

/// Print a completion script for a shell
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: bessemer completions bash > ~/.local/share/bash-completion/completions/bessemer"
)]
pub struct Args {
    /// The shell
    shell: Shell,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "bessemer", &mut script);
        Ok(std::io::stdout().lock().write_all(&script)?)
    }
}
