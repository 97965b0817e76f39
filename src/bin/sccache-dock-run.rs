//! PID 1: what `sccache-dock run` becomes. Apart from the commands, so that the one process that stays for good maps
//! nothing but what it needs.

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
            // Standard error may be closed; there is nobody else to tell.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(exit::USAGE)
        }
    }
}
