//! Parses the command line, chooses a command, maps its outcome to an exit code.

use clap::Parser;
use sccache_dock::cli::{Cli, Command, exit};
use std::process::ExitCode;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run | Command::Gateway { .. } => ExitCode::from(exit::USAGE),
    }
}
