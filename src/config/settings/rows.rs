//! The table of settings, and the names that are none.

/// Root of all state, where nothing else is set.
pub(super) const DEFAULT_DIR: &str = "/var/sccache";

/// A setting's row: docs/settings.md shows the same table.
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
    row(
        "MODE",
        "mode",
        "ephemeral",
        "ephemeral, persistent, distributed-ephemeral, distributed-persistent or builder",
    ),
    row(
        "SCCACHE_DIR",
        "dir",
        DEFAULT_DIR,
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
    row(
        "SCCACHE_QUOTAS",
        "quotas",
        "",
        "most bytes of a namespace: ci=20G,team-a=5G; \"default\" is the nameless one",
    ),
    row(
        "SCCACHE_PINNED",
        "pinned",
        "",
        "namespaces from which writes to others do not evict: release,toolchains",
    ),
    row(
        "SCCACHE_WRITE_ONCE",
        "write_once",
        "",
        "namespaces in which a compile's result is not replaced by another one: main,release; * is all",
    ),
    row(
        "SCCACHE_AUDIT_LOG",
        "audit_log",
        "off",
        "most bytes of cache/audit.jsonl, in which writes and refusals stand: 64M",
    ),
    row(
        "SCCACHE_MAX_AGE",
        "max_age",
        "",
        "remove what was not used for so long: 30d",
    ),
    row(
        "SCCACHE_SCRUB",
        "scrub",
        "7d",
        "check every blob once in this time; off",
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
        "who may use sccache's own protocol on the port: off, local, bridge, CIDR list",
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
        "SCCACHE_HOSTS",
        "hosts",
        "",
        "names of the public DNS under which anyone may read: cache.example.com,*.ci.example.com",
    ),
    secret(
        "SCCACHE_UPSTREAM",
        "upstream",
        "upstream: s3://BUCKET/FOLDER?region=R, redis://HOST:PORT, or http(s)://HOST of another cache",
    ),
    secret(
        "SCCACHE_UPSTREAM_TOKEN",
        "upstream_token",
        "token for an upstream over HTTP",
    ),
    row(
        "SCCACHE_TOKENS_FILE",
        "tokens_file",
        "",
        "file of more tokens by name, each for reading or writing; followed while it runs",
    ),
    row(
        "SCCACHE_TLS_CERT",
        "tls_cert",
        "",
        "PEM file of the certificate: TLS on the port; followed while it runs",
    ),
    row("SCCACHE_TLS_KEY", "tls_key", "", "PEM file of its key"),
    row(
        "SCCACHE_TLS_MIN_VERSION",
        "tls_min_version",
        "1.2",
        "oldest version of TLS that is accepted: 1.2 or 1.3",
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
    secret(
        "SCCACHE_SERVER_TOKEN",
        "server_token",
        "builders to scheduler; generated and kept where empty",
    ),
    row(
        "SCCACHE_PUBLIC_ADDR",
        "public_addr",
        "",
        "ip[:port] at which clients and scheduler reach the builder; the container's own where empty",
    ),
    row(
        "SCCACHE_SCHEDULER_URL",
        "scheduler_url",
        "",
        "scheduler that a MODE=builder joins",
    ),
    row(
        "SCCACHE_SCHEDULER_LISTEN",
        "scheduler_listen",
        "0.0.0.0:10600",
        "address of the scheduler's port",
    ),
    row(
        "SCCACHE_BUILDER_LISTEN",
        "builder_listen",
        "0.0.0.0:10501",
        "address of the builder's port",
    ),
    row(
        "SCCACHE_BUILDER_ISOLATION",
        "builder_isolation",
        "auto",
        "auto, userns (no privilege) or root (CAP_SYS_ADMIN)",
    ),
    row(
        "SCCACHE_BUILDER_SLOTS",
        "builder_slots",
        "",
        "processors that jobs may use; all where empty",
    ),
    row(
        "SCCACHE_TOOLCHAIN_CACHE_SIZE",
        "toolchain_cache_size",
        "10G",
        "budget of the builder's packed toolchains",
    ),
    row(
        "SCCACHE_TOOLCHAIN_SIZE",
        "toolchain_size",
        "",
        "most that one toolchain unpacks to; half of what is free at the start, at most 10G, where empty",
    ),
    row(
        "SCCACHE_DIST_WRONG_TOKEN",
        "dist_wrong_token",
        "fail",
        "compiles of a client with a wrong token: fail, or fallback to compile locally",
    ),
    row(
        "SCCACHE_JOB_MEMORY",
        "job_memory",
        "",
        "most memory of one job; half of the container's where empty",
    ),
    row(
        "SCCACHE_JOB_PROCESSES",
        "job_processes",
        "",
        "most processes and threads of one job; 512, or half of the container's, where empty",
    ),
    row(
        "SCCACHE_JOB_DISK",
        "job_disk",
        "",
        "most that one job may write; half of what is free at the start, at most 10G, where empty",
    ),
    row(
        "SCCACHE_JOB_TIME",
        "job_time",
        "20m",
        "longest that one job may take; clients wait 20 minutes",
    ),
    row(
        "SCCACHE_DIST_BINARY",
        "dist_binary",
        "sccache-dist",
        "the sccache-dist to run: a name beside SCCACHE_BINARY or on PATH, or a path",
    ),
];

/// Set by the image for programs started with `docker exec`, or read by the tests: no warning.
pub(super) const EXPECTED: &[&str] = &[
    "SCCACHE_SERVER_UDS",
    "SCCACHE_CLIENT_SIDE",
    "SCCACHE_SERVER_PORT",
    "SCCACHE_DOCK_CONFIG",
    "SCCACHE_DOCK_TOOLS",
];
