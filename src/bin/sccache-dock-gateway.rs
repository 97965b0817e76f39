//! The gateway's program. Apart from `sccache-dock`, so that PID 1 maps no HTTP, no TLS and no object store.

use clap::Parser;
use sccache_dock::exit;
use sccache_dock::gateway;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Serve the cache: started by `sccache-dock run`, which writes the file and holds the listeners.
#[derive(Debug, Parser)]
#[command(name = "sccache-dock-gateway", version)]
struct Arguments {
    /// The gateway's configuration file, as `run` writes it
    #[arg(long)]
    config: PathBuf,
    /// Take the listeners from standard input, a Unix socket, and report readiness there
    #[arg(long)]
    inherit: bool,
}

fn main() -> ExitCode {
    let Arguments { config, inherit } = Arguments::parse();
    let Err(error) = gateway::serve(&config, inherit) else {
        return ExitCode::from(exit::OK);
    };
    // Standard error may be closed; there is nobody else to tell.
    let _ = writeln!(io::stderr(), "error: {error}");
    // The supervisor gives up at once on the code for usage: the same file would be as wrong the next time.
    ExitCode::from(if error.is_in_the_file() {
        exit::USAGE
    } else {
        exit::FAILED
    })
}
