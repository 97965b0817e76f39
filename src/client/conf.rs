//! Sccache's own config file, as far as it says what our set says.
//!
//! It is the only place where sccache reads a scheduler from: there is no variable for it.

use super::Lane;
use super::set::empty_folder;
use super::set::{Level, Set, Value};
use crate::base::secret::Secret;
use serde::Serialize;

/// The first line of every file that we write, by which we know it again.
pub(crate) const MARK: &str = "# written by sccache-dock client-env";

/// Before it listens, a daemon asks the scheduler: a slow answer must not fail the build that waits for the daemon.
const STARTUP_MILLISECONDS: u32 = 30_000;

#[derive(Serialize)]
struct ConfigFile<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    client_side_mode: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_startup_timeout_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<Cache<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dist: Option<Dist<'a>>,
}

#[derive(Serialize)]
struct Cache<'a> {
    disk: Disk,
    multilevel: Multilevel,
    webdav: Webdav<'a>,
}

#[derive(Serialize)]
struct Disk {
    #[serde(skip_serializing_if = "Option::is_none")]
    dir: Option<String>,
    rw_mode: &'static str,
}

#[derive(Serialize)]
struct Multilevel {
    chain: &'static [&'static str],
    write_error_policy: &'static str,
}

#[derive(Serialize)]
struct Webdav<'a> {
    endpoint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_prefix: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    disable_create_dir: bool,
}

#[derive(Serialize)]
struct Dist<'a> {
    scheduler_url: &'a str,
    /// As sccache's default: an archive of a toolchain that does not fit fails the compile.
    toolchain_cache_size: &'static str,
    auth: Auth<'a>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Auth<'a> {
    Token { token: &'a str },
}

/// The file's text, without comments.
pub(super) fn text(set: &Set) -> String {
    let token = set.variables.iter().find_map(|(_, value)| match value {
        Value::Token(token) => Some(token.reveal()),
        _ => None,
    });
    let webdav = matches!(set.lane, Lane::Webdav | Lane::Dist);
    let file = ConfigFile {
        client_side_mode: (!webdav).then_some(true),
        server_startup_timeout_ms: set.dist.is_some().then_some(STARTUP_MILLISECONDS),
        cache: webdav.then(|| Cache {
            // As the variables have it, see [`Set`].
            disk: match set.level {
                Level::Disk => Disk {
                    dir: None,
                    rw_mode: "READ_WRITE",
                },
                Level::Empty => Disk {
                    dir: Some(empty_folder(set)),
                    rw_mode: "READ_ONLY",
                },
            },
            multilevel: Multilevel {
                chain: &["disk", "webdav"],
                write_error_policy: match set.level {
                    Level::Disk => "ignore",
                    Level::Empty => "all",
                },
            },
            webdav: Webdav {
                endpoint: &set.endpoint,
                key_prefix: set.namespace.as_deref(),
                token,
                disable_create_dir: true,
            },
        }),
        dist: set.dist.as_ref().map(|dist| Dist {
            scheduler_url: &dist.scheduler,
            toolchain_cache_size: "10G",
            auth: Auth::Token {
                token: Secret::reveal(&dist.token),
            },
        }),
    };
    toml::to_string(&file).expect("three levels of tables with text, numbers and flags")
}

/// The same with the line that makes it ours.
pub(super) fn marked(set: &Set) -> String {
    format!("{MARK}\n{}", text(set))
}

/// What a line of [`text`] says, for variables of the same meaning.
pub(super) fn covers(name: &str) -> bool {
    [
        "SCCACHE_CLIENT_SIDE",
        "SCCACHE_CONF",
        "SCCACHE_LOCAL_RW_MODE",
        "SCCACHE_MULTILEVEL_CHAIN",
        "SCCACHE_MULTILEVEL_WRITE_ERROR_POLICY",
        "SCCACHE_WEBDAV_DISABLE_CREATE_DIR",
        "SCCACHE_WEBDAV_ENDPOINT",
        "SCCACHE_WEBDAV_KEY_PREFIX",
    ]
    .contains(&name)
}
