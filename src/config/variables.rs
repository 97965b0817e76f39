//! Names of environment variables: those that sccache reads, those that guides invented, and the nearest match for a
//! typo.
//!
//! Pure. Both the container's settings and the client's doctor use these lists. Some invented names are settings of
//! this container (`SCCACHE_AUTH_TOKEN`), so callers check their own names first.

/// Names that guides recommend but sccache silently ignores, each with what to use instead.
pub const INVENTED: &[(&str, &str)] = &[
    (
        "SCCACHE_AUTH_TOKEN",
        "SCCACHE_WEBDAV_TOKEN on a client (SCCACHE_AUTH_TOKEN is a setting of the container)",
    ),
    (
        "SCCACHE_DIST_PREFIX",
        "scheduler_url under [dist] in sccache's config file",
    ),
    (
        "SCCACHE_DIST_SCHEDULER_URL",
        "scheduler_url under [dist] in sccache's config file",
    ),
    (
        "SCCACHE_DIST_TOKEN",
        "auth under [dist] in sccache's config file",
    ),
    (
        "SCCACHE_SCHEDULER_URL",
        "scheduler_url under [dist] in sccache's config file",
    ),
    (
        "SCCACHE_SERVER_ADDR",
        "SCCACHE_WEBDAV_ENDPOINT=http://HOST:4226",
    ),
    (
        "SCCACHE_SERVER_HOST",
        "SCCACHE_WEBDAV_ENDPOINT=http://HOST:4226",
    ),
    (
        "SCCACHE_STORAGE_MODE",
        "nothing on a client (the container's own setting is MODE)",
    ),
    (
        "SCCACHE_TLS_CERT",
        "nothing on a client (it is a setting of the container)",
    ),
    (
        "SCCACHE_TLS_KEY",
        "nothing on a client (it is a setting of the container)",
    ),
];

/// The proxies on the way to others, by the names that every HTTP client reads, in lower case too.
pub const PROXIES: [&str; 8] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// Every `SCCACHE_*` variable that sccache 0.19.0 itself reads.
pub const SCCACHE_OWN: &[&str] = &[
    "SCCACHE_ALLOW_CORE_DUMPS",
    "SCCACHE_AZURE_BLOB_CONTAINER",
    "SCCACHE_AZURE_CONNECTION_STRING",
    "SCCACHE_AZURE_ENDPOINT",
    "SCCACHE_AZURE_KEY_PREFIX",
    "SCCACHE_AZURE_RW_MODE",
    "SCCACHE_AZURE_STORAGE_ACCOUNT",
    "SCCACHE_BASEDIRS",
    "SCCACHE_BUCKET",
    "SCCACHE_CACHED_CONF",
    "SCCACHE_CACHE_MULTIARCH",
    "SCCACHE_CACHE_SIZE",
    "SCCACHE_CACHE_ZSTD_LEVEL",
    "SCCACHE_CLIENT_SIDE",
    "SCCACHE_CONF",
    "SCCACHE_COS_BUCKET",
    "SCCACHE_COS_ENDPOINT",
    "SCCACHE_COS_KEY_PREFIX",
    "SCCACHE_COS_RW_MODE",
    "SCCACHE_C_CUSTOM_CACHE_BUSTER",
    "SCCACHE_DIR",
    "SCCACHE_DIRECT",
    "SCCACHE_DIST_CLIENT_CACHE_DIR",
    "SCCACHE_ENDPOINT",
    "SCCACHE_ERROR_LOG",
    "SCCACHE_EXTRAFILES",
    "SCCACHE_GCS_BUCKET",
    "SCCACHE_GCS_CREDENTIALS_URL",
    "SCCACHE_GCS_KEY_PATH",
    "SCCACHE_GCS_KEY_PREFIX",
    "SCCACHE_GCS_OAUTH_URL",
    "SCCACHE_GCS_RW_MODE",
    "SCCACHE_GCS_SERVICE_ACCOUNT",
    "SCCACHE_GHA_ENABLED",
    "SCCACHE_GHA_RW_MODE",
    "SCCACHE_GHA_VERSION",
    "SCCACHE_IDLE_TIMEOUT",
    "SCCACHE_IGNORE_SERVER_IO_ERROR",
    "SCCACHE_LOCAL_RW_MODE",
    "SCCACHE_LOG",
    "SCCACHE_LOG_MILLIS",
    "SCCACHE_MAX_FRAME_LENGTH",
    "SCCACHE_MEMCACHED",
    "SCCACHE_MEMCACHED_ENDPOINT",
    "SCCACHE_MEMCACHED_EXPIRATION",
    "SCCACHE_MEMCACHED_KEY_PREFIX",
    "SCCACHE_MEMCACHED_PASSWORD",
    "SCCACHE_MEMCACHED_RW_MODE",
    "SCCACHE_MEMCACHED_USERNAME",
    "SCCACHE_MULTILEVEL_CHAIN",
    "SCCACHE_MULTILEVEL_WRITE_ERROR_POLICY",
    "SCCACHE_NO_CACHE",
    "SCCACHE_NO_DAEMON",
    "SCCACHE_OSS_BUCKET",
    "SCCACHE_OSS_ENDPOINT",
    "SCCACHE_OSS_KEY_PREFIX",
    "SCCACHE_OSS_NO_CREDENTIALS",
    "SCCACHE_OSS_RW_MODE",
    "SCCACHE_RECACHE",
    "SCCACHE_REDIS",
    "SCCACHE_REDIS_CLUSTER_ENDPOINTS",
    "SCCACHE_REDIS_DB",
    "SCCACHE_REDIS_ENDPOINT",
    "SCCACHE_REDIS_EXPIRATION",
    "SCCACHE_REDIS_KEY_PREFIX",
    "SCCACHE_REDIS_PASSWORD",
    "SCCACHE_REDIS_RW_MODE",
    "SCCACHE_REDIS_TTL",
    "SCCACHE_REDIS_USERNAME",
    "SCCACHE_REGION",
    "SCCACHE_S3_ENABLE_VIRTUAL_HOST_STYLE",
    "SCCACHE_S3_KEY_PREFIX",
    "SCCACHE_S3_NO_CREDENTIALS",
    "SCCACHE_S3_RW_MODE",
    "SCCACHE_S3_SERVER_SIDE_ENCRYPTION",
    "SCCACHE_S3_SERVER_SIDE_ENCRYPTION_AWS_KMS",
    "SCCACHE_S3_SERVER_SIDE_ENCRYPTION_KMS_KEY_ID",
    "SCCACHE_S3_USE_SSL",
    "SCCACHE_SERVER_PORT",
    "SCCACHE_SERVER_UDS",
    "SCCACHE_SKIP_CACHE_CHECK",
    "SCCACHE_STARTUP_NOTIFY",
    "SCCACHE_START_SERVER",
    "SCCACHE_WEBDAV_DISABLE_CREATE_DIR",
    "SCCACHE_WEBDAV_ENDPOINT",
    "SCCACHE_WEBDAV_KEY_PREFIX",
    "SCCACHE_WEBDAV_PASSWORD",
    "SCCACHE_WEBDAV_RW_MODE",
    "SCCACHE_WEBDAV_TOKEN",
    "SCCACHE_WEBDAV_USERNAME",
];

