//! The table of settings, and the names that are none.

/// A setting's row: README.md shows the same table.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// Key in the TOML file.
    pub(super) key: &'static str,
    pub(super) default: &'static str,
    pub(super) secret: bool,
    pub(super) about: &'static str,
}

const fn row(
    name: &'static str,
    key: &'static str,
    default: &'static str,
    about: &'static str,
) -> Row {
    Row {
        name,
        key,
        default,
        secret: false,
        about,
    }
}

const fn secret(name: &'static str, key: &'static str, about: &'static str) -> Row {
    Row {
        name,
        key,
        default: "",
        secret: true,
        about,
    }
}

pub(super) const ROWS: &[Row] = &[
    row("MODE", "mode", "ephemeral", "ephemeral or persistent"),
    row(
        "SCCACHE_DIR",
        "dir",
        "/var/sccache",
        "root of all state: cache/, state/, run/",
    ),
    row(
        "SCCACHE_RUN_DIR",
        "run_dir",
        "",
        "folder of the sockets; run/ below SCCACHE_DIR where empty",
    ),
    row(
        "SCCACHE_LISTEN",
        "listen",
        "0.0.0.0:4226",
        "address of the cache port",
    ),
    row(
        "SCCACHE_CACHE_SIZE",
        "cache_size",
        "10G",
        "budget of the cache",
    ),
    row("SCCACHE_LOG", "log", "debug", "level for all processes"),
    row("SCCACHE_LOG_FORMAT", "log_format", "text", "text or json"),
    row(
        "SCCACHE_ERROR_LOG",
        "error_log",
        "",
        "also write warnings and errors to this file",
    ),
    row(
        "SCCACHE_LOG_STALL",
        "log_stall",
        "5s",
        "how long a standing reader of the log may hold the services back",
    ),
    row(
        "SCCACHE_IPC",
        "ipc",
        "local",
        "who may use sccache's own protocol on the port: off, local, CIDR list",
    ),
    secret(
        "SCCACHE_AUTH_TOKEN",
        "auth_token",
        "clients: read and write; generated and kept where empty",
    ),
    secret(
        "SCCACHE_READ_TOKEN",
        "read_token",
        "clients: read only; \"anonymous\" lets anyone read",
    ),
    row(
        "SCCACHE_STOP_GRACE",
        "stop_grace",
        "8s",
        "bound of an orderly stop",
    ),
    row(
        "SCCACHE_BINARY",
        "binary",
        "sccache",
        "the sccache to run, a name on PATH or a path",
    ),
];

/// Settings of later versions: never silently without effect.
pub(super) const NOT_YET: &[&str] = &[
    "SCCACHE_SERVER_TOKEN",
    "SCCACHE_TLS_CERT",
    "SCCACHE_TLS_KEY",
    "SCCACHE_PUBLIC_ADDR",
    "SCCACHE_SCHEDULER_URL",
    "SCCACHE_BUILDER_ISOLATION",
    "SCCACHE_BUILDER_SLOTS",
    "SCCACHE_TOOLCHAIN_CACHE_SIZE",
    "SCCACHE_UPSTREAM",
];

/// Set by the image for programs started with `docker exec`, or read by the tests: no warning.
pub(super) const EXPECTED: &[&str] = &[
    "SCCACHE_SERVER_UDS",
    "SCCACHE_CLIENT_SIDE",
    "SCCACHE_SERVER_PORT",
    "SCCACHE_DOCK_CONFIG",
    "SCCACHE_DOCK_TOOLS",
];
