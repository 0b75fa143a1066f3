//! Compiles `SRC` into `OUT` in a process of its own, for tests that take away what a process may do. An error is printed
//! in its Debug form, which begins with the name of its variant.

use bessemer_compiler::{CompileOptions, RunOptions, Silent, compile};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [source, out] = paths.as_slice() else {
        eprintln!("usage: compile_once SRC OUT");
        return ExitCode::from(2);
    };
    match compile(source, out, &CompileOptions::default(), &RunOptions::default(), None, &Silent) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:?}\n{error}");
            ExitCode::FAILURE
        }
    }
}
