//! What can be typed, and the exit codes.

use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Exit codes of `sccache-dock`; README.md has the same table.
pub mod exit {
    /// Done, or drained on request.
    pub const OK: u8 = 0;
    /// A service failed for good, or a check did not pass.
    pub const FAILED: u8 = 1;
    /// The settings or the arguments are wrong; nothing was started.
    pub const USAGE: u8 = 2;
}

/// One container, one compiler cache for the whole team.
#[derive(Debug, Parser)]
#[command(name = "sccache-dock", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Supervise the services of this MODE: the container's entry point
    Run,
    /// Serve the cache (started by `run`)
    #[command(hide = true)]
    Gateway {
        /// The gateway's configuration file, as `run` writes it
        #[arg(long)]
        config: PathBuf,
        /// Take the listeners from standard input, a Unix socket, and report readiness there
        #[arg(long)]
        inherit: bool,
    },
}
