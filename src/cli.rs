//! What can be typed. No logic.

use crate::client::at;
use crate::{admin, builder, client, doctor};
use clap::{Parser, Subcommand};
use std::path::PathBuf;

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
    ///
    /// The exit code is 0 when nothing is wrong: every service is ready, or still on its way. To wait until the cache
    /// can be used, ask `healthcheck`.
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Show it again every so many seconds until Ctrl-C: in place on a terminal
        #[arg(
            long,
            value_name = "SECONDS",
            num_args = 0..=1,
            default_missing_value = "2",
            value_parser = clap::value_parser!(u16).range(1..=3600),
            conflicts_with = "json"
        )]
        watch: Option<u16>,
    },
    /// Exit with 0 if every service is ready and the cache answers
    Healthcheck,
    /// Restart one service, or start it again after `stop`; without a name all of them, with every port kept
    Restart {
        /// gateway, server, scheduler or builder
        service: Option<String>,
    },
    /// Stop one service and keep it stopped
    Stop {
        /// gateway, server, scheduler or builder
        service: String,
    },
    /// Read the settings again and restart what they change, as SIGHUP does
    Reload,
    /// Show the settings in force and where each comes from
    Config,
    /// Remove blobs from the cache; all of them without an option
    Purge(admin::purge::Args),
    /// Show where a blob is, who has written it, by which way and when
    Blob {
        /// The 64 digits of sccache's hash key, or a path
        key: String,
    },
    /// Say what a token may do with a blob, and why
    Access {
        /// The name of the token; `local`, or `local:UID` for a user of the socket
        #[arg(long = "as", value_name = "NAME")]
        name: String,
        /// The 64 digits of sccache's hash key, or a path
        key: String,
    },
    /// List who has logged in by an ID token of a CI service, or end such sessions
    Sessions {
        /// End those of this build, of this rule, or of both as RULE:BUILD
        #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        revoke: Option<String>,
    },
    /// Exchange the ID token of a CI service's job for a session of a cache
    Login(client::login::Args),
    /// Print what a client needs to use this cache
    ClientEnv {
        #[command(flatten)]
        args: client::EnvArgs,
        #[command(flatten)]
        published: client::Published,
    },
    /// Say what to type for a first cached build (asked by the host's script)
    #[command(hide = true)]
    NextSteps(client::next::Args),
    /// Bring the compilers to every builder of the cluster, on a client and before its first build
    Warm(client::warm::Args),
    /// Run a command that sees its checkout and CARGO_HOME at fixed paths, so that checkouts share their results
    At(at::Args),
    /// Look for what is wrong: inside the container, or on a client
    Doctor(doctor::Args),
    /// Write the manual pages of all commands to a folder, for packages
    #[command(hide = true)]
    Man { folder: PathBuf },
    /// Show the versions of sccache-dock and of its sccache
    Version,
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
    /// End the daemon of a command's own (started by `at`)
    #[command(hide = true)]
    AtEnd {
        /// The folder of its socket
        folder: PathBuf,
        /// Wait for the command, whose pidfd is standard input
        #[arg(long)]
        wait: bool,
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
