//! The command line. No logic.

use crate::admin::machine::Output;
use crate::base::apparmor;
use crate::client::{at, build, explain, prefetch};
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
    /// Supervise the services of this MODE (the container's entry point)
    Run,
    /// Show services, restarts, cache size, hits and misses
    ///
    /// The exit code is 0 if nothing is wrong: every service is ready or still starting. To wait until the cache can be
    /// used, run `healthcheck`.
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Repeat every SECONDS until Ctrl-C, in place on a terminal
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
    Healthcheck(Output),
    /// Restart one service, also after `stop`, or all of them if none is named; every port stays open
    Restart {
        /// gateway, server, scheduler or builder
        service: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Stop one service and keep it stopped
    Stop {
        /// gateway, server, scheduler or builder
        service: String,
        #[command(flatten)]
        output: Output,
    },
    /// Re-read the settings and restart the services that they change, as SIGHUP does
    Reload(Output),
    /// Show the effective settings and where each comes from
    Config(Output),
    /// Remove blobs from the cache; without options, all of them
    Purge(admin::purge::Args),
    /// Show where a blob is, and when, by whom and over which lane it was written
    Blob {
        /// The 64 digits of sccache's hash key, or a path
        key: String,
        #[command(flatten)]
        output: Output,
    },
    /// Show what a token may do with a blob, and why
    Access {
        /// The name of the token; `local`, or `local:UID` for a user of the socket
        #[arg(long = "as", value_name = "NAME")]
        name: String,
        /// The 64 digits of sccache's hash key, or a path
        key: String,
        #[command(flatten)]
        output: Output,
    },
    /// List the sessions of CI jobs that logged in with an ID token, or revoke them
    Sessions {
        /// Revoke the sessions of this build, of this rule, or of both as RULE:BUILD
        #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        revoke: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Exchange a CI job's ID token for a session token
    Login(client::login::Args),
    /// Print the variables that a client needs to use this cache
    ClientEnv {
        #[command(flatten)]
        args: client::EnvArgs,
        #[command(flatten)]
        published: client::Published,
        /// Print JSON, regardless of --format
        #[arg(long)]
        json: bool,
    },
    /// Print the commands for a first cached build (used by the host's script)
    #[command(hide = true)]
    NextSteps(client::next::Args),
    /// Send this client's compilers to every builder of the cluster, before its first build
    Warm(client::warm::Args),
    /// Run a command that sees its checkout and CARGO_HOME at fixed paths, so that checkouts share results
    At(at::Args),
    /// Run a build and report what the cache did for it
    Build(build::Args),
    /// Explain why compiles of the last build missed the cache
    Explain(explain::Args),
    /// Download what a build will need before it starts, for machines that start with an empty cache
    Prefetch(prefetch::Args),
    /// Diagnose problems, inside the container or on a client
    Doctor(doctor::Args),
    /// Write the manual pages of all commands to a folder, for packaging
    #[command(hide = true)]
    Man { folder: PathBuf },
    /// Show the versions of sccache-dock and of its sccache
    Version(Output),
    /// Print shell completions
    Completions { shell: clap_complete::Shell },
    /// Stop the daemon that `at` started for a command
    #[command(hide = true)]
    AtEnd {
        /// The folder of its socket
        folder: PathBuf,
        /// First wait for the command, whose pidfd is standard input
        #[arg(long)]
        wait: bool,
    },
    /// Run a builder (started by `run`)
    #[command(hide = true)]
    Builder {
        /// The builder's configuration file, in place of what `run` gives in a variable
        #[arg(long)]
        config: Option<PathBuf>,
        /// Task of this process
        #[arg(long, value_enum, default_value_t = builder::Part::Keep)]
        part: builder::Part,
    },
    /// Print the seccomp profile that a builder's container needs
    Seccomp {
        /// Type of isolation
        #[arg(value_enum, default_value_t = builder::Profile::Userns)]
        profile: builder::Profile,
    },
    /// Print an AppArmor profile that allows the namespaces which a builder's container, or this program on the host, needs
    Apparmor {
        /// What the profile is for
        #[arg(value_enum, default_value_t = apparmor::Profile::Container)]
        profile: apparmor::Profile,
        /// For `program`: its path [default: the path of this program]
        #[arg(long, value_name = "PATH")]
        path: Option<PathBuf>,
        /// The AppArmor that is to read it: 3, 4, or what apparmor_parser --version prints [default: this machine's, else 4]
        #[arg(long, value_name = "VERSION")]
        parser: Option<apparmor::Parser>,
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
