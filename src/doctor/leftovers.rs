//! What is left over of another cache: variables, and lines of sccache's config file. Pure.

use super::environment::{is_on, value};
use super::{Check, Environment};
use crate::client::Lane;
use crate::client::sccache_file::Conf;
use crate::client::strays::{Harm, STRAYS};

const NO_CHAIN: &str = "chooses another store: sccache prefers it to WebDAV";

/// Names what a client of this lane should not have.
pub(super) fn judge(
    environment: &Environment,
    conf: Option<&Conf>,
    lane: Option<Lane>,
) -> Vec<Check> {
    let mut checks: Vec<Check> = STRAYS
        .iter()
        .filter_map(|stray| variable(stray.name, stray.harm, environment, conf, lane))
        .collect();
    checks.extend(
        conf.map(|conf| lines(conf, environment, lane))
            .unwrap_or_default(),
    );
    checks
}

fn variable(
    name: &str,
    harm: Harm,
    environment: &Environment,
    conf: Option<&Conf>,
    lane: Option<Lane>,
) -> Option<Check> {
    let text = environment.get(name)?;
    let hint = format!("unset {name}");
    let is_set = |name: &str| value(environment, name).is_some();
    let refuses = |found: String| Check::fail(name, found, hint.clone());
    let warn = |found: &str| Some(Check::warn(name, found, hint.clone()));
    match harm {
        Harm::Store(_) if matches!(lane, Some(Lane::Ipc | Lane::Socket)) => None,
        Harm::Store(_)
            if text.is_empty() || (name == "SCCACHE_GHA_ENABLED" && !is_on(environment, name)) =>
        {
            None
        }
        Harm::Store(_) if has_chain(environment, conf) => {
            warn("chooses another store where sccache does not support chains (before 0.16)")
        }
        Harm::Store(_) => Some(Check::fail(name, NO_CHAIN, hint)),
        Harm::Without(other) => (!text.is_empty() && !is_set(other)).then(|| {
            refuses(format!(
                "sccache refuses to run with it, as {other} is not set"
            ))
        }),
        Harm::With(other) => environment
            .contains_key(other)
            .then(|| refuses(format!("sccache refuses to run with it and {other}"))),
        Harm::Misses => warn("set, be it to nothing: every compile misses"),
        Harm::Other if name == "SCCACHE_NO_DAEMON" && text == "1" => warn(
            "the daemon stays in the foreground of the build that starts it: either the build does not end, or the daemon ends \
             with it",
        ),
        Harm::Other => None,
    }
}

fn has_chain(environment: &Environment, conf: Option<&Conf>) -> bool {
    value(environment, "SCCACHE_MULTILEVEL_CHAIN").is_some()
        || conf.is_some_and(|conf| conf.chain.is_some())
}

/// Of the config file, what no variable overrides. That it names a scheduler or folders is said elsewhere.
fn lines(conf: &Conf, environment: &Environment, lane: Option<Lane>) -> Vec<Check> {
    let (what, path) = ("config file", conf.path.display());
    let mut checks = Vec::new();
    if !matches!(lane, Some(Lane::Webdav | Lane::Dist)) {
        return checks;
    }
    let is_set = |name: &str| value(environment, name).is_some();
    if lane == Some(Lane::Webdav) && conf.is_client_side && !is_set("SCCACHE_CLIENT_SIDE") {
        let found = format!(
            "{path} has client_side_mode: this client looks for each compiler anew, every time"
        );
        let hint = "remove client_side_mode, or eval what sccache-dock client-env prints, with which no such file is read";
        checks.push(Check::warn(what, found, hint));
    }
    if !has_chain(environment, Some(conf)) {
        checks.extend(conf.other_stores.iter().map(|store| {
            let found = format!("{path} has [cache.{store}], which {NO_CHAIN}");
            Check::fail(what, found, format!("remove [cache.{store}]"))
        }));
    }
    if conf.is_read_only && !is_set("SCCACHE_WEBDAV_ENDPOINT") {
        let found =
            format!("{path} has rw_mode = \"READ_ONLY\": this client gives nothing to the cache");
        checks.push(Check::warn(what, found, "remove it, unless that is meant"));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{self, Fail, Warn};
    use super::*;
    use std::path::Path;

    fn check(lane: Lane, pairs: &[(&str, &str)], conf: &str, expected: &[(&str, Verdict)]) {
        let owned = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let environment: Environment = owned.collect();
        let conf = Conf::parse(Path::new("/conf"), conf).unwrap();
        let found = judge(&environment, Some(&conf), Some(lane));
        let found: Vec<_> = found
            .iter()
            .map(|it| (it.what.as_str(), it.verdict))
            .collect();
        assert_eq!(found, expected, "{pairs:?}");
    }

    const CHAIN: (&str, &str) = ("SCCACHE_MULTILEVEL_CHAIN", "disk,webdav");

    #[test]
    fn another_store_is_fatal_only_where_no_chain_names_the_store() {
        let bucket = ("SCCACHE_BUCKET", "b");
        check(
            Lane::Webdav,
            &[bucket, CHAIN],
            "",
            &[("SCCACHE_BUCKET", Warn)],
        );
        check(
            Lane::Webdav,
            &[bucket],
            "cache.multilevel.chain = ['webdav']",
            &[("SCCACHE_BUCKET", Warn)],
        );
        check(Lane::Webdav, &[bucket], "", &[("SCCACHE_BUCKET", Fail)]);
        check(
            Lane::Webdav,
            &[("SCCACHE_GHA_ENABLED", "false"), ("SCCACHE_REDIS", "")],
            "",
            &[],
        );
        check(Lane::Ipc, &[bucket], "", &[]);
        let table = "cache.s3.bucket = 'b'";
        check(Lane::Webdav, &[], table, &[("config file", Fail)]);
        check(Lane::Webdav, &[CHAIN], table, &[]);
    }

    #[test]
    fn what_is_left_over_is_named() {
        let key = ("SCCACHE_GCS_KEY_PATH", "/key");
        let two = [("SCCACHE_REDIS_EXPIRATION", ""), ("SCCACHE_REDIS_TTL", "9")];
        for lane in [Lane::Webdav, Lane::Ipc] {
            check(lane, &[key], "", &[("SCCACHE_GCS_KEY_PATH", Fail)]);
            check(lane, &two, "", &[("SCCACHE_REDIS_EXPIRATION", Fail)]);
            check(lane, &two[..1], "", &[]);
            for name in ["SCCACHE_NO_CACHE", "SCCACHE_RECACHE"] {
                check(lane, &[(name, "")], "", &[(name, Warn)]);
            }
            check(
                lane,
                &[("SCCACHE_NO_DAEMON", "1")],
                "",
                &[("SCCACHE_NO_DAEMON", Warn)],
            );
            check(lane, &[("SCCACHE_NO_DAEMON", "0")], "", &[]);
        }
        check(
            Lane::Webdav,
            &[],
            "client_side_mode = true",
            &[("config file", Warn)],
        );
        check(Lane::Ipc, &[], "client_side_mode = true", &[]);
        let read_only = "cache.webdav = { endpoint = 'http://c', rw_mode = 'READ_ONLY' }";
        check(Lane::Webdav, &[], read_only, &[("config file", Warn)]);
        check(
            Lane::Webdav,
            &[("SCCACHE_WEBDAV_ENDPOINT", "http://c")],
            read_only,
            &[],
        );
    }
}
