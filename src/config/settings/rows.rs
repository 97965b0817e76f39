//! The table of settings, and similar names that are not settings.

/// Default root of all state.
pub(super) const DEFAULT_DIR: &str = "/var/sccache";

/// A row of the table of settings; docs/settings.md has the same rows.
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
        "folder of the sockets; if empty, run/ in SCCACHE_DIR",
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
        "disk budget of the cache",
    ),
    row(
        "SCCACHE_QUOTAS",
        "quotas",
        "",
        "maximum size of a namespace: ci=20G,team-a=5G; \"default\" is the one without a name",
    ),
    row(
        "SCCACHE_PINNED",
        "pinned",
        "",
        "namespaces whose blobs are not evicted by writes to others: release,toolchains",
    ),
    row(
        "SCCACHE_WRITE_ONCE",
        "write_once",
        "",
        "namespaces in which the first result of each compile is kept: main,release; * is all",
    ),
    row(
        "SCCACHE_AUDIT_LOG",
        "audit_log",
        "off",
        "maximum size of cache/audit.jsonl, which records writes and refusals: 64M; or off",
    ),
    row(
        "SCCACHE_MAX_AGE",
        "max_age",
        "",
        "remove blobs not used for this long: 30d; or by namespace too, 30d,pr/*=7d",
    ),
    row(
        "SCCACHE_SCRUB",
        "scrub",
        "7d",
        "verify every blob once per this period, or off",
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
        "how long a log reader that has stopped may block the services",
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
        "clients' token for reading and writing; if empty, generated and kept",
    ),
    secret(
        "SCCACHE_READ_TOKEN",
        "read_token",
        "clients' token for reading only; \"anonymous\" lets anyone read",
    ),
    row(
        "SCCACHE_HOSTS",
        "hosts",
        "",
        "public DNS names under which anonymous reads are allowed: cache.example.com,*.ci.example.com",
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
        "file of named tokens, each for reading or writing; reloaded when it changes",
    ),
    row(
        "SCCACHE_TLS_CERT",
        "tls_cert",
        "",
        "PEM file of the certificate; turns on TLS on both ports; reloaded when it changes",
    ),
    row(
        "SCCACHE_TLS_KEY",
        "tls_key",
        "",
        "PEM file of the certificate's key",
    ),
    row(
        "SCCACHE_TLS_MIN_VERSION",
        "tls_min_version",
        "1.2",
        "minimum TLS version: 1.2 or 1.3",
    ),
    row(
        "SCCACHE_TLS_CLIENT_CA",
        "tls_client_ca",
        "",
        "PEM file of the CAs whose client certificates are accepted; reloaded when it changes",
    ),
    row(
        "SCCACHE_TLS_CLIENT_CERT",
        "tls_client_cert",
        "",
        "PEM file of the certificate presented to the scheduler (MODE=builder) and to an https:// upstream; reloaded when it changes",
    ),
    row(
        "SCCACHE_TLS_CLIENT_KEY",
        "tls_client_key",
        "",
        "PEM file of that certificate's key",
    ),
    row(
        "SCCACHE_STOP_GRACE",
        "stop_grace",
        "8s",
        "time limit for an orderly stop",
    ),
    row(
        "SCCACHE_BINARY",
        "binary",
        "sccache",
        "the sccache to run: a name on PATH, or a path",
    ),
    secret(
        "SCCACHE_SERVER_TOKEN",
        "server_token",
        "builders' token for the scheduler; if empty, generated and kept",
    ),
    secret(
        "SCCACHE_SERVER_JWT_KEY",
        "server_jwt_key",
        "key (HS256) of JWTs with which builders may join",
    ),
    row(
        "SCCACHE_PUBLIC_ADDR",
        "public_addr",
        "",
        "ip[:port] at which the scheduler's machine reaches the builder; if empty, the container's own address; none: it keeps connections to the relay open",
    ),
    row(
        "SCCACHE_SCHEDULER_URL",
        "scheduler_url",
        "",
        "URL of the scheduler that a MODE=builder joins",
    ),
    row(
        "SCCACHE_SCHEDULER_LISTEN",
        "scheduler_listen",
        "0.0.0.0:10600",
        "address of the scheduler's port",
    ),
    row(
        "SCCACHE_SCHEDULER_PLAIN",
        "scheduler_plain",
        "local",
        "with TLS, who may use the scheduler's port without it: local, or any",
    ),
    row(
        "SCCACHE_RELAY",
        "relay",
        "on",
        "on: clients send jobs to the scheduler's port, which hands them to builders; off: clients reach builders themselves",
    ),
    row(
        "SCCACHE_RELAY_ADDRESS",
        "relay_address",
        "",
        "ip[:port] at which clients reach the relay; from their requests where empty",
    ),
    row(
        "SCCACHE_QUEUE_TIME",
        "queue_time",
        "10m",
        "how long a job may wait in the relay for a slot; 0s: not at all, clients compile by themselves",
    ),
    row(
        "SCCACHE_QUEUE_SIZE",
        "queue_size",
        "4G",
        "most bytes of the jobs that wait or run in the relay",
    ),
    row(
        "SCCACHE_BUILDER_MACHINES",
        "builder_machines",
        "",
        "processors of stock builders that are not like the relay's: 10.0.0.7:10501=arm64",
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
        "number of processors that jobs may use; if empty, all",
    ),
    row(
        "SCCACHE_TOOLCHAIN_CACHE_SIZE",
        "toolchain_cache_size",
        "10G",
        "disk budget for the builder's packed toolchains",
    ),
    row(
        "SCCACHE_TOOLCHAIN_SIZE",
        "toolchain_size",
        "",
        "maximum unpacked size of one toolchain; if empty, half of the free space at start, at most 10G",
    ),
    row(
        "SCCACHE_DIST_WRONG_TOKEN",
        "dist_wrong_token",
        "fail",
        "what a client with a wrong token does: fail, or fallback (compile locally)",
    ),
    row(
        "SCCACHE_JOB_MEMORY",
        "job_memory",
        "",
        "maximum memory of a job; if empty, half of the container's",
    ),
    row(
        "SCCACHE_JOB_PROCESSES",
        "job_processes",
        "",
        "maximum number of processes and threads of a job; if empty, 512 or half of the container's limit",
    ),
    row(
        "SCCACHE_JOB_DISK",
        "job_disk",
        "",
        "maximum size of a job's files; if empty, half of the free space at start, at most 10G",
    ),
    row(
        "SCCACHE_JOB_TIME",
        "job_time",
        "20m",
        "maximum duration of a job; clients wait 20 minutes",
    ),
    row(
        "SCCACHE_DIST_BINARY",
        "dist_binary",
        "sccache-dist",
        "the sccache-dist to run: a name next to SCCACHE_BINARY or on PATH, or a path",
    ),
];

/// Names that cause no warning: the image sets them for programs started with `docker exec`, or the tests read them.
pub(super) const EXPECTED: &[&str] = &[
    "SCCACHE_SERVER_UDS",
    "SCCACHE_CLIENT_SIDE",
    "SCCACHE_SERVER_PORT",
    "SCCACHE_DOCK_CONFIG",
    "SCCACHE_DOCK_TOOLS",
];
