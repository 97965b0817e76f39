//! Sccache's own config file as a client reads it: the one place of this program that looks for it and takes it apart.
//!
//! Source: `config_file` and `try_read_config_file` in `src/config.rs` of sccache 0.19.0.

use super::strays::{Harm, STRAYS};
use crate::base::regular_file;
use crate::base::secret::Secret;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The value of `SCCACHE_CONF` with which sccache reads no file: it is there, and empty.
pub(crate) const NONE: &str = "/dev/null";

/// What it says, as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Conf {
    pub(crate) path: PathBuf,
    pub(crate) scheduler: Option<String>,
    /// The scheduler's.
    pub(crate) token: Option<Secret>,
    /// The endpoint of the cache.
    pub(crate) webdav: Option<String>,
    pub(crate) webdav_token: Option<Secret>,
    /// Sent where there is no token.
    pub(crate) webdav_password: Option<Secret>,
    /// The namespace.
    pub(crate) key_prefix: Option<String>,
    /// The levels of the cache.
    pub(crate) chain: Option<Vec<String>>,
    /// Stores that sccache prefers to WebDAV where no chain names the store.
    pub(crate) other_stores: Vec<&'static str>,
    /// The level on disk: its folder if it names one, and whether nothing is written there.
    pub(crate) disk: Option<(Option<String>, bool)>,
    /// `disable_create_dir` of the cache.
    pub(crate) makes_no_folders: bool,
    /// Clients compile by themselves.
    pub(crate) is_client_side: bool,
    /// Nothing is written to the cache.
    pub(crate) is_read_only: bool,
    /// It names folders that sccache leaves out of the keys of C and C++.
    pub(crate) has_basedirs: bool,
    /// It names toolchains of its own.
    pub(crate) has_toolchains: bool,
}

/// Where sccache looks for it in this environment; `None` where it reads none.
pub(crate) fn path(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    if let Some(path) = environment.get("SCCACHE_CONF") {
        return (path != NONE).then(|| PathBuf::from(path));
    }
    usual_path(environment)
}

/// The same where `SCCACHE_CONF` is not set.
pub(crate) fn usual_path(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    let folder = match environment.get("XDG_CONFIG_HOME") {
        Some(folder) if Path::new(folder).is_absolute() => PathBuf::from(folder),
        _ => {
            let home = environment.get("HOME").filter(|home| !home.is_empty())?;
            Path::new(home).join(".config")
        }
    };
    Some(folder.join("sccache/config"))
}

/// The file, if there is one and it can be read.
pub(crate) fn load(environment: &BTreeMap<String, String>) -> Option<Conf> {
    let path = path(environment)?;
    let text = regular_file::read_to_string(&path).ok()?;
    Conf::parse(&path, &text)
}

impl Conf {
    /// Nothing when it is not what its name promises: JSON with that ending, else TOML.
    pub(crate) fn parse(path: &Path, text: &str) -> Option<Conf> {
        let table: Table = match path.extension().is_some_and(|it| it == "json") {
            true => serde_json::from_str(text).ok()?,
            false => text.parse().ok()?,
        };
        let find = |names: &[&str]| {
            let (first, rest) = names.split_first()?;
            rest.iter()
                .try_fold(table.get(*first)?, |at, name| at.get(name))
        };
        let text = |names: &[&str]| find(names)?.as_str().map(str::to_owned);
        let secret = |names: &[&str]| text(names).map(|it| Secret::new(&it));
        let is_true = |names: &[&str]| find(names).and_then(Value::as_bool) == Some(true);
        let is_filled = |names: &[&str]| {
            let list = find(names).and_then(Value::as_array);
            list.is_some_and(|list| !list.is_empty())
        };
        let mut other_stores: Vec<&str> = STRAYS
            .iter()
            .filter_map(|it| match it.harm {
                Harm::Store(table) => find(&["cache", table]).map(|_| table),
                _ => None,
            })
            .collect();
        other_stores.dedup();
        Some(Conf {
            path: path.to_owned(),
            scheduler: text(&["dist", "scheduler_url"]),
            token: secret(&["dist", "auth", "token"]),
            webdav: text(&["cache", "webdav", "endpoint"]),
            webdav_token: secret(&["cache", "webdav", "token"]),
            webdav_password: secret(&["cache", "webdav", "password"]),
            key_prefix: text(&["cache", "webdav", "key_prefix"]),
            chain: find(&["cache", "multilevel", "chain"])
                .and_then(Value::as_array)
                .map(|levels| {
                    levels
                        .iter()
                        .filter_map(Value::as_str)
                        .map(str::to_owned)
                        .collect()
                }),
            other_stores,
            is_client_side: is_true(&["client_side_mode"]),
            disk: find(&["cache", "disk"]).map(|disk| {
                let text = |name| disk.get(name).and_then(Value::as_str);
                (
                    text("dir").map(str::to_owned),
                    text("rw_mode") == Some("READ_ONLY"),
                )
            }),
            makes_no_folders: is_true(&["cache", "webdav", "disable_create_dir"]),
            is_read_only: text(&["cache", "webdav", "rw_mode"]).as_deref() == Some("READ_ONLY"),
            has_basedirs: is_filled(&["basedirs"]),
            has_toolchains: is_filled(&["dist", "toolchains"]),
        })
    }

