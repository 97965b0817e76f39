//! Judges sccache itself: its version, and the daemon that answers this client. Pure.

use super::Check;
use crate::client::Lane;
use crate::contract::sccache;
use crate::contract::sccache::{ANY_VERSION, SHIPPED, Version};
use serde::Deserialize;
use std::collections::BTreeMap;

/// What this version of sccache can do on `lane`, and whether it shares with the container's own.
pub(super) fn versions(ours: Version, theirs: Option<&str>, lane: Option<Lane>) -> Vec<Check> {
    let what = "sccache";
    let mut checks = Vec::new();
    let upgrade =
        "install sccache 0.19 or newer, for example with sccache-docker-manage.sh install-client";
    match lane {
        Some(Lane::Ipc | Lane::Socket) if ours < sccache::CLIENT_SIDE => checks.push(Check::fail(
            what,
            format!("{ours} has no client-side mode: it compiles without cache on this lane"),
            "use --lane webdav, or install sccache 0.17 or newer",
        )),
        Some(Lane::Dist) if ours < sccache::DIST_CONF => checks.push(Check::fail(
            what,
            format!("{ours} refuses the config file of this lane"),
            upgrade,
        )),
        Some(Lane::Webdav) | None if ours < sccache::CHAIN => checks.push(Check::warn(
            what,
            format!("{ours} does not support a chain of caches: it waits for each put, and builds fail while the gateway is away"),
            upgrade,
        )),
        Some(Lane::Webdav) | None if ours < sccache::SKIP_CACHE_CHECK => checks.push(Check::warn(
            what,
            format!("{ours} does not support SCCACHE_SKIP_CACHE_CHECK: builds fail while the gateway is away"),
            upgrade,
        )),
        Some(Lane::Ipc | Lane::Socket) if ours.is_untested() => checks.push(Check::warn(
            what,
            format!(
                "{ours} is newer than {SHIPPED}, the newest that this lane was tested with: if its own protocol is another, it \
                 compiles without the cache, or says so and ends"
            ),
            format!("use {ANY_VERSION}, which works with every version, or install {SHIPPED}"),
        )),
        Some(Lane::Dist) if ours.is_untested() => checks.push(Check::warn(
            what,
            format!("{ours} is newer than {SHIPPED}, the newest that this lane was tested with"),
            format!("install {SHIPPED} if builders refuse its jobs"),
        )),
        Some(Lane::Webdav) | None if ours.is_untested() => checks.push(Check::ok(
            what,
            format!("{ours}, newer than {SHIPPED}, the newest that was tested; this lane works with every version"),
        )),
        _ => checks.push(Check::ok(what, ours.to_string())),
    }
    if let Some(theirs) = theirs.and_then(Version::parse)
        && theirs != ours
    {
        checks.push(Check::warn(
            what,
            format!(
                "{ours} here, {theirs} in the container: versions with other keys share no hits"
            ),
            "install the container's own with sccache-docker-manage.sh install-client",
        ));
    }
    checks
}

/// What `sccache --show-stats` said.
pub(super) enum Stats {
    /// The text on its standard output.
    Text(String),
    /// It did not end in time.
    Silent,
    /// It ended badly, with this on its standard error.
    Failed(String),
}

#[derive(Deserialize)]
struct Output {
    stats: Counters,
    #[serde(default)]
    cache_location: String,
    #[serde(default)]
    effective_cache_mode: Option<String>,
}

#[derive(Deserialize)]
struct Counters {
    #[serde(default)]
    compile_requests: u64,
    #[serde(default)]
    requests_executed: u64,
    #[serde(default)]
    cache_write_errors: u64,
    #[serde(default)]
    multi_level: Option<Vec<Level>>,
    #[serde(default)]
    dist_compiles: BTreeMap<String, u64>,
    #[serde(default)]
    dist_errors: u64,
}

#[derive(Deserialize)]
struct Level {
    location: String,
    #[serde(default)]
    writes: u64,
    #[serde(default)]
    write_failures: u64,
}

/// How many compiles the running daemon gave to builders; nothing while none runs. It does not see past a relay.
pub(super) fn distributed(stats: &Stats, by_relay: bool) -> Option<Check> {
    let Stats::Text(text) = stats else {
        return None;
    };
    let output: Output = serde_json::from_str(text).ok()?;
    output.effective_cache_mode.as_ref()?;
    let (what, errors) = ("distributed", output.stats.dist_errors);
    let done: u64 = output.stats.dist_compiles.values().sum();
    let found = match by_relay {
        true => format!("{done} compiles on builders, by way of the relay"),
        false => {
            let builders = output.stats.dist_compiles.len();
            format!("{done} compiles on {builders} builders")
        }
    };
    Some(if errors == 0 {
        Check::ok(what, found)
    } else {
        let found = format!("{found}; {errors} were compiled here because that failed");
        let hint =
            "see above what cannot be reached, and the recent warnings of sccache-dock status";
        Check::warn(what, found, hint)
    })
}

/// The daemon that answers this client now: where does it store, and do its writes arrive?
pub(super) fn judge(stats: &Stats, lane: Option<Lane>) -> Check {
    let what = "daemon";
    let stop = "sccache --stop-server, then build again";
    let text = match stats {
        Stats::Text(text) => text,
        Stats::Silent => {
            return Check::fail(
                what,
                "sccache --show-stats does not end: what listens on this client's address is no sccache",
                "choose another SCCACHE_SERVER_PORT or SCCACHE_SERVER_UDS",
            );
        }
        Stats::Failed(error) => {
            let line = error.lines().next().unwrap_or_default().to_owned();
            return Check::fail(what, line, "fix what sccache complains about");
        }
    };
    let Ok(output) = serde_json::from_str::<Output>(text) else {
        return Check::warn(what, "sccache --show-stats prints no JSON", stop);
    };
    let counters = &output.stats;
    let is_idle = counters.compile_requests + counters.requests_executed == 0;
    if output.effective_cache_mode.is_none() && is_idle {
        return Check::ok(what, "none runs yet: the first compile starts it");
    }
    let levels = counters.multi_level.as_deref().unwrap_or_default();
    let mut places: Vec<&str> = levels.iter().map(|it| it.location.as_str()).collect();
    if places.is_empty() {
        places.push(&output.cache_location);
    }
    let shares = places
        .iter()
        .any(|it| it.starts_with("webdav") || it.contains("sccache-dock"));
    if !shares && lane.is_some() {
        let found = format!(
            "was started with other settings and stores elsewhere: {}",
            places.join(", ")
        );
        return Check::fail(what, found, stop);
    }
    if output.effective_cache_mode.as_deref() == Some("ReadOnly") {
        let found = "reads only: its first write was refused when it started";
        return Check::warn(what, found, stop);
    }
    let remote = levels.iter().find(|it| it.location.starts_with("webdav"));
    let (writes, failures) = remote.map_or((1, counters.cache_write_errors), |it| {
        (it.writes, it.write_failures)
    });
    if failures > 0 {
        let found = format!("{failures} writes to the shared cache failed, {writes} arrived");
        let hint = "fix the token or the gateway (see above), then sccache --stop-server";
        return Check::warn(what, found, hint);
    }
    Check::ok(what, places.join(", "))
}
