//! PID 1: the program that `sccache-dock run` executes. It is separate from the commands, so that the one long-running
//! process maps only what it needs.

use sccache_dock::config::settings;
use sccache_dock::exit;
use sccache_dock::supervisor;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = settings::load()
        .map_err(Box::<dyn Error>::from)
        .and_then(|loaded| Ok(supervisor::run(loaded)?));
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Errors are ignored: standard error may be closed.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(exit::USAGE)
        }
    }
}