    /// The environment with what the file says in its place: a variable beats the whole table that it belongs to.
    pub(crate) fn under(&self, environment: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut seen = environment.clone();
        let has = |name: &str| environment.get(name).is_some_and(|value| !value.is_empty());
        let mut say = |name: &str, value: Option<&str>| match value {
            Some(value) => drop(seen.insert(name.to_owned(), value.to_owned())),
            None => drop(seen.remove(name)),
        };
        if let (Some(endpoint), false) = (&self.webdav, has("SCCACHE_WEBDAV_ENDPOINT")) {
            say("SCCACHE_WEBDAV_ENDPOINT", Some(endpoint));
            say(
                "SCCACHE_WEBDAV_TOKEN",
                self.webdav_token.as_ref().map(Secret::reveal),
            );
            say(
                "SCCACHE_WEBDAV_PASSWORD",
                self.webdav_password.as_ref().map(Secret::reveal),
            );
            say("SCCACHE_WEBDAV_KEY_PREFIX", self.key_prefix.as_deref());
            say(
                "SCCACHE_WEBDAV_DISABLE_CREATE_DIR",
                self.makes_no_folders.then_some("true"),
            );
        }
        if let (Some(chain), false) = (&self.chain, has("SCCACHE_MULTILEVEL_CHAIN")) {
            say("SCCACHE_MULTILEVEL_CHAIN", Some(&chain.join(",")));
        }
        let is_of_disk = [
            "SCCACHE_DIR",
            "SCCACHE_CACHE_SIZE",
            "SCCACHE_DIRECT",
            "SCCACHE_LOCAL_RW_MODE",
        ];
        if let (Some((folder, is_read_only)), false) = (&self.disk, is_of_disk.into_iter().any(has))
        {
            say("SCCACHE_DIR", folder.as_deref());
            say(
                "SCCACHE_LOCAL_RW_MODE",
                Some(if *is_read_only {
                    "READ_ONLY"
                } else {
                    "READ_WRITE"
                }),
            );
        }
        if self.is_client_side && !has("SCCACHE_CLIENT_SIDE") {
            say("SCCACHE_CLIENT_SIDE", Some("true"));
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_in(pairs: &[(&str, &str)]) -> Option<PathBuf> {
        let pairs = pairs.iter();
        path(
            &pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn file_is_looked_for_where_sccache_does() {
        let home = ("HOME", "/home/me");
        let expected = |path: &str| Some(PathBuf::from(path));
        assert_eq!(
            path_in(&[home]),
            expected("/home/me/.config/sccache/config")
        );
        let xdg = |folder| ("XDG_CONFIG_HOME", folder);
        assert_eq!(
            path_in(&[home, xdg("/etc/me")]),
            expected("/etc/me/sccache/config")
        );
        assert_eq!(path_in(&[home, xdg("relative")]), path_in(&[home]));
        assert_eq!(
            path_in(&[home, ("SCCACHE_CONF", "/x.json")]),
            expected("/x.json")
        );
        assert_eq!(path_in(&[home, ("SCCACHE_CONF", NONE)]), None);
        assert_eq!(path_in(&[("HOME", "")]), None);
    }

    #[test]
    fn variable_beats_the_table_that_it_belongs_to() {
        let text = "[cache.webdav]\nendpoint = 'http://file'\ntoken = 'of-file'\nkey_prefix = 'team'\n\
                    [cache.multilevel]\nchain = ['disk', 'webdav']\n[cache.disk]\nrw_mode = 'READ_WRITE'\n";
        let conf = Conf::parse(Path::new("config"), text).unwrap();
        let seen = |pairs: &[(&str, &str)]| {
            let pairs = pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let seen = conf.under(&pairs.collect());
            let names = [
                "WEBDAV_ENDPOINT",
                "WEBDAV_TOKEN",
                "MULTILEVEL_CHAIN",
                "LOCAL_RW_MODE",
            ];
            names.map(|name| {
                seen.get(&format!("SCCACHE_{name}"))
                    .cloned()
                    .unwrap_or_default()
            })
        };
        assert_eq!(
            seen(&[]),
            ["http://file", "of-file", "disk,webdav", "READ_WRITE"]
        );
        let token = ("SCCACHE_WEBDAV_TOKEN", "mine");
        assert_eq!(
            seen(&[token]),
            seen(&[]),
            "without an endpoint sccache does not read it"
        );
        let endpoint = ("SCCACHE_WEBDAV_ENDPOINT", "http://mine");
        let chain = ("SCCACHE_MULTILEVEL_CHAIN", "webdav");
        let all = [endpoint, token, chain, ("SCCACHE_DIR", "/d")];
        assert_eq!(seen(&all), ["http://mine", "mine", "webdav", ""]);
        assert_eq!(seen(&[endpoint])[1], "", "the file's is for another cache");
    }

    #[test]
    fn both_kinds_of_file_are_understood_and_nothing_else() {
        let toml = "client_side_mode = true\nbasedirs = ['/a']\n[cache.s3]\nbucket = 'b'\n\
                    [cache.webdav]\nendpoint = 'http://c'\nkey_prefix = 'team'\nrw_mode = 'READ_ONLY'\n\
                    [cache.multilevel]\nchain = ['disk', 'webdav']\n";
        let conf = Conf::parse(Path::new("config"), toml).unwrap();
        assert_eq!(conf.webdav.as_deref(), Some("http://c"));
        assert_eq!(conf.key_prefix.as_deref(), Some("team"));
        assert_eq!(conf.other_stores, ["s3"]);
        assert_eq!(
            conf.chain.as_deref(),
            Some(&["disk".to_owned(), "webdav".to_owned()][..])
        );
        assert!(conf.is_client_side && conf.is_read_only && conf.has_basedirs);
        assert!(!conf.has_toolchains);
        let json = r#"{"cache": {"webdav": {"endpoint": "http://c"}}}"#;
        let conf = Conf::parse(Path::new("config.json"), json).unwrap();
        assert_eq!(conf.webdav.as_deref(), Some("http://c"));
        assert_eq!(Conf::parse(Path::new("config"), json), None);
        assert_eq!(Conf::parse(Path::new("config.json"), toml), None);
    }
}
