//! What can be typed, and the exit codes. No logic.

use crate::{builder, client, doctor, status};
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Exit codes of `sccache-dock`; README.md has the same table.
pub mod exit {
    /// Done, or drained on request.
    pub const OK: u8 = 0;
    /// A service failed for good, or a check did not pass.
    pub const FAILED: u8 = 1;
    /// The settings, the arguments or the state folder are wrong; nothing was started.
    pub const USAGE: u8 = 2;
    /// The jobs of a builder cannot be isolated on this machine.
    pub const ISOLATION: u8 = 3;
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
    /// Show services, restarts, cache size, hits and misses
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Exit with 0 if every service is ready and the cache answers
    Healthcheck,
    /// Restart one service, or start it again after `stop`
    Restart { service: String },
    /// Stop one service and keep it stopped
    Stop { service: String },
    /// Read the settings again and restart what they change, as SIGHUP does
    Reload,
    /// Show the settings in force and where each comes from
    Config,
    /// Remove blobs from the cache; all of them without an option
    Purge(status::purge::Args),
    /// Print what a client needs to use this cache
    ClientEnv(client::EnvArgs),
    /// Bring the compilers to every builder of the cluster, on a client and before its first build
    Warm(client::warm::Args),
    /// Look for what is wrong: inside the container, or on a client
    Doctor(doctor::Args),
    /// Show the versions of sccache-dock and of its sccache
    Version,
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
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
    /// Build for clients (started by `run`)
    #[command(hide = true)]
    Builder {
        /// The builder's configuration file, as `run` writes it
        #[arg(long)]
        config: PathBuf,
        /// What this process is to do
        #[arg(long, value_enum, default_value_t = builder::Part::Keep)]
        part: builder::Part,
    },
    /// Print the seccomp profile that a builder's container needs
    Seccomp {
        /// For which kind of isolation
        #[arg(value_enum, default_value_t = builder::Profile::Userns)]
        profile: builder::Profile,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
