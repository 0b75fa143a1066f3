//! `bessemer trust`

use crate::exit::Failure;
use crate::{paths, trust};
use bessemer_runtime::Engine;
use std::path::PathBuf;

/// Let the machine code of an engine run from now on
///
/// An engine holds machine code for its loop nests. Without your trust the runtime executes the nests itself: slower,
/// with the same results up to rounding. Engines that you compiled are trusted already.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The engine
    engine: PathBuf,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        // Opening shows that the hash is that of the file's content; the weights are checked too, as the list is for good.
        let engine = Engine::open(&self.engine)?;
        engine.verify()?;
        trust::add(&engine.hash(), &self.engine)?;
        eprintln!(
            "{} is trusted ({} in {})",
            self.engine.display(),
            engine.hash(),
            paths::trust_list()?.display()
        );
        Ok(())
    }
}
