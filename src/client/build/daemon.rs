//! What sccache's own daemon counted in a build.

use crate::client::run::{Ended, Running};
use crate::explain::protocol::{Daemon, Level};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

/// It may have to start first.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The client's sccache.
#[derive(Debug)]
pub(super) struct Sccache {
    program: String,
    variables: BTreeMap<String, String>,
}

/// Counters since the daemon's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Stats {
    cache_hits: Counts,
    cache_misses: Counts,
    cache_errors: Counts,
    cache_timeouts: u64,
    cache_write_errors: u64,
    not_cached: BTreeMap<String, u64>,
    dist_compiles: BTreeMap<String, u64>,
    dist_errors: u64,
    multi_level: Option<Vec<Level>>,
}

/// By language.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Counts {
    counts: BTreeMap<String, u64>,
}

impl Counts {
    fn sum(&self) -> u64 {
        self.counts.values().sum()
    }
}

impl Sccache {
    /// The one that cargo would use, with what its config files set.
    pub(super) fn new(wrapper: String, seen: &BTreeMap<String, String>) -> Sccache {
        Sccache {
            program: wrapper,
            variables: seen.clone(),
        }
    }

    fn ask(&self, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new(&self.program);
        command.args(arguments).envs(&self.variables);
        let running = Running::start(&mut command, TIMEOUT).ok()?;
        match running.end().ok()? {
            Ended::Well(text) => Some(text),
            Ended::Badly(_) | Ended::Late => None,
        }
    }

    /// Its counters; `None` where there is no daemon of this client's own.
    pub(super) fn stats(&self) -> Option<Stats> {
        let value = self.variables.get("SCCACHE_CLIENT_SIDE");
        let value = value.map(|it| it.to_lowercase()).unwrap_or_default();
        if ["true", "on", "1"].contains(&value.as_str()) {
            return None;
        }
        parse(&self.ask(&["--show-stats", "--stats-format", "json"])?)
    }

    /// Its version, such as `0.19.0`.
    pub(super) fn version(&self) -> String {
        let text = self.ask(&["--version"]).unwrap_or_default();
        let version = text.split_whitespace().last();
        version.unwrap_or_default().to_owned()
    }
}

fn parse(text: &str) -> Option<Stats> {
    #[derive(Deserialize)]
    struct Printed {
        stats: Stats,
    }
    let printed: Printed = serde_json::from_str(text).ok()?;
    Some(printed.stats)
}

impl Stats {
    /// What was counted since; all of it, if another daemon has started meanwhile.
    pub(super) fn since(&self, before: &Stats) -> Daemon {
        let is_new = self.cache_hits.sum() < before.cache_hits.sum()
            || self.cache_misses.sum() < before.cache_misses.sum();
        let none = Stats::default();
        let before = if is_new { &none } else { before };
        let grown = |of: fn(&Stats) -> u64| of(self).saturating_sub(of(before));
        let not_cached = self.not_cached.iter().map(|(why, count)| {
            let old = before.not_cached.get(why).copied().unwrap_or(0);
            (why.clone(), count.saturating_sub(old))
        });
        let levels = self.multi_level.iter().flatten().map(|level| {
            let old = before.multi_level.iter().flatten();
            let old = old.filter(|old| old.name == level.name).map(|old| old.hits);
            Level {
                name: level.name.clone(),
                hits: level.hits.saturating_sub(old.sum()),
            }
        });
        Daemon {
            hits: grown(|it| it.cache_hits.sum()),
            misses: grown(|it| it.cache_misses.sum()),
            errors: grown(|it| it.cache_errors.sum()),
            timeouts: grown(|it| it.cache_timeouts),
            write_errors: grown(|it| it.cache_write_errors),
            distributed: grown(|it| it.dist_compiles.values().sum()),
            dist_errors: grown(|it| it.dist_errors),
            not_cached: not_cached.filter(|(_, count)| *count > 0).collect(),
            levels: levels.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_grow_and_begin_anew_with_another_daemon() {
        let stats = |hits: u64, disk: u64| {
            let text = format!(
                r#"{{"stats":{{"cache_hits":{{"counts":{{"Rust":{hits},"C/C++":1}},"adv_counts":{{}}}},
                "not_cached":{{"crate-type":3}},"cache_timeouts":0,
                "multi_level":[{{"name":"L0 (disk)","hits":{disk},"misses":1}}]}},"version":"0.19.0"}}"#
            );
            parse(&text).unwrap()
        };
        let grown = stats(10, 5).since(&stats(4, 3));
        assert_eq!((grown.hits, grown.levels[0].hits), (6, 2));
        assert!(grown.not_cached.is_empty());
        let anew = stats(2, 1).since(&stats(4, 3));
        assert_eq!((anew.hits, anew.levels[0].hits), (3, 1));
        assert_eq!(anew.not_cached["crate-type"], 3);
        assert_eq!(parse("no daemon"), None);
    }
}
