//! Names of what lies below `SCCACHE_DIR` and the folder of the sockets.

use std::path::{Path, PathBuf};

/// Blobs.
pub fn cache(dir: &Path) -> PathBuf {
    dir.join("cache")
}

/// Tokens and written configuration, mode 0700.
pub fn state(dir: &Path) -> PathBuf {
    dir.join("state")
}

/// Scratch space of the services, emptied by each start: not `tmp`, which a folder may have of its own.
pub fn scratch(dir: &Path) -> PathBuf {
    state(dir).join("scratch")
}

/// The sccache server's first level, which stays empty; inside the scratch space.
pub fn server_level(dir: &Path) -> PathBuf {
    scratch(dir).join("server")
}

/// The generated token for clients.
pub fn auth_token(dir: &Path) -> PathBuf {
    state(dir).join("auth-token")
}

/// The generated token for builders.
pub fn builder_token(dir: &Path) -> PathBuf {
    state(dir).join("server-token")
}

/// Toolchains and jobs of the builder.
pub fn builder(dir: &Path) -> PathBuf {
    dir.join("builder")
}

/// The scheduler's configuration.
pub fn scheduler_config(dir: &Path) -> PathBuf {
    state(dir).join("scheduler.toml")
}

/// The builder's configuration, ours.
pub fn builder_config(dir: &Path) -> PathBuf {
    state(dir).join("builder.toml")
}

/// The builder's configuration, that of `sccache-dist`.
pub fn server_config(dir: &Path) -> PathBuf {
    state(dir).join("builder-server.toml")
}

/// The builders' last heartbeats, for the next gateway.
pub fn heartbeats(dir: &Path) -> PathBuf {
    state(dir).join("heartbeats")
}

/// The relay's certificate authority.
pub fn relay_authority(dir: &Path) -> PathBuf {
    state(dir).join("relay-authority.json")
}

/// Bodies of jobs that wait in the relay.
pub fn relay_spool(dir: &Path) -> PathBuf {
    scratch(dir).join("relay")
}

/// What the upstream has not got yet.
pub fn upstream_queue(dir: &Path) -> PathBuf {
    state(dir).join("upstream-queue")
}

/// The gateway's configuration.
pub fn gateway_config(dir: &Path) -> PathBuf {
    state(dir).join("gateway.toml")
}

/// Held by the supervisor that owns the folder.
pub fn lock(dir: &Path) -> PathBuf {
    state(dir).join("lock")
}

/// Clients speak sccache's own protocol here; served by the gateway.
pub fn client_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("sccache.sock")
}

/// The supervised sccache server.
pub fn server_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("server.sock")
}

/// Where the sccache server reports that it is ready.
pub fn notify_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("notify.sock")
}

/// Where the builder's jobs are reported; bound by the gateway.
pub fn jobs_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("jobs.sock")
}

/// `status`, `restart` and `healthcheck` talk to the supervisor here.
pub fn control_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("control.sock")
}
