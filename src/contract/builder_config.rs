//! Configuration of the builder, given by the supervisor as TOML in a variable. A file would lie in a folder of the services'
//! user, who could then say what the builder does while it is still root.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The variable that it is in.
pub const VARIABLE: &str = "SCCACHE_DOCK_BUILDER";

/// The builder's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Value of `MODE`, for the command that is printed if isolation fails.
    pub mode: String,
    pub isolation: Isolation,
    /// User to switch to before creating a user namespace, if started as root.
    pub user: Option<User>,
    /// Number of processors that jobs may use; all if `None`.
    pub slots: Option<usize>,
    /// Folder of toolchains and jobs.
    pub dir: PathBuf,
    /// The real `sccache-dist` and its configuration file.
    pub sccache_dist: PathBuf,
    pub server_config: PathBuf,
    /// The real bubblewrap.
    pub bwrap: PathBuf,
    /// Address at which clients and the scheduler reach the builder.
    pub listen: SocketAddr,
    /// Loopback address at which `sccache-dist` accepts jobs from us.
    pub server: SocketAddr,
    /// Datagram socket of the gateway, to which jobs are reported.
    pub jobs_socket: PathBuf,
    /// How long jobs in flight may continue after SIGTERM.
    pub grace_millis: u64,
    /// Disk budget of the packed toolchains, which no single one may exceed.
    pub toolchain_cache_bytes: u64,
    pub limits: Limits,
}

/// A user and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// Configured limits of one job; values that are not set depend on the container's own limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    /// Maximum number of processes and threads together.
    pub processes: Option<u64>,
    /// Maximum size of the files that a job writes.
    pub disk_bytes: Option<u64>,
    /// Maximum unpacked size of a toolchain.
    pub toolchain_bytes: Option<u64>,
    pub time_millis: u64,
}

/// How jobs are isolated from the rest of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// The first of the others that passes its self-test.
    Auto,
    /// A separate user namespace: needs no privilege, only the seccomp profile.
    Userns,
    /// Real root with CAP_SYS_ADMIN.
    Root,
}