/// What to use instead of `name`, if guides invented it.
pub fn instead_of(name: &str) -> Option<&'static str> {
    INVENTED
        .iter()
        .find(|(invented, _)| *invented == name)
        .map(|(_, instead)| *instead)
}

/// The name in `known` that the user most likely meant by `name`; `None` if none is similar enough.
///
/// Case is ignored. Up to a fifth of the letters may differ (a letter changed, missing, too many, or two swapped).
pub fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = name.to_ascii_uppercase();
    let bound = (typed.chars().count() / 5).clamp(1, 4);
    known
        .into_iter()
        .map(|candidate| {
            let distance = strsim::osa_distance(&typed, &candidate.to_ascii_uppercase());
            (distance, candidate)
        })
        .filter(|(distance, _)| *distance <= bound)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(typed: &str, expected: Option<&str>) {
        assert_eq!(
            suggest(typed, SCCACHE_OWN.iter().copied()),
            expected,
            "{typed}"
        );
    }

    #[test]
    fn a_typo_finds_the_nearest_name() {
        check("SCCACHE_WEBDAV_ENPOINT", Some("SCCACHE_WEBDAV_ENDPOINT"));
        check("SCCACHE_WEBDAV_TOKNE", Some("SCCACHE_WEBDAV_TOKEN"));
        check("sccache_dir", Some("SCCACHE_DIR"));
        check("SCCACHE_CACHESIZE", Some("SCCACHE_CACHE_SIZE"));
        check("SCCACHE_SERVER_POTR", Some("SCCACHE_SERVER_PORT"));
    }

    #[test]
    fn an_unknown_name_finds_nothing() {
        check("SCCACHE_WHATEVER_ELSE", None);
        check("", None);
        check("X", None);
    }

    #[test]
    fn an_exact_name_finds_itself() {
        for name in SCCACHE_OWN {
            check(name, Some(name));
        }
    }

    #[test]
    fn the_lists_are_sorted_and_share_no_name() {
        assert!(SCCACHE_OWN.is_sorted() && INVENTED.is_sorted());
        for (name, _) in INVENTED {
            assert!(!SCCACHE_OWN.contains(name), "{name}");
        }
        assert!(instead_of("SCCACHE_DIST_PREFIX").is_some());
        assert!(instead_of("SCCACHE_DIR").is_none());
    }
}
