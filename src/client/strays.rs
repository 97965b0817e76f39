//! What may be left over in somebody's environment and changes, without a word, what our lanes do. One table: `client-env`
//! takes these variables away, `doctor` names those that are there. Pure.
//!
//! Source: `src/config.rs`, `src/server.rs`, `src/cmdline.rs`, `src/util.rs` and `src/compiler/c.rs` of sccache 0.19.0.

use super::NO_BASEDIRS;

/// What one of them does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harm {
    /// Makes another store out of this table of sccache's config file, which is preferred to WebDAV.
    Store(&'static str),
    /// Sccache refuses to run with it, unless this other variable is set.
    Without(&'static str),
    /// Sccache refuses to run with it if this other variable is set too, even to nothing.
    With(&'static str),
    /// Every compile misses, be it set to nothing.
    Misses,
    /// Something else, which is said where the variable belongs, or nothing bad.
    Other,
}

/// A variable.
#[derive(Debug)]
pub(crate) struct Stray {
    pub(crate) name: &'static str,
    pub(crate) harm: Harm,
    /// A value that does nothing, for formats that cannot unset. Only for what matters in spite of the chain, which
    /// names the store. Not an empty one where sccache 0.10 reads the variable: it takes that for a setting.
    pub(crate) neutral: Option<&'static str>,
}

const fn stray(name: &'static str, harm: Harm) -> Stray {
    Stray {
        name,
        harm,
        neutral: None,
    }
}

const fn neutral(name: &'static str, harm: Harm, value: &'static str) -> Stray {
    Stray {
        name,
        harm,
        neutral: Some(value),
    }
}

/// Unset in every lane that does not set them itself. Not `SCCACHE_C_CUSTOM_CACHE_BUSTER` and `SCCACHE_DIRECT`, which
/// part keys where somebody means that: `doctor` says what they do.
pub(crate) const STRAYS: &[Stray] = &[
    stray("CARGO_BUILD_INCREMENTAL", Harm::Other),
    stray("SCCACHE_AZURE_BLOB_CONTAINER", Harm::Store("azure")),
    stray("SCCACHE_AZURE_CONNECTION_STRING", Harm::Store("azure")),
    stray("SCCACHE_BUCKET", Harm::Store("s3")),
    stray("SCCACHE_COS_BUCKET", Harm::Other),
    stray("SCCACHE_ENDPOINT", Harm::Other),
    stray("SCCACHE_GCS_BUCKET", Harm::Store("gcs")),
    stray(
        "SCCACHE_GCS_CREDENTIALS_URL",
        Harm::Without("SCCACHE_GCS_BUCKET"),
    ),
    stray("SCCACHE_GCS_KEY_PATH", Harm::Without("SCCACHE_GCS_BUCKET")),
    stray("SCCACHE_GCS_OAUTH_URL", Harm::Without("SCCACHE_GCS_BUCKET")),
    neutral("SCCACHE_GHA_ENABLED", Harm::Store("gha"), "false"),
    stray("SCCACHE_GHA_VERSION", Harm::Store("gha")),
    neutral("SCCACHE_LOCAL_RW_MODE", Harm::Other, "READ_WRITE"),
    stray("SCCACHE_MEMCACHED", Harm::Store("memcached")),
    stray("SCCACHE_MEMCACHED_ENDPOINT", Harm::Store("memcached")),
    stray("SCCACHE_MULTILEVEL_WRITE_ERROR_POLICY", Harm::Other),
    stray("SCCACHE_NO_CACHE", Harm::Misses),
    neutral("SCCACHE_NO_DAEMON", Harm::Other, "0"),
    stray("SCCACHE_OSS_BUCKET", Harm::Other),
    stray("SCCACHE_RECACHE", Harm::Misses),
    stray("SCCACHE_REDIS", Harm::Store("redis")),
    stray("SCCACHE_REDIS_CLUSTER_ENDPOINTS", Harm::Store("redis")),
    stray("SCCACHE_REDIS_ENDPOINT", Harm::Store("redis")),
    stray("SCCACHE_REDIS_EXPIRATION", Harm::With("SCCACHE_REDIS_TTL")),
    stray("SCCACHE_REDIS_TTL", Harm::Other),
    stray("SCCACHE_STARTUP_NOTIFY", Harm::Other),
    neutral("SCCACHE_START_SERVER", Harm::Other, "0"),
    stray("SCCACHE_WEBDAV_PASSWORD", Harm::Other),
    neutral("SCCACHE_WEBDAV_RW_MODE", Harm::Other, "READ_WRITE"),
    stray("SCCACHE_WEBDAV_USERNAME", Harm::Other),
];

/// Unset as well where a daemon of the client's own speaks WebDAV. An empty value means that the variable is not set, to
/// sccache and to the scripts of users; older versions do not read it.
pub(crate) const STRAYS_WEBDAV: &[Stray] = &[neutral("SCCACHE_CLIENT_SIDE", Harm::Other, "")];

/// Unset as well where sccache's own protocol is spoken. `SCCACHE_LOG` turns client-side mode off without a word.
pub(crate) const STRAYS_OWN_PROTOCOL: &[Stray] = &[
    stray("SCCACHE_LOG", Harm::Other),
    stray("SCCACHE_MULTILEVEL_CHAIN", Harm::Other),
    stray("SCCACHE_WEBDAV_DISABLE_CREATE_DIR", Harm::Other),
    stray("SCCACHE_WEBDAV_ENDPOINT", Harm::Other),
    stray("SCCACHE_WEBDAV_KEY_PREFIX", Harm::Other),
    stray("SCCACHE_WEBDAV_TOKEN", Harm::Other),
];

/// Unset as well where sccache has entries of direct mode, for which it would give wrong objects.
pub(crate) const BASEDIRS: &Stray = &neutral("SCCACHE_BASEDIRS", Harm::Other, NO_BASEDIRS);

/// A value for `name` that does nothing.
pub(crate) fn neutral_value(name: &str) -> Option<&'static str> {
    let all = STRAYS.iter().chain(STRAYS_WEBDAV).chain([BASEDIRS]);
    all.into_iter().find(|it| it.name == name)?.neutral
}
