//! Parses the command line, chooses a command, maps its outcome to an exit code.

use clap::Parser;
use sccache_dock::cli::{Cli, Command, exit};
use sccache_dock::gateway;
use std::process::ExitCode;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run => ExitCode::from(exit::USAGE),
        Command::Gateway { config, inherit } => match gateway::serve(&config, inherit) {
            Ok(()) => ExitCode::from(exit::OK),
            Err(error) => failed(&error),
        },
    }
}

#[expect(clippy::print_stderr, reason = "the only printer of errors")]
fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(exit::FAILED)
}
