//! Paths in `SCCACHE_DIR` and in the folder of the sockets.

use std::path::{Path, PathBuf};

/// Blobs.
pub fn cache(dir: &Path) -> PathBuf {
    dir.join("cache")
}

/// Everything that the gateway keeps in [`cache`].
pub const IN_CACHE: [&str; 9] = [
    "blobs",
    "tmp",
    "ceiling",
    "scrub",
    LOGINS,
    SESSIONS,
    HISTORY,
    AUDIT_LOG,
    AUDIT_LOG_BEFORE,
];
/// The secret of the status page's cookies, and who has logged out.
pub const LOGINS: &str = "logins";
/// Sessions by ID token.
pub const SESSIONS: &str = "sessions.json";
/// Builds and traffic by the hour.
pub const HISTORY: &str = "history.redb";
/// Writes and refusals, one JSON object a line.
pub const AUDIT_LOG: &str = "audit.jsonl";
/// The previous [`AUDIT_LOG`], renamed when it was full.
pub const AUDIT_LOG_BEFORE: &str = "audit.jsonl.1";

/// Tokens and generated configuration files, mode 0700.
pub fn state(dir: &Path) -> PathBuf {
    dir.join("state")
}

/// Scratch space of the services, emptied at each start. It is not called `tmp`, which the user's folder may already
/// contain.
pub fn scratch(dir: &Path) -> PathBuf {
    state(dir).join("scratch")
}

/// The sccache server's first cache level, which stays empty; in the scratch space.
pub fn server_level(dir: &Path) -> PathBuf {
    scratch(dir).join("server")
}

/// The generated token of the clients.
pub fn auth_token(dir: &Path) -> PathBuf {
    state(dir).join("auth-token")
}

/// The generated token of the builders.
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

/// The builder's configuration, in the format of `sccache-dist`.
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

/// Blobs that are still to be uploaded to the upstream.
pub fn upstream_queue(dir: &Path) -> PathBuf {
    state(dir).join("upstream-queue")
}

/// The gateway's configuration.
pub fn gateway_config(dir: &Path) -> PathBuf {
    state(dir).join("gateway.toml")
}

/// Lock held by the supervisor that uses the folder.
pub fn lock(dir: &Path) -> PathBuf {
    state(dir).join("lock")
}

/// Socket on which the gateway serves sccache's own protocol.
pub fn client_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("sccache.sock")
}

/// Socket of the supervised sccache server.
pub fn server_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("server.sock")
}

/// Socket on which the sccache server reports that it is ready.
pub fn notify_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("notify.sock")
}

/// Socket on which the gateway receives reports about the builder's jobs.
pub fn jobs_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("jobs.sock")
}

/// Socket on which the supervisor answers `status`, `restart` and `healthcheck`.
pub fn control_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("control.sock")
}
