//! What the builder needs to know: written by the supervisor as a TOML file of mode 0600, never by hand.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The builder's configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// As in `MODE`, for the command that we print where isolation fails.
    pub mode: String,
    pub isolation: Isolation,
    /// Who we become before a user namespace is made, where we start as root.
    pub user: Option<User>,
    /// Processors that jobs may use; all of ours where none is given.
    pub slots: Option<usize>,
    /// Folder of toolchains and jobs.
    pub dir: PathBuf,
    /// The real `sccache-dist`, and the file that it reads.
    pub sccache_dist: PathBuf,
    pub server_config: PathBuf,
    /// The real bubblewrap.
    pub bwrap: PathBuf,
    /// Where clients and the scheduler reach us.
    pub listen: SocketAddr,
    /// Where `sccache-dist` takes jobs: on loopback, from us.
    pub server: SocketAddr,
    /// Datagram socket of the gateway, which counts jobs.
    pub jobs_socket: PathBuf,
    /// How long jobs in flight may still take after SIGTERM.
    pub grace_millis: u64,
    pub limits: Limits,
}

/// A user and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// Limits of one job, as set; what is not set follows from what the container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    /// Processes and threads together.
    pub processes: Option<u64>,
    /// What one job may write.
    pub disk_bytes: Option<u64>,
    /// What one toolchain may unpack to.
    pub toolchain_bytes: Option<u64>,
    pub time_millis: u64,
}

/// How jobs are kept apart from the rest of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// The first of the others that its self-test proves.
    Auto,
    /// A user namespace of its own: needs no privilege, only the seccomp profile.
    Userns,
    /// Real root with CAP_SYS_ADMIN.
    Root,
}
